"""Names of tables, patterns over them, and which entry of the configuration a table falls under.

A name is written as in SQL: `public.t`, `"Odd.Schema"."ta""ble"`; what is not quoted folds to lower case
(ASCII only, as PostgreSQL does in UTF-8); a bare `t` is in schema public. In a pattern `*` stands for any
characters and `?` for one, outside quotes: `public.*`, `*.*`, `"Odd".*`, `public.conv_*`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

DEFAULT_SCHEMA = "public"
WILDCARDS = frozenset("*?")
PATTERN_RELKINDS = frozenset("rp")

_PART = re.compile(r'"(?P<quoted>(?:[^"\0]|"")+)"|(?P<wild>[\w$*?]*[*?][\w$*?]*)|(?P<plain>[^\W\d][\w$]*)')
_PLAIN = re.compile(r"[a-z_][a-z0-9_]*", re.ASCII)
_FOLD = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


class Entry(Protocol):
    """What selection needs of a `[[tables]]` entry: its name or pattern, and where it goes."""

    @property
    def name(self) -> str: ...
    @property
    def target(self) -> str | None: ...


E = TypeVar("E", bound=Entry)


@dataclass(frozen=True, slots=True)
class Part:
    """One half of a name: `text` is the folded or unquoted name; `wild` tells that its `*` and `?` are wildcards."""

    text: str
    wild: bool = False

    @property
    def literal_characters(self) -> int:
        """Count the characters that are no wildcards; a literal part counts one more than all its characters."""
        return sum(c not in WILDCARDS for c in self.text) if self.wild else len(self.text) + 1

    def matches(self, name: str) -> bool:
        """Tell whether the whole name is meant. Case counts: what was not quoted has been folded already."""
        if not self.wild:
            return self.text == name
        regex = "".join(".*" if c == "*" else "." if c == "?" else re.escape(c) for c in self.text)
        return re.fullmatch(regex, name, re.DOTALL) is not None


@dataclass(frozen=True, slots=True)
class Pattern:
    """A schema and a name, each literal or with wildcards. A wildcard schema never means the system's own."""

    schema: Part
    name: Part

    @property
    def exact(self) -> bool:
        """Tell whether just one table can match."""
        return not (self.schema.wild or self.name.wild)

    @property
    def literal_characters(self) -> int:
        """Return how specific the pattern is; of two that match, the greater one wins."""
        return self.schema.literal_characters + self.name.literal_characters

    def matches(self, schema: str, name: str) -> bool:
        """Tell whether the table of this schema and name, as the catalog spells them, is meant."""
        if self.schema.wild and is_system_schema(schema):
            return False
        return self.schema.matches(schema) and self.name.matches(name)


def is_system_schema(schema: str) -> bool:
    """Tell whether PostgreSQL keeps this schema for itself."""
    return schema == "information_schema" or schema.startswith("pg_")


def parse_pattern(text: str) -> Pattern:
    """Read a name or pattern. Raises ValueError, without the text, when it is neither."""
    parts = _split_name(text.strip())
    if len(parts) == 1:
        return Pattern(Part(DEFAULT_SCHEMA), parts[0])
    if len(parts) == 2:
        return Pattern(*parts)
    raise ValueError("should be a schema and a name; a database cannot stand before them")


def parse_table_name(text: str) -> tuple[str, str]:
    """Read the name of one table into (schema, name). Raises ValueError, without the text, for anything else."""
    pattern = parse_pattern(text)
    if not pattern.exact:
        raise ValueError('should name one table; a "*" or "?" that belongs to the name goes in double quotes')
    return pattern.schema.text, pattern.name.text


def format_table_name(schema: str, name: str) -> str:
    """Return the name as `etl_control.table_name` and JSON have it: always with schema, quoted only when needed.

    `parse_table_name` reads it back to the same pair, whatever characters are in it.
    """
    return f"{format_identifier(schema)}.{format_identifier(name)}"


def format_identifier(name: str) -> str:
    """Quote a name like PostgreSQL's `quote_ident`, but leave keywords bare (`public.user` is good SQL)."""
    return name if _PLAIN.fullmatch(name) else '"' + name.replace('"', '""') + '"'


def select_entry(entries: Iterable[E], schema: str, name: str, relkind: str) -> E | None:
    """Return the entry that the table falls under, or None when it is not selected.

    An exact name wins over every pattern and takes any kind of relation; of patterns the one with the most
    literal characters wins, the first written on a tie, and they take tables and partitioned tables only
    (`pg_class.relkind` r and p). Partitions are the caller's to leave out.
    """
    best: E | None = None
    best_rank = (-1, -1)
    for entry in entries:
        pattern = parse_pattern(entry.name)
        if not pattern.matches(schema, name) or not (pattern.exact or relkind in PATTERN_RELKINDS):
            continue
        rank = (int(pattern.exact), pattern.literal_characters)
        if rank > best_rank:
            best, best_rank = entry, rank
    return best


def target_name(entry: Entry | None, schema: str, name: str) -> tuple[str, str]:
    """Return (schema, name) in the target: the same unless the entry says otherwise.

    The target of a pattern has the form `raw.*`: it maps the schema and keeps the name.
    """
    if entry is None or entry.target is None:
        return schema, name
    target = parse_pattern(entry.target)
    return target.schema.text, name if target.name.wild else target.name.text


def check_target(name: str, target: str) -> None:
    """Raise ValueError when this target cannot go with this name or pattern, as in `public.*` to one table."""
    source, destination = parse_pattern(name), parse_pattern(target)
    if source.exact and not destination.exact:
        raise ValueError("should name one table, as `name` does")
    if not source.exact and (destination.schema.wild or destination.name != Part("*", wild=True)):
        raise ValueError("should have the form schema.*, because `name` is a pattern")


def _split_name(text: str) -> list[Part]:
    parts: list[Part] = []
    position = 0
    while True:
        match = _PART.match(text, position)
        if match is None or (match.end() < len(text) and text[match.end()] != "."):
            raise ValueError(
                "should be a table name like public.t; capitals and other characters need double quotes, as in SQL"
            )
        parts.append(_read_part(match))
        if match.end() == len(text):
            return parts
        position = match.end() + 1


def _read_part(match: re.Match[str]) -> Part:
    if match["quoted"] is not None:
        return Part(match["quoted"].replace('""', '"'))
    if match["wild"] is not None:
        return Part(match["wild"].translate(_FOLD), wild=True)
    return Part(match["plain"].translate(_FOLD))
