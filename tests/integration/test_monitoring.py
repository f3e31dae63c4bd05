"""Prometheus' rules and Grafana's dashboard, tried with Debian's prometheus on figures of a real pipeline."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from replicator.monitor.metrics import PipelineFigures, SlotFigures, Total, render_metrics
from tests.exposition import read_samples
from tests.pair import ROOT, Pair
from tests.receiver import free_port
from tests.serving import Serving, write_config
from tests.streaming import catch_up
from tests.wait import wait_until

RULES = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "replicator.json"
NAME = re.compile(r"\breplicator_[a-z_]+")


def tool(name: str) -> str:
    found = shutil.which(name)
    assert found, f"{name} is missing: apt-get install prometheus"
    return found


def promtool(*arguments: str) -> str:
    done = subprocess.run(
        [tool("promtool"), *arguments],
        cwd=RULES,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def read_rules() -> list[dict[str, Any]]:
    (group,) = YAML(typ="safe").load(RULES / "replicator.rules.yml")["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def dashboard_queries() -> list[str]:
    """Return what every panel asks, its variables filled in."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    return [query.replace("$pipeline", ".*").replace("$__rate_interval", "1m") for query in queries]


def all_names() -> set[str]:
    """Return the name of every metric that there can be."""
    total = Total("t", "sync", "failed", "23505", 0, 1, 1, 1.0, (1, 1, 1, 1), 1)
    good = Total("t", "sync", "success", "", 0, 1, 1, 1.0, (1, 1, 1, 1), 1)
    figures = PipelineFigures(
        "p", totals=[total, good], success_at={"t": 1}, lag_s=1, mismatched={"t": 1}, slot=SlotFigures(1, 1, 1)
    )
    return {name for name, _ in read_samples(render_metrics(figures))}


def test_promtool_accepts_rules_and_configuration_and_every_rule_is_tested() -> None:
    assert "13 rules found" in promtool("check", "rules", "replicator.rules.yml")
    promtool("check", "config", "prometheus.yml")
    promtool("test", "rules", "replicator.rules.test.yml")
    tests = YAML(typ="safe").load(RULES / "replicator.rules.test.yml")["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    names = {rule["alert"] for rule in read_rules()}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names, "each is seen to fire"
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names, "each is seen to be silent"


def test_every_metric_that_rules_and_dashboard_name_is_told() -> None:
    named = {name for rule in read_rules() for name in NAME.findall(rule["expr"])}
    shown = {name for query in dashboard_queries() for name in NAME.findall(query)}
    assert named <= all_names()
    assert shown <= all_names()
    assert {name for name in all_names() if not name.endswith(("_sum", "_count"))} == shown, "the dashboard shows all"


def test_the_dashboard_has_no_two_panels_in_one_place_and_asks_only_its_own_source() -> None:
    board = json.loads(DASHBOARD.read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert {panel["datasource"]["uid"], *(t["datasource"]["uid"] for t in panel["targets"])} == {"${datasource}"}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


class Prometheus:
    """Debian's prometheus with our configuration, on a port of its own and with a shorter interval."""

    def __init__(self, folder: Path, target: int) -> None:
        self.port = free_port()
        text = (RULES / "prometheus.yml").read_text()
        for before, after in (("127.0.0.1:8321", f"127.0.0.1:{target}"), ("_interval: 15s", "_interval: 3s")):
            assert before in text
            text = text.replace(before, after)
        (folder / "prometheus.yml").write_text(text)
        shutil.copy(RULES / "replicator.rules.yml", folder)
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [tool("prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=data",
                 f"--web.listen-address=127.0.0.1:{self.port}"],
                cwd=folder, stdout=log, stderr=log,
            )  # fmt: skip

    def ask(self, path: str, **parameters: str) -> Any:
        """Return what its API answers; None while it starts."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                document = json.load(answer)
        except OSError:
            return None
        assert document["status"] == "success", document
        return document["data"]

    def query(self, query: str) -> Any:
        data = self.ask("query", query=query)
        return data and data["result"]


def test_a_real_prometheus_scrapes_a_pipeline_and_answers_every_panel(streamed: Pair, tmp_path: Path) -> None:
    streamed.source.execute(
        "create table t (id int primary key, n int); insert into t select g, 1 from generate_series(1, 9) g"
    )
    streamed.publish()
    write_config(streamed, tables=["public.t"], defaults={"on_row_error": "quarantine"})
    catch_up(streamed)
    streamed.as_writer.execute("alter table t add check (n < 9)")
    streamed.source.execute("insert into t values (10, 10)")
    catch_up(streamed)
    folder = tmp_path / "prometheus"
    folder.mkdir()
    with Serving(streamed) as serving:
        prometheus = Prometheus(folder, serving.wait_ready().web.base_url.port or 0)
        try:
            wait_until(lambda: prometheus.query("replicator_build_info"), 40, what="a scrape", interval_s=0.2)
            ((target),) = prometheus.ask("targets")["activeTargets"]
            assert (target["health"], target["lastError"]) == ("up", "")
            ((waiting),) = prometheus.query('replicator_quarantined_rows{table="public.t"}')
            assert waiting["value"][1] == "1"
            # The shared source sets its slots no limit.
            unknown = re.compile("safe_wal")
            for query in dashboard_queries():
                if not unknown.search(query):
                    wait_until(functools.partial(prometheus.query, query), what=query, interval_s=0.2)

            def read_states() -> dict[str, str]:
                rules = prometheus.ask("rules")["groups"][0]["rules"]
                assert {rule["health"] for rule in rules} <= {"ok", "unknown"}, rules
                return {rule["name"]: rule["state"] for rule in rules}

            expected = dict.fromkeys([rule["alert"] for rule in read_rules()], "inactive")
            expected["ReplicatorRowsInQuarantine"] = "pending"
            wait_until(lambda: read_states() == expected, what="one rule, and no other, sees something wrong")
        finally:
            prometheus.process.terminate()
            prometheus.process.wait(20)
