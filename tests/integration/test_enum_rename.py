"""An enum of the source that gets another name, or another schema."""

from __future__ import annotations

import pytest

from tests.pair import Pair
from tests.streaming import catch_up

RENAMES = {
    "renamed": "alter type mood rename to feeling",
    "moved": "create schema other; grant usage on schema other to public; alter type mood set schema other",
    "both": "create schema other; grant usage on schema other to public; alter type mood rename to feeling;"
    "alter type feeling set schema other; alter type other.feeling rename value 'ok' to 'fine';"
    "alter type other.feeling add value 'new'",
    "replaced": "alter type mood rename to feeling; create type mood as enum ('x'); alter table t add fresh mood",
}


def fill(pair: Pair) -> None:
    """Make two tables that share an enum, one of them in an array and a domain."""
    pair.source.execute(
        "create type mood as enum ('ok', 'bad'); create domain state as mood;"
        "create table t (id int primary key, m mood, ms mood[]); create table u (id int primary key, m mood, s state);"
        "insert into t values (1, 'ok', '{ok,bad}'), (2, 'bad', null); insert into u values (1, 'bad', 'ok')"
    )


def read_type(pair: Pair, table: str) -> str:
    """Return the type of the target's column m."""
    query = "select format_type(atttypid, -1) from pg_attribute where attrelid = %s::regclass and attname = 'm'"
    row = pair.target.execute(query, [table]).fetchone()
    assert row is not None
    return str(row[0])


@pytest.mark.versions
@pytest.mark.parametrize("rename", RENAMES.values(), ids=RENAMES)
@pytest.mark.parametrize("path", ["sync", "listen"])
def test_a_renamed_enum_is_renamed_in_the_target(streamed: Pair, path: str, rename: str) -> None:
    """S7, V2: with all columns, arrays and tables that have it, and without a manual repair."""
    fill(streamed)
    streamed.publish()
    streamed.write_config(tables=["public.t", "public.u"])

    def bring() -> None:
        if path == "sync":
            streamed.run("sync")
        else:
            catch_up(streamed)

    bring()
    streamed.source.execute(rename.encode())
    streamed.grant()
    streamed.source.execute("insert into t (id, m) values (3, 'bad'); update u set m = 'bad' where id = 1")
    assert "schema_drift" not in streamed.run("check", check=0).stdout
    bring()
    for table in ("t", "u"):
        streamed.assert_equal(f"public.{table}")
        assert read_type(streamed, table) == ("other." if "other" in rename else "") + (
            "feeling" if "feeling" in rename else "mood"
        )
