"""Imports without what they would take along only if it happens to be installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(package: str) -> Iterator[None]:
    """Let imports inside the block find `package` missing, unless it has been imported already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # so says the documentation of import: it is not found
    try:
        yield
    finally:
        del sys.modules[package]
