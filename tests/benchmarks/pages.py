"""How long the dashboard takes over 500 tables and 100,000 rows of history.

`tests/integration/test_pages.py` measures them.
"""

from __future__ import annotations

import statistics
import time

from tests.pair import Pair
from tests.serving import Serving

TABLES, NIGHTS = 500, 200
PATHS = {
    "overview": "/",
    "tables": "/fragments/tables",
    "progress": "/fragments/progress",
    "charts": "/charts",
    "history": "/runs",
    "history, one table": "/runs?table=public.t_7",
    "history, failed": "/runs?status=failed",
    "run": "/runs/{run}",
    "table": "/table?name=public.t_7",
    "API status": "/api/v1/status",
    "API runs": "/api/v1/runs",
    "metrics": "/metrics",
}

FILL = """
insert into replicator.table_state (pipeline, table_name, target_name, strategy, guarantee, snapshot_at, columns)
select 'default', 'public.t_' || t, 'public.t_' || t, 'xmin', 'exact', now() - t * interval '1 minute', '[]'
from generate_series(1, {tables}) t;
insert into replicator.etl_control (execution_id, pipeline, table_name, path, load_type, strategy, guarantee,
    triggered_by, status, started_at, completed_at, duration_seconds, watermark_start, watermark_end,
    rows_extracted, rows_inserted, rows_updated, bytes_copied, phases, error_code, error_message, error_hint)
select md5('night ' || n)::uuid, 'default', 'public.t_' || t, 'sync', 'incremental', 'xmin', 'exact', 'scheduler',
    case when (t + n) % 97 = 0 then 'failed' else 'success' end, at, at + interval '3 seconds', 3,
    at - interval '1 day', at, 100 * t, t, n, 1000 * t, '{{"copy": 1.5, "merge": 1.5}}',
    case when (t + n) % 97 = 0 then '23505' end, case when (t + n) % 97 = 0 then 'the target refused a row' end,
    case when (t + n) % 97 = 0 then 'change or delete that row in the target' end
from generate_series(1, {nights}) n, generate_series(1, {tables}) t,
    lateral (select now() - n * interval '1 day' + t * interval '1 second' as at) moment;
"""


def fill_history(pair: Pair) -> None:
    """Write a history of TABLES times NIGHTS rows into a control schema that a sync has made."""
    pair.target.execute(FILL.format(tables=TABLES, nights=NIGHTS).encode())
    pair.target.execute("vacuum analyze")


def measure_pages(serving: Serving, rounds: int = 5) -> dict[str, float]:
    """Return the median milliseconds of each page."""
    run = serving.pair.target.execute("select execution_id from replicator.etl_control order by batch_id limit 1")
    (run_id,) = run.fetchone() or (None,)
    figures = {}
    for name, path in PATHS.items():
        spent = []
        for _ in range(rounds):
            started = time.perf_counter()
            answer = serving.web.get(path.format(run=run_id), headers={"Authorization": f"Bearer {serving.token}"})
            spent.append((time.perf_counter() - started) * 1000)
            assert answer.status_code == 200, (path, answer.text[:500])
        figures[name] = statistics.median(spent)
    return figures
