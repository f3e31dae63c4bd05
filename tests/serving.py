"""A `replicator serve` of a test: started by its command, spoken to over HTTP."""

from __future__ import annotations

import secrets
from typing import Any, Self

import httpx

from tests.pair import Pair, Running
from tests.wait import wait_until

TOKEN_FILE = "api.token"


class Serving:
    """One serving process. api: a client with the token; web: one without."""

    def __init__(self, pair: Pair, *args: str) -> None:
        self.pair = pair
        path = pair.dir / TOKEN_FILE
        if not path.exists():
            path.write_text(secrets.token_hex(32))
            path.chmod(0o600)
        self.token = path.read_text()
        self.running: Running = pair.popen("serve", *args)
        self.url = wait_until(self._read_url, 30, what="serve prints its URL")
        self.web = httpx.Client(base_url=self.url, timeout=30)
        self.api = httpx.Client(
            base_url=f"{self.url}/api/v1", timeout=30, headers={"Authorization": f"Bearer {self.token}"}
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_url(self) -> str:
        assert self.running.running, self.running.stderr
        return self.running.stdout.strip()

    def close(self) -> None:
        """End the process at once."""
        self.web.close()
        self.api.close()
        self.running.kill()

    def wait_ready(self) -> Self:
        """Wait until it says that it is ready."""
        wait_until(lambda: self.web.get("/readyz").status_code == 200, 30, what="serve is ready")
        return self

    def wait_for_run(self, execution_id: str) -> dict[str, Any]:
        """Return a run's document once the run has ended."""

        def read() -> dict[str, Any] | None:
            answer = self.api.get(f"/runs/{execution_id}")
            document: dict[str, Any] = answer.json()
            has_ended = answer.status_code == 200 and document["run"]["status"] != "running"
            return document if has_ended else None

        found = wait_until(read, 60, what=f"the run {execution_id} ends")
        assert found is not None
        return found


def write_config(pair: Pair, **sections: Any) -> None:
    """Configure a pair for serving on a free port."""
    pair.write_config(**{"serve": {"port": 0}, "tables": ["public.*"], **sections})
