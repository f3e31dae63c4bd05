"""Which strategy reads a table, and why. Pure: decided from the catalog and the configuration alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from replicator.batch import DUE_MARK
from replicator.config.table_setting import TableSettings
from replicator.errors import ConfigError
from replicator.relation import KIND_NAMES, MATVIEW, PARTITIONED, TABLE, Relation
from replicator.rules import Mapping, find_naming_columns

XMIN, WATERMARK, FULL = "xmin", "watermark", "full"
EXACT, BOUNDED = "exact", "bounded"
_TIMESTAMPTZ = "timestamptz"
_WATERMARK_TYPES = frozenset({_TIMESTAMPTZ, "timestamp", "date"})
# A timestamp without zone may be anybody's local time: up to 14 hours ahead of UTC, 12 behind, and a DST hour.
_ZONELESS_SLACK = timedelta(hours=26)
_SLACK = timedelta(seconds=60)
# PostgreSQL's limit (documentation, appendix K).
MOST_COLUMNS = 1600
_UNREADABLE = "the role may not read xmin and ctid"
SMALL_TABLE_ROWS = 1_000_000


@dataclass(frozen=True, slots=True)
class Choice:
    """A strategy, its guarantee, and the reason in one sentence for people."""

    strategy: str
    guarantee: str
    reason: str


def choose_strategy(mapping: Mapping, table: TableSettings, *, on_standby: bool) -> Choice:
    """Choose how the table is read incrementally.

    Raises ConfigError when the configured strategy cannot work on this relation.
    """
    relation, kind = mapping.relation, KIND_NAMES[mapping.relation.kind]
    wanted, naming = table.strategy, find_naming_columns(mapping, table)
    if not mapping.key:
        if wanted in (XMIN, WATERMARK):
            raise _cannot(relation, wanted, "it has no usable key")
        return Choice(FULL, EXACT, "no usable key: compared as a multiset, only the difference is written")
    if wanted == FULL:
        return Choice(FULL, EXACT, "configured")
    if wanted == XMIN:
        if not reads_by_xmin(relation):
            why = f"not every row of this {kind} lives in a heap" if relation.reads_versions else _UNREADABLE
            raise _cannot(relation, wanted, why)
        if naming:
            return Choice(XMIN, BOUNDED, f"configured; {_tell_naming(naming)}: the audit brings it")
        return Choice(XMIN, EXACT, "configured")
    if wanted == WATERMARK:
        problem = _watermark_problem(mapping, on_standby)
        if problem:
            raise _cannot(relation, wanted, problem)
        return Choice(WATERMARK, BOUNDED, "configured")
    return _choose_automatically(mapping, table, naming, on_standby)


def _choose_automatically(mapping: Mapping, table: TableSettings, naming: Sequence[str], on_standby: bool) -> Choice:
    relation, kind = mapping.relation, KIND_NAMES[mapping.relation.kind]
    problem = _watermark_problem(mapping, on_standby)
    if naming and reads_by_xmin(relation) and relation.heap_bytes <= table.xmin_scan_limit:
        return Choice(FULL, EXACT, _tell_naming(naming))
    if reads_by_xmin(relation):
        if relation.heap_bytes <= table.xmin_scan_limit:
            return Choice(XMIN, EXACT, "a heap within xmin_scan_limit: every new row version is seen")
        if problem is None and mapping.watermark and relation.index_on(mapping.watermark.name):
            return Choice(WATERMARK, BOUNDED, "larger than xmin_scan_limit, and the watermark has an index")
        size = "larger than xmin_scan_limit, but without an indexed watermark"
        if naming:
            return Choice(XMIN, BOUNDED, f"{size}; {_tell_naming(naming)}: the audit brings it")
        return Choice(XMIN, EXACT, size)
    if problem is None:
        return Choice(WATERMARK, BOUNDED, f"a {kind} with a watermark, audited by hashes")
    if not relation.reads_versions:
        return Choice(FULL, EXACT, f"{_UNREADABLE}, and {problem}")
    return Choice(FULL, EXACT, f"a {kind}: {problem}")


def reads_by_xmin(relation: Relation) -> bool:
    """Say whether `xmin` marks every change: heaps all the way down, and one relation's rows only."""
    return relation.kind in (TABLE, PARTITIONED) and relation.is_heap and not relation.has_children


def audits_by_xmin(mapping: Mapping, table: TableSettings) -> bool:
    """Say whether an audit can go by the age of rows: it needs room for one more column in staging, and its name.

    Names of objects change without another version of their row, so they are compared by hashes.
    """
    names = {output.name for output in mapping.outputs}
    has_room = len(names) < MOST_COLUMNS and DUE_MARK not in names
    return reads_by_xmin(mapping.relation) and has_room and not find_naming_columns(mapping, table)


def stream_guarantee(mapping: Mapping, table: TableSettings) -> str:
    """Return the guarantee of a table's stream: a rename of an object that its text names is in no WAL."""
    return BOUNDED if find_naming_columns(mapping, table) else EXACT


def watermark_slack(mapping: Mapping, table: TableSettings) -> timedelta:
    """Return how long after its transaction's start a change may still be stamped."""
    if table.watermark_slack is not None:
        return table.watermark_slack
    return _SLACK if watermark_type(mapping) == _TIMESTAMPTZ else _ZONELESS_SLACK


def watermark_type(mapping: Mapping) -> str | None:
    """Return the base type's name of the watermark column, None where there is no watermark."""
    if mapping.watermark is None:
        return None
    types = mapping.relation.types
    found = types.get(mapping.watermark.type_oid)
    while found is not None and found.base:
        found = types.get(found.base)
    return found.name if found and found.schema == "pg_catalog" else None


def audits_every_time(relation: Relation) -> bool:
    """Say whether the audit belongs to every sync: views, and tables that are read in no time."""
    if relation.kind not in (TABLE, PARTITIONED, MATVIEW):
        return True
    return relation.estimated_rows < SMALL_TABLE_ROWS


def _tell_naming(naming: Sequence[str]) -> str:
    return f"{', '.join(naming)} names objects of the source, and a rename changes the text without a row version"


def _watermark_problem(mapping: Mapping, on_standby: bool) -> str | None:
    if mapping.watermark is None:
        return "no watermark is configured"
    if watermark_type(mapping) not in _WATERMARK_TYPES:
        return f"{mapping.watermark.name} is not a timestamp or date"
    if on_standby:
        return "the source is a standby, whose open transactions cannot be observed"
    return None


def _cannot(relation: Relation, strategy: str, why: str) -> ConfigError:
    return ConfigError(
        f"{relation.schema}.{relation.name} cannot be read by strategy {strategy}",
        why=why,
        hint='set strategy = "auto", or give the table what it needs: `replicator plan` shows what it has',
    )
