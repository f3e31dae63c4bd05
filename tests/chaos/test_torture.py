"""Pull after pull while a dozen writers do their worst, and at the end not one row is wrong."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from replicator.sync.pipeline import sync
from tests.chaos.load import Load, create_tables
from tests.chaos.moment import read_settings
from tests.chaos.scale import SCALE
from tests.pair import Pair

WRITERS = 12
ROWS = 400
DURATION_S = 30.0
COMMAND_EVERY = 3
"""One pull in three is the command itself; the others are the same code without the start of a process."""

TABLES = {"xmin": "public.by_xmin", "watermark": "public.by_mark"}


@pytest.mark.hazard("W1")
@pytest.mark.hazard("W2")
@pytest.mark.hazard("W13")
@pytest.mark.hazard("W14")
@pytest.mark.hazard("W15")
@pytest.mark.hazard("W16")
def test_no_row_is_lost_under_torture(pair: Pair, record_property: Callable[[str, object], None]) -> None:
    seed = random.SystemRandom().getrandbits(32)
    record_property("measured", f"torture seed: {seed}")
    create_tables(pair.source, list(TABLES.values()), writers=WRITERS, rows=ROWS)
    pair.grant()
    pair.write_config(
        tables=[
            {"name": TABLES["xmin"], "strategy": "xmin"},
            {"name": TABLES["watermark"], "strategy": "watermark", "watermark": "updated_at", "watermark_slack": "1s"},
        ],
        logs={"level": "error"},
    )
    pair.run("sync")
    tables = list(TABLES.values())
    with Load(pair.source_server, pair.source_db, tables, writers=WRITERS, rows=ROWS, seed=seed) as load:
        pulls = pull_for(pair, DURATION_S * SCALE)
        load.stop()
        pair.run("sync")
        pending = load.finish()
    pair.run("sync")
    batches = {strategy: pair.control_rows(table)[1:] for strategy, table in TABLES.items()}
    record_property(
        "measured", f"torture: {pulls} pulls, {dict(load.counts)}, {pending} prepared left for the last pull"
    )
    for strategy, rows in batches.items():
        record_property("measured", f"torture, {strategy}: {add_up(rows)}")
        assert all(row["status"] == "success" for row in rows)
        assert sum(row["rows_missed_before"] for row in rows) == 0, f"{strategy} missed rows (seed {seed})"
        assert sum(row["load_type"] == "incremental" for row in rows) >= pulls / 2, f"{strategy} read everything"
    for table in tables:
        pair.assert_equal(table)


def pull_for(pair: Pair, seconds: float) -> int:
    """Pull back to back for so long, by command and by function in turn; return how often."""
    settings = read_settings(pair)
    deadline = time.monotonic() + seconds
    pulls = 0
    while time.monotonic() < deadline:
        if pulls % COMMAND_EVERY == 0:
            pair.run("sync")
        else:
            assert sync(settings, pair.target_dsn, jobs=2).exit_code == 0
        pulls += 1
    return pulls


def add_up(rows: list[dict[str, Any]]) -> str:
    """Return what all batches together did."""
    names = ("extracted", "inserted", "updated", "deleted")
    return ", ".join(f"{sum(row[f'rows_{name}'] for row in rows)} {name}" for name in names)
