"""The listener, through the command line: what was committed on the source is in the target, exactly once."""

from __future__ import annotations

import pytest

from tests.conftest import MakePair
from tests.pair import Pair


@pytest.fixture
def streamed(make_pair: MakePair) -> Pair:
    """Return a pair whose reader may replicate and owns nothing; the publication is made by the owner."""
    return make_pair(listens=True)


def catch_up(pair: Pair, *args: str, check: int | None = 0) -> str:
    return pair.run("listen", "--until-caught-up", *args, check=check).stderr


def test_a_first_run_copies_and_later_ones_bring_every_change(streamed: Pair) -> None:
    streamed.source.execute(
        "create table t (id int primary key, note text);"
        "insert into t select n, 'row ' || n from generate_series(1, 1000) n"
    )
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    catch_up(streamed)
    streamed.assert_equal("public.t")
    streamed.source.execute(
        "insert into t values (1001, E'tab\\t, back\\\\slash, line\\nend'), (1002, null), (1003, '');"
        "update t set note = 'changed' where id < 10; delete from t where id between 20 and 29;"
        "update t set id = id + 5000 where id between 30 and 39"
    )
    catch_up(streamed)
    streamed.assert_equal("public.t")
    row = streamed.control_rows("public.t", path="listen", load_type="stream")[-1]
    assert (row["rows_extracted"], row["status"], row["strategy"]) == (32, "success", "stream")
