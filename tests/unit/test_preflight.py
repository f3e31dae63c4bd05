"""Findings that need no server to be true."""

from __future__ import annotations

from dataclasses import replace

import pytest

from replicator.preflight.server import ServerFacts, check_encryption, check_version, grant_replica_role, is_local
from replicator.preflight.table import find_circles

FACTS = ServerFacts(180001, "18.1", "etl", "app", "UTF8", is_standby=False)


@pytest.mark.parametrize(
    ("host", "address", "local"),
    [
        ("/var/run/postgresql", "", True),
        ("@abstract", "", True),
        ("localhost", "127.0.0.1", True),
        ("localhost", "::1", True),
        ("db.example.org", "127.8.9.1", True),
        ("localhost", "10.0.0.7", False),
        ("db.example.org", "2001:db8::1", False),
        ("db.example.org", "", False),
    ],
)
def test_sockets_and_loopback_stay_on_this_machine(host: str, address: str, local: bool) -> None:
    assert is_local(host, address) is local


@pytest.mark.parametrize("sslmode", ["disable", "allow", "prefer", "require", "verify-ca"])
def test_below_verify_full_a_remote_host_is_warned_about(sslmode: str) -> None:
    (finding,) = check_encryption("source", "db.example.org", "192.0.2.1", sslmode)
    assert finding.severity == "warn"
    assert "sslmode=verify-full to source.dsn" in (finding.hint or "")
    assert list(check_encryption("source", "db.example.org", "192.0.2.1", "verify-full")) == []
    assert list(check_encryption("source", "/tmp", "", sslmode)) == []


@pytest.mark.parametrize(
    ("number", "severity"), [(140012, "warn"), (150000, "ok"), (160004, "ok"), (189999, "ok"), (190000, "warn")]
)
def test_versions_that_nobody_tested_are_a_warning(number: int, severity: str) -> None:
    finding = check_version(replace(FACTS, version_number=number), "target")
    assert (finding.id, finding.severity) == ("target_reachable", severity)
    assert bool(finding.hint) is (severity == "warn")


def test_before_15_only_a_superuser_may_switch_foreign_keys_off() -> None:
    assert grant_replica_role(FACTS) == 'grant set on parameter session_replication_role to "etl"'
    assert "superuser" in grant_replica_role(replace(FACTS, version_number=140000))


def test_circles_are_found_and_chains_are_not() -> None:
    assert find_circles([]) == []
    assert find_circles([(1, 2), (2, 3)]) == []
    assert find_circles([(1, 1)]) == []
    assert find_circles([(1, 2), (2, 1), (2, 3), (4, 5), (5, 6), (6, 4), (7, 4)]) == [{1, 2}, {4, 5, 6}]
