"""Transaction ids beyond 2^31 and 2^32: a row's xmin has 32 bits, and the position 64."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from psycopg import sql

from tests.conftest import MakeCluster, MakePair
from tests.pair import Pair
from tests.servers import Cluster
from tests.strategy_case import BOTH, TABLE, Case, source_session

XIDS_PER_SEGMENT = 1 << 20
CYCLE = 1 << 32


def jump(pair: Pair, cluster: Cluster, xid: int) -> None:
    """Let the next transaction be `xid`, as if all those in between had been and left nothing; at most 2^31 ahead.

    Everything is frozen first, or rows and databases would come to lie in the future.
    """
    freeze(cluster)
    pair.source.close()
    cluster.stop()
    make_segment(cluster.data / "pg_xact" / f"{xid // XIDS_PER_SEGMENT:04X}")
    cluster.run("pg_resetwal", "-x", str(xid), "-D", cluster.data)
    cluster.start()
    pair.source = cluster.connect(pair.source_db)


def freeze(cluster: Cluster) -> None:
    """Freeze every database of the cluster."""
    cluster.execute("alter database template0 allow_connections true")
    for (name,) in cluster.execute("select datname from pg_database"):
        cluster.execute("vacuum (freeze)", dbname=name)


def make_segment(path: Path) -> None:
    """Make the part of the commit log in which the server looks for its next transaction."""
    path.write_bytes(bytes(XIDS_PER_SEGMENT // 4))
    owner = path.parent.stat()
    shutil.chown(path, owner.st_uid, owner.st_gid)


def read_next_xid(pair: Pair) -> int:
    """Return the next transaction id, all 64 bits of it, without taking one."""
    ((xid,),) = pair.source.execute("select pg_snapshot_xmax(pg_current_snapshot())::text").fetchall()
    return int(xid)


def burn(pair: Pair, count: int) -> None:
    """Take transaction ids and use them for nothing."""
    body = f"begin for n in 1..{count} loop perform pg_current_xact_id(); commit; end loop; end"
    pair.source.execute(sql.SQL("do {}").format(sql.Literal(body)))


@BOTH
@pytest.mark.versions
@pytest.mark.hazard("W17")
def test_transaction_ids_that_pass_2_to_the_31_and_2_to_the_32(
    crossing: tuple[int, int], make_cluster: MakeCluster, make_pair: MakePair, strategy: str
) -> None:
    cluster = make_cluster(crossing[0])
    pair = make_pair(source_server=cluster)
    pair.source.execute(TABLE)
    case = Case(pair, strategy)
    case.begin()

    jump(pair, cluster, 1_500_000_000)
    pair.source.execute("insert into t values (100, 'far'); update t set note = 'silent' where id = 1")
    batch = case.catch_up(missed=1)
    assert batch["rows_extracted"] < 20

    jump(pair, cluster, 3_000_000_000)
    jump(pair, cluster, 4_000_000_000)
    pair.source.execute("insert into t values (101, 'beyond'); update t set note = 'silent' where id = 2")
    case.catch_up(load="full")

    jump(pair, cluster, CYCLE - 200)
    pair.source.execute("update t set note = 'silent' where id = 3")
    case.catch_up(missed=1)
    with source_session(pair) as late:
        late.execute("insert into t values (102, 'late'); update t set note = 'late' where id = 4")
        burn(pair, 300)
        assert read_next_xid(pair) > CYCLE
        pair.source.execute("insert into t values (103, 'early'); update t set note = 'silent' where id = 5")
        batch = case.catch_up(missed=1)
        assert int(batch["xid_end"]) < CYCLE, "the late transaction is the oldest that ran"
        late.commit()
    case.catch_up(missed=1)
    pair.source.execute("update t set note = 'silent' where id = 6; delete from t where id = 7")
    batch = case.catch_up(missed=1)
    assert int(batch["xid_end"]) > CYCLE
    case.settle()


@BOTH
@pytest.mark.hazard("W17")
def test_a_position_at_the_first_transaction_ids_of_a_cycle(
    make_cluster: MakeCluster, make_pair: MakePair, strategy: str
) -> None:
    """0, 1 and 2 are skipped in every cycle, and 2 stands for frozen."""
    cluster = make_cluster()
    pair = make_pair(source_server=cluster)
    pair.source.execute(TABLE)
    case = Case(pair, strategy)
    pair.grant()
    jump(pair, cluster, 1_500_000_000)
    jump(pair, cluster, 3_000_000_000)
    jump(pair, cluster, CYCLE - 1)
    case.begin()
    for key in range(1, 6):
        pair.source.execute("update t set note = 'silent' where id = %s", [key])
        batch = case.catch_up(missed=1)
    assert int(batch["xid_end"]) >= CYCLE + 3
