"""What the publication holds: whole tables, so that the application's own migrations go on; or, if asked, less."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.finding import check, find, ids
from tests.pair import Pair
from tests.streaming import catch_up, listening
from tests.wait import wait_until

SECRET = "seen-by-nobody"
TABLE = (
    "create table t (id int primary key, n int, note varchar(50), phone text, big text);"
    "alter table t alter big set storage external;"
    f"insert into t select n, n, 'x' || n, '{SECRET}', repeat('{SECRET}', 900) from generate_series(1, 20) n"
)


def own_tables(pair: Pair) -> None:
    """Let the reader own every table and publish: the tool then makes the publication itself."""
    names = {"reader": sql.Identifier(pair.reader), "database": sql.Identifier(pair.source_db)}
    pair.source.execute(sql.SQL("grant create on database {database} to {reader}").format(**names))
    for (table,) in pair.source.execute("select oid::regclass::text from pg_class where relkind in ('r', 'p')"
                                        " and relnamespace = 'public'::regnamespace").fetchall():  # fmt: skip
        pair.source.execute(sql.SQL("alter table {} owner to {}").format(sql.SQL(table), names["reader"]))


def list_columns(pair: Pair, table: str) -> int | None:
    """Return how many columns the publication lists of a table; None where it holds the whole table."""
    query = "select cardinality(prattrs::int2[]) from pg_publication_rel where prrelid = %s::regclass"
    row = pair.source.execute(query, [table]).fetchone()
    assert row is not None
    listed: int | None = row[0]
    return listed


def wait_for_columns(pair: Pair, *columns: str) -> None:
    """Wait until these columns of public.t are equal."""

    def is_equal() -> bool:
        try:
            pair.assert_equal("public.t", columns=columns)
        except (AssertionError, psycopg.Error):
            return False
        return True

    wait_until(is_equal, 20, what=f"{', '.join(columns)} of public.t are equal", interval_s=0.1)


@pytest.mark.versions
@pytest.mark.parametrize(
    "rule",
    [{"exclude": ["phone", "big"]}, {"include": ["id", "n", "note"]}, {"exclude": ["phone", "big"], "where": "n > 0"}],
    ids=["exclude", "include", "where"],
)
def test_the_application_changes_its_copied_columns_beside_a_listener(streamed: Pair, rule: dict[str, Any]) -> None:
    """S28: ALTER TYPE and DROP COLUMN of copied columns, with columns left out and rows chosen."""
    streamed.source.execute(TABLE)
    own_tables(streamed)
    streamed.write_config(tables=[{"name": "public.t"} | rule])
    with listening(streamed):
        streamed.source.execute("alter table t alter n type bigint; update t set n = 3000000000 where id = 1")
        streamed.source.execute("alter table t alter note type text")
        streamed.source.execute("alter table t alter big type bytea using big::bytea")
        streamed.source.execute("insert into t (id, n, note) values (100, 1, 'new')")
        wait_for_columns(streamed, "id", "n", "note")
    streamed.source.execute("alter table t drop column note; update t set n = n + 1")
    if "include" not in rule:
        # What `include` names has to be there.
        catch_up(streamed)
        streamed.assert_equal("public.t", columns=["id", "n"])
    assert list_columns(streamed, "public.t") is None


@pytest.mark.versions
@pytest.mark.parametrize("identity", ["default", "full", "keyless"])
def test_excluded_columns_reach_neither_target_nor_logs(streamed: Pair, identity: str) -> None:
    """S28: whole tables are published, so their values arrive; large ones that did not change do not."""
    streamed.source.execute(TABLE)
    if identity == "keyless":
        streamed.source.execute("alter table t drop constraint t_pkey")
    if identity != "default":
        streamed.source.execute("alter table t replica identity full")
    streamed.publish()
    (streamed.dir / "mask.key").write_text("secret of the masks")
    table = {"name": "public.t", "exclude": ["phone", "big"], "mask": {"note": "null", "n": "hash"}}
    streamed.write_config(
        tables=[table], privacy={"mask_key_file": str(streamed.dir / "mask.key")}, logs={"level": "debug"}
    )
    catch_up(streamed)
    streamed.source.execute(
        f"update t set n = n + 1; update t set phone = '{SECRET} again' where id < 9;"
        "update t set big = null where id = 3;"
        f"insert into t values (21, 21, '{SECRET}', '{SECRET}', '{SECRET}'); delete from t where id = 20;"
        "update t set id = 40 where id = 4"
    )
    logs = catch_up(streamed)
    for file in streamed.dir.rglob("*"):
        assert not file.is_file() or file.name.endswith(".sock") or SECRET.encode() not in file.read_bytes(), file
    assert SECRET not in logs
    dump = streamed.target.execute(
        "select string_agg(t::text, '' order by id), count(*), count(note) from t"
    ).fetchone()
    assert dump is not None
    assert SECRET not in dump[0]
    assert dump[1:] == (20, 0)
    before = streamed.target.execute("select t::text from t order by id").fetchall()
    streamed.run("slot", "drop", "--yes")
    streamed.run("sync", "--full")
    assert streamed.target.execute("select t::text from t order by id").fetchall() == before


@pytest.mark.versions
def test_with_copied_columns_only_the_excluded_never_leave_the_source_and_check_says_what_that_costs(
    streamed: Pair,
) -> None:
    """S28: the option for those who need it more; its refusals are the source's own."""
    streamed.source.execute(TABLE)
    own_tables(streamed)
    config: dict[str, Any] = {
        "tables": [{"name": "public.t", "exclude": ["phone", "big"]}],
        "listen": {"publish_columns": "copied"},
    }
    streamed.write_config(**config)
    finding = find(streamed, "column_list", "public.t")
    assert finding["severity"] == "warn"
    assert "ALTER TYPE and DROP COLUMN" in finding["message"]
    catch_up(streamed)
    assert list_columns(streamed, "public.t") == 3
    with pytest.raises(psycopg.Error):
        streamed.source.execute("alter table t alter n type bigint")
    # Back to whole tables, and to lists again: no table is copied anew.
    for listen, listed in (({}, None), ({"publish_columns": "copied"}, 3)):
        streamed.source.execute("update t set n = n + 1")
        streamed.write_config(**(config | {"listen": listen | {"slot": streamed.slot}}))
        streamed.source.execute("update t set n = n + 1")
        catch_up(streamed)
        assert list_columns(streamed, "public.t") == listed
        streamed.assert_equal("public.t", columns=["id", "n", "note"])
    assert [row["load_type"] for row in streamed.control_rows("public.t")].count("full") == 1


@pytest.mark.versions
def test_a_publication_with_column_lists_is_brought_up_to_whole_tables_without_a_new_copy(streamed: Pair) -> None:
    """S28: as an earlier version made it; changes of before and after lie in the WAL."""
    streamed.source.execute(TABLE)
    own_tables(streamed)
    config: dict[str, Any] = {"tables": [{"name": "public.t", "exclude": ["phone", "big"]}]}
    streamed.write_config(**config, listen={"publish_columns": "copied"})
    catch_up(streamed)
    streamed.source.execute("update t set n = n + 1 where id < 10; delete from t where id = 11")
    streamed.write_config(**config)
    assert "publication" in ids(check(streamed, exit_code=0), "ok")
    with listening(streamed):
        streamed.source.execute("update t set n = n + 1 where id > 5; insert into t values (30, 1, 'a', 'b', 'c')")
        wait_for_columns(streamed, "id", "n", "note")
    assert list_columns(streamed, "public.t") is None
    assert [row["load_type"] for row in streamed.control_rows("public.t")].count("full") == 1
    streamed.source.execute("alter table t alter n type bigint")


@pytest.mark.versions
def test_column_lists_that_only_the_owner_can_change_are_told_and_followed(streamed: Pair) -> None:
    """S28: the SQL goes to the owner; until then the stream works, and afterwards too."""
    streamed.source.execute(TABLE)
    streamed.grant()
    streamed.source.execute(
        "create publication replicator_default for table t (id, n, note) with (publish_via_partition_root)"
    )
    streamed.write_config(tables=[{"name": "public.t", "exclude": ["phone", "big"]}])
    finding = find(streamed, "publication_columns", "public.t")
    assert finding["severity"] == "warn"
    assert "publication_columns_differ" in catch_up(streamed)
    streamed.source.execute("update t set n = n + 1")
    catch_up(streamed)
    streamed.assert_equal("public.t", columns=["id", "n", "note"])
    streamed.source.execute(sql.SQL(finding["hint"].removeprefix("as its owner: ")))
    streamed.source.execute("update t set n = n + 1; alter table t alter n type bigint")
    assert "publication_columns_differ" not in catch_up(streamed)
    assert "publication_columns" not in ids(check(streamed))
    streamed.assert_equal("public.t", columns=["id", "n", "note"])


def test_check_tells_that_a_published_virtual_column_keeps_its_expression(streamed: Pair) -> None:
    """S28: SET EXPRESSION of a virtual column, which the source refuses for tables published by name."""
    streamed.source.execute("create table t (id int primary key, a int, twice int generated always as (a * 2) virtual)")
    streamed.publish("t")
    streamed.write_config(tables=[{"name": "public.t", "exclude": ["twice"]}])
    statement = "alter table t alter column twice set expression as (a * 3)"
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        streamed.source.execute(statement)
    finding = find(streamed, "virtual_expression", "public.t")
    assert finding["severity"] == "warn"
    hint = finding["hint"].removeprefix("to change it: ").replace("(...)", "(a * 3)")
    streamed.source.execute(sql.SQL(hint))
    streamed.source.execute("drop publication replicator_default")
    streamed.publish()
    assert "virtual_expression" not in ids(check(streamed))
    streamed.source.execute(statement)
