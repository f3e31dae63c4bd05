"""`replicator demo --serve`: a dashboard on a live pipeline, with nothing configured."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import httpx

from tests.pair import ROOT, Running
from tests.wait import wait_until


def test_the_demo_opens_a_dashboard_whose_numbers_move_and_whose_button_starts_a_run(tmp_path: Path) -> None:
    with Running(
        ("demo", "--serve", "--port", "0"), tmp_path, {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    ) as demo:
        wait_until(lambda: "Ctrl-C" in demo.stdout or not demo.running, 240, what="the demo serves")
        assert demo.running, demo.stdout + demo.stderr
        (url, token) = re.findall(r"dashboard: (http://\S+)\nThe token .*: (\S+)", demo.stdout)[0]
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30) as web:
            wait_until(lambda: web.get("/readyz").status_code == 200, 120, what="the listener streams")

            def read_rows() -> int:
                text = re.findall(r'id="rows-last-day">([\d,]+)<', web.get("/fragments/tables").text)
                return int(text[0].replace(",", ""))

            before = read_rows()
            wait_until(lambda: read_rows() > before, 60, what="the numbers move")
            execution = web.post("/api/v1/runs", json={}).json()["execution_id"]

            def has_ended() -> bool:
                answer = web.get(f"/api/v1/runs/{execution}")
                return answer.status_code == 200 and answer.json()["run"]["status"] == "success"

            wait_until(has_ended, 120, what="the run that was asked for ends well")
            assert execution in web.get("/runs").text
        folder = re.findall(r"(/\S*replicator-demo-\w+)", demo.stdout + demo.stderr)
        demo.send(signal.SIGINT)
        finished = demo.wait(90, check=0)
    assert "Traceback" not in finished.stderr
    assert not any(Path(name).exists() for name in folder)
