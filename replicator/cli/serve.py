"""The command `serve`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from replicator.cli.output import print_json
from replicator.cli.session import alarm_beside, open_settings, open_target
from replicator.cli.sync import stop_on_signal
from replicator.errors import EXIT_OK, ExtraMissing

_PACKAGES = ("fastapi", "jinja2", "uvicorn")


def require_extra() -> None:
    """Raise ExtraMissing without the packages of the extra `serve`."""
    for name in _PACKAGES:
        if find_spec(name) is None:
            raise ExtraMissing(
                f"the package {name} is not installed",
                why="dashboard and API are an extra",
                hint="pip install 'replicator[serve]'",
            )


def run_serve(config: Path | None, *, listens: bool, as_json: bool) -> int:
    """Serve until a signal. Raises ExtraMissing without the packages of the extra `serve`."""
    require_extra()
    from replicator.serve.server import serve

    settings = open_settings(config)

    def on_start(url: str) -> None:
        if as_json:
            print_json({"url": url})
        else:
            print(url, flush=True)

    with open_target(settings) as conninfo, stop_on_signal() as stop, alarm_beside(settings, conninfo):
        serve(settings, conninfo, config, listens=listens, stop=stop, on_start=on_start)
    return EXIT_OK
