"""What the API answers with: JSON documents, and problem documents (RFC 9457) for errors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from http import HTTPStatus
from typing import Any
from uuid import UUID

from starlette.responses import Response

from replicator.errors import (
    ConfigError,
    LockHeldError,
    PassingError,
    PreflightError,
    ReplicatorError,
    UsageError,
)

SCHEMA_VERSION = 1
PROBLEM_TYPE = "application/problem+json"


def answer(document: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON document with its schema version."""
    return Response(write({"schema": SCHEMA_VERSION, **document}), status, headers, "application/json")


def problem(status: int, detail: str, *, id: str = "about:blank", hint: str | None = None, **more: Any) -> Response:
    """Return a problem document. id: our error's, which becomes a relative URI; hint: what to do about it."""
    headers = {"WWW-Authenticate": 'Bearer realm="replicator"'} if status == HTTPStatus.UNAUTHORIZED else None
    document = {
        "type": id if id == "about:blank" else f"urn:replicator:error:{id}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        **({"hint": hint} if hint else {}),
        **more,
    }
    return Response(write(document), status, headers, PROBLEM_TYPE)


def describe_problem(error: ReplicatorError) -> Response:
    """Return the problem document of one of our errors."""
    return problem(find_status(error), error.message, id=error.id, hint=error.hint)


def find_status(error: ReplicatorError) -> int:
    """Return the HTTP status that speaks for an error."""
    if isinstance(error, LockHeldError):
        return 409
    if isinstance(error, UsageError | ConfigError):
        return 422
    if isinstance(error, PassingError | PreflightError):
        return 503
    return 500


def write(document: Any) -> bytes:
    """Return JSON; what it has no form for is written as text."""
    return json.dumps(document, default=_encode, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def _encode(value: Any) -> Any:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form here")
