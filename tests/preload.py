"""What the server process of `tests.launcher` imports before its first fork."""

from __future__ import annotations

import gc

from tests.launcher import import_package

import_package()
gc.freeze()
