"""What real servers send is understood, whole; what is spoilt on the way is refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import pytest
from psycopg import sql

from replicator.capture.envelope import Keepalive
from replicator.capture.pgoutput import (
    Begin,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    Origin,
    PartialInsert,
    PartialUpdate,
    Relation,
    Truncate,
    Type,
    Update,
    decode,
)
from replicator.capture.walsender import WalSender
from replicator.cell import UNCHANGED
from tests.conftest import SharedServers
from tests.pgoutput import encode, torture
from tests.servers import VERSIONS, Server

M = TypeVar("M", bound=Message)

SCHEMA = """
create schema "Quoted ""schema";
create type mood as enum ('sad', 'ok');
create domain positive as numeric(12, 3) check (value > 0);
create type pair as (a int, b text);
create table plain (id bigint primary key, note text, big text, at timestamptz);
create table typed (id int primary key, m mood, p positive, c pair, ms mood[], n varchar(40), grants aclitem);
create table "Quoted ""schema"."Ta ble" ("Id" int primary key, "naïve ☃" text);
create table whole (a int, big text);
create table indexed (id int not null, code text not null unique, other text);
create table silent (id int);
create table no_columns ();
create table parent (id serial primary key);
create table child (id serial primary key, parent int references parent);
create table filtered (id int not null, shown bool not null, big text, unique (id, shown));
alter table plain alter big set storage external;
alter table whole alter big set storage external, replica identity full;
alter table filtered alter big set storage external;
alter table indexed replica identity using index indexed_code_key;
alter table filtered replica identity using index filtered_id_shown_key;
alter table silent replica identity nothing;
create publication "all ""of it" for table plain, typed, "Quoted ""schema"."Ta ble", whole, indexed, silent,
    no_columns, parent, child;
create publication "o'ther \\ one" for table filtered where (shown), wide;
"""

WORKLOAD = [
    "insert into plain values (1, 'one', repeat('x', 10000), '2026-01-02 03:04:05.678901+00'), (2, '', null, null)",
    "update plain set note = 'changed' where id = 1",
    "update plain set id = 10 where id = 1",
    "delete from plain where id = 2",
    "insert into typed values (1, 'ok', 1.500, row(1, 'b'), '{sad,NULL}', 'café', 'postgres=r/postgres')",
    """insert into "Quoted ""schema"."Ta ble" values (1, '☃')""",
    "insert into whole values (1, repeat('y', 10000)), (null, null), (null, null)",
    "update whole set a = 2 where a = 1",
    "delete from whole where a is null",
    "insert into indexed values (1, 'a', 'x')",
    "update indexed set other = 'y'",
    "update indexed set code = 'b'",
    "delete from indexed",
    "insert into silent values (7)",
    "insert into no_columns default values",
    "insert into parent default values; insert into child values (1, 1)",
    "truncate parent cascade",
    "truncate plain restart identity",
    "truncate parent, child restart identity cascade",
    "insert into filtered values (1, false, repeat('z', 10000))",
    "update filtered set shown = true",
    "update filtered set shown = false",
    "insert into wide values (0)",
    "update wide set c1599 = 7",
    "alter table plain add added int; insert into plain values (3, 'three', 'small', null, 4)",
    "select pg_logical_emit_message(true, 'in', 'text'), pg_logical_emit_message(true, 'in', '\\x00ff'::bytea)",
    "select pg_logical_emit_message(false, 'out', '')",
]
ORIGIN = [
    "select pg_replication_origin_create('elsewhere')",
    "select pg_replication_origin_session_setup('elsewhere')",
    "begin",
    "select pg_replication_origin_xact_setup('1/2', '2026-01-01')",
    "insert into plain values (4, 'from elsewhere')",
    "commit",
    "select pg_replication_origin_session_reset()",
    "select pg_replication_origin_drop('elsewhere')",
]
PUBLICATIONS = ['all "of it', "o'ther \\ one"]
END = "end of the recording"


class Recording(NamedTuple):
    """What one server sent for the workload: once as text, once with the option `binary`."""

    text: list[bytes]
    binary: list[bytes]

    @property
    def messages(self) -> list[Message]:
        return list(map(decode, self.text))


def run_workload(server: Server, database: str) -> None:
    with server.connect(database) as session:
        for statement in [*WORKLOAD, *ORIGIN]:
            session.execute(sql.SQL(statement))
        session.execute("select pg_logical_emit_message(true, %s, '')", [END])


def create_schema(server: Server, database: str) -> None:
    columns = sql.SQL(", ").join(sql.SQL(f"c{number} int") for number in range(1600))
    with server.connect(database) as session:
        session.execute(sql.SQL("create table wide ({})").format(columns))
        session.execute("alter table wide replica identity full")
        session.execute(sql.SQL(SCHEMA))


def read_to_end(server: Server, database: str, slot: str, *, binary: bool) -> list[bytes]:
    recorded: list[bytes] = []
    with WalSender.open(server.admin_dsn(database)) as sender:
        sender.start(slot, publications=PUBLICATIONS, binary=binary)
        while not (len(recorded) > 1 and is_end(recorded[-2])):
            recorded += [item for item in sender.receive(5) if not isinstance(item, Keepalive)]
        sender.stop()
    return recorded


def is_end(message: bytes) -> bool:
    return message[:1] == b"M" and END.encode() in message


def record(server: Server) -> Recording:
    database = server.create_database(server.invent_name("recorded"))
    try:
        create_schema(server, database)
        slots = {binary: f"{database}_{binary}".lower() for binary in (False, True)}
        for slot in slots.values():
            with WalSender.open(server.admin_dsn(database)) as sender:
                sender.create_slot(slot)
        run_workload(server, database)
        return Recording(
            *(read_to_end(server, database, slot, binary=binary) for binary, slot in slots.items()),
        )
    finally:
        server.drop_database(database)


@pytest.fixture(scope="module")
def get_recording(shared_servers: SharedServers) -> Callable[[int], Recording]:
    """Return a function that records a version's server, once."""
    recordings: dict[int, Recording] = {}

    def get(version: int) -> Recording:
        if version not in recordings:
            recordings[version] = record(shared_servers.get("source", version))
        return recordings[version]

    return get


@pytest.fixture(params=VERSIONS)
def recording(request: pytest.FixtureRequest, get_recording: Callable[[int], Recording]) -> Recording:
    return get_recording(request.param)


def select(messages: Sequence[Message], kind: type[M], table: str | None = None) -> list[M]:
    """Return the messages of a kind, of all tables or of one."""
    shapes = {shape.oid: shape.name for shape in messages if isinstance(shape, Relation)}
    return [
        message
        for message in messages
        if isinstance(message, kind)
        and (table is None or (isinstance(message, Insert | Update | Delete) and shapes[message.relation] == table))
    ]


def test_every_message_of_a_server_is_decoded_to_its_last_byte(recording: Recording) -> None:
    for message in (*recording.text, *recording.binary):
        assert encode(decode(message)) == message
    kinds = {type(message) for message in recording.messages}
    assert kinds == {
        Begin, Commit, Origin, Relation, Type, Insert, PartialInsert, Update, PartialUpdate, Delete, Truncate,
        LogicalMessage,
    }  # fmt: skip


def test_transactions_follow_each_other_and_their_positions_grow(recording: Recording) -> None:
    messages = recording.messages
    begins, commits = select(messages, Begin), select(messages, Commit)
    assert [begin.final_lsn for begin in begins] == [commit.commit_lsn for commit in commits]
    assert [begin.commit_time_us for begin in begins] == [commit.commit_time_us for commit in commits]
    ends = [commit.end_lsn for commit in commits]
    assert ends == sorted(set(ends))
    assert all(commit.commit_lsn < commit.end_lsn for commit in commits)


def test_an_untouched_large_value_is_unchanged_and_not_null(recording: Recording) -> None:
    """S1."""
    touched, moved = select(recording.messages, Update, "plain")
    assert touched.new == (b"1", b"changed", UNCHANGED, b"2026-01-02 03:04:05.678901+00")
    assert (touched.old_kind, touched.old) == (None, None)
    assert moved.new == (b"10", b"changed", UNCHANGED, b"2026-01-02 03:04:05.678901+00")
    assert (moved.old_kind, moved.old) == ("K", (b"1", None, None, None))


def test_an_empty_string_is_not_null(recording: Recording) -> None:
    first, second, *_ = select(recording.messages, Insert, "plain")
    assert first.new == (b"1", b"one", b"x" * 10000, b"2026-01-02 03:04:05.678901+00")
    assert second.new == (b"2", b"", None, None)
    (deleted,) = select(recording.messages, Delete, "plain")
    assert (deleted.old_kind, deleted.old) == ("K", (b"2", None, None, None))


def test_replica_identity_full_sends_the_old_row_with_its_large_values(recording: Recording) -> None:
    """S4, S1: the new row says unchanged all the same."""
    (update,) = select(recording.messages, Update, "whole")
    assert (update.old_kind, update.old) == ("O", (b"1", b"y" * 10000))
    assert update.new == (b"2", UNCHANGED)
    deletes = select(recording.messages, Delete, "whole")
    assert [(delete.old_kind, delete.old) for delete in deletes] == [("O", (None, None))] * 2


def test_replica_identity_index_sends_the_old_key_when_it_changes(recording: Recording) -> None:
    """S4."""
    other, code = select(recording.messages, Update, "indexed")
    assert (other.old_kind, other.old, other.new) == (None, None, (b"1", b"a", b"y"))
    assert (code.old_kind, code.old, code.new) == ("K", (None, b"a", None), (b"1", b"b", b"y"))
    (delete,) = select(recording.messages, Delete, "indexed")
    assert (delete.old_kind, delete.old) == ("K", (None, b"b", None))


def test_each_tables_shape_comes_before_its_changes(recording: Recording) -> None:
    known: set[int] = set()
    for message in recording.messages:
        if isinstance(message, Relation):
            known.add(message.oid)
        elif isinstance(message, Insert | Update | Delete):
            assert message.relation in known
        elif isinstance(message, Truncate):
            assert known.issuperset(message.relations)


def test_shapes_name_identity_key_and_types(recording: Recording) -> None:
    shapes = {shape.name: shape for shape in select(recording.messages, Relation)}
    identities = {name: shape.identity for name, shape in shapes.items()}
    assert identities == {
        "plain": "d", "typed": "d", "Ta ble": "d", "whole": "f", "indexed": "i", "silent": "n", "no_columns": "d",
        "parent": "d", "child": "d", "filtered": "i", "wide": "f",
    }  # fmt: skip
    assert [column.name for column in shapes["indexed"].columns if column.is_key] == ["code"]
    assert all(column.is_key for column in shapes["whole"].columns)
    quoted = shapes["Ta ble"]
    assert (quoted.schema, [column.name for column in quoted.columns]) == ('Quoted "schema', ["Id", "naïve ☃"])
    typed = {column.name: column for column in shapes["typed"].columns}
    assert (typed["n"].type_oid, typed["n"].type_modifier) == (1043, 44)
    assert (shapes["no_columns"].columns, len(shapes["wide"].columns)) == ((), 1600)


def test_a_new_column_comes_with_a_new_shape(recording: Recording) -> None:
    """S7."""
    before, *_, after = [shape for shape in select(recording.messages, Relation) if shape.name == "plain"]
    assert [column.name for column in after.columns] == [*(column.name for column in before.columns), "added"]
    *_, small, _ = select(recording.messages, Insert, "plain")
    assert small.new == (b"3", b"three", b"small", None, b"4")


def test_types_that_are_not_built_in_are_named(recording: Recording) -> None:
    named = {(kind.schema, kind.name) for kind in select(recording.messages, Type)}
    assert named == {("public", "mood"), ("pg_catalog", "numeric"), ("public", "pair"), ("public", "_mood")}
    (row,) = select(recording.messages, Insert, "typed")
    text = (b"1", b"ok", b"1.500", b"(1,b)", b"{sad,NULL}", "café".encode(), b"postgres=r/postgres")
    assert (row.new, row.text) == (text, 0b1111111)


def test_with_binary_each_cell_says_how_it_is_written(recording: Recording) -> None:
    """`aclitem` has no send function: it stays text among binary cells."""
    (row,) = select(list(map(decode, recording.binary)), Insert, "typed")
    assert row.text == 0b1000000
    assert row.new[:2] == (b"\0\0\0\1", b"ok")
    assert row.new[5:] == ("café".encode(), b"postgres=r/postgres")
    text, binary = (len(select(list(map(decode, form)), Insert)) for form in recording)
    assert text == binary


def test_a_truncate_names_its_tables_and_options(recording: Recording) -> None:
    """S5."""
    shapes = {shape.oid: shape.name for shape in select(recording.messages, Relation)}
    found = [
        ({shapes[oid] for oid in truncate.relations}, truncate.cascade, truncate.restart_identity)
        for truncate in select(recording.messages, Truncate)
    ]
    assert found == [
        ({"parent", "child"}, True, False),
        ({"plain"}, False, True),
        ({"parent", "child"}, True, True),
    ]


def test_logical_messages_arrive_inside_and_outside_of_transactions(recording: Recording) -> None:
    """S12."""
    found = [(message.transactional, message.prefix, message.content) for message in
             select(recording.messages, LogicalMessage)]  # fmt: skip
    assert found == [(True, "in", b"text"), (True, "in", b"\0\xff"), (False, "out", b""), (True, END, b"")]
    inside = False
    for message in recording.messages:
        inside = isinstance(message, Begin) or (inside and not isinstance(message, Commit))
        if isinstance(message, LogicalMessage):
            assert message.transactional == inside


def test_a_transaction_from_elsewhere_says_so(recording: Recording) -> None:
    (origin,) = select(recording.messages, Origin)
    assert (origin.name, str(origin.origin_lsn)) == ("elsewhere", "1/2")


def test_a_row_that_enters_a_publications_filter_comes_as_an_insert_without_its_large_value(
    recording: Recording,
) -> None:
    (insert,) = select(recording.messages, Insert, "filtered")
    assert insert.new == (b"1", b"t", UNCHANGED)
    (delete,) = select(recording.messages, Delete, "filtered")
    assert (delete.old_kind, delete.old) == ("K", (b"1", b"t", None))


def test_tables_may_have_no_column_and_1600(recording: Recording) -> None:
    """V6, V7."""
    assert [insert.new for insert in select(recording.messages, Insert, "no_columns")] == [()]
    assert select(recording.messages, Insert, "silent")[0].new == (b"7",)
    (update,) = select(recording.messages, Update, "wide")
    assert update.old == (b"0",) + (None,) * 1599
    assert update.new == (b"0",) + (None,) * 1598 + (b"7",)


@pytest.mark.parametrize("rounds", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_spoilt_recordings_are_refused_or_mean_exactly_their_bytes(
    rounds: int, get_recording: Callable[[int], Recording]
) -> None:
    """Flipped bits, cuts, insertions, extensions, lengths at their extremes: no other error, no hang, no growth."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    recordings = map(get_recording, VERSIONS)
    messages = sorted({message for forms in recordings for form in forms for message in form})
    outcomes = torture(messages, rounds=rounds, seed=seed)
    print(f"{len(messages)} messages, {rounds} mutations: {dict(outcomes)}")
    assert min(outcomes["accepted"], outcomes["refused"]) > rounds // 20
