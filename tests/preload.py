"""What the server process of `tests.launcher` does before its first fork."""

from __future__ import annotations

import gc

from tests.launcher import build_commands, import_package

import_package()
build_commands()
gc.freeze()
