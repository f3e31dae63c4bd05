"""Write pgoutput messages, and spoil them.

encode     the bytes of a message: the inverse of `replicator.capture.pgoutput.decode`
mutate     recorded bytes with a few faults, repeatable by the random generator's seed
torture    decode many mutations and count what came of them
"""

from __future__ import annotations

import random
import resource
import struct
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from replicator.capture.pgoutput import (
    Begin,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    Origin,
    Relation,
    StreamAbort,
    Truncate,
    Type,
    Update,
    decode,
)
from replicator.cell import UNCHANGED, Cells
from replicator.errors import StreamError

EXTREMES = (b"\x00", b"\x01", b"\x7f", b"\x80", b"\xff")
KINDS = b"BCORYIUDTMANKOntbu"


def encode(message: Message) -> bytes:
    """Return the bytes that a walsender would send for `message`."""
    match message:
        case Begin():
            return b"B" + struct.pack(">QqI", *message)
        case Commit():
            return b"C" + struct.pack(">BQQq", 0, *message)
        case Origin():
            return b"O" + struct.pack(">Q", message.origin_lsn) + encode_name(message.name)
        case Relation():
            return encode_relation(message)
        case Type():
            return b"Y" + struct.pack(">I", message.oid) + encode_schema(message.schema) + encode_name(message.name)
        case Insert():
            return b"I" + struct.pack(">I", message.relation) + b"N" + encode_cells(message.new, message.text)
        case Update():
            return encode_update(message)
        case Delete():
            head = b"D" + struct.pack(">I", message.relation) + message.old_kind.encode()
            return head + encode_cells(message.old, message.text)
        case Truncate(relations, cascade, restart):
            flags = cascade + 2 * restart
            return b"T" + struct.pack(f">IB{len(relations)}I", len(relations), flags, *relations)
        case LogicalMessage(transactional, lsn, prefix, content):
            head = b"M" + struct.pack(">BQ", transactional, lsn) + encode_name(prefix)
            return head + struct.pack(">I", len(content)) + content
        case StreamAbort(xid, subxid, aborted):
            return b"A" + struct.pack(">II", xid, subxid) + (struct.pack(">Qq", *aborted) if aborted else b"")


def encode_relation(relation: Relation) -> bytes:
    parts = [b"R", struct.pack(">I", relation.oid), encode_schema(relation.schema), encode_name(relation.name)]
    parts += [relation.identity.encode(), struct.pack(">H", len(relation.columns))]
    for name, type_oid, type_modifier, is_key in relation.columns:
        parts += [bytes([is_key]), encode_name(name), struct.pack(">Ii", type_oid, type_modifier)]
    return b"".join(parts)


def encode_update(update: Update) -> bytes:
    head = b"U" + struct.pack(">I", update.relation)
    if update.old_kind is not None:
        assert update.old is not None
        head += update.old_kind.encode() + encode_cells(update.old, update.text)
    return head + b"N" + encode_cells(update.new, update.text)


def encode_cells(cells: Cells, text: int) -> bytes:
    parts = [struct.pack(">H", len(cells))]
    for column, cell in enumerate(cells):
        if cell is None:
            parts.append(b"n")
        elif cell is UNCHANGED:
            parts.append(b"u")
        else:
            parts.append((b"t" if text >> column & 1 else b"b") + struct.pack(">I", len(cell)) + cell)
    return b"".join(parts)


def encode_schema(schema: str) -> bytes:
    return encode_name("" if schema == "pg_catalog" else schema)


def encode_name(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape") + b"\0"


def mutate(message: bytes, dice: random.Random) -> bytes:
    """Return `message` with one to three faults: bits, cuts, insertions, extensions, extreme lengths, other kinds."""
    spoilt = bytearray(message)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        at = dice.randrange(len(spoilt) + 1)
        match dice.randrange(7):
            case 0 if at < len(spoilt):
                spoilt[at] ^= 1 << dice.randrange(8)
            case 1:
                del spoilt[at:]
            case 2:
                del spoilt[at : at + dice.randrange(1, 9)]
            case 3:
                spoilt[at:at] = dice.randbytes(dice.randrange(1, 9))
            case 4:
                spoilt += dice.choice((spoilt[at:], dice.randbytes(dice.randrange(1, 65))))
            case 5:
                width = dice.choice((1, 2, 4, 8))
                spoilt[at : at + width] = dice.choice(EXTREMES) * width
            case _ if at < len(spoilt):
                spoilt[at] = dice.choice(KINDS)
        del spoilt[1 << 20 :]
    return bytes(spoilt)


def torture(messages: Sequence[bytes], *, rounds: int, seed: int) -> Counter[str]:
    """Decode `rounds` mutations of `messages`; return how many were accepted and how many refused.

    Each is refused with StreamError, or accepted and then means exactly its bytes: encoded again they are the same.
    Raises AssertionError naming seed and round otherwise, or when one takes over a second or the process grows.
    """
    dice = random.Random(seed)
    outcomes: Counter[str] = Counter()
    grown_from = 0
    for number in range(rounds):
        spoilt = mutate(dice.choice(messages), dice)
        begun = time.perf_counter()
        try:
            accepted = decode(spoilt)
        except StreamError:
            outcomes["refused"] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, round {number}: {type(error).__name__} for {spoilt[:200]!r}") from error
        else:
            outcomes["accepted"] += 1
            assert encode(accepted) == spoilt, f"seed {seed}, round {number}: {spoilt[:200]!r} means {accepted!r:.200}"
        assert time.perf_counter() - begun < 1, f"seed {seed}, round {number}: slow for {spoilt[:200]!r}"
        if number == rounds // 10:
            grown_from = resident_bytes()
    grown = resident_bytes() - grown_from
    assert grown < 16 << 20, f"seed {seed}: grew by {grown >> 20} MB"
    return outcomes


def resident_bytes() -> int:
    """Return the memory that this process holds now, or the most it ever held where there is no /proc."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
