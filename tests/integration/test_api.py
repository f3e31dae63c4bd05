"""The API keeps to its own description: schemathesis asks what the OpenAPI document allows, and what it forbids."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance

from tests.conftest import SharedServers
from tests.pair import Pair
from tests.serving import Serving, write_config
from tests.wait import wait_until


@pytest.fixture(scope="module")
def serving(shared_servers: SharedServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    pair = Pair(shared_servers.get("source", 18), shared_servers.get("target", 18), tmp_path_factory.mktemp("api"))
    pair.source.execute("create table t (id int primary key); insert into t values (1)")
    pair.grant()
    write_config(pair)
    pair.run("sync")
    with Serving(pair).wait_ready() as serving:
        yield serving
    pair.close()


OPERATIONS = ("status", "tables", "runs", "run", "start_run", "start_resync", "start_verify")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("operation_id", OPERATIONS)
def test_every_answer_is_one_that_the_description_names(
    serving: Serving, operation_id: str, mode: GenerationMode
) -> None:
    """Also to requests that do not fit; that a run is under way (409) is an answer of its own."""
    document = serving.api.get("/openapi.json").json()
    # The token is always sent here; that nothing works without it has a test of its own.
    for methods in document["paths"].values():
        for described in methods.values():
            assert described.pop("security")
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=serving.url)
    operation = schema.find_operation_by_id(operation_id)
    if mode == GenerationMode.NEGATIVE and operation_id in ("status", "tables"):
        return
    seen = []

    @settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        answer = case.call(headers={"Authorization": f"Bearer {serving.token}"}, timeout=60)
        seen.append(answer.status_code)
        names_tables = isinstance(case.body, dict) and bool(case.body.get("tables"))
        # No schema says which tables the configuration selects: 422 tells that of a name which fits it.
        excluded = (
            [ignored_auth, positive_data_acceptance]
            if names_tables and mode == GenerationMode.POSITIVE
            else [ignored_auth]
        )
        case.validate_response(answer, excluded_checks=excluded)
        assert answer.status_code < 500

    ask()
    assert seen


def test_every_error_is_a_problem_document(serving: Serving) -> None:
    asked = [
        serving.api.get("/runs/00000000-0000-0000-0000-000000000000"),
        serving.api.get("/runs/none"),
        serving.api.get("/runs", params={"limit": 0}),
        serving.api.get("/runs", params={"table": "\0"}),
        serving.api.get("/nothing"),
        serving.api.delete("/status"),
        serving.api.post("/runs", content="{"),
        serving.api.post("/runs", json={"tables": ["a.b.c.d"]}),
        serving.api.post("/runs", json={"tables": ["--yes"], "full": "1"}),
        httpx.get(f"{serving.url}/api/v1/status"),
    ]
    assert [answer.status_code for answer in asked] == [404, 422, 422, 422, 404, 405, 422, 422, 422, 401]
    for answer in asked:
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["status"] == answer.status_code
        assert problem["title"]
        assert problem["type"]


def test_a_body_that_is_too_long_is_refused_unread(serving: Serving) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(600):
            yield b" " * 1024

    address = (httpx.URL(serving.url).host, httpx.URL(serving.url).port or 0)
    head = (
        f"POST /api/v1/runs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {serving.token}\r\n"
        "Content-Length: 300000000\r\n\r\n"
    )
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(head.encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 413 "), answer
    assert b"urn:replicator:error:body_too_long" in answer
    chunked = serving.api.post("/runs", content=endless(), headers={"Content-Type": "application/json"})
    assert (chunked.status_code, chunked.headers["content-type"]) == (413, "application/problem+json")
    assert serving.api.post("/runs", content=b" " * 500_000).status_code == 422


def test_head_is_answered_like_get_and_a_wrong_method_with_all_that_are_right(serving: Serving) -> None:
    for client, path in ((serving.web, "/"), (serving.web, "/livez"), (serving.web, "/readyz"), (serving.api, "/runs")):
        told, got = client.head(path), client.get(path)
        assert (told.status_code, told.content, got.status_code) == (200, b"", 200), path
        assert told.headers["content-type"] == got.headers["content-type"]
        assert int(told.headers["content-length"]) > 0
    assert serving.web.head("/api/v1/runs").status_code == 401
    for method, path, allowed in (("DELETE", "/runs", "GET, HEAD, POST"), ("GET", "/resync", "POST")):
        refused = serving.api.request(method, path)
        assert (refused.status_code, refused.headers["allow"]) == (405, allowed)


def wait_until_idle(serving: Serving) -> None:
    running = {"status": "running"}
    wait_until(lambda: not serving.api.get("/runs", params=running).json()["runs"], 60, what="nothing runs")


def test_a_table_that_is_none_of_the_configuration_s_is_refused_at_once(serving: Serving) -> None:
    wait_until_idle(serving)
    for path in ("/runs", "/resync", "/verify"):
        refused = serving.api.post(path, json={"tables": ["public.t", "public.nothing"]})
        assert refused.status_code == 422, refused.text
        assert "public.nothing" in refused.json()["detail"]


def test_status_is_what_the_command_prints(serving: Serving) -> None:
    wait_until_idle(serving)
    told = serving.api.get("/status").json()
    printed = serving.pair.json("status")
    assert (told["schema"], told["pipeline"], told["slot"]) == (1, printed["pipeline"], printed["slot"])
    for ours, theirs in zip(told["tables"], printed["tables"], strict=True):
        assert theirs.keys() <= ours.keys()
        for key in ("table", "target", "strategy", "guarantee", "watermark", "position", "verified_through"):
            assert ours[key] == theirs[key], key
        assert theirs["last_run"].keys() <= ours["last_run"].keys()
