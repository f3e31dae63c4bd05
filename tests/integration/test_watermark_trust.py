"""`check --deep` and `plan` say how many row versions did not move the watermark, and accuse nobody who did."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import sql

from tests.pair import Pair
from tests.wait import wait_until

TABLE = """
create table t (id int primary key, note text, changed_at timestamptz);
insert into t select g, 'note', now() - interval '9 days' from generate_series(1, 20) g;
"""


IDS = {"watermark_unknown", "watermark_moved", "watermark_unmoved"}


def find(pair: Pair, table: str = "public.t") -> dict[str, Any]:
    """Return what the deep check says of a table's watermark."""
    findings = pair.json("check", "--deep")["findings"]
    found = [f for f in findings if f["table"] == table and f["id"] in IDS]
    assert len(found) == 1, findings
    assert list(found[0]) == ["id", "severity", "table", "message", "hint"]
    return dict(found[0])


def begin(pair: Pair, *, strategy: str = "watermark", **rules: Any) -> None:
    """Sync the table until the source's open transactions are all young."""
    pair.grant()
    pair.write_config(
        tables=[{"name": "public.t", "key": ["id"], "watermark": "changed_at", "strategy": strategy} | rules]
    )

    def is_known() -> bool:
        pair.run("sync")
        trust = pair.json("plan")["tables"][0]["watermark_trust"]
        return "was open" not in (trust["unknown"] or "")

    wait_until(is_known, what="a stranger's transaction has ended")


@pytest.mark.versions
def test_changes_that_did_not_move_the_watermark_are_counted(pair: Pair) -> None:
    """W10, W11: an update that leaves the column alone, and an import that is dated back."""
    pair.source.execute(TABLE)
    begin(pair)
    assert find(pair)["id"] == "watermark_unknown", "nothing has changed yet"
    pair.source.execute("update t set note = 'quiet' where id <= 3")
    pair.source.execute("insert into t values (100, 'import', now() - interval '1 year')")
    pair.source.execute("update t set note = 'loud', changed_at = now() where id between 11 and 16")
    pair.source.execute("insert into t values (101, 'no stamp', null)")
    finding = find(pair)
    assert (finding["id"], finding["severity"]) == ("watermark_unmoved", "warn")
    assert "4 of 11 row versions" in finding["message"]
    assert "1 have none" in finding["message"]
    assert 'strategy = "xmin"' in finding["hint"]
    (table,) = pair.json("plan")["tables"]
    trust = table["watermark_trust"]
    assert (trust["row_versions"], trust["unmoved"], trust["unstamped"]) == (11, 4, 1)
    assert "4 of 11 row versions" in pair.run("plan").stdout
    pair.run("sync")
    assert find(pair)["id"] == "watermark_unknown"


def test_a_watermark_that_is_stamped_is_trusted_and_who_reads_by_xmin_is_not_warned(pair: Pair) -> None:
    pair.source.execute(TABLE)
    begin(pair)
    pair.source.execute("update t set note = 'loud', changed_at = now() where id < 20")
    finding = find(pair)
    assert (finding["id"], finding["severity"]) == ("watermark_moved", "ok")
    assert "all 19 row versions" in finding["message"]
    pair.source.execute("update t set note = 'quiet' where id = 20")
    for strategy, severity in (("auto", "warn"), ("xmin", "ok")):
        pair.write_config(tables=[{"name": "public.t", "watermark": "changed_at", "strategy": strategy}])
        finding = find(pair)
        assert (finding["id"], finding["severity"]) == ("watermark_unmoved", severity)


def test_what_was_committed_before_the_sync_is_not_held_against_the_watermark(pair: Pair) -> None:
    """W1: an old transaction keeps the snapshot's xmin back, and others began, stamped and committed after it."""
    pair.source.execute(TABLE)
    begin(pair, watermark_slack="0s")
    late = pair.source_server.connect(pair.source_db)
    old = pair.source_server.connect(pair.source_db)
    old.execute("begin")
    old.execute("insert into t values (201, 'old', now())")
    late.execute("begin")
    late.execute("select now()")
    late.execute("insert into t values (202, 'late', now())")
    late.execute("commit")
    pair.run("sync")
    old.execute("commit")
    trust = pair.json("plan")["tables"][0]["watermark_trust"]
    assert trust["unknown"] is not None or trust["unmoved"] == 0, trust
    late.close()
    old.close()


def test_a_prepared_transaction_of_another_database_leaves_it_open(pair: Pair) -> None:
    """W15: it keeps the snapshot's xmin back, and no observation of this database shows it."""
    pair.source.execute(TABLE)
    begin(pair)
    other = pair.source_server.connect("postgres")
    name = f"trust_{pair.source_db}"
    other.execute("begin")
    other.execute("select pg_current_xact_id()")
    other.execute(sql.SQL("prepare transaction {}").format(sql.Literal(name)))
    try:
        pair.source.execute("insert into t values (50, 'before', now() - interval '1 day')")
        pair.run("sync")
        assert "prepared transaction" in find(pair)["message"]
    finally:
        other.execute(sql.SQL("rollback prepared {}").format(sql.Literal(name)))
        other.close()


def test_where_nothing_can_be_told_the_reason_is(pair: Pair) -> None:
    pair.source.execute(TABLE + "create view v as select * from t")
    pair.grant()
    tables = [
        {"name": "public.t", "watermark": "changed_at", "strategy": "watermark"},
        {"name": "public.v", "key": ["id"], "watermark": "changed_at"},
    ]
    pair.write_config(tables=tables)
    assert "there is no sync" in find(pair)["message"]
    assert "no versions of their own" in find(pair, "public.v")["message"]
    pair.run("sync")
    pair.source.execute("vacuum full t")
    assert "definition, its storage" in find(pair)["message"]
    ids = {finding["id"] for finding in pair.json("check")["findings"]}
    assert not ids & IDS, "only --deep tells"


def test_local_time_has_its_own_slack_and_rows_that_nobody_copies_do_not_count(pair: Pair) -> None:
    """W12, W16: somebody's local time may be a day off, and is no proof of anything."""
    pair.source.execute(
        "create table t (id int primary key, note text, changed_at timestamp);"
        "insert into t select g, '', now() - interval '9 days' from generate_series(1, 6) g"
    )
    begin(pair, where="id < 6")
    pair.source.execute("update t set note = 'quiet' where id in (1, 6)")
    pair.source.execute("update t set note = 'elsewhere', changed_at = now() - interval '13 hours' where id = 2")
    with pair.source.transaction(force_rollback=True):
        pair.source.execute("update t set note = 'never' where id = 3")
    assert "1 of 2 row versions" in find(pair)["message"]
