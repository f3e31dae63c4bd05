"""Column rules as SQL: which columns are copied, under which names, through which expressions.

The expressions run in the source's SELECT, so PostgreSQL evaluates them and no cell passes through Python.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from psycopg import sql

from replicator.config.table_setting import TableEntry, TableSettings
from replicator.errors import ConfigError
from replicator.relation import NAMING_TYPES, Column, Relation, Type

MASK_KEY_SETTING = "replicator.mask_key"
_TEXT_TYPES = frozenset({"text", "varchar", "bpchar", "name", "citext"})
_NAN_TYPES = frozenset({"float4", "float8", "numeric"})
TEXT_OID = 25
_NAMES_OBJECTS = re.compile(r"\b(?:" + "|".join(sorted(NAMING_TYPES)) + r")\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Output:
    """One column of the target: its name there, the source's column, and the expression that gives its value."""

    name: str
    source: Column
    expression: sql.Composable
    type_oid: int
    typmod: int


@dataclass(frozen=True, slots=True)
class Mapping:
    """A relation seen through its rules.

    outputs: in the order of the source's columns. key and watermark: names in the target and in the source.
    where: the condition of the configuration, or None. hashes: a mask needs the key of `privacy.mask_key_file`.
    """

    relation: Relation
    outputs: tuple[Output, ...]
    key: tuple[str, ...]
    watermark: Column | None
    where: sql.Composable | None
    hashes: bool

    @property
    def key_outputs(self) -> tuple[Output, ...]:
        """Return the outputs of the key, in key order."""
        by_name = {output.name: output for output in self.outputs}
        return tuple(by_name[name] for name in self.key)

    @property
    def source_name(self) -> sql.Identifier:
        """Return the qualified name of the relation."""
        return sql.Identifier(self.relation.schema, self.relation.name)

    def select(self, columns: Iterable[sql.Composable], *conditions: sql.Composable | None) -> sql.Composed:
        """Return a SELECT over the relation; the configured condition always applies."""
        wheres = [condition for condition in (self.where, *conditions) if condition is not None]
        query = sql.SQL("SELECT {} FROM {}").format(sql.SQL(", ").join(columns), self.source_name)
        if wheres:
            query += sql.SQL(" WHERE ") + sql.SQL(" AND ").join(sql.SQL("({})").format(where) for where in wheres)
        return query

    def select_rows(self, *conditions: sql.Composable | None) -> sql.Composed:
        """Return the SELECT of whole target rows."""
        return self.select((name_output(output) for output in self.outputs), *conditions)


def describe_rules(mapping: Mapping, mask_key: bytes | None) -> str:
    """Return the compiled rules as text for the fingerprint: `select_rows`; another mask key is another rule.

    Written without psycopg's composing, which for thousands of tables takes seconds.
    """
    key = hashlib.sha256(mask_key).hexdigest() if mapping.hashes and mask_key is not None else ""
    columns = ", ".join(f"{_write(output.expression)} AS {_quote(output.name)}" for output in mapping.outputs)
    where = "" if mapping.where is None else f" WHERE ({mapping.where.as_string()})"
    name = f"{_quote(mapping.relation.schema)}.{_quote(mapping.relation.name)}"
    return "".join(["SELECT ", columns, " FROM ", name, where, key])


@cache
def _quote(name: str) -> str:
    return sql.Identifier(name).as_string()


def _write(expression: sql.Composable) -> str:
    """Return SQL as text. A column by itself is by far the most frequent."""
    is_column = isinstance(expression, sql.Identifier) and len(expression._obj) == 1
    return _quote(expression._obj[0]) if is_column else expression.as_string()


def name_output(output: Output) -> sql.Composed:
    """Return `expression AS name`."""
    return sql.SQL("{} AS {}").format(output.expression, sql.Identifier(output.name))


def map_relation(
    relation: Relation, table: TableSettings, expression_types: dict[str, tuple[int, int]] | None = None
) -> Mapping:
    """Compile the rules of one table. Pure.

    expression_types: (type OID, typmod) of masks that are SQL expressions, by source column; text where not given.
    Raises ConfigError when a rule names a column that is not there, or two columns end under one name.
    """
    _check_names(relation, table)
    kept = [column for column in relation.columns if _is_kept(column, table)]
    outputs = tuple(_output(column, relation, table, expression_types or {}) for column in kept)
    _check_unique(outputs, relation)
    key = _key_columns(relation, table)
    names = {output.source.name: output.name for output in outputs}
    for column in key:
        if column not in names or table.mask.get(column) == "null":
            raise ConfigError(
                f"{_label(relation)}: key column {column} is left out or masked with null",
                why="rows are told apart by their key",
                hint="keep the column, mask it with hash, or configure another key",
            )
    return Mapping(
        relation=relation,
        outputs=outputs,
        key=tuple(names[column] for column in key),
        watermark=relation.by_name[table.watermark] if table.watermark else None,
        where=trusted_sql(table.where) if table.where else None,
        hashes=any(table.mask.get(output.source.name) == "hash" for output in outputs),
    )


def fit_settings(table: TableSettings, relation: Relation, required: frozenset[str]) -> TableSettings:
    """Return the settings without the columns that the relation does not have.

    Defaults and patterns speak of many tables, not each of which has every column; `required` are the columns that the
    table's own entry names, and those stay, to be reported if they are missing.
    """

    def is_kept(column: str) -> bool:
        return column in relation.by_name or column in required

    key = table.key if table.key and all(is_kept(column) for column in table.key) else None
    return table.model_copy(
        update={
            "key": key,
            "watermark": table.watermark if table.watermark and is_kept(table.watermark) else None,
            "exclude": table.exclude and tuple(column for column in table.exclude if is_kept(column)),
            "rename": {column: name for column, name in table.rename.items() if is_kept(column)},
            "mask": {column: mask for column, mask in table.mask.items() if is_kept(column)},
        }
    )


def named_columns(table: TableSettings | TableEntry) -> frozenset[str]:
    """Return every column that the rules name."""
    lists = (table.key, table.include, table.exclude, table.rename, table.mask)
    names = {column for columns in lists for column in columns or ()}
    return frozenset(names | ({table.watermark} if table.watermark else set()))


def trusted_sql(text: str) -> sql.SQL:
    """Return SQL that the operator wrote into the configuration; a line break keeps a trailing comment harmless."""
    return sql.SQL(text + ("\n" if "--" in text else ""))


def expression_masks(table: TableSettings) -> dict[str, str]:
    """Return the masks that are SQL expressions, by source column."""
    return {column: mask for column, mask in table.mask.items() if mask not in ("hash", "null")}


def _key_columns(relation: Relation, table: TableSettings) -> tuple[str, ...]:
    if table.key:
        return tuple(table.key)
    index = relation.identity_index
    if index is None or index.deferrable or relation.has_children:
        return ()
    return index.columns


def _is_kept(column: Column, table: TableSettings) -> bool:
    if table.include:
        return column.name in table.include
    return column.name not in (table.exclude or ())


def _output(
    column: Column, relation: Relation, table: TableSettings, expression_types: dict[str, tuple[int, int]]
) -> Output:
    expression: sql.Composable = sql.Identifier(column.name)
    type_oid, typmod = column.type_oid, column.typmod
    mask = table.mask.get(column.name)
    if mask == "hash":
        expression, type_oid, typmod = _hashed(expression), TEXT_OID, -1
    elif mask == "null":
        expression = sql.SQL("NULL")
    elif mask is not None:
        expression = sql.SQL("({})").format(trusted_sql(mask))
        type_oid, typmod = expression_types.get(column.name, (TEXT_OID, -1))
    else:
        expression = _cleaned(expression, _base_type(relation, column.type_oid), table)
    return Output(table.rename.get(column.name, column.name), column, expression, type_oid, typmod)


def _hashed(value: sql.Composable) -> sql.Composable:
    # format('%s') takes the type's output function, as the replication stream does; bool::text would differ from it.
    return sql.SQL(
        "CASE WHEN {value} IS NOT NULL THEN encode(sha256(decode(current_setting({key}), 'hex')"
        " || convert_to(format('%s', {value}), 'UTF8')), 'hex') END"
    ).format(value=value, key=sql.Literal(MASK_KEY_SETTING))


CellRule = Callable[[bytes], bytes | None]


def compile_cell_rule(
    output: Output, relation: Relation, table: TableSettings, mask_key: bytes | None
) -> CellRule | None:
    """Return what the output's expression does to a cell's text in UTF-8, NULL staying NULL; None: nothing.

    The same rule as the SQL, for cells that reach the target by the stream; a mask that is an SQL expression has none.
    """
    mask = table.mask.get(output.source.name)
    if mask == "null":
        return lambda _cell: None
    if mask == "hash":
        secret = mask_key or b""
        return lambda cell: hashlib.sha256(secret + cell).hexdigest().encode()
    base = _base_type(relation, output.source.type_oid)
    if base is None:
        return None
    if table.nan_to_null and base.schema == "pg_catalog" and base.name in _NAN_TYPES:
        return lambda cell: None if cell == b"NaN" else cell
    if table.null_values and base.name in _TEXT_TYPES:
        nulls = frozenset(text.encode() for text in table.null_values)
        if base.name == "bpchar":
            # Its cast to text, which the SQL compares, drops trailing blanks.
            return lambda cell: None if cell.rstrip(b" ") in nulls else cell
        return lambda cell: None if cell in nulls else cell
    return None


def needs_source(mapping: Mapping, table: TableSettings) -> bool:
    """Say whether only the source can compute the target's rows: `where`, and masks that are SQL expressions."""
    masks = expression_masks(table)
    return mapping.where is not None or any(output.source.name in masks for output in mapping.outputs)


def find_naming_columns(mapping: Mapping, table: TableSettings) -> tuple[str, ...]:
    """Return the source's columns whose copy is written with names of objects, which follow each rename.

    By their type, or by an expression of the configuration that casts to such a type; `where` counts as a column.
    """
    relation, masks = mapping.relation, expression_masks(table)
    naming = [column.name for column in relation.columns if relation.names_objects(column.type_oid)]

    def speaks_of_objects(expression: str) -> bool:
        return bool(_NAMES_OBJECTS.search(expression)) or any(name in expression for name in naming)

    found = [
        name
        for name in (output.source.name for output in mapping.outputs)
        if (speaks_of_objects(masks[name]) if name in masks else name in naming and table.mask.get(name) != "null")
    ]
    if table.where and speaks_of_objects(table.where):
        found.append("where")
    return tuple(found)


def _cleaned(value: sql.Composable, base: Type | None, table: TableSettings) -> sql.Composable:
    if base is None:
        return value
    if table.nan_to_null and base.schema == "pg_catalog" and base.name in _NAN_TYPES:
        return sql.SQL("nullif({}, 'NaN')").format(value)
    if table.null_values and base.name in _TEXT_TYPES:
        return sql.SQL("CASE WHEN {value}::text <> ALL ({nulls}::text[]) THEN {value} END").format(
            value=value, nulls=sql.Literal(list(table.null_values))
        )
    return value


def _base_type(relation: Relation, oid: int) -> Type | None:
    found = relation.types.get(oid)
    while found is not None and found.base:
        found = relation.types.get(found.base)
    return found


def _label(relation: Relation) -> str:
    return f"{relation.schema}.{relation.name}"


def _check_names(relation: Relation, table: TableSettings) -> None:
    named: dict[str, Sequence[str]] = {
        "key": table.key or (),
        "watermark": [table.watermark] if table.watermark else [],
        "include": table.include or (),
        "exclude": table.exclude or (),
        "rename": list(table.rename),
        "mask": list(table.mask),
    }
    for rule, columns in named.items():
        for column in columns:
            if column not in relation.by_name:
                near = difflib.get_close_matches(column, list(relation.by_name), 1)
                raise ConfigError(
                    f"{_label(relation)}: {rule} names column {column}, which is not there",
                    why=f"the nearest column is {near[0]}" if near else "no column has a name like it",
                    hint=f"correct {rule} of this table in replicator.toml",
                )


def _check_unique(outputs: Sequence[Output], relation: Relation) -> None:
    seen: dict[str, str] = {}
    for output in outputs:
        if output.name in seen:
            raise ConfigError(
                f"{_label(relation)}: {seen[output.name]} and {output.source.name} would both be {output.name}",
                why="two columns of the target cannot have one name",
                hint="change rename, or exclude one of them",
            )
        seen[output.name] = output.source.name
