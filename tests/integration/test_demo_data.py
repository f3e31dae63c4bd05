"""The demo's source is what its story needs: wide, awkward, the same every time, and quickly made."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import TupleRow

from replicator.demo.data import WIDE_VIEW, change_demo, create_demo
from replicator.statement import sql_directory
from tests.pair import Pair, read_rows
from tests.servers import find_binaries

TABLES = ("accounts", "contacts", "inboxes", "users", "conversations", "messages")
ROWS = 2_000

Source = Connection[TupleRow]


@pytest.fixture
def source(pair: Pair) -> Iterator[Source]:
    """A source with the demo's data, as its superuser."""
    create_demo(pair.source, rows=ROWS)
    yield pair.source
    drop_reader(pair.source)


def drop_reader(connection: Source) -> None:
    """Drop the role of the whole server, so that the next test's database can grant to its own."""
    connection.execute("reset role; drop owned by reader; drop role reader")


def count(connection: Source, what: str) -> int:
    """Return `select count(*) from WHAT`."""
    row = connection.execute(f"select count(*) from {what}".encode()).fetchone()
    assert row
    return int(row[0])


def read_view(connection: Source) -> Counter[bytes]:
    return read_rows(connection, WIDE_VIEW, ["conversation_id", "contact_name", "contact_company"], None)


def read_watermarks(connection: Source) -> Counter[bytes]:
    return read_rows(connection, WIDE_VIEW, ["conversation_id", "conversation_updated_at"], None)


def test_the_view_is_150_columns_wide_over_five_joined_tables(source: Source) -> None:
    assert count(source, f"pg_attribute where attrelid = '{WIDE_VIEW}'::regclass and attnum > 0") == 150
    assert (
        count(source, "information_schema.view_table_usage where view_name = 'vw_conversations_analytics_final'") == 5
    )
    assert count(source, WIDE_VIEW) == count(source, "conversations") == ROWS
    assert count(source, f"(select distinct conversation_id from {WIDE_VIEW}) as keys") == ROWS


def test_the_view_holds_what_trips_a_replicator(source: Source) -> None:
    for condition in (
        "sentiment = 'NaN'",
        "csat_score = 'NaN'",
        "imported_first_reply = 'NaT'",
        "imported_rating = 'NaN'",
        "csat_feedback = ''",
        "agent_name is null",
        "contact_city = '東京'",
        "'NaN' = any (response_times) and array_position(response_times, null) is not null",
        "conversation_custom_attributes is not null",
        "account_id = 7",
    ):
        assert 0 < count(source, f"{WIDE_VIEW} where {condition}") < ROWS, condition
    types = "information_schema.columns where table_name = 'vw_conversations_analytics_final' and data_type = '{}'"
    for name in ("json", "jsonb", "ARRAY", "timestamp with time zone", "timestamp without time zone", "USER-DEFINED"):
        assert count(source, types.format(name)) > 0, name


@pytest.mark.versions
def test_the_same_size_gives_the_same_rows_on_every_server(pair: Pair, source: Source) -> None:
    create_demo(pair.target, rows=ROWS)
    try:
        for table in (*TABLES, WIDE_VIEW):
            pair.assert_equal(table)
    finally:
        drop_reader(pair.target)


def test_the_full_size_is_there_in_seconds(pair: Pair) -> None:
    started = time.monotonic()
    create_demo(pair.source)
    took_s = time.monotonic() - started
    try:
        sizes = [count(pair.source, table) for table in TABLES]
        assert sizes == [8, 10_000, 16, 40, 20_000, 60_000]
        assert took_s < 30
    finally:
        drop_reader(pair.source)


def test_reader_may_read_everything_and_change_nothing(source: Source) -> None:
    source.execute("set role reader")
    for table in (*TABLES, WIDE_VIEW):
        assert count(source, table) > 0
    for statement in (
        "insert into accounts select * from accounts",
        "update contacts set name = ''",
        "delete from messages",
        "truncate messages",
        "create table mine (id int)",
        "create schema mine",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            source.execute(statement.encode())


def test_inserted_conversations_carry_the_start_of_their_transaction(source: Source) -> None:
    with source.transaction():
        assert change_demo(source, "insert") == 200
        assert count(source, f"{WIDE_VIEW} where conversation_updated_at = now() and is_open") == 200
    assert count(source, WIDE_VIEW) == ROWS + 200
    assert change_demo(source, "insert") == 200
    assert count(source, WIDE_VIEW) == ROWS + 400


def test_updated_conversations_move_their_watermark_and_the_next_call_takes_others(source: Source) -> None:
    before = read_watermarks(source)
    assert change_demo(source, "update") == 500
    once = read_watermarks(source)
    assert (before - once).total() == 500
    assert change_demo(source, "update") == 500
    assert (before - read_watermarks(source)).total() == 1000


def test_deleted_conversations_are_gone_with_their_messages(source: Source) -> None:
    assert change_demo(source, "delete") == 50
    assert count(source, WIDE_VIEW) == ROWS - 50
    assert count(source, "messages") == 3 * (ROWS - 50)


def test_renamed_contacts_change_the_view_behind_the_watermarks_back(source: Source) -> None:
    rows, marks = read_view(source), read_watermarks(source)
    assert change_demo(source, "rename_contacts") == 20
    assert (rows - read_view(source)).total() >= 20
    assert read_watermarks(source) == marks


def test_every_file_pastes_into_psql(pair: Pair) -> None:
    psql = find_binaries(18) / "psql"
    dsn = pair.source_server.admin_dsn(pair.source_db)
    names = ["schema", "rows", "view", "reader", "insert", "update", "delete", "rename_contacts"]
    script = "set demo.rows = 1000;\n" + "\n".join(
        (sql_directory() / "demo" / f"{name}.sql").read_text("utf8") for name in names
    )
    try:
        done = subprocess.run(
            [psql, "-Xqv", "ON_ERROR_STOP=1", dsn], input=script, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert count(pair.source, WIDE_VIEW) == 1000 + 200 - 50
    finally:
        drop_reader(pair.source)
