"""A view that is read by watermark, night after night."""

from __future__ import annotations

from tests.pair import Pair


def test_a_view_with_a_watermark_is_synced_more_than_once(pair: Pair) -> None:
    pair.source.execute(
        "create table team (id int primary key, name text);"
        "create table member (id int primary key, team int, stamp timestamptz default now());"
        "create view roster as select m.id, t.name, m.stamp from member m join team t on t.id = m.team;"
        "insert into team values (1, 'a'); insert into member (id, team) select g, 1 from generate_series(1, 10) g"
    )
    pair.grant()
    pair.write_config(tables=[{"name": "public.roster", "key": ["id"], "watermark": "stamp"}])
    pair.run("sync")
    pair.source.execute(
        "insert into member (id, team) values (11, 1); delete from member where id = 3; update team set name = 'b'"
    )
    pair.run("sync")
    pair.assert_equal("public.roster")
    pair.run("sync")
    rows = pair.control_rows("public.roster")
    assert [row["load_type"] for row in rows] == ["full", "incremental", "incremental"]
    assert [row["strategy"] for row in rows] == ["watermark"] * 3
    assert (rows[2]["rows_inserted"], rows[2]["rows_updated"], rows[2]["rows_deleted"]) == (0, 0, 0)
