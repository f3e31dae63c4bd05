"""The first user's case: somebody else's chat platform, a view of 150 columns, SELECT and nothing more, every night."""

from __future__ import annotations

from datetime import datetime
from typing import cast

import pytest
from psycopg import Connection, sql
from psycopg.rows import TupleRow

from replicator.demo.data import WIDE_VIEW, change_demo
from replicator.statement import sql_directory
from tests.pair import Pair

TARGET = "public.conversas_analytics"
CLEANED = "public.cleaned"
ROWS = 2_000

TABLE = {
    "name": WIDE_VIEW,
    "target": TARGET,
    "key": ["conversation_id"],
    "watermark": "conversation_updated_at",
    "nan_to_null": True,
    "null_values": ["NaN", "NaT"],
}


@pytest.fixture
def user(pair: Pair) -> Pair:
    """A pair as the first user has it: SELECT on the view alone, credentials in `.env` beside the configuration."""
    pair.source.execute("select set_config('demo.rows', %s, false)", [str(ROWS)])
    for name in ("schema", "rows", "view"):
        pair.source.execute((sql_directory() / "demo" / f"{name}.sql").read_bytes())
    create_cleaned_view(pair.source)
    grant = sql.SQL("grant usage on schema public to {0}; grant select on {1} to {0}")
    pair.source.execute(grant.format(sql.Identifier(pair.reader), identify(WIDE_VIEW)))
    pair.write_config(tables=[TABLE], source=None, target=None)
    (pair.dir / ".env").write_text(
        f"REPLICATOR_SOURCE__DSN={pair.source_dsn!r}\nREPLICATOR_TARGET__DSN={pair.target_dsn!r}\n"
    )
    return pair


def create_cleaned_view(source: Connection[TupleRow]) -> None:
    """Create the view that the target must equal, cleaned in SQL of the test's own."""
    columns = source.execute(
        "select attname, atttypid::regtype::text from pg_attribute where attrelid = %s::regclass and attnum > 0",
        [WIDE_VIEW],
    ).fetchall()
    cleaned = sql.SQL(", ").join(clean_column(name, kind) for name, kind in columns)
    create = sql.SQL("create view {} as select {} from {}")
    source.execute(create.format(identify(CLEANED), cleaned, identify(WIDE_VIEW)))


def identify(table: str) -> sql.Identifier:
    return sql.Identifier(*table.split("."))


def clean_column(name: str, kind: str) -> sql.Composed:
    """Return the column without NaN and 'NaT', under its own name."""
    cleanings = {
        "real": "nullif({0}, 'NaN') as {0}",
        "double precision": "nullif({0}, 'NaN') as {0}",
        "numeric": "nullif({0}, 'NaN') as {0}",
        "text": "case when {0} not in ('NaN', 'NaT') then {0} end as {0}",
        "character varying": "case when {0} not in ('NaN', 'NaT') then {0} end as {0}",
    }
    return sql.SQL(cleanings.get(kind, "{0}")).format(sql.Identifier(name))


def count_changed_behind_the_watermark(user: Pair) -> int:
    """Return how many rows of the source differ from the target's although their watermark stands still."""
    query = "select conversation_id, conversation_updated_at, md5(r::text) from {} as r"
    there = {key: row for key, *row in user.source.execute(query.format(CLEANED).encode()).fetchall()}
    here = {key: row for key, *row in user.target.execute(query.format(TARGET).encode()).fetchall()}
    return sum(there[key] != here[key] and there[key][0] == here[key][0] for key in there.keys() & here.keys())


def read_source_clock(user: Pair) -> datetime:
    row = user.source.execute("select clock_timestamp()").fetchone()
    assert row is not None
    return cast(datetime, row[0])


def test_the_first_users_view_is_equal_every_night_and_the_record_tells_the_story(user: Pair) -> None:
    user.run("sync")
    user.assert_equal(CLEANED, TARGET)

    with user.source_server.connect(user.source_db) as late, late.transaction():
        assert change_demo(late, "insert") == 200
        assert change_demo(user.source, "insert") == 200
        assert change_demo(user.source, "update") == 500
        assert change_demo(user.source, "rename_contacts") == 20
        user.source.execute("delete from conversations where id = 1234")
        missed = count_changed_behind_the_watermark(user)
        assert missed >= 20
        user.run("sync")
        user.assert_equal(CLEANED, TARGET)

    before = read_source_clock(user)
    user.run("sync")
    user.assert_equal(CLEANED, TARGET)
    after = read_source_clock(user)

    first, second, third = user.control_rows(WIDE_VIEW)
    assert (first["load_type"], first["rows_inserted"], first["rows_deleted"]) == ("full", ROWS, 0)
    assert (second["load_type"], second["strategy"], second["guarantee"]) == ("incremental", "watermark", "bounded")
    assert (second["rows_inserted"], second["rows_updated"], second["rows_deleted"]) == (200, 500 + missed, 1)
    assert second["rows_missed_before"] == missed
    # The rows that were committed late carry a stamp of before the second run: the watermark itself waited for them.
    assert (third["rows_inserted"], third["rows_updated"], third["rows_deleted"]) == (200, 0, 0)
    assert third["rows_missed_before"] == 0

    stats = (
        "select table_name, load_type, status, rows_inserted, rows_missed_before, error_message"
        " from replicator.vw_etl_stats order by batch_id"
    )
    assert user.target.execute(stats).fetchall() == [
        (WIDE_VIEW, "full", "success", ROWS, 0, None),
        (WIDE_VIEW, "incremental", "success", 200, missed, None),
        (WIDE_VIEW, "incremental", "success", 200, 0, None),
    ]
    ((watermark,),) = user.target.execute("select replicator.get_last_successful_watermark(%s)", [WIDE_VIEW]).fetchall()
    assert before < watermark < after

    user.run("sync")
    quiet = user.control_rows(WIDE_VIEW)[-1]
    assert (quiet["rows_inserted"], quiet["rows_updated"], quiet["rows_deleted"]) == (0, 0, 0)


def test_nothing_of_the_password_is_in_the_configuration_or_in_the_logs(user: Pair) -> None:
    user.run("sync")
    assert user.reader_password in (user.dir / ".env").read_text()
    files = [path for path in user.dir.rglob("*") if path.is_file() and path.name != ".env"]
    assert any("etl_" in path.name for path in files)
    for path in files:
        for password in (user.reader_password, user.writer_password):
            assert password not in path.read_text(errors="replace"), path
