"""Put a source back, or let another server take its place, as disks and failovers do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.pair import Pair
from tests.servers import Cluster


@contextmanager
def stopped(pair: Pair, source: Cluster) -> Iterator[None]:
    """Stop the source for as long as the block lasts, and connect the pair again."""
    pair.source.close()
    source.stop()
    yield
    source.start()
    pair.source = source.connect(pair.source_db)


def copy_disk(pair: Pair, source: Cluster, name: str = "copy") -> Path:
    """Copy a source's data directory while it is stopped; it runs again afterwards."""
    copy = source.home / name
    with stopped(pair, source):
        shutil.copytree(source.data, copy, symlinks=True)
    return copy


def put_back(pair: Pair, source: Cluster, copy: Path) -> None:
    """Put a copy in the place of a source's data directory, and start it."""
    with stopped(pair, source):
        replace_disk(source, copy)


def replace_disk(source: Cluster, copy: Path) -> None:
    """Put a copy in the place of a stopped server's data directory, and keep the copy."""
    shutil.rmtree(source.data)
    shutil.copytree(copy, source.data, symlinks=True)
    own(source)


def own(cluster: Cluster) -> None:
    """Give the files to the account that owns the cluster's directory."""
    owner = cluster.home.stat()
    for path in (cluster.data, *cluster.data.rglob("*")):
        shutil.chown(path, owner.st_uid, owner.st_gid)


def read_end(pair: Pair) -> tuple[int, int]:
    """Return the end of the source's WAL and its next transaction id."""
    query = (
        "select (pg_current_wal_insert_lsn() - '0/0')::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
    )
    row = pair.source.execute(query).fetchone()
    assert row is not None
    return row


def pass_by(pair: Pair, end: tuple[int, int]) -> None:
    """Write to the source until its WAL and its transaction ids are past what they once were; no table changes."""
    while read_end(pair)[0] <= end[0]:
        pair.source.execute("select pg_logical_emit_message(false, 'test', repeat('x', 100000))")
    while read_end(pair)[1] <= end[1]:
        pair.source.execute("select pg_current_xact_id()")
    pair.source.execute("select pg_logical_emit_message(true, 'test', '')")
