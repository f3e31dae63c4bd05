"""The pipeline's figures as Prometheus reads them: pure, from what control schema and slot said.

Counters are sums over `etl_control` and over what its retention deleted, so they never go down, whichever process
answers. The figures are the same for `serve`'s /metrics and for node-exporter's textfile.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from replicator import __version__

if TYPE_CHECKING:
    from prometheus_client import Metric

DURATION_BUCKETS_S = (1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14400)
"""Upper bounds of the run durations; the same as in the control schema's function `duration_bucket`."""

OPERATIONS = ("inserted", "updated", "unchanged", "deleted")
LISTEN = "listen"
Key = TypeVar("Key", bound=tuple[str, ...])


@dataclass(frozen=True, slots=True)
class Total:
    """Sums over batches that share table, path, status, error code and bucket of duration.

    rows: by what was done with them, in the order of OPERATIONS.
    """

    table: str
    path: str
    status: str
    error_code: str
    bucket: int
    batches: int
    attempts: int
    seconds: float
    rows: tuple[int, int, int, int]
    bytes_copied: int


@dataclass(frozen=True, slots=True)
class SlotFigures:
    """What the slot holds back, in bytes. None: the source does not say, or sets no limit."""

    confirmed_lag_bytes: int | None
    retained_bytes: int | None
    safe_wal_bytes: int | None


@dataclass(frozen=True, slots=True)
class PipelineFigures:
    """All that is told of one pipeline. success_at: Unix time by table; lag_s: of the table furthest behind.

    is_target_up: False where the target does not answer. is_known: False where it never answered this process: of what
    only the target tells nothing is told then, else what it told last.
    """

    pipeline: str
    is_target_up: bool = True
    is_known: bool = True
    totals: Sequence[Total] = ()
    success_at: Mapping[str, float] = field(default_factory=dict)
    lag_s: float | None = None
    quarantined: Mapping[str, int] = field(default_factory=dict)
    mismatched: Mapping[str, int] = field(default_factory=dict)
    parked: int = 0
    slot: SlotFigures | None = None
    logs_dropped: int = 0


def render_metrics(figures: PipelineFigures) -> str:
    """Return the figures in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Collector(figures))
    return generate_latest(registry).decode()


def write_textfile(path: Path, text: str) -> None:
    """Replace the file in one step: node-exporter never reads half of it. Raises OSError."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(text, "utf-8")
        new.chmod(0o644)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


class _Collector:
    """Gives the registry one pipeline's metrics."""

    def __init__(self, figures: PipelineFigures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        figures = self._figures
        yield _gauge("build_info", "The version that tells.", ("version",), {(__version__,): 1})
        own = (figures.pipeline,)
        up = {own: int(figures.is_target_up)}
        yield _gauge("target_up", "Whether the target answered, and with it the figures.", ("pipeline",), up)
        yield _counter("logs_dropped", "Log events not shipped.", ("pipeline",), {own: figures.logs_dropped})
        if figures.is_known:
            yield from _collect_runs(own, figures)
            yield from _collect_state(own, figures)
        if figures.slot is not None:
            yield from _collect_slot(own, figures.slot)


def _collect_runs(own: tuple[str], figures: PipelineFigures) -> Iterator[Metric]:
    runs = [total for total in figures.totals if total.path != LISTEN]
    by_status: Counter[str] = Counter({"success": 0, "failed": 0, "skipped": 0})
    for total in runs:
        by_status[total.status] += total.batches
    statuses = {(*own, status): count for status, count in by_status.items()}
    yield _counter("runs", "Batches of tables outside of the stream.", ("pipeline", "status"), statuses)
    yield _durations(own, [total for total in runs if total.status in ("success", "failed")])
    rows: Counter[tuple[str, ...]] = Counter()
    copied: Counter[tuple[str, ...]] = Counter()
    errors: Counter[tuple[str, ...]] = Counter()
    for total in figures.totals:
        if total.status == "success":
            rows.update({(*own, total.table, op): count for op, count in zip(OPERATIONS, total.rows, strict=True)})
            copied[*own, total.table] += total.bytes_copied
        if total.status == "failed":
            # The listener counts a failure that repeats in its row's attempts; elsewhere those are tries of one batch.
            errors[*own, total.error_code] += total.attempts if total.path == LISTEN else total.batches
    # A counter that begins at its first error shows no increase then.
    errors[*own, ""] += 0
    rows.update({(*own, "", operation): 0 for operation in ([] if rows else OPERATIONS)})
    copied.update({} if copied else {(*own, ""): 0})
    yield _counter("rows", "Rows brought to the target, by what became of them.", ("pipeline", "table", "op"), rows)
    yield _counter("bytes_copied", "Bytes of COPY data written to the target.", ("pipeline", "table"), copied)
    yield _counter("errors", "Failed batches, by SQLSTATE or our own id.", ("pipeline", "sqlstate"), errors)


def _collect_state(own: tuple[str], figures: PipelineFigures) -> Iterator[Metric]:
    by_table = ("pipeline", "table")
    succeeded = {(*own, table): at for table, at in figures.success_at.items()}
    yield _gauge(
        "run_last_success_timestamp_seconds", "Up to when the table is known to be right.", by_table, succeeded
    )
    yield _gauge("lag_seconds", "Age of the oldest table's data.", ("pipeline",), {own: figures.lag_s or 0.0})
    yield _gauge("parked_tables", "Tables that the listener leaves out for now.", ("pipeline",), {own: figures.parked})
    waiting = {(*own, table): rows for table, rows in figures.quarantined.items()} or {(*own, ""): 0}
    yield _gauge("quarantined_rows", "Rows that the target refused and that wait.", by_table, waiting)
    differing = {(*own, table): rows for table, rows in figures.mismatched.items()} or {(*own, ""): 0}
    yield _gauge("verify_mismatched_rows", "Rows that differed at the last comparison.", by_table, differing)


def _collect_slot(own: tuple[str], slot: SlotFigures) -> Iterator[Metric]:
    lags = {
        (*own, kind): size
        for kind, size in (("confirmed", slot.confirmed_lag_bytes), ("retained", slot.retained_bytes))
        if size is not None
    }
    yield _gauge("slot_lag_bytes", "WAL not confirmed, and WAL kept for the slot.", ("pipeline", "kind"), lags)
    if slot.safe_wal_bytes is not None:
        safe = {own: slot.safe_wal_bytes}
        yield _gauge("slot_safe_wal_bytes", "WAL that may be written until the slot is lost.", ("pipeline",), safe)


def _durations(own: tuple[str], totals: Iterable[Total]) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    counts = [0] * (len(DURATION_BUCKETS_S) + 1)
    seconds = 0.0
    for total in totals:
        counts[total.bucket] += total.batches
        seconds += total.seconds
    bounds = [*(f"{bound:.1f}" for bound in DURATION_BUCKETS_S), "+Inf"]
    buckets = [(bound, float(sum(counts[: n + 1]))) for n, bound in enumerate(bounds)]
    family = HistogramMetricFamily(
        "replicator_run_duration_seconds", "How long a table's batch took.", labels=("pipeline",)
    )
    family.add_metric(own, buckets, seconds)
    return family


def _gauge(name: str, help: str, labels: Sequence[str], values: Mapping[Key, float]) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(f"replicator_{name}", help, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family


def _counter(name: str, help: str, labels: Sequence[str], values: Mapping[Key, float]) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(f"replicator_{name}", help, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family
