"""A source whose history is torn: put back, crashed, failed over, rewound; its slot moved; its target restored.

Whatever happens, a command that ends well leaves the target equal, and one that stops has changed no row and says what
to do; doing that makes the target equal. A seed makes the same story each time: REPLICATOR_HISTORY_SEED=7.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.chaos.scale import SCALE
from tests.conftest import NEWEST, MakeCluster, MakePair
from tests.history import pass_by, read_end, replace_disk
from tests.pair import Finished, Pair
from tests.servers import Cluster
from tests.wait import wait_until

SEEDS = 1 if os.environ.get("REPLICATOR_HISTORY_SEED") else max(2, int(3 * SCALE))
"""60 at REPLICATOR_CHAOS_SCALE=20."""
STEPS = 14
SETTINGS = {
    "wal_writer_delay": "10s",
    "wal_log_hints": "on",
    "full_page_writes": "on",
    "wal_keep_size": "512MB",
    "autovacuum": "off",
}
STOPS = (
    "source_behind", "history_changed", "timeline_changed", "slot_missing", "slot_lost", "slot_ahead", "slot_unknown",
)  # fmt: skip
LISTEN, NIGHTLY = "listen.toml", "nightly.toml"


@pytest.fixture
def remains() -> Iterator[list[Cluster]]:
    """Return where servers go that are to be removed once the pair is closed."""
    servers: list[Cluster] = []
    yield servers
    for server in servers:
        server.remove()


@pytest.fixture
def world(make_cluster: MakeCluster, remains: list[Cluster], make_pair: MakePair) -> Iterator[Callable[[int], World]]:
    """Return a function that makes a world from a seed."""
    worlds: list[World] = []

    def make(seed: int) -> World:
        source, target = make_cluster(NEWEST, settings=SETTINGS), make_cluster(NEWEST)
        pair = make_pair(listens=True, source_server=source, target_server=target)
        worlds.append(World(pair, source, target, random.Random(seed), remains))
        return worlds[-1]

    yield make
    for one in worlds:
        one.close()


@pytest.mark.hazard("S35")
@pytest.mark.hazard("S36")
@pytest.mark.hazard("S37")
@pytest.mark.hazard("S23")
@pytest.mark.hazard("F9")
@pytest.mark.parametrize("number", range(SEEDS))
def test_no_torn_history_ends_well_and_unequal(
    world: Callable[[int], World], record_property: Callable[[str, object], None], number: int
) -> None:
    seed = int(os.environ.get("REPLICATOR_HISTORY_SEED") or random.SystemRandom().getrandbits(32))
    one = world(seed)
    try:
        one.begin()
        for _ in range(STEPS):
            one.step()
        one.finish()
    except Exception as error:
        raise AssertionError(f"REPLICATOR_HISTORY_SEED={seed}\n" + "\n".join(one.story)) from error
    record_property("measured", f"history {number + 1}, seed {seed}: {dict(one.told)}")


class World:
    """A source with a standby, a target, and two pipelines between them: one listens, one is a nightly sync.

    story: what happened, in words. told: how often commands ended well or stopped, by the error's id.
    """

    def __init__(
        self, pair: Pair, source: Cluster, target: Cluster, chance: random.Random, remains: list[Cluster]
    ) -> None:
        self.pair, self.source, self.target, self.chance, self.remains = pair, source, target, chance, remains
        self.standby: Cluster | None = None
        self.story: list[str] = []
        self.told: Counter[str] = Counter()
        self.copies: list[tuple[Path, tuple[int, int]]] = []
        self.backups: list[str] = []
        self.next_id = 1000
        self.names = 0

    # ------------------------------------------------------------------------------------------------ the story

    def begin(self) -> None:
        """Make tables and pipelines, and copy once."""
        self.pair.source.execute(
            "create table t (id int primary key, note text);"
            " insert into t select g, 'row ' || g from generate_series(1, 50) g"
        )
        self.pair.publish()
        self._configure()
        self._make_standby()
        self.listen()
        self.sync()

    def step(self) -> None:
        """Let something happen, and now and then run a command."""
        events = [
            self.write, self.write, self.write, self.copy_disk, self.put_back, self.crash, self.fail_over,
            self.move_slot, self.back_up_target, self.restore_target, self.sync_stream, self.sync_from_standby,
        ]  # fmt: skip
        self.chance.choice(events)()
        for command in (self.listen, self.sync):
            if self.chance.random() < 0.5:
                command()

    def finish(self) -> None:
        """Run both pipelines once more."""
        self.write()
        self.listen()
        self.sync()

    def tell(self, text: str) -> None:
        """Note what happened."""
        self.story.append(text)

    def write(self) -> None:
        """Change rows; none of those is seen again under another value."""
        self.next_id += 10
        kinds = (
            f"insert into t select g, 'new ' || g from generate_series({self.next_id}, {self.next_id + 4}) g",
            f"update t set note = 'changed {self.next_id}' where id % 7 = {self.chance.randrange(7)}",
            f"delete from t where id % 11 = {self.chance.randrange(11)} and id > 50",
        )
        for statement in self.chance.sample(kinds, self.chance.randint(1, 3)):
            self.tell(statement)
            self.pair.source.execute(statement)

    def copy_disk(self) -> None:
        """Copy the source's disk while it is stopped."""
        self.tell("copy the source's disk")
        self.names += 1
        copy = self.source.home / f"copy{self.names}"
        end = read_end(self.pair)
        self.pair.source.close()
        self.source.stop()
        shutil.copytree(self.source.data, copy, symlinks=True)
        self._start()
        self.copies.append((copy, end))

    def put_back(self) -> None:
        """Put a copy in the place of the source's disk; sometimes its WAL passes the old place again."""
        mine = [copy for copy, _ in self.copies if copy.parent == self.source.home]
        if not mine:
            return
        copy = self.chance.choice(mine)
        end = read_end(self.pair)
        passes, kills = self.chance.random() < 0.6, self.chance.random() < 0.5
        self.tell(f"put {copy.name} back, {'killed' if kills else 'stopped'}, {'passing' if passes else 'behind'}")
        self.pair.source.close()
        self._drop_standby()
        self.source.kill() if kills else self.source.stop()
        replace_disk(self.source, copy)
        self._start()
        if passes:
            pass_by(self.pair, end)
        self._make_standby()

    def crash(self) -> None:
        """Write without a flush, perhaps let a command see that, and cut the power."""
        self.tell("crash with unflushed commits")
        self.pair.source.execute("set synchronous_commit = off")
        self.write()
        end = read_end(self.pair)
        if self.chance.random() < 0.6:
            self.chance.choice([self.sync, self.listen])()
        self.pair.source.close()
        self.source.kill()
        self._start()
        if self.chance.random() < 0.6:
            pass_by(self.pair, end)

    def fail_over(self) -> None:
        """Promote the standby, with or without what the source wrote last; the old source is rewound, or made anew."""
        if self.standby is None:
            return
        lossless, rewinds = self.chance.random() < 0.5, self.chance.random() < 0.5
        self.tell(f"fail over, {'lossless' if lossless else 'with a loss'}, {'rewound' if rewinds else 'made anew'}")
        old, new = self.source, self.standby
        if lossless:
            self._settle_slot(new)
            new.wait_for_replay(old)
        else:
            self._cut_off(new)
            self.write()
            if self.chance.random() < 0.7:
                self.chance.choice([self.sync, self.listen])()
        end = read_end(self.pair)
        self.pair.source.close()
        old.stop("fast" if rewinds else "immediate")
        new.promote()
        self.source, self.standby = new, None
        self.pair.source = new.connect(self.pair.source_db)
        self._configure()
        if self.chance.random() < 0.5:
            pass_by(self.pair, end)
        if rewinds and not self._rewind(old):
            rewinds = False
        if not rewinds:
            shutil.rmtree(old.data, ignore_errors=True)
            self._copy_base(old)

    def move_slot(self) -> None:
        """Drop the slot, make it anew, or advance it."""
        what = self.chance.choice(["drop", "make anew", "advance"])
        slot = sql.Literal(self.pair.slot)
        self.tell(f"slot: {what}")
        with suppress(psycopg.errors.UndefinedObject):
            if what == "advance":
                self.write()
                self.pair.source.execute(
                    sql.SQL("select pg_replication_slot_advance({}, pg_current_wal_lsn())").format(slot)
                )
                return
            self.pair.source.execute(sql.SQL("select pg_drop_replication_slot({})").format(slot))
        if what == "make anew":
            self.write()
            with suppress(psycopg.errors.DuplicateObject, psycopg.errors.UndefinedObject):
                self.pair.source.execute(
                    sql.SQL("select pg_create_logical_replication_slot({}, 'pgoutput')").format(slot)
                )

    def back_up_target(self) -> None:
        """Keep a backup of the target."""
        self.tell("back the target up")
        self.names += 1
        name = f"backup{self.names}"
        self.pair.target.close()
        self._wait_for_nobody()
        self.target.execute(
            sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(self.pair.target_db))
        )
        self.pair.target = self.target.connect(self.pair.target_db)
        self.backups.append(name)

    def restore_target(self) -> None:
        """Restore the target from its backup."""
        if not self.backups:
            return
        self.tell("restore the target")
        self.pair.target.close()
        self._wait_for_nobody()
        names = {"db": sql.Identifier(self.pair.target_db), "backup": sql.Identifier(self.chance.choice(self.backups))}
        writer = sql.Identifier(self.pair.writer)
        self.target.execute(sql.SQL("drop database {db}").format(**names))
        self.target.execute(sql.SQL("create database {db} template {backup} owner {w}").format(**names, w=writer))
        self.pair.target = self.target.connect(self.pair.target_db)

    # ---------------------------------------------------------------------------------------------- commands

    def listen(self) -> None:
        """Let the stream catch up, and do what its error says where it stops."""
        before = self._image("public.t")
        finished = self._run(LISTEN, "listen", "--until-caught-up")
        if finished.exit_code != 0:
            stop = self._expect_stop(finished)
            assert self._image("public.t") == before, f"rows changed before the stop {stop}"
            if stop == "slot_unknown":
                self._run(LISTEN, "slot", "drop", "--yes", check=0)
                self._run(LISTEN, "listen", "--until-caught-up", check=0)
            else:
                self._run(LISTEN, "listen", "--until-caught-up", "--repair-gap", check=0)
        self.pair.assert_equal("public.t")

    def sync(self) -> None:
        """Let the nightly pipeline run."""
        self._run(NIGHTLY, "sync", check=0)
        self.pair.assert_equal("public.t", "nightly.t")

    def sync_stream(self) -> None:
        """Let a sync bring the stream's table while nobody listens."""
        self._run(LISTEN, "sync", check=0)
        self.pair.assert_equal("public.t")

    def sync_from_standby(self) -> None:
        """Let the nightly pipeline read the standby once."""
        if self.standby is None:
            return
        self.standby.wait_for_replay(self.source)
        self._configure(nightly=self.standby)
        self.sync()
        self._configure()

    def _run(self, config: str, *args: str, check: int | None = None) -> Finished:
        finished = self.pair.run(*args, "--config", str(self.pair.dir / config), check=check)
        self.tell(f"  {' '.join(args)} ({config}): {finished.exit_code}")
        self.told["ended well" if finished.exit_code == 0 else "stopped"] += 1
        return finished

    def _expect_stop(self, finished: Finished) -> str:
        found = [stop for stop in STOPS if f"[{stop}]" in finished.stderr]
        assert finished.exit_code == 1, finished
        assert len(found) == 1, finished
        self.tell(f"  stopped: {found[0]}")
        self.told[found[0]] += 1
        return found[0]

    # ------------------------------------------------------------------------------------------------ servers

    def _configure(self, *, nightly: Cluster | None = None) -> None:
        source = {"dsn": self.pair.dsn_of_source(port=self.source.port)}
        path = self.pair.write_config(tables=["public.t"], source=source)
        path.rename(path.with_name(LISTEN))
        if nightly is not None:
            source = {"dsn": self.pair.dsn_of_source(port=nightly.port)}
        table = {"name": "public.t", "target": "nightly.t"}
        path = self.pair.write_config('pipeline = "nightly"', tables=[table], source=source)
        path.rename(path.with_name(NIGHTLY))

    def _start(self) -> None:
        self.source.start()
        self.pair.source = self.source.connect(self.pair.source_db)

    def _image(self, table: str) -> list[tuple[object, ...]]:
        try:
            return self.pair.target.execute(f"select t::text from {table} t order by 1").fetchall()
        except psycopg.errors.UndefinedTable:
            return []

    def _wait_for_nobody(self) -> None:
        query = "select count(*) from pg_stat_activity where datname = %s"
        db = [self.pair.target_db]
        wait_until(lambda: self.target.execute(query, db)[0][0] == 0, what="nobody is in the target")

    def _make_standby(self) -> None:
        standby = Cluster(self.source.version, self.source.workspace, settings=self.source.settings)
        self.remains.append(standby)
        self._copy_base(standby)

    def _copy_base(self, standby: Cluster) -> None:
        """Make a server's data directory from a base backup of the source, and let it follow with its slots."""
        with suppress(psycopg.errors.DuplicateObject):
            self.source.execute("select pg_create_physical_replication_slot('standby', true)")
        self.source.run(
            "pg_basebackup", "-d", self.source.admin_dsn(), "-D", standby.data, "-R", "-X", "stream",
            "--checkpoint=fast", "--no-sync", "--write-recovery-conf", "--slot=standby",
        )  # fmt: skip
        self._follow(standby)

    def _follow(self, standby: Cluster) -> None:
        lines = {
            "primary_conninfo": self.source.admin_dsn(),
            "primary_slot_name": "standby",
            "hot_standby_feedback": "on",
            "sync_replication_slots": "on",
        }
        with (standby.data / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in lines.items())
        standby.start()
        self.standby = standby
        standby.wait_for_replay(self.source)

    def _rewind(self, old: Cluster) -> bool:
        """Rewind the old source behind the new one; False where its WAL does not reach that far back."""
        self.source.execute("checkpoint")
        with suppress(psycopg.errors.DuplicateObject):
            self.source.execute("select pg_create_physical_replication_slot('standby', true)")
        try:
            old.run("pg_rewind", "-D", old.data, "--source-server", self.source.admin_dsn(), "-R", "--no-sync")
        except Exception as error:  # noqa: BLE001  # whatever keeps it from that, the server is made anew
            self.tell(f"  no rewind: {str(error).splitlines()[-1]}")
            return False
        old.write_settings()
        self._follow(old)
        return True

    def _drop_standby(self) -> None:
        if self.standby is not None:
            self.standby.stop("immediate")
            shutil.rmtree(self.standby.data, ignore_errors=True)
            self.standby = None

    def _cut_off(self, standby: Cluster) -> None:
        standby.execute("alter system set primary_conninfo = ''")
        standby.execute("select pg_reload_conf()")
        query = "select 1 from pg_stat_wal_receiver"
        wait_until(lambda: not standby.execute(query), what="the standby is cut off")

    def _settle_slot(self, standby: Cluster) -> None:
        """Give the standby the slot as it is, if it can have it."""
        with suppress(psycopg.Error):
            self.source.execute("select pg_log_standby_snapshot()")
            standby.wait_for_replay(self.source)
            standby.execute("select pg_sync_replication_slots()")

    def close(self) -> None:
        """Leave the pair the source that there is in the end."""
        self._drop_standby()
        self.pair.source_server = self.source
        for name in self.backups:
            self.target.execute(sql.SQL("drop database if exists {}").format(sql.Identifier(name)))
        if not self.source.running:
            self._start()
        self.source.execute("alter system reset all")
