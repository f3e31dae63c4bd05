"""Names that end a statement, a string, a line or a pattern when they are pasted instead of quoted."""

from __future__ import annotations

import pytest
from psycopg import sql

from tests.naming import INJECTION, ODD_NAMES, SPECIAL_NAMES, change_tables, create_tables
from tests.nightly import assert_tables_equal, refuse, sync, sync_idly
from tests.pair import Pair


def check_three_nights(pair: Pair, schema: str, names: list[str], **rules: object) -> None:
    """Sync tables of these names as they are, after changes, and once more; equal each time."""
    tables = create_tables(pair, schema, names)
    pair.write_config(tables=[{"name": table} | rules for table in tables])
    sync(pair)
    assert_tables_equal(pair, tables)
    change_tables(pair, schema, names)
    batches = sync(pair)
    assert {row["load_type"] for row in batches.values()} == {"incremental", "full"}
    assert_tables_equal(pair, tables)
    assert set(sync_idly(pair)) == set(tables)


@pytest.mark.hazard("H1", "H2")
def test_odd_names_of_schemas_tables_and_columns_are_only_names(pair: Pair) -> None:
    check_three_nights(pair, INJECTION, ODD_NAMES)
    for command in ("status", "history", "plan"):
        shown = pair.run(command).stdout
        assert "\x1b" not in shown
        assert pair.json(command)["schema"] == 1


@pytest.mark.hazard("H2")
def test_odd_names_survive_a_watermark_and_its_audit(pair: Pair) -> None:
    names = ODD_NAMES[:12]
    tables = create_tables(pair, "odd", names)
    pair.write_config(
        tables=[
            {"name": table, "key": [name], "watermark": "at", "strategy": "watermark", "target": f'"{n}".{table[4:]}'}
            for n, (table, name) in enumerate(tables.items())
        ]
    )
    sync(pair)
    change_tables(pair, "odd", names)
    sync(pair)
    for n, table in enumerate(tables):
        pair.assert_equal(table, f'"{n}".{table[4:]}')
    sync_idly(pair)


@pytest.mark.hazard("H2")
def test_odd_names_serve_in_rules_and_on_the_command_line(pair: Pair) -> None:
    odd = dict(zip(ODD_NAMES[0::2], ODD_NAMES[1::2], strict=False))
    hashed, emptied, computed = "'", "back\\slash\\'", "new\nline\r\n"
    columns = sql.SQL(", ").join(sql.SQL("{} text").format(sql.Identifier(name)) for name in odd)
    pair.source.execute(sql.SQL("create table t (id int primary key, {}, other int)").format(columns))
    pair.source.execute(sql.SQL("insert into t (id, {}) values (1, '%s'), (2, null)").format(sql.Identifier(INJECTION)))
    pair.grant()
    where = sql.SQL("{} = '%s' -- {{}} :x").format(sql.Identifier(INJECTION)).as_string()
    (pair.dir / "mask.key").write_text("x" * 40)
    pair.write_config(
        target={"control_schema": INJECTION},
        privacy={"mask_key_file": "mask.key"},
        tables=[
            {
                "name": "public.t", "target": '"{}".""""', "rename": odd, "exclude": ["other"], "where": where,
                "mask": {hashed: "hash", emptied: "null", computed: "id || '%s {} :x'"},
                "null_values": ["'; drop table t; --", "\\"],
            }
        ],
    )  # fmt: skip
    pair.run("sync", "public.t")
    kept = {name: new for name, new in odd.items() if name not in (hashed, emptied, computed)}
    pair.assert_equal("public.t", '"{}".""""', {"id": "id"} | kept, where=f"{where}\n")
    assert [row["status"] for row in pair.control_rows(schema=INJECTION)] == ["success"]


@pytest.mark.hazard("H2")
def test_odd_labels_and_names_of_enums_are_only_labels_and_names(pair: Pair) -> None:
    labels = [name for name in ODD_NAMES if len(name.encode()) < 64]
    for n, name in enumerate(ODD_NAMES):
        pair.source.execute(
            sql.SQL("create type {} as enum ({})").format(
                sql.Identifier(name), sql.SQL(", ").join(map(sql.Literal, labels[: n + 1]))
            )
        )
    types = sql.SQL(", ").join(
        sql.SQL("c{} {} default {}").format(sql.SQL(str(n)), sql.Identifier("public", name), sql.Literal(labels[n]))
        for n, name in enumerate(ODD_NAMES)
    )
    pair.source.execute(sql.SQL("create table t (id int primary key, {})").format(types))
    pair.source.execute("insert into t (id) values (1)")
    pair.grant()
    pair.write_config(tables=["public.t"])
    sync(pair)
    pair.assert_equal("public.t")
    for n, name in enumerate(ODD_NAMES):
        identifier = sql.Identifier("public", name)
        added, renamed = f"added {n} '\\%s", f"{labels[n][:10]} 'renamed'"
        first = sql.Literal(labels[0] if n else renamed)
        rename = sql.SQL("alter type {} rename value {} to {}")
        pair.source.execute(rename.format(identifier, sql.Literal(labels[n]), sql.Literal(renamed)))
        add = sql.SQL("alter type {} add value {} before {}")
        pair.source.execute(add.format(identifier, sql.Literal(added), first))
        pair.source.execute(sql.SQL("update t set {} = {}").format(sql.Identifier(f"c{n}"), sql.Literal(added)))
    pair.source.execute("insert into t (id) select 2")
    sync(pair)
    pair.assert_equal("public.t")
    sync_idly(pair)


@pytest.mark.hazard("H3")
def test_keywords_and_our_own_names_are_free_to_use(pair: Pair) -> None:
    check_three_nights(pair, "Select", SPECIAL_NAMES)


@pytest.mark.hazard("H3")
def test_keywords_and_our_own_names_are_free_to_use_with_a_watermark(pair: Pair) -> None:
    tables = create_tables(pair, "all", SPECIAL_NAMES)
    pair.write_config(
        tables=[{"name": t, "key": [n], "watermark": "at", "strategy": "watermark"} for t, n in tables.items()]
    )
    sync(pair)
    change_tables(pair, "all", SPECIAL_NAMES)
    sync(pair)
    assert_tables_equal(pair, tables)
    sync_idly(pair)


@pytest.mark.hazard("H3")
def test_a_column_called_like_the_mark_of_deleted_rows_is_told_to_be_in_the_way(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key, _deleted_at timestamptz)")
    pair.grant()
    pair.write_config(tables=[{"name": "public.t", "deletes": "soft"}])
    refuse(pair, 3, "public.t", "_deleted_at")
    pair.write_config(tables=[{"name": "public.t", "deletes": "soft", "rename": {"_deleted_at": "gone_at"}}])
    sync(pair)
    pair.assert_equal("public.t", columns={"id": "id", "_deleted_at": "gone_at"})


@pytest.mark.hazard("H3")
def test_a_source_table_cannot_take_the_place_of_the_control_schema(pair: Pair) -> None:
    """A source that is itself a target has a schema of that name: patterns pass it over, naming it is a mistake."""
    pair.source.execute("create table ours (id int primary key)")
    pair.source.execute("create schema replicator; create table replicator.etl_control (batch_id bigint primary key)")
    pair.grant()
    pair.write_config(tables=["public.ours"])
    sync(pair)
    before = pair.control_rows("public.ours")
    pair.write_config(tables=["replicator.etl_control"])
    refuse(pair, 3, "replicator.etl_control", "control_schema")
    assert pair.control_rows("public.ours") == before
    pair.write_config(tables=["*.*"])
    assert set(sync_idly(pair)) == {"public.ours"}
    pair.write_config(tables=["replicator.etl_control"], target={"control_schema": "elsewhere"})
    pair.source.execute("insert into replicator.etl_control values (1)")
    pair.target.execute("drop schema replicator cascade")
    sync(pair)
    pair.assert_equal("replicator.etl_control")
