"""The application: guard, API, pages, and what monitors ask for."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from replicator import __version__
from replicator.errors import ReplicatorError
from replicator.serve.api import PREFIX, add_openapi, build_router, tell_bug, tell_error, tell_misuse, tell_status
from replicator.serve.document import answer, problem
from replicator.serve.guard import Guard, Hosts, Token, is_loopback
from replicator.serve.page import Pages
from replicator.serve.service import Service

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_REFUSALS = {400: "host_refused", 401: "unauthorized", 413: "body_too_long"}


def build_app(service: Service, token: Token, host: str) -> ASGIApp:
    """Return the whole application of one process, bound to `host`."""
    app = FastAPI(
        title="replicator", version=__version__, openapi_url=f"{PREFIX}/openapi.json", docs_url=None, redoc_url=None
    )
    app.add_exception_handler(ReplicatorError, tell_error)
    app.add_exception_handler(HTTPException, tell_status)
    app.add_exception_handler(RequestValidationError, tell_misuse)
    app.add_exception_handler(Exception, tell_bug)
    app.include_router(build_router(service))
    add_openapi(app)
    _add_probes(app, service)
    pages = Pages(service, is_protected=not is_loopback(host))
    app.include_router(pages.build_router(), include_in_schema=False)

    def refuse(status: int, path: str, reason: str) -> Response:
        if status == 401 and pages.is_page(path):
            return pages.ask_token()
        return problem(status, reason, id=_REFUSALS[status])

    return Guard(app, token=token, hosts=Hosts(host), pages_need_token=not is_loopback(host), refuse=refuse)


def _add_probes(app: FastAPI, service: Service) -> None:
    @app.get("/livez", include_in_schema=False)
    async def livez() -> Response:
        await asyncio.sleep(0)
        alive = service.is_turning()
        return answer({"alive": alive}, 200 if alive else 503)

    @app.get("/readyz", include_in_schema=False)
    def readyz() -> Response:
        # Whoever asks needs no token: nothing but what is wrong is told.
        reasons = [reason.message.partition(": ")[0] for reason in service.find_unready()]
        return answer({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        return PlainTextResponse(service.read_metrics(), media_type=METRICS_TYPE)
