"""Decode what the output plugin `pgoutput` sends with proto_version 1: bytes to messages, nothing else.

Layout (PostgreSQL documentation, 55.9 "Logical Replication Message Formats"); integers are big-endian, a `name` is
UTF-8 (the session's client_encoding) up to a zero byte, an empty schema is pg_catalog. A database without encoding
has names of any bytes: those that are not UTF-8 stand as surrogates (PEP 383).


    kind           then
    'B' Begin      u64 final lsn, i64 commit time, u32 xid
    'C' Commit     u8 0, u64 commit lsn, u64 end lsn, i64 commit time
    'O' Origin     u64 lsn at the origin, name
    'R' Relation   u32 oid, schema name, name, u8 replica identity (d n f i), u16 columns,
                   each: u8 key (0 or 1), name, u32 type oid, i32 type modifier
    'Y' Type       u32 oid, schema name, name
    'I' Insert     u32 relation oid, 'N' tuple
    'U' Update     u32 relation oid, ['K' tuple | 'O' tuple], 'N' tuple
    'D' Delete     u32 relation oid, 'K' tuple | 'O' tuple
    'T' Truncate   u32 relations, u8 1 cascade + 2 restart identity, each: u32 oid
    'M' Message    u8 transactional (0 or 1), u64 lsn, prefix name, u32 length, content
    'A' Abort      u32 xid, u32 xid of the subtransaction, [u64 abort lsn, i64 abort time]

    tuple          u16 columns, each: 'n' NULL | 'u' unchanged, not sent | 't' u32 length, text | 'b' u32 length, binary

K is the old key (the other columns are NULL), O the whole old row (REPLICA IDENTITY FULL); old tuples are written
without TOAST, so an unchanged cell stands in new ones only. Times are microseconds since 2000-01-01 UTC.

Stream Abort belongs to a later protocol, but PostgreSQL 18 sends it unasked: for a large transaction that was rolled
back, the reorder buffer drops the changes and marks them as streamed (ReorderBufferCheckAndTruncateAbortedTXN). Nothing
of that transaction was sent before. All other messages of two-phase and streaming are refused like everything unknown.
A message is decoded whole and to its last byte, or refused: the encoding of an accepted message gives the same bytes
again.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

from replicator.cell import UNCHANGED, Cell, Cells
from replicator.errors import StreamError
from replicator.position import Lsn

Identity: TypeAlias = Literal["d", "n", "f", "i"]


class Begin(NamedTuple):
    """A transaction begins; it was committed at `final_lsn`."""

    final_lsn: Lsn
    commit_time_us: int
    xid: int


class Commit(NamedTuple):
    """A transaction ends. `end_lsn`, one past its commit record, is the position that may be confirmed."""

    commit_lsn: Lsn
    end_lsn: Lsn
    commit_time_us: int


class Origin(NamedTuple):
    """The transaction came to this source by replication from elsewhere."""

    origin_lsn: Lsn
    name: str


class Column(NamedTuple):
    """A published column. is_key: part of the replica identity."""

    name: str
    type_oid: int
    type_modifier: int
    is_key: bool


class Relation(NamedTuple):
    """A table's shape from now on, sent before its first change and after each change of the shape."""

    oid: int
    schema: str
    name: str
    identity: Identity
    columns: tuple[Column, ...]


class Type(NamedTuple):
    """The name of a column's type that is not built in; of a domain, the base type's name."""

    oid: int
    schema: str
    name: str


class Insert(NamedTuple):
    """A new row. text: bit i is set when cell i is in text format; the other values are in binary format."""

    relation: int
    new: Cells
    text: int


class Update(NamedTuple):
    """A changed row. `old` is a key ('K'), a whole row ('O') or, when the key stayed, absent."""

    relation: int
    old_kind: Literal["K", "O"] | None
    old: Cells | None
    new: Cells
    text: int


class PartialInsert(Insert):
    """An insert of which some cells are UNCHANGED: a row that moved to another partition."""

    __slots__ = ()


class PartialUpdate(Update):
    """An update of which some cells are UNCHANGED. Its own kind, so that nobody has to look through whole rows."""

    __slots__ = ()


class Delete(NamedTuple):
    """A row is gone; `old` is its key ('K', other cells NULL) or the whole row ('O')."""

    relation: int
    old_kind: Literal["K", "O"]
    old: Cells
    text: int


class Truncate(NamedTuple):
    """Tables were emptied, in the place where this message stands."""

    relations: tuple[int, ...]
    cascade: bool
    restart_identity: bool


class LogicalMessage(NamedTuple):
    """Bytes that somebody put into the WAL. One that is not transactional may stand outside of a transaction."""

    transactional: bool
    lsn: Lsn
    prefix: str
    content: bytes


class StreamAbort(NamedTuple):
    """A transaction, or its part `subxid`, was rolled back. aborted: LSN and time of it, of protocol 4 alone."""

    xid: int
    subxid: int
    aborted: tuple[Lsn, int] | None = None


Message: TypeAlias = (
    Begin | Commit | Origin | Relation | Type | Insert | Update | Delete | Truncate | LogicalMessage | StreamAbort
)

MAX_COLUMNS = 1664
"""PostgreSQL's MaxTupleAttributeNumber; tables end at 1,600."""

# Smaller messages are padded, so that the head of a value can be read where a NULL ends the message; larger ones are
# not copied for that.
_PADDED_BELOW_BYTES = 65536
_PADDING = bytes(4)

_NULL, _TEXT, _BINARY, _NOT_SENT = b"ntbu"
_NEW, _KEY, _OLD = b"NKO"
_OLD_KINDS: dict[int, Literal["K", "O"]] = {_KEY: "K", _OLD: "O"}
_IDENTITIES: dict[int, Identity] = {ord("d"): "d", ord("n"): "n", ord("f"): "f", ord("i"): "i"}
_BITS = tuple(1 << column for column in range(MAX_COLUMNS))
_LACKS = 1 << MAX_COLUMNS

_BEGIN = struct.Struct(">xQqI")
_COMMIT = struct.Struct(">xBQQq")
_ORIGIN_HEAD = struct.Struct(">xQ")
_OID_HEAD = struct.Struct(">xI")
_SHAPE = struct.Struct(">BH")
_COLUMN_TYPE = struct.Struct(">Ii")
_TRUNCATE_HEAD = struct.Struct(">xIB")
_MESSAGE_HEAD = struct.Struct(">xBQ")
_ABORT = struct.Struct(">xII")
_ABORT_PLACE = struct.Struct(">Qq")
_LENGTH = struct.Struct(">I")
_read_change_head = struct.Struct(">xIBH").unpack_from
_read_tuple_head = struct.Struct(">BH").unpack_from
_read_cell_head = struct.Struct(">BI").unpack_from
_CHANGE_HEAD_BYTES = 8
_TUPLE_HEAD_BYTES = 3


class _Impossible(ValueError):
    """A field holds what no server sends; the text says which and holds nothing of the message."""


def decode(message: bytes) -> Message:
    """Return the message that these bytes are, all of them. Raises StreamError if they are none."""
    why = "it is empty"
    if message:
        reader = _READERS.get(message[0])
        why = "this kind is not part of protocol 1"
        if reader is not None:
            try:
                return reader(message)
            except _Impossible as error:
                why = str(error)
            except (IndexError, struct.error):
                why = "it ends too early"
            except ValueError:
                why = "a name has no end"
    raise _not_understood(message, why)


def _not_understood(message: bytes, why: str) -> StreamError:
    kind = f"kind 0x{message[0]:02x}, {len(message)} bytes" if message else "0 bytes"
    return StreamError(
        "the source sent a change that is not understood",
        why=f"{why} ({kind})",
        hint="the source must be PostgreSQL 13 to 18; if it is, please report this line with the server's version",
    )


# Of transactions and rows there are many: for them `tuple.__new__` does what calling the class does, at half its price.


def _read_begin(message: bytes) -> Begin:
    _check_end(message, _BEGIN.size)
    final_lsn, time_us, xid = _BEGIN.unpack(message)
    return tuple.__new__(Begin, (_set(final_lsn), time_us, xid))


def _read_commit(message: bytes) -> Commit:
    _check_end(message, _COMMIT.size)
    flags, commit_lsn, end_lsn, time_us = _COMMIT.unpack(message)
    if flags:
        raise _Impossible("a commit has flags")
    return tuple.__new__(Commit, (_set(commit_lsn), _set(end_lsn), time_us))


def _read_origin(message: bytes) -> Origin:
    (lsn,) = _ORIGIN_HEAD.unpack_from(message)
    name, at = _read_name(message, _ORIGIN_HEAD.size)
    _check_end(message, at)
    return Origin(Lsn(lsn), name)


def _read_relation(message: bytes) -> Relation:
    (oid,) = _OID_HEAD.unpack_from(message)
    schema, at = _read_schema(message, _OID_HEAD.size)
    name, at = _read_name(message, at)
    identity, count = _SHAPE.unpack_from(message, at)
    at += _SHAPE.size
    if identity not in _IDENTITIES:
        raise _Impossible("an unknown replica identity")
    columns = []
    for _ in range(count):
        column, at = _read_column(message, at)
        columns.append(column)
    _check_end(message, at)
    return Relation(oid, schema, name, _IDENTITIES[identity], tuple(columns))


def _read_column(message: bytes, at: int) -> tuple[Column, int]:
    flags = message[at]
    if flags > 1:
        raise _Impossible("a column has unknown flags")
    name, at = _read_name(message, at + 1)
    type_oid, type_modifier = _COLUMN_TYPE.unpack_from(message, at)
    return Column(name, type_oid, type_modifier, flags == 1), at + _COLUMN_TYPE.size


def _read_type(message: bytes) -> Type:
    (oid,) = _OID_HEAD.unpack_from(message)
    schema, at = _read_schema(message, _OID_HEAD.size)
    name, at = _read_name(message, at)
    _check_end(message, at)
    return Type(oid, schema, name)


def _read_insert(message: bytes) -> Insert:
    relation, kind, count = _read_change_head(message)
    if kind != _NEW:
        raise _Impossible("an insert without a new row")
    new, text, at = _read_cells(message, _CHANGE_HEAD_BYTES, count)
    _check_end(message, at)
    if text >= _LACKS:
        return tuple.__new__(PartialInsert, (relation, new, text - _LACKS))
    return tuple.__new__(Insert, (relation, new, text))


def _read_update(message: bytes) -> Update:
    relation, kind, count = _read_change_head(message)
    if kind == _NEW:
        new, text, at = _read_cells(message, _CHANGE_HEAD_BYTES, count)
        _check_end(message, at)
        if text >= _LACKS:
            return tuple.__new__(PartialUpdate, (relation, None, None, new, text - _LACKS))
        return tuple.__new__(Update, (relation, None, None, new, text))
    old_kind = _read_old_kind(kind)
    old, old_text, at = _read_cells(message, _CHANGE_HEAD_BYTES, count, is_old=True)
    kind, new_count = _read_tuple_head(message, at)
    if kind != _NEW or new_count != count:
        raise _Impossible("an update without a new row of the old one's width")
    new, text, at = _read_cells(message, at + _TUPLE_HEAD_BYTES, count)
    _check_end(message, at)
    update = Update
    if text >= _LACKS:
        update, text = PartialUpdate, text - _LACKS
    if text != old_text:
        text = _join_formats(old, old_text, new, text)
    return tuple.__new__(update, (relation, old_kind, old, new, text))


def _read_delete(message: bytes) -> Delete:
    relation, kind, count = _read_change_head(message)
    old_kind = _read_old_kind(kind)
    old, text, at = _read_cells(message, _CHANGE_HEAD_BYTES, count, is_old=True)
    _check_end(message, at)
    return tuple.__new__(Delete, (relation, old_kind, old, text))


def _read_truncate(message: bytes) -> Truncate:
    count, flags = _TRUNCATE_HEAD.unpack_from(message)
    if flags > 3:
        raise _Impossible("a truncate has unknown flags")
    if len(message) != _TRUNCATE_HEAD.size + 4 * count:
        raise _Impossible("a truncate of another length than it says")
    oids = struct.unpack_from(f">{count}I", message, _TRUNCATE_HEAD.size)
    return Truncate(oids, bool(flags & 1), bool(flags & 2))


def _read_logical_message(message: bytes) -> LogicalMessage:
    flags, lsn = _MESSAGE_HEAD.unpack_from(message)
    if flags > 1:
        raise _Impossible("a logical message has unknown flags")
    prefix, at = _read_name(message, _MESSAGE_HEAD.size)
    (length,) = _LENGTH.unpack_from(message, at)
    at += _LENGTH.size
    _check_end(message, at + length)
    return LogicalMessage(flags == 1, _set(lsn), prefix, message[at:])


def _read_stream_abort(message: bytes) -> StreamAbort:
    xid, subxid = _ABORT.unpack_from(message)
    if not xid or not subxid:
        raise _Impossible("a transaction without a number was rolled back")
    if len(message) == _ABORT.size:
        return StreamAbort(xid, subxid)
    lsn, time_us = _ABORT_PLACE.unpack_from(message, _ABORT.size)
    _check_end(message, _ABORT.size + _ABORT_PLACE.size)
    # A transaction that a crash ended has no abort record, and no position of one.
    return StreamAbort(xid, subxid, (Lsn(lsn), time_us))


_READERS: dict[int, Callable[[bytes], Message]] = {
    ord("I"): _read_insert,
    ord("U"): _read_update,
    ord("D"): _read_delete,
    ord("B"): _read_begin,
    ord("C"): _read_commit,
    ord("R"): _read_relation,
    ord("Y"): _read_type,
    ord("T"): _read_truncate,
    ord("O"): _read_origin,
    ord("M"): _read_logical_message,
    ord("A"): _read_stream_abort,
}


def _read_cells(message: bytes, at: int, count: int, *, is_old: bool = False) -> tuple[Cells, int, int]:
    """Return `count` cells, the bits of those in text format, and where they end (past the end: too short).

    With the bits comes _LACKS when a cell is UNCHANGED.

    The hot path, most of all for binary: a slice past the end is short without a word, so the caller compares the end
    with the length.
    """
    if count > MAX_COLUMNS:
        raise _Impossible("a row has more columns than PostgreSQL can hold")
    size = len(message)
    if size < _PADDED_BELOW_BYTES:
        message += _PADDING
    cells: list[Cell] = []
    text = 0
    try:
        for bit in _BITS[:count]:
            kind, length = _read_cell_head(message, at)
            if kind == _BINARY:
                at += 5
                cells.append(message[at : (at := at + length)])
            elif kind == _TEXT:
                at += 5
                cells.append(message[at : (at := at + length)])
                text |= bit
            elif kind == _NULL:
                at += 1
                cells.append(None)
            elif kind == _NOT_SENT and not is_old:
                at += 1
                cells.append(UNCHANGED)
                text |= _LACKS
            else:
                raise _Impossible("a cell of an unknown kind")
    except struct.error:
        tail = message[at:size]
        cells += _read_valueless(tail, count - len(cells), is_old=is_old)
        at += len(tail)
        if UNCHANGED in cells:
            text |= _LACKS
    return tuple(cells), text, at


def _read_valueless(tail: bytes, count: int, *, is_old: bool) -> list[Cell]:
    """Return the last cells of a message when too few bytes are left for any with a value."""
    allowed: dict[int, Cell] = {_NULL: None} if is_old else {_NULL: None, _NOT_SENT: UNCHANGED}
    if len(tail) != count or not allowed.keys() >= set(tail):
        raise _Impossible("a row ends too early")
    return [allowed[kind] for kind in tail]


def _join_formats(old: Cells, old_text: int, new: Cells, new_text: int) -> int:
    """Return the bits of both rows' text cells. A column is never text in one row and binary in the other."""
    differing = old_text ^ new_text
    for bit, before, after in zip(_BITS, old, new, strict=False):
        if differing & bit and isinstance(before, bytes) and isinstance(after, bytes):
            raise _Impossible("a column is text and binary at once")
    return old_text | new_text


def _read_old_kind(kind: int) -> Literal["K", "O"]:
    if kind not in _OLD_KINDS:
        raise _Impossible("a row of an unknown kind")
    return _OLD_KINDS[kind]


def _read_name(message: bytes, at: int) -> tuple[str, int]:
    """Return the text up to the next zero byte, and what stands behind it."""
    end = message.index(0, at)
    return message[at:end].decode("utf-8", "surrogateescape"), end + 1


def _read_schema(message: bytes, at: int) -> tuple[str, int]:
    schema, at = _read_name(message, at)
    return schema or "pg_catalog", at


def _set(lsn: int) -> Lsn:
    if not lsn:
        raise _Impossible("a position is not set")
    return Lsn(lsn)


def _check_end(message: bytes, at: int) -> None:
    if at != len(message):
        raise _Impossible("it ends too early" if at > len(message) else "something follows its end")
