"""The command `check`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from replicator.capture.pull import Access
from replicator.catalog import read_expressions
from replicator.cli.output import as_text, print_json
from replicator.cli.session import open_settings, open_target
from replicator.config.settings import Settings
from replicator.db import Connection, closing, connect, translated
from replicator.errors import EXIT_OK, EXIT_PREFLIGHT, ConfigError, ReplicatorError
from replicator.preflight.configuration import check_choices, check_mask_key
from replicator.preflight.finding import Finding, find_error
from replicator.preflight.history import check_history
from replicator.preflight.server import (
    ServerFacts,
    Side,
    check_encodings,
    check_replica_role,
    check_server,
    find_connect_error,
    grant_replica_role,
    read_server_facts,
)
from replicator.preflight.stream import check_stream
from replicator.preflight.table import check_expressions, check_foreign_keys, check_plan
from replicator.sync.planning import forbid_writing, make_plan
from replicator.sync.preparation import check_home, choose_digest, open_access, read_home
from replicator.sync.rights import TargetRights

_KEYS = ("id", "severity", "table", "message", "hint")


def show_check(config: Path | None, *, deep: bool, as_json: bool) -> int:
    """Print what would stop or slow a sync; return 0, or 4 when there is an error among it.

    deep: also say which watermarks can be trusted.
    """
    settings = open_settings(config)
    findings = _Check(settings, deep=deep).run()
    if as_json:
        print_json({"findings": [{key: getattr(finding, key) for key in _KEYS} for finding in findings]})
    else:
        _print_findings(findings)
    has_error = any(finding.severity == "error" for finding in findings)
    return EXIT_PREFLIGHT if has_error else EXIT_OK


class _Check:
    """One preflight: what it opened, and what it found."""

    def __init__(self, settings: Settings, *, deep: bool) -> None:
        self.settings, self.deep = settings, deep
        self.findings: list[Finding] = []

    def run(self) -> list[Finding]:
        """Look at everything that can be looked at, and return the findings."""
        self.findings += check_mask_key(self.settings)
        self.findings += check_choices(self.settings)
        access = self._open_access()
        with ExitStack() as stack:
            source = self._open(stack, "source", lambda: access.open_at_slot(self.settings.slot_name, first=True))
            conninfo = stack.enter_context(open_target(self.settings))
            target = self._open(
                stack,
                "target",
                lambda: connect(conninfo, side="target", timeout_s=access.connect_timeout_s, first=True),
            )
            if source is not None and target is not None:
                self._check_tables(access, source, target)
        return self.findings

    def _open_access(self) -> Access:
        """Return the way to the source; a mask key that cannot be read is a finding already."""
        try:
            return open_access(self.settings)
        except ConfigError:
            privacy = self.settings.privacy.model_copy(update={"mask_key_file": None})
            return open_access(self.settings.model_copy(update={"privacy": privacy}))

    def _open(self, stack: ExitStack, side: Side, open_session: Callable[[], Connection]) -> Connection | None:
        """Open a session and look at its server; None, with a finding, where that is not possible."""
        try:
            connection = stack.enter_context(closing(open_session()))
            with translated(side):
                forbid_writing(connection)
                facts = read_server_facts(connection)
                found = list(check_server(connection, facts, side))
        except ReplicatorError as error:
            self.findings.append(find_connect_error(error, side))
            return None
        self.findings += found
        return connection

    def _check_tables(self, access: Access, source: Connection, target: Connection) -> None:
        try:
            check_home(source, target, read_home(self.settings, target))
            with translated("target"):
                here = read_server_facts(target)
                can_replicate, finding = check_replica_role(target, here)
                self.findings.append(finding)
                gap = TargetRights(target).find_database_gap(self.settings.target.control_schema)
                self.findings += [] if gap is None else [find_error(gap)]
            with translated("source"):
                there = read_server_facts(source)
            self.findings += check_encodings(there, here, choose_digest(source, target))
            self._check_plan(access, source, target, None if can_replicate else here)
        except ReplicatorError as error:
            self.findings.append(find_error(error))

    def _check_plan(self, access: Access, source: Connection, target: Connection, strict: ServerFacts | None) -> None:
        """Look at every table. strict: the target's facts where its foreign keys cannot be switched off."""
        plan = make_plan(self.settings, access, source, target, deep=self.deep)
        self.findings += check_plan(plan, deep=self.deep)
        with translated("source"):
            there = read_expressions(source, [table.relation.oid for table in plan.tables if table.relation])
        with translated("target"):
            here = read_expressions(target, [table.existing.oid for table in plan.tables if table.existing])
        self.findings += check_expressions(plan.tables, there, here)
        if strict is not None:
            with translated("target"):
                self.findings += check_foreign_keys(target, plan.tables, grant_replica_role(strict))
        self.findings += check_stream(self.settings, source, target, plan)
        self.findings += check_history(self.settings, source, target)


def _print_findings(findings: Sequence[Finding]) -> None:
    ids = max((len(finding.id) for finding in findings), default=0)
    tables = max((len(as_text(finding.table)) for finding in findings), default=0)
    for finding in findings:
        line = f"{finding.severity:<5}  {finding.id:<{ids}}  {as_text(finding.table):<{tables}}  "
        print(line + as_text(finding.message))
        if finding.hint:
            print(f"       hint: {as_text(finding.hint)}")
    counts = Counter(finding.severity for finding in findings)
    errors, warnings = _count(counts["error"], "error"), _count(counts["warn"], "warning")
    print(f"\n{errors}, {warnings}, {counts['ok']} ok")


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
