"""The decoder takes every message of pgoutput protocol 1 to its last byte, and nothing else."""

from __future__ import annotations

import random
import struct
import time
import timeit
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.capture.envelope import EPOCH_OFFSET_S, Header, Keepalive, encode_status, read_envelope, read_header
from replicator.capture.pgoutput import (
    MAX_COLUMNS,
    Begin,
    Column,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    Origin,
    PartialInsert,
    PartialUpdate,
    Relation,
    StreamAbort,
    Truncate,
    Type,
    Update,
    decode,
)
from replicator.cell import UNCHANGED, Cell, Cells
from replicator.errors import StreamError
from replicator.position import Lsn
from replicator.telemetry.trace import scrub_traceback
from tests.pgoutput import encode, mutate, torture

U32 = st.integers(0, 2**32 - 1)
XIDS = st.integers(1, 2**32 - 1)
LSNS = st.integers(1, 2**64 - 1).map(Lsn)
CLOCKS = st.integers(-(2**63), 2**63 - 1)
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
CONTENT = st.binary(max_size=300)
NEW_CELLS: st.SearchStrategy[Cell] = st.one_of(st.none(), st.just(UNCHANGED), CONTENT)
OLD_CELLS: st.SearchStrategy[Cell] = st.one_of(st.none(), CONTENT)
OLD_KINDS: st.SearchStrategy[Literal["K", "O"]] = st.sampled_from(("K", "O"))
COLUMNS = st.builds(Column, NAMES, U32, st.integers(-(2**31), 2**31 - 1), st.booleans())


def bits_of(cells: Cells, wanted: int) -> int:
    """Keep the bits of `wanted` that stand for a cell with a value: only those have a format."""
    return sum(1 << column for column, cell in enumerate(cells) if isinstance(cell, bytes) and wanted >> column & 1)


@st.composite
def changes(draw: st.DrawFn) -> Insert | Update | Delete:
    width = draw(st.integers(0, 20))
    relation, wanted = draw(U32), draw(st.integers(0, 2**width - 1))
    new = tuple(draw(st.lists(NEW_CELLS, min_size=width, max_size=width)))
    old = tuple(draw(st.lists(OLD_CELLS, min_size=width, max_size=width)))
    old_kind = draw(OLD_KINDS)
    match draw(st.sampled_from(["insert", "update", "update with old", "delete"])):
        case "insert":
            return Insert(relation, new, bits_of(new, wanted))
        case "update":
            return Update(relation, None, None, new, bits_of(new, wanted))
        case "update with old":
            return Update(relation, old_kind, old, new, bits_of(new, wanted) | bits_of(old, wanted))
        case _:
            return Delete(relation, old_kind, old, bits_of(old, wanted))


MESSAGES: st.SearchStrategy[Message] = st.one_of(
    changes(),
    st.builds(Begin, LSNS, CLOCKS, U32),
    st.builds(Commit, LSNS, LSNS, CLOCKS),
    st.builds(Origin, st.integers(0, 2**64 - 1).map(Lsn), NAMES),
    st.builds(
        Relation,
        U32,
        NAMES.map(lambda name: name or "pg_catalog"),
        NAMES,
        st.sampled_from("dnfi"),
        st.lists(COLUMNS, max_size=20).map(tuple),
    ),
    st.builds(Type, U32, NAMES.map(lambda name: name or "pg_catalog"), NAMES),
    st.builds(Truncate, st.lists(U32, max_size=20).map(tuple), st.booleans(), st.booleans()),
    st.builds(LogicalMessage, st.booleans(), LSNS, NAMES, CONTENT),
    st.builds(StreamAbort, XIDS, XIDS, st.none() | st.tuples(st.integers(0, 2**64 - 1).map(Lsn), CLOCKS)),
)

ROW: tuple[Cell, ...] = (b"1", b"", None, UNCHANGED, b"caf\xc3\xa9", b"x" * 300)
EXAMPLES: list[Message] = [
    Begin(Lsn(0xFEDCBA9876543210), 820_000_000_000_000, 4_294_967_295),
    Commit(Lsn(2**63), Lsn(2**64 - 1), -1),
    Origin(Lsn(0), "elsewhere"),
    Relation(
        4_000_000_000,
        "público",
        'x"; drop table y; --',
        "i",
        (Column("id", 20, -1, is_key=True), Column("naïve", 1043, 259, is_key=False)),
    ),
    Relation(1, "pg_catalog", "no_columns", "f", ()),
    Type(16_400, "public", "mood"),
    Type(16_401, "public", "m\udcf6od"),
    Relation(2, "public", "\udced\udca0\udc80", "d", (Column("gr\udcf6\udcdfe", 25, -1, is_key=False),)),
    Insert(16_384, ROW, 0),
    Insert(16_384, ROW, 0b110011),
    Insert(16_384, (), 0),
    Update(16_384, None, None, ROW, 0),
    Update(16_384, "K", (b"1", None, None, None, None, None), ROW, 0),
    Update(16_384, "O", (b"1", b"", None, b"long", None, None), ROW, 0b001001),
    Delete(16_384, "K", (b"1", None), 0),
    Delete(16_384, "O", (b"1", b"2"), 0b11),
    Truncate((1, 4_294_967_295), cascade=True, restart_identity=False),
    Truncate((7,), cascade=False, restart_identity=True),
    LogicalMessage(transactional=True, lsn=Lsn(1), prefix="replicator", content=b"\0\xff"),
    StreamAbort(4_294_967_295, 3),
]
PARTIAL = {Insert: PartialInsert, Update: PartialUpdate}


def expected_kind(message: Message) -> type:
    """Return the kind that a message is decoded to: a row with an unchanged cell has a kind of its own."""
    lacks = isinstance(message, Insert | Update) and UNCHANGED in message.new
    return PARTIAL[type(message)] if lacks else type(message)


EXAMPLE_IDS = [f"{number}-{type(message).__name__}" for number, message in enumerate(EXAMPLES)]


@pytest.mark.parametrize("message", EXAMPLES, ids=EXAMPLE_IDS)
def test_each_kind_is_read_as_it_was_written(message: Message) -> None:
    decoded = decode(encode(message))
    assert (type(decoded), decoded) == (expected_kind(message), message)


@given(MESSAGES)
def test_whatever_a_server_may_send_is_read_as_it_was_written(message: Message) -> None:
    decoded = decode(encode(message))
    assert (type(decoded), decoded) == (expected_kind(message), message)


def test_an_insert_is_these_bytes() -> None:
    """Written out by hand from the documentation, so that encoder and decoder cannot be wrong together."""
    message = bytes.fromhex("49 00004001 4e 0004 74 00000002 3432 6e 75 62 00000004 0000002a")
    assert decode(message) == Insert(0x4001, (b"42", None, UNCHANGED, b"\0\0\0\x2a"), 0b0001)


def test_a_commit_is_these_bytes() -> None:
    message = bytes.fromhex("43 00 80000000 00000010 80000000 00000040 0000000000000001")
    assert decode(message) == Commit(Lsn.parse("80000000/10"), Lsn.parse("80000000/40"), 1)


def test_an_abort_may_say_when_and_where() -> None:
    """S26: protocol 4 adds both. Without the one or a part of the other it is none."""
    abort = StreamAbort(700, 701, (Lsn(0), -1))
    assert decode(encode(abort)) == abort
    for length in range(10, 25):
        with pytest.raises(StreamError):
            decode(encode(abort)[:length])
    with pytest.raises(StreamError):
        decode(encode(abort) + b"\0")


@pytest.mark.parametrize("message", EXAMPLES, ids=EXAMPLE_IDS)
def test_a_message_cut_anywhere_is_refused(message: Message) -> None:
    encoded = encode(message)
    for length in range(len(encoded)):
        with pytest.raises(StreamError):
            decode(encoded[:length])


@pytest.mark.parametrize("message", EXAMPLES, ids=EXAMPLE_IDS)
@pytest.mark.parametrize("surplus", [b"\0", b"n", b"\0" * 5, b"t\0\0\0\0"])
def test_a_message_with_something_behind_it_is_refused(message: Message, surplus: bytes) -> None:
    with pytest.raises(StreamError):
        decode(encode(message) + surplus)


REFUSED = {
    "nothing": b"",
    "a kind of protocol 2": b"S" + bytes(5),
    "a kind of protocol 3": b"b" + bytes(30),
    "an abort of nothing": b"A" + bytes(8),
    "an abort of half a transaction": b"A" + bytes.fromhex("00000005 000000"),
    "a keepalive": b"k" + bytes(17),
    "a begin without position": b"B" + struct.pack(">QqI", 0, 1, 1),
    "a commit with flags": b"C" + struct.pack(">BQQq", 1, 1, 2, 3),
    "a commit without end": b"C" + struct.pack(">BQQq", 0, 1, 0, 3),
    "a name without end": b"Y" + bytes(4) + b"public\0mood",
    "an unknown replica identity": b"R" + bytes(4) + b"public\0t\0x\0\0",
    "column flags": b"R" + bytes(4) + b"public\0t\0d\0\x01\x02id\0" + bytes(8),
    "a column count beyond the end": b"R" + bytes(4) + b"public\0t\0d\xff\xff\x00id\0" + bytes(8),
    "truncate flags": b"T" + struct.pack(">IBI", 1, 4, 7),
    "a truncate that says too many": b"T" + struct.pack(">IBI", 0xFFFFFFFF, 0, 7),
    "message flags": b"M" + struct.pack(">BQ", 2, 1) + b"p\0\0\0\0\0",
    "a message of an extreme length": b"M" + struct.pack(">BQ", 1, 1) + b"p\0\xff\xff\xff\xffabc",
    "an insert with an old row": b"I" + bytes(4) + b"K\0\x01n",
    "an unknown row": b"I" + bytes(4) + b"X\0\x01n",
    "a delete with a new row": b"D" + bytes(4) + b"N\0\x01n",
    "an update whose old row is all": b"U" + bytes(4) + b"O\0\x01n",
    "an update with two old rows": b"U" + bytes(4) + b"K\0\x01nO\0\x01n",
    "an update whose rows differ in width": b"U" + bytes(4) + b"K\0\x01nN\0\x02nn",
    "an unknown cell": b"I" + bytes(4) + b"N\0\x01x\0\0\0\0",
    "an unchanged cell in a key": b"D" + bytes(4) + b"K\0\x01u",
    "a cell of an extreme length": b"I" + bytes(4) + b"N\0\x01t\xff\xff\xff\xffabc",
    "a cell that ends in the next": b"I" + bytes(4) + b"N\0\x02t\0\0\0\x02an",
    "a cell that is text and binary": b"U" + bytes(4) + b"O\0\x01t\0\0\0\x01aN\0\x01b\0\0\0\x01a",
    "more columns than there can be": b"I" + bytes(4) + b"N" + struct.pack(">H", MAX_COLUMNS + 1) + b"n" * 1665,
}


@pytest.mark.parametrize("message", REFUSED.values(), ids=REFUSED)
def test_what_no_server_sends_is_refused(message: bytes) -> None:
    with pytest.raises(StreamError) as refused:
        decode(message)
    assert (refused.value.id, refused.value.exit_code) == ("stream_not_understood", 1)
    assert all((refused.value.why, refused.value.hint))


def test_an_error_holds_nothing_of_the_message() -> None:
    secret = b"s3cret-cell-value"
    row = encode(Insert(1, (secret, secret), 0))
    named = b"Y" + bytes(4) + secret + b"\0" + secret + b"\xff"
    for message in (row[:-1], row + b"\0", row.replace(b"N", b"X", 1), named, secret):
        with pytest.raises(StreamError) as refused:
            decode(message)
        error = refused.value
        said = f"{error!r} {error} {error.message} {error.hint} {scrub_traceback(error)}"
        assert secret.decode() not in said
        assert error.__cause__ is None
        assert error.__context__ is None


@pytest.mark.parametrize("size", [1, 65_000, 65_536, 200_000])
@pytest.mark.parametrize("tail", [(), (None,), (UNCHANGED,) * 4, (None, UNCHANGED) * 5, (b"",), (None, b"z")])
def test_the_size_of_a_row_changes_nothing(size: int, tail: Cells) -> None:
    """Small messages are padded before they are read and large ones are not."""
    message = Insert(1, (b"x" * size, *tail), 0)
    encoded = encode(message)
    assert decode(encoded) == message
    for spoilt in (encoded[:-1], encoded + b"n", encoded + b"\0" * 5):
        with pytest.raises(StreamError):
            decode(spoilt)


def test_a_large_update_with_old_row_is_read_whole() -> None:
    old: Cells = (b"x" * 100_000, None)
    update = Update(1, "O", old, (UNCHANGED, None), 0)
    assert decode(encode(update)) == update
    assert decode(encode(Delete(1, "O", old, 0))) == Delete(1, "O", old, 0)
    with pytest.raises(StreamError):
        decode(encode(Delete(1, "O", old, 0))[:-1] + b"u")


def test_unchanged_is_not_null() -> None:
    """B16."""
    (decoded,) = {decode(encode(Update(1, None, None, (UNCHANGED,), 0)))}
    assert isinstance(decoded, Update)
    assert decoded.new[0] is UNCHANGED
    assert decoded.new != (None,)


def test_mutations_are_refused_or_mean_exactly_their_bytes() -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    outcomes = torture([encode(message) for message in EXAMPLES], rounds=20_000, seed=seed)
    assert min(outcomes["accepted"], outcomes["refused"]) > 1_000


def test_mutations_are_repeatable_by_their_seed() -> None:
    message = encode(EXAMPLES[3])
    first, second = random.Random(1), random.Random(1)
    assert [mutate(message, first) for _ in range(50)] == [mutate(message, second) for _ in range(50)]


def test_fourteen_columns_take_microseconds() -> None:
    """About 2.5 on the machine that it was written on; the goal is 4, the rest is room for slower ones."""
    message = encode(Insert(1, (b"123456", b"some text", b"2026-01-01 00:00:00+00") * 4 + (None, b"x" * 200), 0))
    spent_s = min(timeit.repeat(lambda: decode(message), number=2_000, repeat=20, timer=time.process_time)) / 2_000
    assert spent_s < 20e-6


def test_wal_data_gives_its_payload_and_its_head() -> None:
    envelope = memoryview(b"w" + struct.pack(">QQq", 2**64 - 2, 2**64 - 1, -7) + b"payload")
    assert read_envelope(envelope) == b"payload"
    assert read_header(envelope) == Header(Lsn(2**64 - 2), Lsn(2**64 - 1), -7)


@pytest.mark.parametrize("asked", [False, True])
def test_a_keepalive_says_whether_it_wants_an_answer(asked: bool) -> None:
    envelope = memoryview(b"k" + struct.pack(">QqB", 2**63, 5, asked))
    assert read_envelope(envelope) == Keepalive(Lsn(2**63), 5, asked)
    with pytest.raises(StreamError):
        read_header(envelope)


@pytest.mark.parametrize(
    "envelope", [b"", b"w", b"w" + bytes(23), b"k" + bytes(16), b"k" + bytes(18), b"k" + bytes(16) + b"\2", b"x" * 40]
)
def test_an_unknown_envelope_is_refused(envelope: bytes) -> None:
    with pytest.raises(StreamError):
        read_envelope(memoryview(envelope))


def test_a_status_is_these_bytes() -> None:
    status = encode_status(written=3, flushed=2, clock_us=-1, reply_requested=True)
    assert status == bytes.fromhex("72 0000000000000003 0000000000000002 0000000000000002 ffffffffffffffff 01")
    assert time.gmtime(EPOCH_OFFSET_S)[:6] == (2000, 1, 1, 0, 0, 0)
