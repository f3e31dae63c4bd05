"""A thousand damaged rows in a million: each is named, each is mended, and no other row is touched."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.pair import Pair

ROWS = 1_000_000
EVERY = 8000
"""Of each kind of damage one row in so many: 125 of each of eight kinds."""

SOURCE = f"""
create table t (id int primary key, note text, amount numeric, ratio float8, doc json, stamp timestamptz);
insert into t select n, 'note ' || n, 1.0, 0, '{{"a": 1, "b": 2}}', '2026-01-01'::timestamptz + n * interval '1 s'
from generate_series(1, {ROWS}) n;
"""
EDITS = {
    1: ("note = null", "note"),
    2: ("note = note || ' '", "note"),
    3: ("amount = 1.00", "amount"),
    4: ("ratio = '-0'", "ratio"),
    5: ("""doc = '{"b": 2, "a": 1}'""", "doc"),
    6: ("stamp = stamp + interval '1 microsecond'", "stamp"),
}


@pytest.mark.slow
def test_a_thousand_damaged_rows_of_a_million_are_named_and_mended_and_no_other(
    pair: Pair, record_property: Callable[[str, object], None]
) -> None:
    pair.source.execute(SOURCE)
    pair.grant()
    pair.write_config(tables=["public.t"])
    pair.run("sync", timeout_s=600)
    for rest, (change, _) in EDITS.items():
        pair.target.execute(f"update public.t set {change} where id % {EVERY} = {rest}")
    pair.target.execute(f"delete from public.t where id % {EVERY} = 7")
    pair.target.execute(f"insert into public.t (id) select -n from generate_series(1, {ROWS // EVERY}) n")
    count = ROWS // EVERY
    before = read_versions(pair)

    (found,) = pair.run("verify", "--json", check=7, timeout_s=600).json()["tables"]
    expected = {(str(n), column) for rest, (_, column) in EDITS.items() for n in range(rest, ROWS + 1, EVERY)}
    assert {(row["key"][0], *row["columns"]) for row in found["different"]} == expected
    assert {key for (key,) in found["missing"]} == {str(n) for n in range(7, ROWS + 1, EVERY)}
    assert {key for (key,) in found["extra"]} == {str(-n) for n in range(1, count + 1)}

    (mended,) = pair.run("verify", "--repair", "--json", timeout_s=600).json()["tables"]
    assert mended["repaired"] == 8 * count == 1000
    after = read_versions(pair)
    rewritten = {key for key, version in after.items() if before.get(key) != version}
    assert len(rewritten) == 7 * count
    assert before.keys() - after.keys() == {-n for n in range(1, count + 1)}
    pair.run("verify", timeout_s=600)
    pair.assert_equal("public.t")
    (row,) = pair.control_rows(path="repair")
    record_property(
        "measured", f"repair of 1,000 rows in {ROWS:,}: {row['duration_seconds']} s, phases {row['phases']}"
    )


def read_versions(pair: Pair) -> dict[int, str]:
    return dict(pair.target.execute("select id, xmin::text from public.t").fetchall())
