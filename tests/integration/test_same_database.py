"""Both DSNs lead to one database by mistake: that is said before anything else is judged."""

from __future__ import annotations

import pytest

from tests.conftest import MakeCluster, MakePair
from tests.finding import check
from tests.pair import Pair
from tests.streaming import catch_up


@pytest.fixture
def mistaken(make_cluster: MakeCluster, make_pair: MakePair) -> Pair:
    """Return a pair that was synced, and whose source's address is now its target's."""
    pair = make_pair(source_server=make_cluster(settings={"wal_level": "logical"}), listens=True)
    pair.source.execute("create table t (id int primary key); insert into t values (1)")
    pair.publish()
    pair.write_config(tables=["public.t"])
    return pair


@pytest.mark.hazard("W29")
@pytest.mark.parametrize("target", ["public.t", "raw.t"])
@pytest.mark.parametrize("listens", [False, True], ids=["sync", "listen"])
def test_it_is_said_instead_of_another_cluster_that_a_full_sync_would_accept(
    mistaken: Pair, target: str, listens: bool
) -> None:
    """W29: the target's own table was copied before, or another one; nothing is proposed that would overwrite it."""
    tables = [{"name": "public.t", "target": target}]
    mistaken.write_config(tables=tables)
    _ = catch_up(mistaken) if listens else mistaken.run("sync").stderr
    mistaken.write_config(tables=tables, source={"dsn": mistaken.target_dsn})
    errors = [finding for finding in check(mistaken, exit_code=4) if finding["severity"] == "error"]
    assert [finding["id"] for finding in errors] == ["same_database"]
    commands = [("plan",), ("sync",), ("verify",), *([("listen", "--until-caught-up")] if listens else [])]
    for command in commands:
        finished = mistaken.run(*command, check=3)
        assert "same_database" in finished.stderr
        assert "--full" not in finished.stderr
        assert "source_changed" not in finished.stdout + finished.stderr
    assert mistaken.target.execute("select count(*) from public.t" if target == "public.t" else "select 1").fetchone()
