r"""SQL statements by name, kept in `sql/` as files that paste into psql.

A file holds sections headed `-- name: x`. A parameter is written `:'x'`, psql's own spelling, and becomes psycopg's
`%(x)s` here; the control schema is written `:"control"`. So a statement runs unchanged in psql after `\set x ...`.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from psycopg import sql

_HEAD = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_PARAMETER = re.compile(r":'(\w+)'")


@cache
def sql_directory() -> Path:
    """Return the folder of SQL files: inside the package when installed, beside it in a checkout."""
    here = Path(__file__).resolve().parent
    inside = here / "sql"
    return inside if inside.is_dir() else here.parent / "sql"


@cache
def _sections(file: str) -> dict[str, str]:
    text = (sql_directory() / "queries" / f"{file}.sql").read_text("utf-8")
    parts = _HEAD.split(text)
    return {name: _strip(body) for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def _strip(body: str) -> str:
    lines = [line for line in body.splitlines() if not line.startswith("--")]
    return "\n".join(lines).strip().removesuffix(";")


def name_control_schema(text: str, control: str) -> str:
    """Put the control schema's quoted name where the text says `:"control"`."""
    return text.replace(':"control"', sql.Identifier(control).as_string())


@cache
def statement(name: str, control: str = "replicator") -> bytes:
    """Return the statement `file.name`, ready for psycopg with a mapping of its parameters.

    Always execute it with a mapping, an empty one too: percent signs are doubled. Raises KeyError for an unknown name.
    """
    file, _, section = name.partition(".")
    text = name_control_schema(_sections(file)[section], control).replace("%", "%%")
    return _PARAMETER.sub(r"%(\1)s", text).encode()
