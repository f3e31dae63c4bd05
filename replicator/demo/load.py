"""Write to the demo's source at a steady rate, and measure how soon the target shows what was committed."""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass, field

from psycopg import sql

from replicator.db import Connection
from replicator.statement import sql_directory

_NUMBERS = 15_000
_STRIDE = 7_919
_PROBE_EVERY_S = 0.05
_POLL_S = 0.0005
_PATIENCE_S = 30.0


@dataclass
class Load:
    """What was written, and how late each probe was seen. probes_s: seconds from the answer to COMMIT to visible."""

    transactions: int = 0
    seconds: float = 0.0
    probes_s: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Return transactions a second."""
        return self.transactions / self.seconds if self.seconds else 0.0

    @property
    def median_s(self) -> float:
        """Return the median of the probes."""
        return statistics.median(self.probes_s) if self.probes_s else 0.0

    @property
    def most_s(self) -> float:
        """Return the latest of the probes."""
        return max(self.probes_s, default=0.0)


def put_under_load(writer: Connection, prober: Connection, target: Connection, *, seconds: float, rate: float) -> Load:
    """Write so many transactions a second for a while, and probe beside it.

    writer, prober: sessions on the source; target: one on the target. A probe is a change of a contact; that it is
    visible is asked until it is. A machine that cannot write at this rate writes as fast as it can.
    """
    load = Load()
    ended = threading.Event()
    thread = threading.Thread(target=_write, args=(writer, load, seconds, rate, ended), name="load", daemon=True)
    thread.start()
    try:
        while not ended.wait(_PROBE_EVERY_S):
            load.probes_s.append(_probe(prober, target, len(load.probes_s)))
    finally:
        thread.join()
    return load


def _write(connection: Connection, load: Load, seconds: float, rate: float, ended: threading.Event) -> None:
    answer = (sql_directory() / "demo" / "answer.sql").read_bytes()
    begun = time.monotonic()
    try:
        while (passed := time.monotonic() - begun) < seconds:
            ahead_s = load.transactions / rate - passed
            if ahead_s > 0:
                time.sleep(ahead_s)
            number = 1 + load.transactions * _STRIDE % _NUMBERS
            connection.execute("select set_config('demo.number', %s, false)", [str(number)])
            connection.execute(answer)
            load.transactions += 1
    finally:
        load.seconds = time.monotonic() - begun
        ended.set()


def _probe(source: Connection, target: Connection, number: int) -> float:
    """Change a contact; return how long after the answer to COMMIT the target shows it."""
    mark = f"Company of probe {number}"
    where = sql.SQL("public.contacts WHERE id = (SELECT min(id) FROM public.contacts)")
    source.execute("UPDATE public.contacts SET company = %s WHERE id = (SELECT min(id) FROM public.contacts)", [mark])
    committed = time.monotonic()
    while time.monotonic() - committed < _PATIENCE_S:
        row = target.execute(sql.SQL("SELECT company FROM {}").format(where)).fetchone()
        if row is not None and row["company"] == mark:
            break
        time.sleep(_POLL_S)
    return time.monotonic() - committed
