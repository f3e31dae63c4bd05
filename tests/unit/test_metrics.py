"""Metrics: their names and labels, and what they count."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator import __version__
from replicator.monitor.metrics import PipelineFigures, SlotFigures, Total, render_metrics, write_textfile
from tests.exposition import read_samples, value_of

CONTRACT = {
    "replicator_run_last_success_timestamp_seconds": {"pipeline", "table"},
    "replicator_runs_total": {"pipeline", "status"},
    "replicator_run_duration_seconds_bucket": {"pipeline", "le"},
    "replicator_rows_total": {"pipeline", "table", "op"},
    "replicator_bytes_copied_total": {"pipeline", "table"},
    "replicator_lag_seconds": {"pipeline"},
    "replicator_slot_lag_bytes": {"pipeline", "kind"},
    "replicator_slot_safe_wal_bytes": {"pipeline"},
    "replicator_errors_total": {"pipeline", "sqlstate"},
    "replicator_quarantined_rows": {"pipeline", "table"},
    "replicator_verify_mismatched_rows": {"pipeline", "table"},
    "replicator_parked_tables": {"pipeline"},
    "replicator_build_info": {"version"},
}


def total(status: str = "success", *, path: str = "sync", code: str = "", bucket: int = 0, attempts: int = 1) -> Total:
    return Total("public.t", path, status, code, bucket, 2, attempts, 7.5, (3, 2, 1, 4), 512)


def figures(*totals: Total) -> PipelineFigures:
    return PipelineFigures(
        "night",
        totals=totals,
        success_at={"public.t": 1.5e9},
        lag_s=12.5,
        quarantined={"public.t": 3},
        mismatched={"public.t": 0},
        slot=SlotFigures(100, 200, 300),
    )


def test_every_metric_of_the_contract_is_told_with_its_labels() -> None:
    told = {name: set(dict(labels)) for name, labels in read_samples(render_metrics(figures(total(), total("failed"))))}
    assert CONTRACT.items() <= told.items()


def test_a_run_is_counted_by_how_it_ended_and_a_minute_of_the_stream_is_none() -> None:
    text = render_metrics(figures(total(), total("failed", code="23505"), total(path="listen")))
    assert value_of(text, "replicator_runs_total", status="success") == 2
    assert value_of(text, "replicator_runs_total", status="failed") == 2
    assert value_of(text, "replicator_runs_total", status="skipped") == 0
    assert value_of(text, "replicator_rows_total", op="deleted") == 8
    assert value_of(text, "replicator_bytes_copied_total") == 1024


def test_a_failure_that_the_listener_repeats_counts_each_time() -> None:
    text = render_metrics(
        figures(
            total("failed", path="listen", code="23505", attempts=40), total("failed", code="lock_held", attempts=40)
        )
    )
    assert value_of(text, "replicator_errors_total", sqlstate="23505") == 40
    assert value_of(text, "replicator_errors_total", sqlstate="lock_held") == 2


def test_durations_fall_into_growing_buckets() -> None:
    text = render_metrics(figures(total(bucket=0), total("failed", bucket=3), total("skipped", bucket=0)))
    bound = {
        le: value_of(text, "replicator_run_duration_seconds_bucket", le=le) for le in ("1.0", "15.0", "60.0", "+Inf")
    }
    assert bound == {"1.0": 2, "15.0": 2, "60.0": 4, "+Inf": 4}
    assert value_of(text, "replicator_run_duration_seconds_sum") == 15


def test_what_counts_and_measures_is_there_with_0_before_anything_happened() -> None:
    text = render_metrics(PipelineFigures("night"))
    for name in ("errors_total", "bytes_copied_total", "quarantined_rows", "verify_mismatched_rows",
                 "parked_tables", "lag_seconds", "run_duration_seconds_count"):  # fmt: skip
        assert value_of(text, f"replicator_{name}", pipeline="night") == 0, name
    assert value_of(text, "replicator_runs_total", status="failed") == 0
    later = render_metrics(figures(total("failed", code="23505")))
    assert value_of(later, "replicator_errors_total", sqlstate="") == 0, "a series never ends"


def test_of_a_target_that_went_away_the_last_figures_stay() -> None:
    text = render_metrics(PipelineFigures("night", is_target_up=False, lag_s=90.0, parked=2))
    assert value_of(text, "replicator_target_up") == 0
    assert (value_of(text, "replicator_lag_seconds"), value_of(text, "replicator_parked_tables")) == (90, 2)


def test_of_a_target_that_never_answered_only_that_is_told() -> None:
    text = render_metrics(PipelineFigures("night", is_target_up=False, is_known=False))
    names = {name for name, _ in read_samples(text)}
    assert names == {"replicator_build_info", "replicator_target_up", "replicator_logs_dropped_total"}
    assert value_of(text, "replicator_target_up", pipeline="night") == 0
    assert value_of(text, "replicator_build_info", version=__version__) == 1


def test_a_hostile_name_stays_one_label() -> None:
    name = 'public."x\\"} 1\nreplicator_lag_seconds 9"'
    text = render_metrics(PipelineFigures("night", success_at={name: 1.0}))
    assert value_of(text, "replicator_run_last_success_timestamp_seconds", table=name) == 1
    assert value_of(text, "replicator_lag_seconds") == 0


def test_the_text_file_is_replaced_in_one_step_and_readable_by_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "replicator.prom"
    for text in ("one\n", "two\n"):
        write_textfile(path, text)
        assert path.read_text() == text
    assert [file.name for file in path.parent.iterdir()] == ["replicator.prom"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_text_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "replicator.prom").mkdir()
    with pytest.raises(OSError, match=r"replicator\.prom"):
        write_textfile(tmp_path / "replicator.prom", "text\n")
    assert [file.name for file in tmp_path.iterdir()] == ["replicator.prom"]
