"""One random history, brought by `sync` and by `listen`: both targets are what the source's own SELECT says.

The history is drawn from a seed, which a failure prints; REPLICATOR_TEST_SEED=N draws that one again.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from tests.conftest import MakePair
from tests.pair import Pair, describe_difference
from tests.streaming import wait_for_stream
from tests.wait import wait_until

ROUNDS = 4
TRANSACTIONS = 100
SECRET = "secret of the masks"
HASHED = f"encode(sha256(convert_to('{SECRET}' || format('%s', {{}}), 'UTF8')), 'hex')"
COLUMNS = "account int, name text, phone varchar(40), note text, score float8, amount numeric, big text"


@dataclass(frozen=True)
class Case:
    """A table, its rules, and the SELECT that says by other means what they make of it.

    keyed: rows have a primary key `id`, else images are counted.
    """

    name: str
    select: str
    rules: dict[str, Any] = field(default_factory=dict)
    ddl: str = "id int primary key"
    after: str = ""
    keyed: bool = True


CLEANED = "case when {0} not in ('NaT', 'N/A') then {0} end as {0}"
NO_NAN = "nullif(score, 'NaN') as score, nullif(amount, 'NaN') as amount"
CASES = (
    Case("plain", "select id, account, name, phone, note, score, amount, big from plain"),
    Case(
        "cleaned",
        "select id, account, case when name is not null then " + HASHED.format("name") + " end as name,"
        f" null::varchar as phone, {CLEANED.format('note').replace('as note', 'as remark')}, {NO_NAN},"
        f" {CLEANED.format('big')} from cleaned",
        {
            "rename": {"note": "remark"}, "mask": {"name": "hash", "phone": "null"}, "nan_to_null": True,
            "null_values": ["NaT", "N/A"],
        },
    ),
    Case(
        "chosen",
        f"select id, account, {CLEANED.format('name')}, {CLEANED.format('note')}, score, amount,"
        f" {CLEANED.format('big')} from chosen where account = 1 and coalesce(length(big), 0) < 5000",
        {
            "where": "account = 1 and coalesce(length(big), 0) < 5000", "exclude": ["phone"],
            "null_values": ["NaT", "N/A"],
        },
    ),
    Case(
        "computed",
        "select id, account + 1 as tenant, name, phone, note, score, amount,"
        " left(big, 20) || coalesce(phone, '-') as big from computed",
        {
            "rename": {"account": "tenant"},
            "mask": {"account": "account + 1", "big": "left(big, 20) || coalesce(phone, '-')"},
        },
    ),
    Case(
        "whole",
        f"select id, account, name, note, {NO_NAN}, case when big is not null then {HASHED.format('big')} end as big"
        " from whole",
        {"exclude": ["phone"], "mask": {"big": "hash"}, "nan_to_null": True},
        after="alter table whole replica identity full",
    ),
    Case(
        "hidden",
        f"select {HASHED.format('id')} as person, account, name, phone, note, score, amount, big from hidden",
        {"rename": {"id": "person"}, "mask": {"id": "hash"}},
    ),
    Case(
        "parted",
        "select id, account, "
        + ", ".join(CLEANED.format(name) for name in ("name", "phone", "note", "big"))
        + f", {NO_NAN} from parted",
        {"nan_to_null": True, "null_values": ["N/A", "NaT"], "mask": {}, "key": ["id", "account"]},
        ddl="id int",
        after="alter table parted add primary key (id, account)",
    ),
    Case(
        "bare",
        f"select id, account, case when name is not null then {HASHED.format('name')} end as who, note, {NO_NAN}, big"
        " from bare",
        {"exclude": ["phone"], "rename": {"name": "who"}, "mask": {"name": "hash"}, "nan_to_null": True},
        ddl="id int",
        after="alter table bare replica identity full",
        keyed=False,
    ),
)  # fmt: skip


class History:
    """Draws statements. Keys are few, so that one key meets many changes."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def draw_transaction(self, case: Case, *, truncates: bool) -> list[str]:
        """Return the statements of one transaction over a table, some of them in a savepoint that is rolled back.

        truncates: it may hold the table's strongest lock.
        """
        statements = []
        for _ in range(self.draw.choice((1, 1, 2, 3, 6, 12))):
            statement = self._draw_statement(case, truncates=truncates)
            if self.draw.random() < 0.08:
                statements += ["savepoint s", statement, "rollback to s"]
            else:
                statements.append(statement)
        return statements

    def _draw_statement(self, case: Case, *, truncates: bool) -> str:
        kinds: tuple[tuple[int, Callable[[Case], str]], ...] = (
            (30, self.insert), (36, self._update), (14, self._move), (18, self._delete),
            (2 * truncates, self._truncate),
        )  # fmt: skip
        act = self.draw.choices([act for _, act in kinds], [weight for weight, _ in kinds])[0]
        return act(case)

    def _key(self) -> int:
        return self.draw.randint(1, 24)

    def insert(self, case: Case) -> str:
        """Return an INSERT, of a key that may be taken."""
        names = ["account", "name", "phone", "note", "score", "amount", "big"]
        values = ", ".join(self._value(name) for name in names)
        text = f"insert into {case.name} (id, {', '.join(names)}) values ({self._key()}, {values})"
        return text + (" on conflict do nothing" if case.keyed else "")

    def _update(self, case: Case) -> str:
        free = ["account", "name", "phone", "note", "score", "amount", "big"]
        if case.name == "parted":
            free.remove("account")
        names = self.draw.sample(free, self.draw.choice((1, 1, 2, 3)))
        sets = ", ".join(f"{name} = {self._value(name)}" for name in names)
        few = f"id < {self.draw.randint(1, 12)}"
        return f"update {case.name} set {sets} where {few if self.draw.random() < 0.1 else self._one(case)}"

    def _one(self, case: Case) -> str:
        """Return the condition of a row that is there, or of all that share its id."""
        return f"id = (select id from {case.name} order by id % {self.draw.randint(2, 9)}, id limit 1)"

    def _move(self, case: Case) -> str:
        """Change a key, chains and swaps included; in `parted` rows also move to another partition."""
        if case.name == "parted" and self.draw.random() < 0.5:
            one = f"(select id, account from parted order by id % {self.draw.randint(2, 9)}, id, account limit 1)"
            new = self.draw.randint(0, 2)
            free = f"not exists (select from parted o where o.id = parted.id and o.account = {new})"
            return f"update parted set account = {new} where (id, account) = {one} and {free}"
        free = (
            f"(select n from generate_series(1, 24) n where not exists (select from {case.name} o where o.id = n)"
            f" order by n % {self.draw.randint(2, 9)}, n limit 1)"
        )
        free = f"coalesce({free}, id)" if case.keyed else str(self._key())
        also = f", note = {self._value('note')}" if self.draw.random() < 0.3 else ""
        return f"update {case.name} set id = {free}{also} where {self._one(case)}"

    def _delete(self, case: Case) -> str:
        if not case.keyed and self.draw.random() < 0.5:
            return (
                f"delete from {case.name} where ctid in (select ctid from {case.name} where {self._one(case)} limit 1)"
            )
        return f"delete from {case.name} where {self._one(case)}"

    def _truncate(self, case: Case) -> str:
        return f"truncate {case.name}"

    def _value(self, column: str) -> str:
        """Return a value as SQL writes it: edges and syntax rather than everyday values."""
        draw = self.draw
        if column == "account":
            return str(draw.randint(0, 2))
        if column == "score":
            return draw.choice(("null", "'NaN'", "'-0'", "0.30000000000000004", "'-Infinity'", str(draw.random())))
        if column == "amount":
            return draw.choice(("null", "'NaN'", "1.0", "1.00", "'Infinity'", f"{draw.randint(0, 99)}e30", "-0.001"))
        if column == "big":
            filler = draw.choice("xyzé")
            return draw.choice(
                ("null", "''", "'N/A'", f"repeat('{filler}', {draw.randint(2500, 7000)})", f"repeat('{filler}', 4000)")
            )
        return draw.choice(
            ("null", "''", "'NaT'", "'N/A'", "'NaN'", r"E'\\N'", r"E'tab\tline\nreturn\r back\\slash'", "'ünï ❤'",
             f"'word {draw.randint(0, 9)}'")
        )  # fmt: skip


def create_tables(pair: Pair) -> None:
    """Make every case's table, with large values out of line, in a publication."""
    for case in CASES:
        tail = " partition by list (account)" if case.name == "parted" else ""
        pair.source.execute(sql.SQL(f"create table {case.name} ({case.ddl}, {COLUMNS}){tail}"))
        for n in range(3) if tail else ():
            pair.source.execute(sql.SQL(f"create table parted{n} partition of parted for values in ({n})"))
        pair.source.execute(sql.SQL(f"{case.after};"))
        heaps = [f"{case.name}{n}" for n in range(3)] if tail else [case.name]
        for heap in heaps:
            pair.source.execute(sql.SQL(f"alter table {heap} alter big set storage external"))
    pair.publish(*(case.name for case in CASES))


def write_configs(pair: Pair) -> dict[str, str]:
    """Write one configuration for each path, over the same rules; return their paths."""
    key = pair.dir / "mask.key"
    key.write_text(SECRET)
    paths = {}
    for path in ("nightly", "live"):
        tables = [
            {"name": f"public.{case.name}", "target": f"{path}.{case.name}", "max_delete_fraction": 1.0} | case.rules
            for case in CASES
        ]
        written = pair.write_config(
            pipeline=path, tables=tables, privacy={"mask_key_file": str(key)},
            listen={"publication": "replicator_default", "slot": pair.slot},
        )  # fmt: skip
        paths[path] = str(written.rename(pair.dir / f"{path}.toml"))
    return paths


def read_texts(connection: psycopg.Connection[Any], query: str) -> Counter[bytes]:
    """Return the rows of a query as texts."""
    with connection.cursor().copy(sql.SQL(f"copy (select q::text from ({query}) q) to stdout")) as copy:
        return Counter(b"".join(bytes(piece) for piece in copy).splitlines())


def compare(pair: Pair, case: Case, path: str) -> str | None:
    """Return what differs between a target and the source's SELECT, None for nothing."""
    expected = read_texts(pair.source, case.select)
    columns = [
        c.name for c in pair.source.execute(sql.SQL(f"select * from ({case.select}) q limit 0")).description or ()
    ]
    actual = read_texts(pair.target, f"select {', '.join(columns)} from {path}.{case.name}")
    if expected == actual:
        return None
    return describe_difference(f"{path}.{case.name}", expected - actual, actual - expected)


def differences(pair: Pair, path: str) -> list[str]:
    """Return what differs in any table of a path."""
    return [found for case in CASES if (found := compare(pair, case, path)) is not None]


def play(pair: Pair, history: History, late: psycopg.Connection[Any]) -> list[str]:
    """Run one round's transactions, some left open across the others by a second session; return what was run.

    Each session keeps to tables of its own, so that nobody waits.
    """
    told = []
    slow = history.draw.sample(CASES, 3)
    late.execute("begin")
    for _ in range(TRANSACTIONS):
        case = history.draw.choice(CASES)
        session, mark = (late, "late") if case in slow else (pair.source, "soon")
        statements = history.draw_transaction(case, truncates=session is not late)
        for statement in statements if session is late else ("begin", *statements, "commit"):
            session.execute(sql.SQL(statement))
        told += [f"-- {mark}", *statements]
    return told


def test_both_paths_end_where_the_source_is(make_pair: MakePair) -> None:
    seed = int(os.environ.get("REPLICATOR_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
    pair = make_pair(listens=True)
    create_tables(pair)
    paths = write_configs(pair)
    history = History(seed)
    for case in CASES:
        for _ in range(12):
            pair.source.execute(sql.SQL(history.insert(case)))
    with (
        closing(pair.source_server.connect(pair.source_db)) as late,
        pair.popen("listen", "--config", paths["live"]) as listener,
    ):
        wait_for_stream(listener)
        for round_ in range(ROUNDS):
            told = play(pair, history, late)
            if round_ % 2:
                pair.run("sync", "--config", paths["nightly"])
            late.execute("commit")
            pair.run("sync", "--config", paths["nightly"])
            context = f"seed {seed}, round {round_}; statements:\n" + ";\n".join(told)[-6000:]
            assert not (found := differences(pair, "nightly")), "\n".join([*found, context])
            try:
                wait_until(lambda: not differences(pair, "live") or not listener.running, 20, what="the live tables")
            except AssertionError:
                raise AssertionError("\n".join([*differences(pair, "live"), context])) from None
            assert listener.running, f"{listener.wait()}\n{context}"
        listener.send(signal.SIGTERM)
        listener.wait(60, check=0)
    assert all(pair.target.execute(sql.SQL(f"select exists (select from live.{c.name})")).fetchone() for c in CASES)
