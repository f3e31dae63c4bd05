"""The listener under a mixed load while processes, servers and links fail: nothing lost or doubled, no torn money."""

from __future__ import annotations

import random
import secrets
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import psycopg
import pytest

from tests.chaos.scale import SCALE
from tests.conftest import MakeCluster, MakePair
from tests.fault_proxy import FaultProxy
from tests.pair import Pair, Running
from tests.wait import wait_until

BANKS = ("bank_a", "bank_b", "bank_c")
ACCOUNTS, MONEY = 20, 100
PARENTS, CHILDREN = 5, 5
LOAD_S = 24.0 * SCALE
REFUSED = (psycopg.errors.DeadlockDetected, psycopg.errors.IntegrityError, psycopg.errors.LockNotAvailable)


def create_tables(pair: Pair) -> list[str]:
    """Create ten tables tied by foreign keys, and a bank in three more; return all names."""
    for n in range(PARENTS):
        pair.source.execute(
            f"create table parent_{n} (id bigint primary key, n int not null, note text, code text unique);"
            f"alter table parent_{n} alter note set storage external;"
            f"insert into parent_{n} select g, 0, repeat('p', 3000), 'c' || g from generate_series(1, 200) g;"
            f"create table child_{n} (id bigint primary key, parent bigint references parent_{n}"
            f" on update cascade on delete cascade, data jsonb, amount numeric);"
            f"insert into child_{n} select g, 1 + g % 200, '{{\"a\": 1}}', g / 3.0 from generate_series(1, 400) g"
        )
    for bank in BANKS:
        pair.source.execute(
            f"create table {bank} (id int primary key, money int not null);"
            f"insert into {bank} select g, {MONEY} from generate_series(1, {ACCOUNTS}) g"
        )
    return [f"{kind}_{n}" for kind in ("parent", "child") for n in range(PARENTS)] + list(BANKS)


class Worker(threading.Thread):
    """One session that does one kind of work until it is stopped."""

    def __init__(
        self, connection: psycopg.Connection[tuple[object, ...]], work: Callable[[random.Random], str], seed: int
    ):
        super().__init__(daemon=True)
        self.connection, self.work, self.chance = connection, work, random.Random(seed)
        self.stopped = threading.Event()
        self.done = 0

    def run(self) -> None:
        self.connection.execute("set lock_timeout = '500ms'")
        while not self.stopped.is_set():
            try:
                with self.connection.transaction():
                    for statement in self.work(self.chance).split(";"):
                        self.connection.execute(statement.encode())
                self.done += 1
            except REFUSED:
                pass
        self.connection.close()

    def stop(self) -> None:
        self.stopped.set()
        self.join()


def change_tables(chance: random.Random) -> str:
    """Return one to four writes of the ten tables."""
    n, row, new = chance.randrange(PARENTS), chance.randint(1, 260), chance.randint(1, 260)
    shapes = (
        f"insert into parent_{n} values ({new}, 1, repeat('n', 4000), 'c{new}')",
        f"update parent_{n} set n = n + 1 where id = {row}",
        f"update parent_{n} set n = n + 1, note = repeat('m', {chance.randint(1, 5000)}) where id = {row}",
        f"update parent_{n} set id = {new} where id = {row}",
        f"update parent_{n} set code = 'spare' || id where id = {row}",
        f"update parent_{n} set code = 'c{row}' where id = {new}",
        f"delete from parent_{n} where id = {row}",
        f"insert into child_{n} values ({chance.randint(1, 900)}, {row}, '{{\"b\": {new}}}', {new}.50)",
        f"update child_{n} set data = data || '{{\"k\": {new}}}', amount = amount * 1.10 where id = {row}",
        f"update child_{n} set id = id + 1000 where id = {row}",
        f"delete from child_{n} where parent = {row}",
        f"truncate child_{n}" if chance.random() < 0.05 else f"update child_{n} set amount = null where id = {new}",
    )
    return ";".join(chance.choices(shapes, k=chance.randint(1, 4)))


def move_money(chance: random.Random) -> str:
    """Return a transfer between two accounts, of one bank or of two."""
    sum_, places = chance.randint(1, 9), chance.sample([(bank, n) for bank in BANKS for n in range(1, ACCOUNTS + 1)], 2)
    (giver, g), (taker, t) = places
    return (
        f"update {giver} set money = money - {sum_} where id = {g};"
        f"update {taker} set money = money + {sum_} where id = {t}"
    )


class Reader(threading.Thread):
    """Looks at the bank in the target again and again, in one snapshot of three reads."""

    def __init__(self, pair: Pair) -> None:
        super().__init__(daemon=True)
        self.pair = pair
        self.stopped = threading.Event()
        self.looks = 0
        self.sums: set[object] = set()

    def run(self) -> None:
        while not self.stopped.is_set():
            try:
                with self.pair.target_server.connect(self.pair.target_db) as connection:
                    connection.execute("set default_transaction_isolation = 'repeatable read'")
                    while not self.stopped.is_set():
                        with connection.transaction():
                            reads = [
                                connection.execute(f"select sum(money) from {b}".encode()).fetchone() for b in BANKS
                            ]
                        self.sums.add(sum(read[0] for read in reads if read))
                        self.looks += 1
            except psycopg.OperationalError:
                self.stopped.wait(0.1)

    def stop(self) -> None:
        self.stopped.set()
        self.join()


def start_listening(pair: Pair) -> Running:
    return pair.popen("listen")


@pytest.mark.hazard("F1")
@pytest.mark.parametrize("replica", [True, False])
def test_kills_restarts_and_cuts_lose_and_double_nothing(
    make_cluster: MakeCluster, make_pair: MakePair, record_property: Callable[[str, object], None], replica: bool
) -> None:
    """F1, F4, S22: the listener killed ten times, its target restarted twice, its links cut five times, under load."""
    seed = secrets.randbits(32)
    chance = random.Random(seed)
    target = make_cluster()
    pair = make_pair(listens=True, target_server=target, replica=replica)
    tables = create_tables(pair)
    pair.publish()
    with (
        FaultProxy(pair.source_server.host, pair.source_server.port) as source_link,
        FaultProxy(target.host, target.port) as target_link,
        ExitStack() as stack,
    ):
        pair.write_config(
            source={"dsn": pair.dsn_of_source(port=source_link.port)},
            target={"dsn": pair.dsn_of_target(port=target_link.port)},
            tables=["public.*"],
            logs={"level": "debug"},
        )
        pair.run("listen", "--until-caught-up")
        faults = ["kill"] * 10 + ["restart"] * 2 + ["cut source"] * 3 + ["cut target"] * 2
        chance.shuffle(faults)
        if not replica:
            faults = faults[:6]
        workers = [
            Worker(pair.source_server.connect(pair.source_db), work, seed + n)
            for n, work in enumerate([change_tables, change_tables, move_money])
        ]
        reader = Reader(pair)
        listening = start_listening(pair)
        threads: list[Worker | Reader] = [*workers, reader]
        for thread in threads:
            thread.start()
            stack.callback(thread.stop)
        pause_s = LOAD_S / len(faults) if replica else 1.5
        for fault in faults:
            time.sleep(chance.uniform(0.5, 1.5) * pause_s)
            if fault == "kill":
                listening.kill()
                listening = start_listening(pair)
            elif fault == "restart":
                target.restart(chance.choice(["fast", "immediate"]))
                pair.target.close()
                pair.target = target.connect(pair.target_db)
            else:
                (source_link if fault == "cut source" else target_link).reset()
            assert listening.running, listening.kill()
        for worker in workers:
            worker.stop()
        wait_until(lambda: "stream_started" in listening.stderr, 60, what="the last listener streams")
        listening.send(signal.SIGTERM)
        listening.wait(60, check=0)
        (end,) = pair.source.execute("select pg_current_wal_lsn()::text").fetchone() or (None,)
        pair.run("listen", "--until-caught-up")
        reader.stop()
    record_property(
        "measured",
        f"listener under faults (replica {replica}, seed {seed}): {[w.done for w in workers]} transactions,"
        f" {len(faults)} faults, {reader.looks} looks at the bank",
    )
    for table in tables:
        pair.assert_equal(f"public.{table}")
    assert reader.looks > 0
    assert reader.sums == {len(BANKS) * ACCOUNTS * MONEY}, f"seed {seed}"
    confirmed = "select confirmed_flush_lsn >= %s::pg_lsn from pg_replication_slots where slot_name = %s"
    assert pair.source.execute(confirmed, [end, pair.slot]).fetchone() == (True,)
    assert not pair.control_rows(status="running")
