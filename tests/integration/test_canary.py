"""O4: what a pipeline tells anybody, through all that it tells by, while everything fails: no secret and no cell value.

`test_errors.py` does the same for each error of `sync` by itself.
"""

from __future__ import annotations

import gzip
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.canary import assert_silent, dump_control, watched_command_lines
from tests.pair import Pair
from tests.receiver import Webhook
from tests.serving import Serving
from tests.wait import wait_until

PAGES = ("/", "/fragments/progress", "/fragments/tables", "/fragments/plan", "/charts", "/runs", "/metrics", "/readyz")
READS = ("/status", "/tables", "/runs", "/openapi.json")


class Canaries:
    """Values that occur once in the world: what must never be told, by name."""

    def __init__(self, pair: Pair) -> None:
        self.cell = f"cell{secrets.token_hex(8)}"
        self.key = f"key{secrets.token_hex(8)}"
        self.number = secrets.randbelow(10**8) + 10**8
        self.mask_key, self.address, self.collector = (secrets.token_hex(12) for _ in range(3))
        self.passwords = {"source password": pair.reader_password, "target password": pair.writer_password}

    def names(self, **more: str) -> dict[str, str]:
        numbers = {"number": str(self.number), "next number": str(self.number + 1)}
        addresses = {"address of alerts": self.address, "address of the collector": self.collector}
        own = {"cell": self.cell, "key": self.key, "mask key": self.mask_key}
        return self.passwords | numbers | addresses | own | more


def configure(pair: Pair, canaries: Canaries, webhook: Webhook, collector: Webhook, **sections: Any) -> None:
    (pair.dir / "mask.key").write_text(canaries.mask_key)
    (pair.dir / "mask.key").chmod(0o600)
    ship_url = f"http://u:{canaries.collector}@127.0.0.1:{collector.port}/v1/logs"
    alerts = [webhook.address.replace("//", f"//u:{canaries.address}@", 1), f"json://u:{canaries.address}@127.0.0.1:1/"]
    pair.write_config(
        'metrics_textfile = "metrics.prom"\n',
        serve={"port": 0},
        privacy={"mask_key_file": "mask.key"},
        logs={"level": "debug", "dir": "logs", "ship_url": ship_url},
        alerts={"urls": alerts},
        **sections,
    )


def fill(pair: Pair, canaries: Canaries) -> None:
    """Make tables whose every cell is a canary, and views that cannot be read without one in the error."""
    pair.source.execute(
        "create table t (id text primary key, n int, note text, masked text);"
        "create table plain (id text primary key, n int, note text);"
        "create view broken as select id, note::int as n from t;"
    )
    for table, more in (("t", ", %(cell)s"), ("plain", "")):
        pair.source.execute(
            f"insert into {table} select %(key)s || '-' || g, %(number)s, %(cell)s{more} from generate_series(1, 20) g",
            {"key": canaries.key, "number": canaries.number, "cell": canaries.cell},
        )
    pair.publish("t", "plain")


TABLES: list[Any] = [{"name": "public.t", "mask": {"masked": "hash"}}, "public.plain"]


@pytest.mark.hazard("O4")
def test_a_stream_that_fails_tells_no_secret_and_no_cell(streamed: Pair) -> None:
    pair, canaries, printed = streamed, Canaries(streamed), []
    fill(pair, canaries)
    with Webhook() as webhook, Webhook() as collector, watched_command_lines() as seen:
        configure(pair, canaries, webhook, collector, tables=TABLES)

        def run(*args: str, check: int | None = None) -> None:
            finished = pair.run(*args, check=check)
            printed.append(finished.stdout + finished.stderr)

        run("alert", "test", check=1)
        run("listen", "--until-caught-up", check=0)
        pair.target.execute(f"alter table t add constraint small check (n <= {canaries.number})")
        pair.source.execute("update t set n = n + 1; update plain set note = note || '!'")
        run("listen", "--until-caught-up", check=6)
        printed.append(pair.run("quarantine", "show").stderr)
        stopped = dump_control(pair)
        configure(pair, canaries, webhook, collector, tables=TABLES, defaults={"on_row_error": "quarantine"})
        run("listen", "--until-caught-up", check=0)
        for command in ("status", "history", "health", "plan", "check"):
            run(command, *(["--json"] if command == "history" else []))
        run("quarantine", "retry")
        pair.target.execute("update plain set note = 'another'")
        # Both print keys on stdout, and nothing of them anywhere else.
        quiet = (("verify", "public.plain"), ("quarantine", "list"))
        printed += [pair.run(*args, check=None).stderr for args in quiet]
        run("resync", "public.t", "--yes")
        configure(pair, canaries, webhook, collector, tables=[*TABLES, {"name": "public.broken", "key": ["id"]}])
        run("sync")
        run("sync", "--full", "--json")
    texts = gather(pair, webhook, collector) | {"printed": "".join(printed), "command lines": "\n".join(seen)}
    texts["recorded"] += stopped
    assert "23514" in stopped
    assert "23514" in texts["alerts"]
    assert "rows in quarantine" in texts["alerts"]
    assert 'sqlstate="22P02"' in texts["metrics"]
    assert "table_failed" in texts["shipped"]
    assert '"level": "debug"' in texts["logged"]
    assert_silent(texts, canaries.names())
    assert canaries.mask_key not in pair.source_server.log_text()


def gather(pair: Pair, webhook: Webhook, collector: Webhook) -> dict[str, str]:
    """Return what every way of telling has told."""
    return {
        "logged": "".join(path.read_text() for path in (pair.dir / "logs").glob("etl_2*.log")),
        "recorded": dump_control(pair),
        "alerts": "".join(request.body.decode() for request in webhook.requests),
        "shipped": "".join(gzip.decompress(request.body).decode(errors="replace") for request in collector.requests),
        "metrics": (pair.dir / "metrics.prom").read_text(),
        "data directory": "".join(p.read_text() for p in (pair.dir / ".replicator").glob("*") if p.is_file()),
    }


@contextmanager
def served(pair: Pair) -> Iterator[Serving]:
    with Serving(pair) as serving:
        yield serving.wait_ready()


@pytest.mark.hazard("O4")
def test_pages_and_api_tell_no_secret_and_no_cell(pair: Pair) -> None:
    canaries = Canaries(pair)
    fill(pair, canaries)
    answers: dict[str, str] = {}
    with Webhook() as webhook, Webhook() as collector, watched_command_lines() as seen:
        configure(pair, canaries, webhook, collector, tables=TABLES)
        pair.run("sync", check=0)
        pair.target.execute(f"alter table t add constraint small check (n <= {canaries.number})")
        pair.source.execute("update t set n = n + 1; update plain set note = note || '!'")
        configure(pair, canaries, webhook, collector, tables=[*TABLES, {"name": "public.broken", "key": ["id"]}])
        with served(pair) as serving:
            answer = serving.api.post("/runs", json={"tables": [], "full": False})
            assert answer.status_code == 202, answer.text
            execution_id = answer.json()["execution_id"]
            serving.wait_for_run(execution_id)
            for path in (
                *PAGES,
                f"/runs/{execution_id}",
                "/table?name=public.t",
                "/table?name=public.broken",
                "/runs/x",
            ):
                answers[path] = serving.web.get(path).text
            for path in (*READS, f"/runs/{execution_id}", "/runs/x", f"/runs?table={execution_id}"):
                answers[f"api {path}"] = serving.api.get(path).text
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Host": "evil.example"}):
                answers[f"refused {headers}"] = str(serving.web.get("/api/v1/status", headers=headers).text)
            wait_until(lambda: webhook.requests, what="an alert of the run")
            token = serving.token
            finished = serving.running.kill()
    texts = gather(pair, webhook, collector) | answers | {
        "printed": finished.stdout + finished.stderr, "command lines": "\n".join(seen),
    }  # fmt: skip
    assert "23514" in texts[f"/runs/{execution_id}"]
    assert "22P02" in texts[f"api /runs/{execution_id}"]
    assert re.search(r'replicator_errors_total\{.*"23514"\} 1', texts["/metrics"])
    assert_silent(texts, canaries.names(token=token))
