"""The dashboard: pages rendered here, parts of which the browser asks for anew every few seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

from fastapi import APIRouter
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from replicator import __version__
from replicator.db import closing, connect
from replicator.errors import ReplicatorError
from replicator.serve import phrase
from replicator.serve.chart import Point, draw_chart
from replicator.serve.document import find_status
from replicator.serve.scheduler import read_clock
from replicator.serve.service import Service
from replicator.sync.planning import make_plan
from replicator.sync.preparation import open_access

_HERE = Path(__file__).resolve().parent
_STATIC = {
    "htmx-4.0.1.min.js": "text/javascript; charset=utf-8",
    "htmx-LICENSE.txt": "text/plain; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_PATHS = ("/", "/runs", "/charts")
_RUNS_SHOWN, _BATCHES_SHOWN, _REASONS_SHOWN = 20, 200, 20
STATUSES = ("running", "success", "partial", "failed", "different")
PATHS = ("sync", "listen", "resync", "repair", "verify")
TRIGGERS = ("manual", "scheduler", "api", "listener")
Row = dict[str, Any]


@cache
def _templates() -> Environment:
    found = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "name": phrase.write_name,
        "time": phrase.write_time,
        "span": phrase.write_span,
        "number": phrase.write_number,
        "size": phrase.write_size,
        "json": lambda value: json.dumps(value, ensure_ascii=True),
    }
    return found


class Pages:
    """The routes of the dashboard. is_protected: pages need the token, and links send it along."""

    def __init__(self, service: Service, *, is_protected: bool) -> None:
        self._service, self._is_protected = service, is_protected

    def is_page(self, path: str) -> bool:
        """Say whether a person asks for this path with a browser."""
        return path in _PATHS or path.startswith(("/runs/", "/table"))

    def ask_token(self) -> Response:
        """Return the page that shows nothing but asks for the token."""
        return self._render("token.html", 401)

    def build_router(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter(default_response_class=HTMLResponse)
        for path, answer in (
            ("/", self._show_overview),
            ("/fragments/health", self._show_health),
            ("/fragments/progress", self._show_progress),
            ("/fragments/tables", self._show_tables),
            ("/fragments/plan", self._show_plan),
            ("/charts", self._show_charts),
            ("/runs", self._show_runs),
            ("/runs/{execution_id}", self._show_run),
            ("/table", self._show_table),
            ("/static/{name}", self._send_file),
        ):
            router.add_api_route(path, answer, methods=["GET"])
        return router

    def _render_page(self, template: str, **context: Any) -> Response:
        """Render a page that begins with the state of health."""
        return self._render(template, health=self._service.read_health(), **context)

    def _render(self, template: str, status: int = 200, **context: Any) -> Response:
        settings = self._service.settings
        context = {"health": None, "reasons_shown": _REASONS_SHOWN, **context}
        text = (
            _templates()
            .get_template(template)
            .render(
                pipeline=settings.pipeline,
                version=__version__,
                is_protected=self._is_protected,
                asks_token=template == "token.html",
                **context,
            )
        )
        return HTMLResponse(text.encode("utf-8", "replace"), status)

    def _guarded(self, render: Callable[[], Response]) -> Response:
        """Render, or tell of an error on a page of its own."""
        try:
            return render()
        except ReplicatorError as error:
            return self._render("error.html", find_status(error), error=error)

    def _show_overview(self, q: str = "") -> Response:
        def render() -> Response:
            with self._service.view() as view:
                rows = view.read_tables(contains=_contains(q))
                running = view.read_runs(status="running", limit=5)
                copying = view.read_copying()
            next_run = self._service.scheduler.schedule.find_next(read_clock())
            return self._render_page(
                "overview.html",
                tables=rows,
                q=q,
                running=running,
                copying=copying,
                summary=summarize(rows),
                next_run=next_run,
                cron=self._service.settings.schedule.cron,
                timezone=self._service.settings.schedule.timezone,
                leads=self._service.scheduler.leads,
            )

        return self._guarded(render)

    def _show_tables(self, q: str = "") -> Response:
        def render() -> Response:
            with self._service.view() as view:
                rows = view.read_tables(contains=_contains(q))
            return self._render("tables.html", tables=rows, q=q, summary=summarize(rows))

        return self._guarded(render)

    def _show_health(self) -> Response:
        return self._guarded(lambda: self._render_page("health.html"))

    def _show_progress(self) -> Response:
        def render() -> Response:
            with self._service.view() as view:
                running, copying = view.read_runs(status="running", limit=5), view.read_copying()
            return self._render("progress.html", running=running, copying=copying)

        return self._guarded(render)

    def _show_charts(self, table: str = "") -> Response:
        def render() -> Response:
            with self._service.view() as view:
                points = view.read_points(table or None)
            return self._render_page("charts.html", charts=draw_charts(points), table=table)

        return self._guarded(render)

    def _show_runs(self, table: str = "", status: str = "", path: str = "", trigger: str = "") -> Response:
        def render() -> Response:
            with self._service.view() as view:
                runs = view.read_runs(
                    table=_contains(table),
                    status=status if status in STATUSES else None,
                    path=path if path in PATHS else None,
                    triggered_by=trigger if trigger in TRIGGERS else None,
                    limit=_RUNS_SHOWN,
                )
            filters = (("status", STATUSES, status), ("path", PATHS, path), ("trigger", TRIGGERS, trigger))
            return self._render_page("runs.html", runs=runs, table=table, filters=filters)

        return self._guarded(render)

    def _show_run(self, execution_id: UUID) -> Response:
        def render() -> Response:
            with self._service.view() as view:
                run = view.read_run(execution_id)
                batches = view.read_batches(execution_id, _BATCHES_SHOWN)
            if run is None:
                return self._render("missing.html", 404, what="There is no run of this id.")
            return self._render_page("run.html", run=run, batches=batches, shown=_BATCHES_SHOWN)

        return self._guarded(render)

    def _show_table(self, name: str = "") -> Response:
        def render() -> Response:
            with self._service.view() as view:
                found = view.read_tables(table=_contains(name) or "")
                if not found:
                    return self._render("missing.html", 404, what="There is no table of this name.")
                runs = view.read_history(name, 20)
                changes = view.read_schema_changes(name)
                waiting = view.read_waiting(name)
                verdict = view.read_last_verdict(name)
                points = view.read_points(name)
            told = [(row["changed_at"], phrase.describe_columns(row["before"], row["after"])) for row in changes]
            return self._render_page(
                "table.html",
                table=found[0],
                runs=runs,
                changes=told,
                waiting=waiting,
                verdict=verdict,
                charts=draw_charts(points),
            )

        return self._guarded(render)

    def _show_plan(self, name: str = "") -> Response:
        """Tell why a table has its strategy, which only the source knows."""

        def render() -> Response:
            settings = self._service.settings
            access = open_access(settings)
            with (
                closing(access.open(first=True)) as source,
                closing(connect(self._service.target_conninfo, side="target", timeout_s=3.0)) as target,
            ):
                plan = make_plan(settings, access, source, target, [name])
            found = next((one for one in plan.tables if one.table == name), None)
            return self._render("plan.html", plan=found)

        return self._guarded(render)

    def _send_file(self, name: str) -> Response:
        if name not in _STATIC:
            return self._render("missing.html", 404, what="There is no such file.")
        return Response((_HERE / "static" / name).read_bytes(), media_type=_STATIC[name])


def _contains(text: str) -> str | None:
    """Return a text that PostgreSQL can take, None for none."""
    return text.replace("\0", "")[:500] or None


def summarize(tables: list[Row]) -> Row:
    """Return the figures above the list of tables."""
    lags = [row["lag_seconds"] for row in tables if row["lag_seconds"] is not None]
    return {
        "tables": len(tables),
        "parked": sum(row["state"] == "parked" for row in tables),
        "failed": sum((row["last_run"] or {}).get("status") == "failed" for row in tables),
        "lag_seconds": max(lags, default=None),
        "rows_last_day": sum(row["rows_last_day"] for row in tables),
        "quarantined": sum(row["quarantined"] for row in tables),
    }


def draw_charts(points: list[Row]) -> list[tuple[str, Any]]:
    """Return title and drawing of the charts."""
    kinds: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("Lag before each run", "lag_seconds", phrase.write_span),
        ("Rows written by each run", "rows", phrase.write_number),
        ("Duration of each run", "duration_seconds", phrase.write_span),
    )
    return [
        (title, draw_chart(title, [Point(p["at"], max(0.0, p[key])) for p in points if p[key] is not None], write))
        for title, key, write in kinds
    ]
