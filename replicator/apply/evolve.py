"""DDL on the target: creates tables, follows the source's columns, stops where following would lose something."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from psycopg import sql

from replicator.apply.merge import DELETED_AT
from replicator.apply.types import TEXT, Resolved
from replicator.config.table_setting import TableSettings
from replicator.errors import ConfigError, SchemaDrift
from replicator.relation import PARTITIONED, TABLE, Index, Relation
from replicator.rules import Mapping, Output
from replicator.selection import format_table_name
from replicator.strategy import watermark_type

OUR_INDEX = re.compile(r"^replicator_[0-9a-f]{16}$")
"""The names of indexes that a load made."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A copied column as it was at the last sync: the source's number and name, the target's name, the wanted type.

    names_objects: its text is made of names of the source's objects. storage: the target's column and its table's
    files, as `describe_storage` writes them; empty where nobody noted it.
    """

    number: int
    source: str
    target: str
    spelling: str
    names_objects: bool = False
    storage: str = ""


@dataclass(frozen=True, slots=True)
class Evolution:
    """What must be done to a target table before rows can come.

    before: DDL ahead of the load; after: DDL that is cheaper once a new table is filled. left_out: outputs that are not
    copied, because on_schema_change = "ignore". rekeyed: the key changed; key_now: the new key's columns as the target
    names them before the DDL, those left out that are not there yet. replaces: the rows that are here cannot have the
    new key, and hold nothing that the source lacks. adds, retypes: columns are added, emptied for another type, or get
    a wider one; only a full read brings their values in rows that did not change. empties: the rows that are here go
    first: a key column gets another type. reindexes: DDL that makes an index of ours anew, and touches neither rows
    nor columns.
    """

    before: tuple[sql.Composed, ...]
    after: tuple[sql.Composed, ...]
    left_out: frozenset[str]
    creates: bool
    rekeyed: bool = False
    key_now: tuple[str, ...] = ()
    replaces: bool = False
    adds: bool = False
    empties: bool = False
    retypes: bool = False
    reindexes: tuple[sql.Composed, ...] = ()


def plan_creation(
    mapping: Mapping, table: TableSettings, target: tuple[str, str], types: dict[str, Resolved], *, makes_schema: bool
) -> Evolution:
    """Return the DDL of a new table: columns and types before the load, key and indexes after it."""
    schema, name = target
    columns = [
        sql.SQL("{} {}{}").format(
            sql.Identifier(output.name),
            spelled(types[output.name].spelling),
            sql.SQL(" NOT NULL") if output.name in mapping.key else sql.SQL(""),
        )
        for output in mapping.outputs
    ]
    if table.deletes == "soft":
        _check_soft(mapping)
        columns.append(sql.SQL("{} timestamptz").format(sql.Identifier(DELETED_AT)))
    create = sql.SQL("CREATE TABLE {} ({})").format(sql.Identifier(schema, name), sql.SQL(", ").join(columns))
    # Even with IF NOT EXISTS the statement asks for CREATE on the database, so it is left out where it does nothing.
    before = (create_schema(schema), create) if makes_schema else (create,)
    return Evolution(before, tuple(_plan_indexes(mapping, table, target)), frozenset(), creates=True)


def create_schema(name: str) -> sql.Composed:
    """Return the statement that makes a schema unless it is there."""
    return sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(name))


def plan_evolution(
    mapping: Mapping,
    table: TableSettings,
    target: Relation,
    types: dict[str, Resolved],
    current: dict[str, str],
    recorded: Sequence[Recorded],
    *,
    same_source: bool,
    had_key: bool,
    created_by_us: bool,
    rebuilds: bool = False,
) -> Evolution:
    """Return the DDL that lets an existing table take the source's rows.

    current: the target's spelling of its columns' types. recorded: the columns of the last sync, empty before the
    first. same_source: the source table is still the one of the last sync, so that column numbers prove renames.
    had_key: the last sync went by a key. rebuilds: all rows are read again, so columns may give up their values for
    another type.
    Raises SchemaDrift where a decision is needed, ConfigError where the target cannot serve at all.
    """
    if target.kind not in (TABLE, PARTITIONED):
        raise ConfigError(
            f"the target {target.schema}.{target.name} is not a table",
            why="rows can be written to tables only",
            hint="name another target for it",
            id="target_not_table",
        )
    by_target = {column.target: column for column in recorded}
    plan = _Plan(mapping, table, target, types, dict(current), by_target, same_source, had_key, rebuilds)
    return plan.evolve(created_by_us=created_by_us)


def describe_storage(target: Relation) -> dict[str, str]:
    """Return by column of a target what changes when somebody writes other values into it by DDL.

    Three words: its number, the version of its row in the catalog, and the files of the table.
    """
    files = [(member.oid, member.filenode) for member in target.members]
    digest = hashlib.sha256(repr(sorted(files)).encode()).hexdigest()[:12]
    return {column.name: f"{column.number} {column.version} {digest}" for column in target.columns}


def is_rewritten(before: str, now: str) -> bool:
    """Say whether a column may hold other values than the last sync left, by its storage then and now.

    VACUUM FULL and TRUNCATE change the files alone, ALTER ... SET DEFAULT the catalog alone; another type changes both,
    and a column that was dropped and made again has another number.
    """
    old, new = before.split(), now.split()
    if len(old) != len(new):
        return False
    return old[0] != new[0] or (old[1] != new[1] and old[2] != new[2])


def spelled(spelling: str) -> sql.SQL:
    """Return a type's name as SQL; it was spelled by the target itself or from quoted identifiers."""
    return sql.SQL(spelling)


class _Plan:
    """The comparison of one target table with what the source needs."""

    def __init__(
        self,
        mapping: Mapping,
        table: TableSettings,
        target: Relation,
        types: dict[str, Resolved],
        current: dict[str, str],
        recorded: dict[str, Recorded],
        same_source: bool,
        had_key: bool,
        rebuilds: bool,
    ) -> None:
        self.mapping, self.table, self.target, self.types = mapping, table, target, types
        self.current, self.recorded, self.same_source, self.had_key = current, recorded, same_source, had_key
        self.rebuilds = rebuilds
        self.name = sql.Identifier(target.schema, target.name)
        self.statements: list[sql.Composed] = []
        self.left_out: set[str] = set()
        self.moves: dict[str, str] = {}
        self.adds = self.empties = self.retypes = False

    def evolve(self, *, created_by_us: bool) -> Evolution:
        self._rename_columns()
        self._check_identities()
        self._check_generated()
        for output in self.mapping.outputs:
            if output.name in self.current:
                self._fit_type(output)
            else:
                self._add_column(output)
        self._free_dropped_columns()
        if self.table.deletes == "soft":
            _check_soft(self.mapping)
        if self.table.deletes == "soft" and DELETED_AT not in self.current:
            self._alter(sql.SQL("ADD COLUMN {} timestamptz").format(sql.Identifier(DELETED_AT)))
        rekeyed, after = self._fit_key(created_by_us)
        return Evolution(
            tuple(self.statements),
            tuple(after),
            frozenset(self.left_out),
            creates=False,
            rekeyed=rekeyed,
            key_now=self._name_key(),
            adds=self.adds,
            empties=self.empties,
            retypes=self.retypes,
            reindexes=tuple(self._replace_unique_indexes()),
        )

    def _alter(self, action: sql.Composable) -> None:
        self.statements.append(sql.SQL("ALTER TABLE {} {}").format(self.name, action))

    def _drift(self, what: str, why: str, hint: sql.Composable | str, id: str | None = None) -> SchemaDrift:
        text = hint if isinstance(hint, str) else hint.as_string()
        return SchemaDrift(f"{self.target.schema}.{self.target.name}: {what}", why=why, hint=text, id=id)

    def _rename_columns(self) -> None:
        if not self.same_source or self.table.on_schema_change != "evolve":
            return
        self.moves = self._find_moves()
        for old, new in order_moves(self.moves, self.current):
            self._alter(sql.SQL("RENAME COLUMN {} TO {}").format(sql.Identifier(old), sql.Identifier(new)))
        self.current = {self._moved(name): spelling for name, spelling in self.current.items()}
        self.recorded = {self._moved(name): recorded for name, recorded in self.recorded.items()}

    def _find_moves(self) -> dict[str, str]:
        """Return the target's columns whose source column has another name now, unless that name stays taken here."""
        by_number = {recorded.number: recorded for recorded in self.recorded.values()}
        moves = {}
        for output in self.mapping.outputs:
            old = by_number.get(output.source.number)
            is_renamed = old is not None and old.source != output.source.name and old.target != output.name
            if old is not None and is_renamed and old.target in self.current:
                moves[old.target] = output.name
        while blocked := [name for name, new in moves.items() if new in self.current and new not in moves]:
            for name in blocked:
                del moves[name]
        return moves

    def _moved(self, name: str) -> str:
        return self.moves.get(name, name)

    def _check_identities(self) -> None:
        """Raise SchemaDrift for a column that no UPDATE may set; a key's is never set, rows are told apart by it."""
        wanted = {output.name for output in self.mapping.outputs} - set(self.mapping.key)
        for column in self.target.columns:
            name = self._moved(column.name)
            if column.identity == "a" and name in wanted:
                raise self._drift(
                    f"column {name} is generated always as identity",
                    "PostgreSQL lets no update set it to the source's value",
                    sql.SQL("alter table {} alter column {} set generated by default").format(
                        self.name, sql.Identifier(name)
                    ),
                )

    def _check_generated(self) -> None:
        """Raise SchemaDrift for a column that only the target computes: the source's values cannot be written there."""
        generated = {self._moved(column.name): column.generated for column in self.target.columns if column.generated}
        for output in self.mapping.outputs:
            is_computed_there = output.source.generated and isinstance(output.expression, sql.Identifier)
            if output.name in generated and not is_computed_there:
                raise self._drift(
                    f"column {output.name} is generated here and plain in the source",
                    "PostgreSQL lets nobody write the source's values into it",
                    self._make_plain(output, generated[output.name]),
                    "generated_target",
                )

    def _make_plain(self, output: Output, generated: str) -> sql.Composed:
        column = sql.Identifier(output.name)
        if generated == "s":
            return sql.SQL("alter table {} alter column {} drop expression").format(self.name, column)
        return sql.SQL("alter table {0} drop column {1}, add column {1} {2}").format(
            self.name, column, spelled(self.types[output.name].spelling)
        )

    def _add_column(self, output: Output) -> None:
        spelling = self.types[output.name].spelling
        action = sql.SQL("ADD COLUMN {} {}").format(sql.Identifier(output.name), spelled(spelling))
        if self.table.on_schema_change == "ignore" and output.name not in self.mapping.key:
            self.left_out.add(output.name)
            return
        if self.table.on_schema_change == "freeze":
            raise self._drift(
                f"the target lacks column {output.name}",
                'on_schema_change is "freeze"',
                sql.SQL("alter table {} {}").format(self.name, action),
            )
        self._alter(action)
        self.current[output.name] = spelling
        self.adds = True

    def _fit_type(self, output: Output) -> None:
        wanted, now = self.types[output.name].spelling, self.current[output.name]
        if wanted == now:
            return
        recorded = self.recorded.get(output.name)
        if recorded and recorded.spelling != wanted and not widens(recorded.spelling, wanted):
            if self.table.on_schema_change == "ignore" and widens(wanted, now):
                return
            if self.rebuilds:
                self._retype(output)
                return
            if self.same_source and recorded.number != output.source.number:
                raise self._drift(
                    f"column {output.name} is another one in the source now, of type {wanted}",
                    "the one that had the name was dropped there, or renamed; it stays here with its values",
                    sql.SQL("alter table {} rename column {} to {}").format(
                        self.name, sql.Identifier(output.name), sql.Identifier(f"{output.name}_old")
                    ),
                )
            is_narrowed = widens(wanted, recorded.spelling)
            raise self._drift(
                f"column {output.name} was {recorded.spelling} and is {wanted} now",
                "a narrowed type cannot be followed without knowing what it does to the rows that are here"
                if is_narrowed
                else f"not every {recorded.spelling} is a {wanted}: what becomes of the rows here is to decide",
                self._read_anew(),
            )
        if accepts(now, wanted):
            return
        if self.rebuilds:
            self._retype(output)
            return
        if not widens(now, wanted):
            raise self._drift(
                f"column {output.name} is {now} here and {wanted} in the source",
                f"{now} cannot hold every {wanted}",
                self._read_anew(),
            )
        change = sql.SQL("ALTER COLUMN {} TYPE {}").format(sql.Identifier(output.name), spelled(wanted))
        if self.table.on_schema_change != "evolve":
            raise self._drift(
                f"column {output.name} is {now} here and {wanted} in the source",
                f'on_schema_change is "{self.table.on_schema_change}"',
                sql.SQL("alter table {} {}").format(self.name, change),
            )
        self._alter(change)
        self.current[output.name] = wanted
        self.retypes = True

    def _read_anew(self) -> str:
        """Return the command that gives the columns their new types, and reads every row again."""
        relation = self.mapping.relation
        return f"replicator resync '{format_table_name(relation.schema, relation.name)}' --yes"

    def _retype(self, output: Output) -> None:
        """Give a column another type: emptied, or with a key's column the table, for all rows are read again."""
        column, spelling = sql.Identifier(output.name), self.types[output.name].spelling
        is_key = output.name in self.mapping.key
        if is_key:
            self._check_nothing_local(output)
        self._alter(sql.SQL("ALTER COLUMN {} DROP DEFAULT").format(column))
        if not is_key:
            self._alter(sql.SQL("ALTER COLUMN {} DROP NOT NULL").format(column))
        value = sql.SQL("{}::text::{}").format(column, spelled(spelling)) if is_key else sql.SQL("NULL")
        self._alter(sql.SQL("ALTER COLUMN {} TYPE {} USING {}").format(column, spelled(spelling), value))
        self.current[output.name] = spelling
        self.adds = True
        self.empties = self.empties or is_key

    def _check_nothing_local(self, output: Output) -> None:
        """Raise SchemaDrift where rows hold values that only the target has: they would go with the old key."""
        known = {one.name for one in self.mapping.outputs} | self.recorded.keys() | {DELETED_AT}
        local = [column.name for column in self.target.columns if not column.generated and column.name not in known]
        if local:
            spelling = spelled(self.types[output.name].spelling)
            raise self._drift(
                f"key column {output.name} gets another type, and {local[0]} is a column of the target's own",
                "the rows would be replaced, and its values with them",
                sql.SQL("alter table {0} alter column {1} type {2} using {1}::text::{2}").format(
                    self.name, sql.Identifier(output.name), spelling
                ),
            )

    def _free_dropped_columns(self) -> None:
        wanted = {output.name for output in self.mapping.outputs}
        not_null = {self._moved(column.name): column.not_null for column in self.target.columns}
        dropped = [name for name in self.recorded if name not in wanted and name in not_null]
        if dropped and self.table.on_schema_change == "freeze":
            raise self._drift(
                f"the source no longer has {', '.join(sorted(dropped))}",
                'on_schema_change is "freeze"',
                sql.SQL('alter table {} {} -- or set on_schema_change = "evolve": it stays, and takes NULL').format(
                    self.name,
                    sql.SQL(", ").join(sql.SQL("drop column {}").format(sql.Identifier(name)) for name in dropped),
                ),
            )
        for name in dropped:
            if not_null[name]:
                self._alter(sql.SQL("ALTER COLUMN {} DROP NOT NULL").format(sql.Identifier(name)))

    def _replace_unique_indexes(self) -> Iterator[sql.Composed]:
        """Yield what replaces the unique indexes that `indexes = "all"` made while deleted rows still went away."""
        for index in find_strict_indexes(self.target, self.mapping, self.table, self.moves):
            if OUR_INDEX.match(index.name):
                yield drop_index(self.target, index)
                yield replace_index(self.target, index, self.table, self.moves)

    def _fit_key(self, created_by_us: bool) -> tuple[bool, list[sql.Composed]]:
        mapping, target = self.mapping, self.target
        if not mapping.key:
            if self.had_key and created_by_us and self.table.on_schema_change == "evolve":
                self._drop_primary_key()
            return False, []
        fitting = [
            index
            for index in target.indexes
            if index.unique and index.covers_all and set(map(self._moved, index.columns)) == set(mapping.key)
        ]
        deferrable = next((index for index in fitting if index.deferrable), None)
        if deferrable is not None:
            raise self._deferrable_key(deferrable)
        if fitting:
            return False, []
        self._check_no_period()
        partition_columns = set(map(self._moved, target.partition_columns))
        if not partition_columns <= set(mapping.key):
            self._check_leading_index()
            return False, []
        make = _add_primary_key(self.name, mapping)
        if not created_by_us or self.table.on_schema_change != "evolve":
            raise self._key_missing(created_by_us)
        self._drop_primary_key()
        return True, [make]

    def _check_leading_index(self) -> None:
        """Raise SchemaDrift where no index finds a key's row, and the partitions keep the key from being unique."""
        key, names = self.mapping.key, {new: old for old, new in self.moves.items()}
        there = {self._moved(column.name) for column in self.target.columns}
        if not there.issuperset(key):
            raise self._key_missing(created_by_us=False)
        if self.target.find_leading_index([names.get(name, name) for name in key]) is None:
            raise self._drift(
                f"no index on the key ({', '.join(key)})",
                "rows are matched by it, and it cannot be unique: the table is partitioned by "
                + ", ".join(name or "an expression" for name in self.target.partition_columns),
                sql.SQL("create index on {} ({})").format(self.name, _identifiers(key)),
                "key_index_missing",
            )

    def _check_no_period(self) -> None:
        """Raise SchemaDrift for a key WITHOUT OVERLAPS: it finds rows of the same time, not the row of the same key."""
        key = self.mapping.key
        for index in self.target.indexes:
            if index.is_period and set(map(self._moved, index.columns)) == set(key):
                raise self._drift(
                    f"the key ({', '.join(key)}) is WITHOUT OVERLAPS here",
                    f"{index.name} is no B-tree, and only a unique B-tree index finds the row with an equal key",
                    sql.SQL("alter table {} add unique ({})").format(self.name, _identifiers(key)),
                    "key_without_overlaps",
                )

    def _key_missing(self, created_by_us: bool) -> SchemaDrift:
        key, there = self.mapping.key, {self._moved(column.name) for column in self.target.columns}
        lacking = [name for name in key if name not in there]
        if lacking:
            return self._drift(
                f"column {', '.join(lacking)} of the key is not there",
                "rows are matched by it",
                f"if it was renamed in the source: rename it here too{self._or_evolve()}; else add it, and fill it",
            )
        actions = [sql.SQL("add unique ({})").format(_identifiers(key))]
        if created_by_us:
            actions = [*self._retire_primary_key(), *actions]
        return self._drift(
            f"no unique index on the key ({', '.join(key)})",
            "rows are matched by it",
            sql.SQL("alter table {} {} -- rows with the key of another one go first").format(
                self.name, sql.SQL(", ").join(actions)
            ),
        )

    def _or_evolve(self) -> str:
        return "" if self.table.on_schema_change == "evolve" else ', or set on_schema_change = "evolve"'

    def _name_key(self) -> tuple[str, ...]:
        names = {self._moved(column.name): column.name for column in self.target.columns}
        return tuple(names[name] for name in self.mapping.key if name in names)

    def _drop_primary_key(self) -> None:
        for action in self._retire_primary_key():
            self._alter(action)

    def _retire_primary_key(self) -> list[sql.Composed]:
        """Return what the old primary key's end takes: its columns may be NULL from now on."""
        old = next((index for index in self.target.indexes if index.primary), None)
        if old is None:
            return []
        freed = [name for name in map(self._moved, old.columns) if name not in self.mapping.key]
        return [
            sql.SQL("DROP CONSTRAINT {}").format(sql.Identifier(old.name)),
            *(sql.SQL("ALTER COLUMN {} DROP NOT NULL").format(sql.Identifier(name)) for name in freed),
        ]

    def _deferrable_key(self, index: Index) -> ConfigError:
        # ON CONFLICT takes every index on the key's columns as its arbiter: an immediate one beside it does not help.
        action = sql.SQL("drop constraint {}, add {} ({})").format(
            sql.Identifier(index.name),
            sql.SQL("primary key" if index.primary else "unique"),
            _identifiers([self._moved(name) for name in index.columns]),
        )
        return ConfigError(
            f"{self.target.schema}.{self.target.name}: the key's unique constraint is deferrable",
            why="ON CONFLICT cannot use a deferrable constraint",
            hint=sql.SQL("alter table {} {}").format(self.name, action).as_string(),
            id="deferrable_key",
        )


def order_moves(moves: dict[str, str], taken: Collection[str]) -> list[tuple[str, str]]:
    """Return renames (old, new) in an order in which each new name is free; a ring goes by way of a name of its own."""
    left, ordered = dict(moves), []
    while left:
        free = [old for old, new in left.items() if new not in left]
        if not free:
            aside = next(
                name for n in itertools.count() if (name := f"replicator_{n}") not in {*taken, *left, *moves.values()}
            )
            old = next(iter(left))
            ordered.append((old, aside))
            left[aside] = left.pop(old)
        ordered += [(old, left.pop(old)) for old in free]
    return ordered


def _plan_indexes(mapping: Mapping, table: TableSettings, target: tuple[str, str]) -> list[sql.Composed]:
    name = sql.Identifier(*target)
    made: list[sql.Composed] = []
    if mapping.key:
        made.append(_add_primary_key(name, mapping))
    names = {output.source.name: output.name for output in mapping.outputs}
    plain = {output.source.name for output in mapping.outputs if isinstance(output.expression, sql.Identifier)}
    indexed = {mapping.key[:1]}
    if mapping.watermark and mapping.watermark.name in names and watermark_type(mapping):
        column = (names[mapping.watermark.name],)
        made.append(_create_index(name, target, column, unique=False))
        indexed.add(column)
    done: set[tuple[tuple[str, ...], bool]] = set()
    if table.indexes == "all":
        for index in mapping.relation.indexes:
            columns = tuple(names.get(column, "") for column in index.columns)
            if not index.covers_all or columns == mapping.key or not plain.issuperset(index.columns):
                continue
            is_unique = _stays_unique(index, mapping, table)
            if not _is_default_btree(index.definition) or (len(columns) == 1 and columns in indexed and not is_unique):
                continue
            if (columns, is_unique) not in done:
                done.add((columns, is_unique))
                made.append(_create_index(name, target, columns, unique=is_unique, soft=table.deletes == "soft"))
    return made


def _stays_unique(index: Index, mapping: Mapping, table: TableSettings) -> bool:
    """Say whether an index that is unique in the source can be so here, among the rows that are not deleted."""
    is_whole = not mapping.where and not mapping.relation.has_children and table.deletes != "ignore"
    return index.unique and not index.deferrable and is_whole


def find_strict_indexes(
    target: Relation, mapping: Mapping, table: TableSettings, moves: dict[str, str] | None = None
) -> list[Index]:
    """Return the target's unique indexes that deleted rows, which stay here, keep from taking a new row.

    moves: renames that are still to be done. What holds the whole key is as unique as the key is.
    """
    if table.deletes == "hard":
        return []
    written, key = {output.name for output in mapping.outputs}, set(mapping.key)
    found = []
    for index in target.indexes:
        columns = {(moves or {}).get(name, name) for name in index.columns}
        holds_key = bool(key) and key <= columns
        if index.unique and index.covers_all and not holds_key and columns <= written:
            found.append(index)
    return found


def drop_index(target: Relation, index: Index) -> sql.Composed:
    """Return the statement that drops an index, or the constraint it belongs to."""
    if index.is_constraint:
        return sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(
            sql.Identifier(target.schema, target.name), sql.Identifier(index.name)
        )
    return sql.SQL("DROP INDEX {}").format(sql.Identifier(target.schema, index.name))


def replace_index(
    target: Relation, index: Index, table: TableSettings, moves: dict[str, str] | None = None
) -> sql.Composed:
    """Return the statement that makes the index which takes the place of a unique one, as `deletes` lets it be."""
    columns = tuple((moves or {}).get(name, name) for name in index.columns)
    is_soft = table.deletes == "soft"
    place = (target.schema, target.name)
    return _create_index(sql.Identifier(*place), place, columns, unique=is_soft, soft=is_soft)


def _is_default_btree(definition: str) -> bool:
    return " USING btree (" in definition


def _create_index(
    name: sql.Identifier, target: tuple[str, str], columns: tuple[str, ...], *, unique: bool, soft: bool = False
) -> sql.Composed:
    """Return the statement that makes an index. soft: a unique one is so among the rows that are not deleted."""
    # 63 bytes are all an identifier keeps, so a readable name could collide with another one.
    kind = "live" if unique and soft else str(unique)
    digest = hashlib.sha256("\0".join((*target, *columns, kind)).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    live = sql.SQL(" WHERE {} IS NULL").format(sql.Identifier(DELETED_AT)) if unique and soft else sql.SQL("")
    return sql.SQL("CREATE {}INDEX {} ON {} ({}){}").format(
        sql.SQL("UNIQUE " if unique else ""),
        sql.Identifier(f"replicator_{digest}"),
        name,
        _identifiers(columns),
        live,
    )


def _add_primary_key(name: sql.Identifier, mapping: Mapping) -> sql.Composed:
    return sql.SQL("ALTER TABLE {} ADD PRIMARY KEY ({})").format(name, _identifiers(mapping.key))


def _identifiers(names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(name) for name in names)


def _check_soft(mapping: Mapping) -> None:
    if any(output.name == DELETED_AT for output in mapping.outputs):
        raise ConfigError(
            f"{mapping.relation.schema}.{mapping.relation.name}: the source has a column {DELETED_AT} of its own",
            why='deletes = "soft" writes into a column of that name',
            hint="rename or exclude the source's column",
            id="deleted_at_taken",
        )


_CHAR = re.compile(r"^(character varying|character|bit varying|bit|text)(?:\((\d+)\))?$")
_NUMERIC = re.compile(r"^numeric(?:\((\d+),(-?\d+)\))?$")
_INTEGER_ORDER = {"smallint": 0, "integer": 1, "bigint": 2}
_INTEGER_DIGITS = {"smallint": 5, "integer": 10, "bigint": 19}
_TIMES = re.compile(r"^(timestamp|time|interval)(?:\((\d)\))?( without time zone| with time zone)?$")


def accepts(column: str, incoming: str) -> bool:
    """Say whether a column of one type takes every value of another unchanged."""
    return column in (incoming, TEXT) or widens(incoming, column)


def adds_digits(old: str, new: str) -> bool:
    """Say whether a number of type `old` is written with more digits as a `new`: its scale pads it with zeros."""
    was, becomes = _NUMERIC.match(old), _NUMERIC.match(new)
    if becomes is None or becomes[2] is None:
        return False
    scale = 0 if old in _INTEGER_DIGITS else None if was is None or was[2] is None else int(was[2])
    return scale is not None and int(becomes[2]) > scale


def widens(old: str, new: str) -> bool:
    """Say whether every value of `old` is a value of `new`, and is written the same way."""
    if old == new or (new == TEXT and not old.endswith("[]")):
        return True
    if old in _INTEGER_ORDER:
        if new in _INTEGER_ORDER:
            return _INTEGER_ORDER[old] <= _INTEGER_ORDER[new]
        digits = _NUMERIC.match(new)
        return digits is not None and (digits[1] is None or int(digits[1]) - int(digits[2]) >= _INTEGER_DIGITS[old])
    if old == "real":
        return new == "double precision"
    if old.endswith("[]") and new.endswith("[]"):
        return widens(old[:-2], new[:-2])
    return _widens_length(old, new) or _widens_numeric(old, new) or _widens_time(old, new)


def _widens_length(old: str, new: str) -> bool:
    was, becomes = _CHAR.match(old), _CHAR.match(new)
    if not was or not becomes or was[1] != becomes[1] or was[1] in ("bit", "character"):
        return False
    return becomes[2] is None or (was[2] is not None and int(was[2]) <= int(becomes[2]))


def _widens_numeric(old: str, new: str) -> bool:
    was, becomes = _NUMERIC.match(old), _NUMERIC.match(new)
    if not was or not becomes:
        return False
    if becomes[1] is None:
        return True
    if was[1] is None:
        return False
    scale_kept = int(becomes[2]) >= int(was[2])
    return scale_kept and int(becomes[1]) - int(becomes[2]) >= int(was[1]) - int(was[2])


def _widens_time(old: str, new: str) -> bool:
    was, becomes = _TIMES.match(old), _TIMES.match(new)
    if not was or not becomes or was[1] != becomes[1] or was[3] != becomes[3]:
        return False
    return becomes[2] is None or (was[2] is not None and int(was[2]) <= int(becomes[2]))
