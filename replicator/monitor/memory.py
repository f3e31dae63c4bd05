"""Incidents that the target cannot remember, because they are about the target: a small file of `data_dir`."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from replicator.monitor.health import Kind
from replicator.monitor.incident import Incident, Kept, Key


class AlertMemory:
    """The file `alerts_<pipeline>.json`. What is in it is our own words; a damaged one counts as empty."""

    def __init__(self, folder: Path, pipeline: str) -> None:
        self._path = folder / f"alerts_{pipeline}.json"

    @contextmanager
    def open(self) -> Iterator[dict[Key, Kept]]:
        """Yield what is remembered, to be changed; one process at a time. Raises OSError where nothing can be kept."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            before = _read(file.read())
            kept = dict(before)
            yield kept
            if kept != before:
                file.seek(0)
                file.truncate()
                json.dump([_write_one(one) for one in kept.values()], file)


def _read(text: str) -> dict[Key, Kept]:
    try:
        return {kept.incident.key: kept for kept in map(_read_one, json.loads(text or "[]"))}
    except (ValueError, KeyError, TypeError):
        return {}


def _read_one(row: dict[str, Any]) -> Kept:
    told = row["told_at"]
    return Kept(
        Incident(Kind(row["kind"]), row["code"], row["message"], row["table"]),
        datetime.fromisoformat(row["seen_at"]),
        None if told is None else datetime.fromisoformat(told),
    )


def _write_one(kept: Kept) -> dict[str, Any]:
    incident = kept.incident
    return {
        "kind": incident.kind.value,
        "table": incident.table,
        "code": incident.code,
        "message": incident.message,
        "seen_at": kept.seen_at.isoformat(),
        "told_at": None if kept.told_at is None else kept.told_at.isoformat(),
    }
