"""The REST API. Everything under /api/ needs the token; `guard` sees to that before anything here is reached."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, FastAPI, Query, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Match

from replicator import __version__
from replicator.errors import ReplicatorError, UsageError, unexpected
from replicator.serve.desk import MOST_TABLES, read_names
from replicator.serve.document import PROBLEM_TYPE, answer, describe_problem, problem
from replicator.serve.record import Command
from replicator.serve.service import Service
from replicator.telemetry.log import get_logger

PREFIX = "/api/v1"
Status = Literal["running", "success", "partial", "failed", "different"]
# As SQL writes it, with schema or without; PostgreSQL's text has no NUL, and a name longer than that is none.
_PART = r'([a-z_][a-z0-9_]*|"([^"\x00]|"")+")'
TableName = Annotated[str, Field(max_length=500, pattern=rf"^{_PART}(\.{_PART})?$", examples=["public.orders"])]


class Problem(BaseModel):
    """RFC 9457. `hint`: what to do about it."""

    type: str
    title: str
    status: int
    detail: str
    hint: str | None = None


class Document(BaseModel):
    """Every answer says the version of its form; new members may come, so that others are allowed."""

    model_config = ConfigDict(extra="allow", serialize_by_alias=True)

    version: Literal[1] = Field(alias="schema")


class Reason(BaseModel):
    """Why the pipeline is not healthy. table: None where the reason is the whole pipeline's."""

    id: str
    scope: Literal["process", "table"]
    table: str | None
    message: str
    hint: str | None


class Parked(BaseModel):
    """Why the listener leaves a table out. lsn: of the transaction that it could not follow, if it was one."""

    since: datetime
    lsn: str | None
    id: str
    message: str
    hint: str | None


class Table(BaseModel):
    """Where a table stands. state: who brings it."""

    model_config = ConfigDict(extra="allow")

    table: str
    target: str | None
    state: Literal["nightly", "copying", "live", "parked"]
    parked: Parked | None
    strategy: str | None
    guarantee: str | None
    watermark: datetime | None
    position: str | None
    fresh_as_of: datetime | None
    lag_seconds: float | None
    verified_through: datetime | None
    last_run: dict[str, Any] | None


class TablesDocument(Document):
    """Every table."""

    tables: list[Table]


class StatusDocument(TablesDocument):
    """As `replicator status --json`."""

    pipeline: str
    state: Literal["healthy", "attention", "failing"]
    reasons: list[Reason]
    slot: dict[str, Any] | None


class Run(BaseModel):
    """One run over its tables. status: `partial` when some landed; `different` of a verification."""

    model_config = ConfigDict(extra="allow")

    execution_id: UUID
    path: str
    triggered_by: str
    status: Status
    scheduled_for: datetime | None
    started_at: datetime
    completed_at: datetime | None
    duration_seconds: float
    tables: int
    tables_failed: int
    rows_written: int
    bytes_copied: int


class RunsDocument(Document):
    """Runs, newest first."""

    runs: list[Run]


class RunDocument(Document):
    """One run. batches: its rows of `etl_control`; verdicts: counts of a verification, by table."""

    run: Run
    batches: list[dict[str, Any]]
    verdicts: list[dict[str, Any]]


class Accepted(Document):
    """The run has been started; its end is told under `runs/{execution_id}`."""

    execution_id: UUID


class RunFilter(BaseModel):
    """table: a source table, like public.t."""

    model_config = ConfigDict(extra="forbid")

    table: TableName | None = None
    status: Status | None = None
    limit: int = Field(default=20, ge=1, le=500)


class TablesRequest(BaseModel):
    """Source tables, like public.t; all when empty."""

    model_config = ConfigDict(extra="forbid", strict=True)

    tables: list[TableName] = Field(default=[], max_length=MOST_TABLES)


class RunRequest(TablesRequest):
    """full: read everything, not only what changed."""

    full: bool = False


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    texts = {400: "Malformed, or a foreign Host.", 401: "Token missing or wrong.", 404: "There is none.",
             409: "A run is under way.", 413: "The body is too long.", 422: "Something in the request is none.",
             500: "A fault.", 503: "The target does not answer."}  # fmt: skip
    return {status: {"description": texts[status], "content": content} for status in (400, 401, *statuses, 500, 503)}


def build_router(service: Service) -> APIRouter:
    """Return the routes of the API."""
    bearer = HTTPBearer(auto_error=False, description="The token of `serve.token_file`.")
    router = APIRouter(prefix=PREFIX, dependencies=[Depends(bearer)])
    _add_reads(router, service)
    _add_actions(router, service)
    return router


def _add_reads(router: APIRouter, service: Service) -> None:
    @router.get("/status", response_model=StatusDocument, responses=_problems(), operation_id="status")
    def status() -> Response:
        """Tell the state of health, where every table stands, and the stream's slot."""
        with service.view() as view:
            tables = [_describe_table(row) for row in view.read_tables()]
        health, slot = service.read_health(), service.read_slot()
        return answer({"pipeline": service.settings.pipeline, **health.document(), "tables": tables, "slot": slot})

    @router.get("/tables", response_model=TablesDocument, responses=_problems(), operation_id="tables")
    def tables() -> Response:
        """Tell where every table stands."""
        with service.view() as view:
            return answer({"tables": [_describe_table(row) for row in view.read_tables()]})

    @router.get("/runs", response_model=RunsDocument, responses=_problems(422), operation_id="runs")
    def runs(wanted: Annotated[RunFilter, Query()]) -> Response:
        """Tell of runs, newest first."""
        name = None if wanted.table is None else read_names([wanted.table])[0]
        with service.view() as view:
            return answer({"runs": view.read_runs(table=name, status=wanted.status, limit=wanted.limit)})

    @router.get("/runs/{execution_id}", response_model=RunDocument, responses=_problems(404, 422), operation_id="run")
    def run(execution_id: UUID) -> Response:
        """Tell of one run and its tables."""
        with service.view() as view:
            found = view.read_run(execution_id)
            if found is None:
                return problem(404, "there is no run of this id", id="run_unknown")
            batches = view.read_batches(execution_id, MOST_TABLES)
        return answer({"run": found, "batches": batches, "verdicts": found["verdicts"]})


def _add_actions(router: APIRouter, service: Service) -> None:
    def accept(command: Command, tables: Sequence[str], *, full: bool = False) -> Response:
        order = service.desk.take(command, tables, full=full)
        where = {"Location": f"{PREFIX}/runs/{order.execution_id}"}
        return answer({"execution_id": order.execution_id}, 202, where)

    options: dict[str, Any] = {"status_code": 202, "response_model": Accepted, "responses": _problems(409, 413, 422)}

    @router.post("/runs", operation_id="start_run", **options)
    def start_run(request: RunRequest) -> Response:
        """Start a sync."""
        return accept("sync", request.tables, full=request.full)

    @router.post("/resync", operation_id="start_resync", **options)
    def start_resync(request: TablesRequest) -> Response:
        """Start a resync: everything is read again, and the contents of the tables exchanged."""
        return accept("resync", request.tables)

    @router.post("/verify", operation_id="start_verify", **options)
    def start_verify(request: TablesRequest) -> Response:
        """Start a comparison of source and target."""
        return accept("verify", request.tables)


def _describe_table(row: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in row.items() if name not in ("table_name", "target_name")}
    return {"table": row["table_name"], "target": row["target_name"], **kept}


def add_openapi(app: FastAPI) -> None:
    """Let the application describe the API, with problem documents in place of FastAPI's own errors."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            text = json.dumps(get_openapi(title="replicator", version=__version__, routes=app.routes))
            schema = json.loads(text)
            schemas = schema["components"]["schemas"]
            schemas["Problem"] = Problem.model_json_schema()
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]


async def tell_error(_request: Request, error: Exception) -> Response:
    """Answer with our error's problem document."""
    assert isinstance(error, ReplicatorError)
    return describe_problem(error)


async def tell_bug(_request: Request, error: Exception) -> Response:
    """Answer for a fault of our own; the log has its frames."""
    found = unexpected(error)
    get_logger().error("request_failed", exc_info=error)
    return describe_problem(found)


async def tell_status(request: Request, error: Exception) -> Response:
    """Answer with the problem document of a status that the framework chose."""
    assert isinstance(error, HTTPException)
    told = problem(error.status_code, str(error.detail))
    told.headers.update(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # The framework names those of the first route of this path alone.
        told.headers["Allow"] = ", ".join(sorted(_list_methods(request)))
    return told


def _list_methods(request: Request) -> set[str]:
    """Return what may be asked of a path."""

    def is_allowed(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    methods = {method for method in ("GET", "POST") if is_allowed(method)}
    return methods | ({"HEAD"} if "GET" in methods else set())


async def tell_misuse(_request: Request, error: Exception) -> Response:
    """Answer for a request that does not fit: where, and what was expected; not what was sent."""
    assert isinstance(error, RequestValidationError)
    wrong = [{"where": [str(part) for part in one["loc"]], "what": str(one["type"])} for one in error.errors()]
    where = ", ".join(".".join(one["where"]) for one in wrong)
    misuse = UsageError(f"the request does not fit at {where}"[:500], hint=f"GET {PREFIX}/openapi.json")
    return problem(422, misuse.message, id=misuse.id, hint=misuse.hint, errors=wrong[:20])
