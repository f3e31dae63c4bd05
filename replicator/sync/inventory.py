"""Which tables a run is about: the configuration's names and patterns against the source's catalog."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import psycopg
from psycopg import sql

from replicator.catalog import Listed, list_relations
from replicator.config.settings import Settings, table_settings
from replicator.config.table_setting import TableSettings
from replicator.db import Connection, row_security_stop, translate
from replicator.errors import ConfigError, PreflightError, UsageError
from replicator.relation import TABLE, Relation
from replicator.rules import Mapping, expression_masks, fit_settings, map_relation, named_columns, trusted_sql
from replicator.selection import (
    PATTERN_RELKINDS,
    format_table_name,
    parse_pattern,
    parse_table_name,
    select_entry,
    target_name,
)

_BAD_SQL, _NOT_PERMITTED, _NO_TABLE = "42", "42501", "42P01"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A table that the configuration selects.

    table: its name as users and scripts know it. required: columns that its own entry names, and that must exist.
    """

    table: str
    schema: str
    name: str
    kind: str
    settings: TableSettings
    target: tuple[str, str]
    required: frozenset[str]


@dataclass(frozen=True, slots=True)
class Inventory:
    """The selected tables in order of their names, and what the configuration names but the source lacks.

    retention_days: of etl_control's rows, for each of both. idle_patterns: those that no table matches. present: the
    OIDs of the source's relations that are no partitions, selected or not, by name.
    """

    tables: tuple[Chosen, ...]
    missing: dict[str, PreflightError]
    retention_days: dict[str, float]
    idle_patterns: tuple[str, ...]
    present: dict[str, int]


def take_inventory(connection: Connection, settings: Settings, wanted: Sequence[str] = ()) -> Inventory:
    """Return what is to be replicated; `wanted` names some of it.

    Raises UsageError for a wanted name that is no table of the configuration, ConfigError when two tables would share a
    target.
    """
    listed = list_relations(connection)
    tables = []
    for relation in listed:
        entry = select_entry(settings.entries, relation.schema, relation.name, relation.kind)
        is_named = entry is not None and parse_pattern(entry.name).exact
        if entry is None or (relation.is_partition and not is_named):
            continue
        target = target_name(entry, relation.schema, relation.name)
        if target[0] == settings.target.control_schema:
            # A source that is itself a target has a control schema of its own; it must not be written over ours.
            if is_named:
                raise _in_control_schema(relation, target)
            continue
        tables.append(
            Chosen(
                table=format_table_name(relation.schema, relation.name),
                schema=relation.schema,
                name=relation.name,
                kind=relation.kind,
                settings=table_settings(settings, entry),
                target=target,
                required=named_columns(entry) if is_named else frozenset(),
            )
        )
    broken = {(one.schema, one.name) for one in listed if not one.is_text}
    refused = {t.table: _not_text(t.table) for t in tables if (t.schema, t.name) in broken}
    tables = [t for t in tables if t.table not in refused]
    _check_targets(tables)
    there = [format_table_name(relation.schema, relation.name) for relation in listed]
    missing = _find_missing(settings, {(t.schema, t.name) for t in tables}, there) | refused
    if wanted:
        names = {read_table_argument(name) for name in wanted}
        known = {t.table for t in tables} | set(missing)
        for name in sorted(names - known):
            raise UsageError(
                f"{name} is not a table of this configuration",
                why=_nearest(name, known) or "no [[tables]] entry or pattern selects it",
                hint="add it to replicator.toml, or correct the name",
            )
        tables = [t for t in tables if t.table in names]
        missing = {name: error for name, error in missing.items() if name in names}
    kept = {table.table: float(table.settings.retention_days) for table in tables}
    for name in missing:
        entry = select_entry(settings.entries, *parse_table_name(name), TABLE)
        kept[name] = float(table_settings(settings, entry).retention_days)
    present = {format_table_name(one.schema, one.name): one.oid for one in listed if not one.is_partition}
    return Inventory(tuple(tables), missing, kept, _find_idle_patterns(settings, listed), present)


def _find_idle_patterns(settings: Settings, listed: Sequence[Listed]) -> tuple[str, ...]:
    names = [(one.schema, one.name) for one in listed if one.kind in PATTERN_RELKINDS and not one.is_partition]
    patterns = [(entry.name, parse_pattern(entry.name)) for entry in settings.entries]
    return tuple(
        text for text, pattern in patterns if not pattern.exact and not any(pattern.matches(*name) for name in names)
    )


def explain_idle_pattern(pattern: str) -> tuple[str, str]:
    """Return what to say of a pattern without a match, and what mends it."""
    return (
        f"no table of the source matches the pattern {pattern}",
        "correct it, take it out, or grant USAGE; patterns take tables and partitioned tables, a view has to be named",
    )


def leave_out(inventory: Inventory, tables: Iterable[str]) -> Inventory:
    """Return the inventory without these tables."""
    out = frozenset(tables)
    return replace(
        inventory,
        tables=tuple(chosen for chosen in inventory.tables if chosen.table not in out),
        missing={table: error for table, error in inventory.missing.items() if table not in out},
        retention_days={table: days for table, days in inventory.retention_days.items() if table not in out},
    )


def find_vanished(settings: Settings, inventory: Inventory, known: dict[str, int | None]) -> list[str]:
    """Return the known tables that a pattern would still take, and that the source has no longer.

    inventory: of everything. known: the OIDs they had. One that the configuration left out is the configuration's
    matter, as a view is that no entry names any more; but a table that gave way to a view is gone.
    """
    there = {chosen.table for chosen in inventory.tables} | set(inventory.missing)
    there |= {table for table, oid in known.items() if oid is not None and inventory.present.get(table) == oid}
    return sorted(
        table
        for table in set(known) - there
        if select_entry(settings.entries, *parse_table_name(table), TABLE) is not None
    )


def vanished(table: str) -> PreflightError:
    """Return what is told of a table that no pattern finds any more; it stops nobody."""
    return PreflightError(
        f"{table} is gone from the source",
        why="it was dropped or renamed, or became a partition; its rows in the target stay as they were",
        hint=f"if that is right: replicator forget '{table}' --yes",
        id="table_vanished",
        table=table,
    )


def require_tables(inventory: Inventory) -> None:
    """Raise ConfigError when the configuration selects nothing: a run of no tables would look like a success."""
    if not inventory.tables and not inventory.missing:
        raise ConfigError(
            "the configuration selects no table of the source",
            why="no table matches its patterns: a typo, a wrong database, or a schema that the role cannot see",
            hint="replicator check; or correct name under [[tables]]",
            id="no_tables",
        )


def _in_control_schema(relation: Listed, target: tuple[str, str]) -> ConfigError:
    return ConfigError(
        f"{format_table_name(relation.schema, relation.name)} would be copied into the control schema",
        why=f"{target[0]} belongs to replicator itself",
        hint="give the table another target, or set target.control_schema to another name",
    )


def name_expected(settings: Settings, wanted: Sequence[str]) -> list[str]:
    """Return the tables that a run is about as far as the configuration alone tells: those named one by one."""
    if wanted:
        return sorted({read_table_argument(name) for name in wanted})
    exact = [parse_pattern(entry.name) for entry in settings.entries]
    return sorted(format_table_name(p.schema.text, p.name.text) for p in exact if p.exact)


def read_mapping(
    connection: Connection, relation: Relation, chosen: Chosen, zoned: frozenset[str] = frozenset()
) -> Mapping:
    """Compile a table's rules against the source as it stands, and let the source check the SQL in them.

    `connection`: outside any transaction, since bad SQL ends one. zoned: see `map_relation`. Raises SafetyStop for row
    security, ConfigError for rules that do not fit.
    """
    if relation.row_security:
        raise row_security_stop(chosen.table)
    table = fit_settings(chosen.settings, relation, chosen.required)
    masks = expression_masks(table)
    mapping = map_relation(relation, table, None, zoned)
    _require_columns(connection, mapping, chosen.table, masks)
    if not masks and not table.where:
        return mapping
    kept = [column for column in masks if any(o.source.name == column for o in mapping.outputs)]
    picked = [sql.SQL("({})").format(trusted_sql(masks[column])) for column in kept]
    query = mapping.select(picked) + sql.SQL(" LIMIT 0")
    try:
        described = connection.execute(query).description or []
    except psycopg.Error as error:
        state = error.sqlstate or ""
        if not state.startswith(_BAD_SQL) or state in (_NOT_PERMITTED, _NO_TABLE):
            raise translate(error, side="source", table=chosen.table) from error
        raise ConfigError(
            f"{chosen.table}: the SQL of where or mask does not work on the source",
            why=f"SQLSTATE {state} ({type(error).__name__})",
            hint="try it in psql with: set search_path = ''; names outside pg_catalog need their schema",
            table=chosen.table,
        ) from error
    types = {
        column: (d.type_code, -1 if d._fmod is None else d._fmod) for column, d in zip(kept, described, strict=True)
    }
    return map_relation(relation, table, types, zoned)


def _require_columns(connection: Connection, mapping: Mapping, table: str, masks: Iterable[str]) -> None:
    """Raise PreflightError for copied columns that the role may not read. What SQL of masks reads the source tells."""
    computed = {*masks, *(o.source.name for o in mapping.outputs if o.expression == sql.SQL("NULL"))}
    needed = [output.source for output in mapping.outputs if output.source.name not in computed]
    needed += [mapping.watermark] if mapping.watermark is not None else []
    lacking = list(dict.fromkeys(column.name for column in needed if not column.is_readable))
    if not lacking:
        return
    grant = sql.SQL("grant select ({}) on {} to {}").format(
        sql.SQL(", ").join(map(sql.Identifier, lacking)), mapping.source_name, sql.Identifier(connection.info.user)
    )
    names = ", ".join(f'"{name}"' for name in lacking)
    raise PreflightError(
        f"role {connection.info.user} may not read {', '.join(lacking)} of {table}",
        why="it has grants on other columns only",
        hint=f"{grant.as_string()}; or exclude = [{names}]",
        id="grant_missing",
        sqlstate="42501",
        table=table,
    )


def _find_missing(settings: Settings, found: set[tuple[str, str]], known: Sequence[str]) -> dict[str, PreflightError]:
    missing = {}
    for entry in settings.entries:
        if not parse_pattern(entry.name).exact:
            continue
        schema, name = parse_table_name(entry.name)
        if (schema, name) not in found:
            table = format_table_name(schema, name)
            missing[table] = PreflightError(
                f"{table} is missing on the source",
                why=_nearest(table, known) or "no table or view has that name, or its schema is a system schema",
                hint="create it, correct the name, or take it out of replicator.toml",
                id="table_missing",
                sqlstate="42P01",
                table=table,
            )
    return missing


def _not_text(table: str) -> PreflightError:
    return PreflightError(
        f"{table} has a name that is not UTF-8",
        why="it is the table's, a column's, a type's or a label's; a SQL_ASCII database lets it in, the target cannot",
        hint="set client_encoding = SQL_ASCII; alter table ... rename column ... to ... -- in the source; "
        "or select tables without this one",
        id="name_not_text",
        table=table,
    )


def _nearest(name: str, known: Iterable[str]) -> str | None:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"the nearest name is {near[0]}" if near else None


def read_table_argument(name: str) -> str:
    """Return a TABLE argument as the control schema spells it. Raises UsageError."""
    try:
        return format_table_name(*parse_table_name(name))
    except ValueError as error:
        raise UsageError(
            "a TABLE argument is not a table's name", why=str(error), hint="write schema.table, quoted as in SQL"
        ) from None


def _check_targets(tables: Sequence[Chosen]) -> None:
    taken: dict[tuple[str, str], str] = {}
    for chosen in tables:
        if chosen.target in taken:
            raise ConfigError(
                f"{taken[chosen.target]} and {chosen.table} have the same target",
                why=f"both would write {format_table_name(*chosen.target)}",
                hint="give one of them another target",
            )
        taken[chosen.target] = chosen.table
