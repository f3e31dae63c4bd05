"""Write the parts of README.md that come from code: `python -m tests.readme`. A unit test holds them to it."""

from __future__ import annotations

import re
from pathlib import Path

import typer.main
from typer.core import TyperGroup

from replicator.cli.app import app
from replicator.config.template import setting_rows

README = Path(__file__).resolve().parent.parent / "README.md"
_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(text: str) -> str:
    """Return the README with its generated parts made anew."""
    parts = {"commands": _render_commands, "settings": _render_settings}
    return _PART.sub(lambda match: match[1] + parts[match[2]]() + match[3], text)


def _render_commands() -> str:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    rows = []
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            rows += [(f"{name} {inner}", each.help) for inner, each in command.commands.items()]
        else:
            rows.append((name, command.help))
    lines = [f"| `replicator {name}` | {_one_line(text or '')} |" for name, text in rows]
    return "\n".join(["| command | does |", "|---|---|", *lines, ""])


def _render_settings() -> str:
    lines = [f"| `{row.key}` | {_code(row.default)} | {_one_line(row.description)} |" for row in setting_rows()]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *lines, ""])


def _code(default: str) -> str:
    return f"`{default}`" if default else ""


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    README.write_text(render(README.read_text("utf-8")), "utf-8")
