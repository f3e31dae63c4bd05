"""Tables are parked, changed, taken back and read anew at random, beside writers: in the end all is equal.

REPLICATOR_CHAOS_SEED repeats a run; REPLICATOR_CHAOS_SCALE makes it longer.
"""
# ruff: noqa: E501, ISC004  # a statement reads best in one line

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psycopg
import pytest
from psycopg import sql

from tests.chaos.scale import SCALE
from tests.conftest import MakeCluster, MakePair
from tests.pair import Pair, Running
from tests.servers import Cluster
from tests.streaming import wait_for_stream
from tests.wait import wait_until

SECONDS = 20 * SCALE
WIDE = [f"c{n}" for n in range(60)]
SCHEMA = f"""
create table a (id int primary key, n int, v text);
create table c (a int, b text, n int, primary key (a, b));
create table k (a int, b text); alter table k replica identity full;
create table p (id int, part int, n int, primary key (id, part)) partition by list (part);
create table p0 partition of p for values in (0); create table p1 partition of p for values in (1);
create table p2 partition of p for values in (2);
create table f (id int primary key, n int);
create table g (id int primary key, f int references f on delete cascade on update cascade);
create table x (code text primary key, big text, n int); alter table x alter big set storage external;
create table m (id int primary key, acct int, phone text, mail text);
create table q (id int primary key, n int);
create table w (id int primary key, {", ".join(f"{name} int" for name in WIDE)});
create table s1 (id int primary key, n int); create table s2 (id int primary key, n int);
create table d (id int primary key, n int);
create table z (id int primary key, n int, v text);
insert into a select g, 0, 'v' from generate_series(1, 300) g;
insert into c select g % 20, 'b' || g, 0 from generate_series(1, 300) g;
insert into k select g % 7, 'k' from generate_series(1, 300) g;
insert into p select g, g % 3, 0 from generate_series(1, 300) g;
insert into f select g, 0 from generate_series(1, 100) g;
insert into g select g, g from generate_series(1, 100) g;
insert into x select 'c' || g, repeat('x', 3000), 0 from generate_series(1, 100) g;
insert into m select g, g % 5, 'p' || g, 'mail' || g from generate_series(1, 200) g;
insert into q select g, g from generate_series(1, 100) g;
insert into w (id, c0) select g, g from generate_series(1, 100) g;
insert into s1 select g, 1 from generate_series(1, 50) g; insert into s2 select g, 2 from generate_series(1, 60) g;
insert into d select g, 0 from generate_series(1, 50) g;
insert into z select g, 0, 'v' from generate_series(1, 100) g
"""
TABLES = ("a", "c", "k", "p", "f", "g", "x", "m", "q", "w", "s1", "s2", "d", "z")
EXACT = tuple(name for name in TABLES if name != "m")


def write_once(chance: random.Random) -> str:
    """Return one transaction of an application."""
    row = chance.randrange(1, 400)
    other = chance.randrange(1, 400)
    return chance.choice(
        [
            f"insert into a values ({row}, 1, 'i') on conflict (id) do update set n = a.n + 1",
            f"delete from a where id = {row}",
            f"begin; delete from a where id = {other}; update a set id = {other} where id = {row}; commit",
            f"begin; savepoint s; insert into a values ({row + 1000}, 0, 's'); rollback to s;"
            f" update a set n = n + 1 where id < {row}; savepoint s; delete from a where id = {other}; release s; end",
            f"insert into c values ({row % 20}, 'b{row}', 0) on conflict (a, b) do update set n = c.n + 1",
            f"update c set b = 'B' || id.b, n = 1 from c id where c.a = id.a and c.b = id.b and c.b = 'b{row}'",
            f"delete from c where b in ('b{row}', 'Bb{other}')",
            f"insert into k values ({row % 7}, 'k{other % 3}')",
            "delete from k where ctid = (select ctid from k order by random() limit 1)",
            f"update k set b = 'u{other % 4}' where ctid in (select ctid from k where a = {row % 7} limit 3)",
            f"update p set part = (part + 1) % 3, n = n + 1 where id = {row}",
            f"insert into p values ({row}, {row % 3}, 0) on conflict do nothing",
            f"delete from p where id = {row}",
            f"insert into f values ({row}, 0) on conflict (id) do update set n = f.n + 1",
            f"insert into g select {other}, id from f where id = {row} on conflict (id) do update set f = excluded.f",
            f"delete from f where id = {row}",
            f"insert into x values ('c{row}', repeat('y', 3000), 0) on conflict (code) do update set n = x.n + 1",
            f"update x set code = 'k' || code where code = 'c{row}'",
            f"delete from x where code = 'kc{row}'",
            f"insert into m values ({row}, {other % 5}, 'p', 'm') on conflict (id) do update set acct = excluded.acct",
            f"update m set mail = 'new{other}' where id = {row}",
            f"delete from m where id = {row}",
            f"insert into q values ({row}, {other}) on conflict (id) do update set n = excluded.n",
            f"delete from q where id = {row}",
            f"insert into w (id, c{row % 60}) values ({row}, {other}) on conflict (id) do update set c1 = w.c1 + 1",
            f"delete from w where id = {row}",
            f"insert into s1 values ({row}, 1) on conflict (id) do update set n = s1.n + 1",
            f"insert into s2 values ({row}, 2) on conflict (id) do update set n = s2.n + 1",
            f"begin; delete from s1 where id = {row}; delete from s2 where id = {other}; commit",
            f"insert into d values ({row}, 1) on conflict (id) do update set n = d.n + 1",
            f"insert into z (id) values ({row}) on conflict (id) do nothing",
            f"update z set n = {row} where id = {other}",
        ]
    )


def change_definition(chance: random.Random) -> str:
    """Return one migration, or something else that concerns a whole table."""
    name = chance.choice(["a", "c", "z", "w"])
    return chance.choice(
        [
            f"truncate {chance.choice(['a', 'k', 'p', 'x', 'd', 'p1', 'f, g'])}",
            f"begin; truncate {name}; rollback",
            f"alter table {name} add column extra int default 7; update {name} set extra = 8 where ctid < '(0,9)'",
            f"alter table {name} drop column if exists extra",
            "alter table z rename column v to v2",
            "alter table z rename column v2 to v",
            "alter table z alter n type bigint",
            "begin; alter table p detach partition p2; insert into p2 values (9999, 2, 0) on conflict do nothing; commit",
            "begin; delete from p2; alter table p attach partition p2 for values in (2); commit",
            "begin; drop table d; create table d (id int primary key, n int); insert into d values (1, 1), (2, 2); commit",
            "drop table d",
            "create table d (id int primary key, n int); insert into d values (3, 3)",
            "begin; alter table s1 rename to s0; alter table s2 rename to s1; alter table s0 rename to s2; commit",
            "insert into x select 'big' || g, repeat('z', 4000), 0 from generate_series(1, 800) g on conflict do nothing",
            "delete from x where code like 'big%'",
        ]
    )


class Application:
    """Writers of the source."""

    def __init__(self, pair: Pair, seed: int) -> None:
        self.pair, self.stopped = pair, threading.Event()
        self.statements: Counter[str] = Counter()
        self.threads = [
            threading.Thread(target=self._write, args=[random.Random(seed + n), change, pause], daemon=True)
            for n, (change, pause) in enumerate([(write_once, 0.01), (write_once, 0.01), (change_definition, 0.6)])
        ]
        for thread in self.threads:
            thread.start()

    def _write(self, chance: random.Random, change: Callable[[random.Random], str], pause_s: float) -> None:
        while not self.stopped.wait(0.1):
            with suppress(psycopg.Error), self.pair.source_server.connect(self.pair.source_db) as session:
                session.execute("set lock_timeout = '2s'")
                while not self.stopped.wait(pause_s * chance.random()):
                    try:
                        session.execute(change(chance).encode())
                    except (psycopg.OperationalError, psycopg.DatabaseError) as error:
                        if session.closed:
                            raise
                        self.statements[type(error).__name__] += 1
                        session.execute("rollback")

    def stop(self) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive(), "a writer hangs"


class Monkey:
    """Makes trouble for the listener's tables, and for the listener."""

    def __init__(self, pair: Pair, clusters: tuple[Cluster, Cluster], chance: random.Random) -> None:
        self.pair, self.clusters, self.chance = pair, clusters, chance
        self.done: list[str] = []
        self.logs: list[str] = []
        self.running = self.start()
        wait_for_stream(self.running)
        self.begun = time.monotonic()

    def start(self) -> Running:
        return self.pair.popen("listen")

    def act(self) -> None:
        assert self.running.running, f"the listener ended by itself: {self.running.wait()}\n{self.done}"
        actions = [
            *[self.mark_stale] * 3,
            *[self.refuse] * 3,
            *[self.allow] * 3,
            self.revoke,
            self.grant,
            self.unpublish,
            self.publish,
            self.lose_identity,
            self.regain_identity,
            self.command,
            self.command,
            self.kill,
            self.terminate,
            self.restart_server,
        ]
        action = self.chance.choice(actions)
        self.done.append(f"{time.monotonic() - self.begun:.1f} {action.__name__}")
        action()

    def _note(self, text: str) -> None:
        self.done[-1] += f" {text}"

    def on_source(self, text: str) -> None:
        self._note(text)
        with suppress(psycopg.Error), self.pair.source_server.connect(self.pair.source_db) as session:
            session.execute("set lock_timeout = '3s'")
            session.execute(text.encode())

    def on_target(self, text: str) -> None:
        self._note(text)
        try:
            with self.pair.target_server.connect(self.pair.target_db) as session:
                session.execute("set lock_timeout = '3s'")
                session.execute(text.encode())
        except psycopg.Error as error:
            self._note(f"({type(error).__name__})")

    def mark_stale(self) -> None:
        names = self.chance.sample(TABLES, self.chance.randrange(1, 5))
        listed = ", ".join(f"'public.{name}'" for name in names)
        self.on_target(f"update replicator.stream_table set is_stale = true where table_name in ({listed})")

    def refuse(self) -> None:
        name = self.chance.choice(TABLES)
        self.on_target(
            self.chance.choice(
                [
                    f"alter table {name} add constraint chaos check (false) not valid",
                    f"create rule chaos as on insert to {name} do instead nothing",
                    "alter table z alter n set not null",
                    "alter table q add constraint chaos check (n < 200) not valid",
                    f"alter table {name} add column chaos int not null default 0; alter table {name} alter chaos drop default",
                ]
            )
        )

    def allow(self) -> None:
        for name in self.chance.sample(TABLES, 5):
            self.allow_table(name)

    def allow_table(self, name: str) -> None:
        self.on_target(f"alter table {name} drop constraint if exists chaos")
        self.on_target(f"drop rule if exists chaos on {name}")
        self.on_target(f"alter table {name} drop column if exists chaos")
        if name == "z":
            self.on_target("alter table z alter n drop not null")

    def revoke(self) -> None:
        self.on_source(f"revoke select on {self.chance.choice(TABLES)} from {self.pair.reader}")

    def grant(self) -> None:
        self.on_source(f"grant select on all tables in schema public to {self.pair.reader}")

    def unpublish(self) -> None:
        self.on_source(f"alter publication replicator_default drop table {self.chance.choice(TABLES)}")

    def publish(self) -> None:
        for name in TABLES:
            self.on_source(f"alter publication replicator_default add table {name}")

    def lose_identity(self) -> None:
        self.on_source(f"alter table {self.chance.choice(['k', 'a', 'c'])} replica identity nothing")

    def regain_identity(self) -> None:
        self.on_source("alter table k replica identity full")
        self.on_source("alter table a replica identity default")
        self.on_source("alter table c replica identity default")

    def command(self) -> None:
        name = f"public.{self.chance.choice(TABLES)}"
        args = self.chance.choice(
            [("sync",), ("sync", name), ("verify",), ("resync", name, "--yes"), ("verify", "--repair")]
        )
        self._note(" ".join(args))
        finished = self.pair.run(*args, check=None, timeout_s=120)
        self._note(f"-> {finished.exit_code}")
        assert "Traceback" not in finished.stderr, f"{finished}\n{self.done}"
        assert finished.exit_code in (0, 1, 4, 5, 6, 7, 8, 75), finished

    def kill(self) -> None:
        self.logs.append(self.running.kill().stderr)
        self.running = self.start()

    def terminate(self) -> None:
        self.running.send(signal.SIGTERM)
        begun = time.monotonic()
        finished = self.running.wait(45)
        self._note(f"took {time.monotonic() - begun:.1f} s -> {finished.exit_code}")
        assert finished.exit_code == 0, finished
        self.logs.append(finished.stderr)
        self.running = self.start()

    def restart_server(self) -> None:
        number = self.chance.randrange(2)
        self._note(("source", "target")[number])
        self.clusters[number].restart(self.chance.choice(["fast", "immediate"]))
        self.pair.source.close()
        self.pair.target.close()
        self.pair.source = self.pair.source_server.connect(self.pair.source_db)
        self.pair.target = self.pair.target_server.connect(self.pair.target_db)

    def calm(self) -> None:
        """Take all trouble away."""
        self.done.append("calm")
        with suppress(psycopg.Error):
            self.pair.source.execute("create table d (id int primary key, n int)")
        with suppress(psycopg.Error):
            self.pair.source.execute("alter table p attach partition p2 for values in (2)")
        self.regain_identity()
        self.grant()
        self.publish()
        for name in TABLES:
            self.allow_table(name)


def read_parked(pair: Pair) -> dict[str, str]:
    return dict(
        pair.target.execute("select table_name, error_id || ': ' || error_message from replicator.parked_table")
    )


def count_events(log: str) -> Counter[str]:
    return Counter(line.split('"event": "')[1].split('"')[0] for line in log.splitlines() if '"event": "' in line)


@contextmanager
def told(seed: int, monkey: Monkey) -> Iterator[None]:
    try:
        yield
    except AssertionError:
        print(f"seed {seed}", *monkey.done, sep="\n")
        print(monkey.running.stderr[-20000:])
        raise


@pytest.mark.hazard("S25", "S30")
def test_parked_tables_and_chaos_leave_equal_tables(make_cluster: MakeCluster, make_pair: MakePair) -> None:
    seed = int(os.environ.get("REPLICATOR_CHAOS_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}")
    clusters = make_cluster(18), make_cluster(18)
    pair = make_pair(source_server=clusters[0], target_server=clusters[1], listens=True)
    pair.constants |= {
        "replicator.stream.loop._DEFINITIONS_S": 0.5,
        "replicator.stream.join._LOOK_AGAIN_S": 0.5,
        "replicator.stream.join._LOAD_AGAIN_S": 0.5,
        "replicator.stream.join._MOST_LOAD_AGAIN_S": 2.0,
    }
    pair.source.execute(SCHEMA)
    pair.publish(*TABLES)
    pair.source.execute(
        sql.SQL("alter default privileges in schema public grant select on tables to {}").format(
            sql.Identifier(pair.reader)
        )
    )
    (pair.dir / "mask.key").write_text("secret-key-of-the-masks-0123456789abcdef")
    (pair.dir / "mask.key").chmod(0o600)
    tables: list[object] = [f"public.{name}" for name in TABLES if name not in "mq"]
    tables.append(
        {
            "name": "public.m",
            "where": "acct <> 3",
            "mask": {"phone": "hash", "mail": "left(mail, 2) || acct::text"},
        }
    )
    tables.append({"name": "public.q", "on_row_error": "quarantine"})
    pair.write_config(
        tables=tables,
        listen={"batch_bytes": "1MB"},
        defaults={"max_delete_fraction": 1.0},
        privacy={"mask_key_file": "mask.key"},
        lock_wait="5s",
        logs={"format": "json"},
    )
    chance = random.Random(seed)
    monkey = Monkey(pair, clusters, chance)
    with told(seed, monkey):
        application = Application(pair, seed)
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            monkey.act()
            threading.Event().wait(chance.random())
        application.stop()
        monkey.calm()
        wait_until(lambda: settle(pair, monkey), 90, what="no table is parked", interval_s=0.5)
        finish(pair, monkey)
        log = "".join(monkey.logs) + monkey.running.stderr
        print(count_events(log).most_common(12), application.statements)
        rows = pair.target.execute("select table_name, count(*) from replicator.etl_control group by 1 order by 2 desc")
        print(rows.fetchmany(5))


def settle(pair: Pair, monkey: Monkey) -> bool:
    """Say whether no table is parked; what only a person can decide is decided."""
    assert monkey.running.running, monkey.running.wait()
    parked = read_parked(pair)
    for table, reason in parked.items():
        if reason.startswith("schema_drift"):
            pair.run("resync", table, "--yes", check=None)
    return not parked


def finish(pair: Pair, monkey: Monkey) -> None:
    monkey.running.send(signal.SIGTERM)
    monkey.running.wait(45, check=0)
    caught = pair.run("listen", "--until-caught-up", timeout_s=120)
    assert "Traceback" not in caught.stderr
    for row in pair.target.execute("select quarantine_id from replicator.quarantine").fetchall():
        pair.run("quarantine", "retry", str(row[0]), check=None)
    for name in EXACT:
        pair.assert_equal(name)
    pair.assert_equal("m", columns=["id", "acct"], where="acct <> 3")
    pair.run("verify")
    for session in (pair.source, pair.target):
        query = "select query from pg_stat_activity where state like 'idle in%' and pid <> pg_backend_pid()"
        assert not session.execute(query).fetchall()
    slots = [name for (name,) in pair.source.execute("select slot_name from pg_replication_slots").fetchall()]
    assert slots == [pair.slot]
