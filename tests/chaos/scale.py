"""How long chaos lasts: 1 fits `make test`, REPLICATOR_CHAOS_SCALE=20 a night."""

from __future__ import annotations

import os

SCALE = float(os.environ.get("REPLICATOR_CHAOS_SCALE", "1"))
