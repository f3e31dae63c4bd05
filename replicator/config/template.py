"""The configuration written down: rows for the README's table, and the commented `replicator.toml` of `init`.

Both are made from the models, so that each key's meaning and default stand in one place.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from replicator.config.quantity import format_duration, format_size
from replicator.config.section import OPTIONAL, SIZE
from replicator.config.settings import Settings
from replicator.config.settings_source import section_of
from replicator.config.table_setting import BY_COLUMN, TableEntry, TableSettings

WIDTH = 100

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


class SettingRow(NamedTuple):
    """One key for the README: its path, its default as TOML ("" when it has none), what it means."""

    key: str
    default: str
    description: str


@dataclass(frozen=True, slots=True)
class SuggestedTable:
    """A table or pattern that `init` found: `name` as in SQL; `key` and `watermark` only where they must be said."""

    name: str
    key: tuple[str, ...] = ()
    watermark: str | None = None


def setting_rows() -> Iterator[SettingRow]:
    """Yield every key in the order of the file."""
    yield from _section_rows(Settings, "")


def render_config(source_dsn: str, target_dsn: str | None, tables: Iterable[SuggestedTable]) -> str:
    """Return a `replicator.toml` with every key at its default and a comment on each.

    Without tables it says nothing of them, which means `public.*`. The connection strings are written as they are:
    see `dsn_has_password`.
    """
    given = {"source.dsn": source_dsn, "target.dsn": target_dsn or ""}
    lines = ["# Configuration of replicator. Every key can also be set by environment, e.g. REPLICATOR_SOURCE__DSN,"]
    lines += ["# or in a file .env beside this one, where passwords belong.", ""]
    lines += _render_keys(Settings, "", given)
    for name, info in Settings.model_fields.items():
        section = section_of(info.annotation)
        if name == "tables":
            lines += _render_tables(info, tables)
        elif section is not None:
            lines += _render_section(name, section, given)
    return "\n".join(lines) + "\n"


def format_toml(value: object, info: FieldInfo | None = None) -> str:
    """Return a value as TOML; `info` tells a size from another number. None becomes the empty string."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and info is not None and SIZE in info.metadata:
        return format_toml(format_size(value))
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, timedelta):
        return format_toml(format_duration(value))
    if isinstance(value, list | tuple):
        return "[" + ", ".join(format_toml(item) for item in value) + "]"
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{_format_key(key)} = {format_toml(item)}" for key, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    return _format_text("" if value is None else str(value))


def _format_text(text: str) -> str:
    # JSON's escapes are TOML's, except that TOML wants DEL escaped and knows no surrogate pairs.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _format_key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _format_text(key)


def _section_rows(model: type[BaseModel], prefix: str) -> Iterator[SettingRow]:
    for name, info in model.model_fields.items():
        section = section_of(info.annotation)
        if name == "tables":
            for key, table_info in _table_fields():
                yield SettingRow(f"tables.{key}", _format_default(table_info), table_info.description or "")
        elif section is not None:
            yield from _section_rows(section, f"{prefix}{name}.")
        elif model is not TableSettings or name not in BY_COLUMN:
            yield SettingRow(prefix + name, _format_default(info), info.description or "")


def _table_fields() -> Iterator[tuple[str, FieldInfo]]:
    """Yield the keys documented under `[[tables]]`."""
    yield "name", TableEntry.model_fields["name"]
    yield "target", TableEntry.model_fields["target"]
    for key in BY_COLUMN:
        yield key, TableSettings.model_fields[key]


def _has_default(info: FieldInfo) -> bool:
    return not info.is_required() and (info.default is not None or OPTIONAL in info.metadata)


def _format_default(info: FieldInfo) -> str:
    return format_toml(info.default, info) if _has_default(info) else ""


def _render_section(name: str, model: type[BaseModel], given: Mapping[str, str]) -> list[str]:
    lines = ["", *_comment(model.__doc__), f"[{name}]", *_render_keys(model, f"{name}.", given)]
    for key, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is not None:
            lines += _render_section(f"{name}.{key}", section, given)
    return lines


def _render_keys(model: type[BaseModel], prefix: str, given: Mapping[str, str]) -> list[str]:
    lines: list[str] = []
    for name, info in model.model_fields.items():
        if section_of(info.annotation) is not None or (model is TableSettings and name in BY_COLUMN):
            continue
        lines += _comment(info.description)
        if prefix + name in given:
            lines.append(f"{name} = {format_toml(given[prefix + name])}")
        else:
            lines.append(f"{name} = {_format_default(info)}" if _has_default(info) else _render_example(name, info))
    return lines


def _render_tables(info: FieldInfo, tables: Iterable[SuggestedTable]) -> list[str]:
    lines = ["", *_comment(info.description), "# Keys of an entry, with an example of each:", "# [[tables]]"]
    for name, field in _table_fields():
        lines += [*_comment(field.description, indent="#   "), _render_example(name, field)]
    for table in tables:
        lines += ["", "[[tables]]", f"name = {format_toml(table.name)}"]
        if table.key:
            lines.append(f"key = {format_toml(table.key)}")
        if table.watermark is not None:
            lines.append(f"watermark = {format_toml(table.watermark)}")
    return lines


def _render_example(name: str, info: FieldInfo) -> str:
    return f"# {name} = {format_toml(info.examples[0] if info.examples else info.default, info)}"


def _comment(text: str | None, indent: str = "# ") -> list[str]:
    return textwrap.wrap(
        " ".join((text or "").split()),
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
