"""Alerts arrive at a real mail server and a real webhook: one an incident, one when it is over."""

from __future__ import annotations

import re
import signal
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from replicator.config.settings import Settings
from replicator.monitor.alerts import Alarm
from tests.conftest import MakeCluster, MakePair
from tests.pair import Pair
from tests.parking import park
from tests.receiver import Mailbox, Silence, Webhook, free_port
from tests.serving import Serving
from tests.streaming import catch_up, wait_for_stream, wait_until_equal
from tests.wait import wait_until

SECRET = "hunter2-canary"


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as webhook:
        yield webhook


def configure(pair: Pair, *addresses: str, **sections: Any) -> None:
    pair.write_config(alerts={"urls": list(addresses)}, **sections)


def watch(pair: Pair) -> Alarm:
    """Return what `serve` looks with."""
    return Alarm(Settings.model_validate(tomllib.loads((pair.dir / "replicator.toml").read_text())), pair.target_dsn)


def test_a_test_alert_arrives_by_mail_and_by_webhook(pair: Pair, webhook: Webhook) -> None:
    with Mailbox() as mailbox:
        configure(pair, webhook.address, mailbox.address)
        finished = pair.run("alert", "test")
    assert finished.stdout.splitlines() == ["address 1 json: sent", "address 2 mailto: sent"]
    assert [(kind, title) for kind, title, _ in webhook.notices] == [("success", "replicator default: test")]
    (mail,) = mailbox.messages
    assert "replicator default: test" in mail["subject"]
    assert "alerts of this pipeline arrive here" in str(mail.get_body(("plain",)))


def test_an_address_that_fails_is_told_by_number_and_scheme_alone(pair: Pair, webhook: Webhook) -> None:
    webhook.status = 500
    addresses = [
        webhook.address.replace("json://", f"json://user:{SECRET}@"),
        f"json://user:{SECRET}@127.0.0.1:{free_port()}/",
        f"mailto://user:{SECRET}@127.0.0.1:{free_port()}?from=a@example.org&to={SECRET}@example.org",
        f"json://{SECRET}.invalid/",
    ]
    configure(pair, *addresses)
    finished = pair.run("alert", "test", check=1)
    assert finished.stdout.splitlines() == [
        "address 1 json: failed: it answered 500",
        "address 2 json: failed: the connection was refused",
        "address 3 mailto: failed: the connection was refused",
        "address 4 json: failed: its name does not resolve",
    ]
    assert SECRET not in finished.stdout + finished.stderr


def test_an_address_that_can_never_be_sent_to_is_a_fault_of_the_configuration(pair: Pair, webhook: Webhook) -> None:
    configure(pair, webhook.address, f"nothing://{SECRET}@example", f"{SECRET}")
    for command in (("alert", "test"), ("serve",), ("listen",)):
        finished = pair.run(*command, check=3)
        assert "address 2 nothing, 3 unreadable" in finished.stderr
        assert SECRET not in finished.stdout + finished.stderr


def test_without_an_address_a_test_alert_says_where_one_belongs(pair: Pair) -> None:
    configure(pair)
    assert "alerts.urls" in pair.run("alert", "test", check=3).stderr


def test_a_failure_is_told_once_and_once_more_when_it_is_over(pair: Pair, webhook: Webhook) -> None:
    pair.source.execute("create table t (id int primary key, n text); create table u (id int primary key)")
    pair.source.execute("insert into t values (1, 'fine')")
    pair.grant()
    configure(pair, webhook.address, tables=["public.t", "public.u"])
    pair.run("sync")
    assert webhook.notices == []

    pair.as_writer.execute("alter table t add constraint short check (length(n) < 9)")
    pair.source.execute(f"insert into t values (2, '{SECRET}')")
    for _ in range(3):
        pair.run("sync", check=6)
    ((kind, title, message),) = webhook.notices
    assert kind == "failure"
    assert title.startswith("replicator default: public.t: failed: ")
    assert "hint: " in message
    assert "23514" in message
    assert "short" in message
    assert SECRET not in message

    pair.source.execute("delete from t where id = 2")
    for _ in range(2):
        pair.run("sync")
    ((kind, over, _),) = webhook.notices[1:]
    assert (kind, over) == ("success", title.replace("default: ", "default: over: "))


def test_a_safety_stop_and_a_schema_change_are_called_so(pair: Pair, webhook: Webhook) -> None:
    pair.source.execute("create table stop (id int primary key); create table drift (id int primary key, n bigint)")
    pair.source.execute("insert into stop select generate_series(1, 3000); insert into drift values (1, 1)")
    pair.grant()
    configure(pair, webhook.address, tables=["public.stop", "public.drift"])
    pair.run("sync")
    pair.source.execute("truncate stop; alter table drift alter n type smallint")
    pair.run("sync", check=8)
    ((_, title, message),) = webhook.notices
    assert title.endswith("and 1 more")
    told = [line for line in message.splitlines() if not line.startswith("hint: ")]
    assert [line.partition(": ")[2].partition(": ")[0] for line in told] == ["schema change", "safety stop"]


def test_a_command_that_leaves_no_row_is_told_by_its_error(pair: Pair, webhook: Webhook) -> None:
    configure(pair, webhook.address, target={"dsn": pair.dsn_of_target(port=1)}, source={"connect_timeout": "1s"})
    for _ in range(2):
        pair.run("sync", check=4)
    ((_, title, message),) = webhook.notices
    assert title == "replicator default: the target does not answer"
    for password in (pair.reader_password, pair.writer_password):
        assert password not in message
    pair.source.execute("create table t (id int primary key)")
    pair.grant()
    configure(pair, webhook.address, tables=["public.t"])
    pair.run("sync")
    assert [kind for kind, _, _ in webhook.notices] == ["failure", "success"]


def test_a_silent_address_keeps_no_run_waiting_for_long(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key)")
    pair.grant()
    with Silence() as silence:
        configure(pair, f"json://127.0.0.1:{silence.port}/", tables=["public.t", "public.missing"])
        started = time.monotonic()
        finished = pair.run("sync", check=6)
    assert "alert_failed" in finished.stderr
    assert time.monotonic() - started < 30


def test_an_alert_that_nobody_took_is_sent_again_by_the_next_run(pair: Pair, webhook: Webhook) -> None:
    webhook.status = 503
    configure(pair, webhook.address, tables=["public.missing"])
    pair.source.execute("create table t (id int primary key)")
    pair.run("sync", check=4)
    webhook.status = 200
    webhook.requests.clear()
    pair.run("sync", check=4)
    pair.run("sync", check=4)
    assert len(webhook.notices) == 1


def test_no_success_for_too_long_is_told_by_whoever_watches(pair: Pair, webhook: Webhook) -> None:
    pair.source.execute("create table t (id int primary key)")
    pair.grant()
    configure(pair, webhook.address, tables=["public.t"])
    pair.run("sync")
    alarm = watch(pair)
    alarm.check(is_final=True)
    assert webhook.notices == []
    pair.target.execute("update replicator.etl_control set completed_at = now() - interval '27 hours'")
    for _ in range(2):
        alarm.check(is_final=True)
    ((_, title, message),) = webhook.notices
    assert title == "replicator default: public.t: stale"
    assert "26 hours" in message
    pair.run("sync")
    assert len(webhook.notices) == 2


def test_a_run_that_was_killed_is_noticed_while_its_rows_still_say_running(pair: Pair, webhook: Webhook) -> None:
    pair.source.execute("create table t (id int primary key)")
    pair.grant()
    configure(pair, webhook.address, tables=["public.t"])
    pair.run("sync")
    pair.target.execute(
        "update replicator.etl_control set status = 'running';"
        "insert into replicator.incident (pipeline, kind, code, message, seen_at)"
        " values ('default', 'dead_run', 'interrupted', '', now() - interval '2 minutes')"
    )
    watch(pair).check(is_final=True)
    assert [title for _, title, _ in webhook.notices] == ["replicator default: a run died"]
    with pair.target_server.connect(pair.target_db) as session:
        session.execute("select pg_advisory_lock(hashtextextended('replicator/replicator/default/run', 7264811))")
        watch(pair).check(is_final=True)
    assert [kind for kind, _, _ in webhook.notices] == ["failure", "success"], "somebody holds the run's lock"


def test_a_night_that_was_cut_off_is_told_only_if_nobody_takes_it_up_again(pair: Pair, webhook: Webhook) -> None:
    pair.source.execute("create table t (id int primary key)")
    pair.grant()
    configure(pair, webhook.address, tables=["public.t"])
    pair.run("sync", "--triggered-by", "scheduler")
    pair.target.execute(
        "update replicator.etl_control set status = 'failed', error_code = 'interrupted', error_message = 'stopped';"
        "insert into replicator.started_run (execution_id, pipeline, command, triggered_by, scheduled_for)"
        " select execution_id, 'default', 'sync', 'scheduler', now() from replicator.etl_control"
    )
    watch(pair).check(is_final=True)
    assert webhook.notices == []
    pair.target.execute("update replicator.started_run set completed_at = now(), exit_code = 1")
    watch(pair).check(is_final=True)
    assert [title for _, title, _ in webhook.notices] == ["replicator default: public.t: failed: stopped"]


def test_rows_in_quarantine_and_a_lost_slot_are_told(streamed: Pair, webhook: Webhook) -> None:
    streamed.source.execute("create table t (id int primary key, n int)")
    streamed.publish()
    configure(streamed, webhook.address, tables=["public.t"], defaults={"on_row_error": "quarantine"})
    catch_up(streamed)
    streamed.as_writer.execute("alter table t add check (n < 9)")
    streamed.source.execute("insert into t values (7777777, 10)")
    catch_up(streamed)
    ((_, title, message),) = webhook.notices
    assert title == "replicator default: public.t: rows in quarantine"
    assert "23514" in message
    assert "7777777" not in message
    streamed.source.execute("select pg_drop_replication_slot(%s)", [streamed.slot])
    streamed.run("listen", "--until-caught-up", check=1)
    titles = [title for _, title, _ in webhook.notices[1:]]
    assert len(titles) == 1
    assert re.search("slot|failed", titles[0])
    streamed.as_writer.execute("alter table t drop constraint t_n_check")
    catch_up(streamed, "--repair-gap")
    streamed.run("quarantine", "discard", "--yes")
    watch(streamed).check(is_final=True)
    assert [kind for kind, _, _ in webhook.notices].count("failure") == 2
    assert streamed.target.execute("select kind from replicator.incident where told_at is not null").fetchall() == []


def test_a_table_that_is_parked_is_told_with_its_hint_and_once_more_when_it_is_back(
    streamed: Pair, webhook: Webhook
) -> None:
    streamed.source.execute("create table t (id int primary key)")
    streamed.publish()
    configure(streamed, webhook.address, tables=["public.t"])
    catch_up(streamed)
    park(streamed, "public.u", "alter table public.u replica identity full")
    with reading_slot(streamed), streamed.target_server.connect(streamed.target_db) as session:
        session.execute("select pg_advisory_lock(hashtextextended('replicator/replicator/default/listener', 7264811))")
        for _ in range(2):
            watch(streamed).check(is_final=True)
        ((_, title, message),) = webhook.notices
        assert title == "replicator default: public.u: parked: the stream would not name the changed rows"
        assert "identity_missing" in message
        assert message.endswith("hint: alter table public.u replica identity full")
        streamed.target.execute("delete from replicator.parked_table")
        watch(streamed).check(is_final=True)
    assert [kind for kind, _, _ in webhook.notices] == ["failure", "success"]


def test_a_source_that_does_not_answer_is_told_and_its_slot_is_not_called_well_or_ill(
    streamed: Pair, webhook: Webhook
) -> None:
    streamed.source.execute("create table t (id int primary key)")
    streamed.publish()
    configure(streamed, webhook.address, tables=["public.t"])
    catch_up(streamed)
    configure(streamed, webhook.address, source={"dsn": streamed.dsn_of_source(port=1), "connect_timeout": "1s"})
    for _ in range(2):
        watch(streamed).check(is_final=True)
    configure(streamed, webhook.address, tables=["public.t"])
    watch(streamed).check(is_final=True)
    assert [title for _, title, _ in webhook.notices] == [
        "replicator default: the source does not answer",
        "replicator default: over: the source does not answer",
    ]


@contextmanager
def reading_slot(pair: Pair) -> Iterator[None]:
    """Read the pair's slot as a listener does."""
    with psycopg.connect(pair.source_dsn, replication="database", autocommit=True) as reader:
        options = "(proto_version '1', publication_names 'replicator_default')"
        reader.execute(f"START_REPLICATION SLOT {pair.slot} LOGICAL 0/0 {options}".encode())
        yield
        reader.pgconn.finish()


def test_a_listener_that_is_behind_and_one_that_is_gone_are_told(streamed: Pair, webhook: Webhook) -> None:
    streamed.source.execute("create table t (id int primary key)")
    streamed.publish()
    configure(streamed, webhook.address, tables=["public.t"])
    catch_up(streamed)
    past = "update replicator.incident set seen_at = seen_at - interval '2 minutes'"
    alarm = watch(streamed)
    alarm.check(is_final=True)
    streamed.target.execute(past)
    alarm.check(is_final=True)
    # A frozen listener: it holds its lock, and the source has not noticed yet.
    with streamed.target_server.connect(streamed.target_db) as session, reading_slot(streamed):
        lock = "select pg_advisory_lock(hashtextextended('replicator/replicator/default/listener', 7264811))"
        session.execute(lock)
        streamed.target.execute("update replicator.listener set fresh_at = now() - interval '1 hour'")
        alarm.check(is_final=True)
        streamed.target.execute(past)
        alarm.check(is_final=True)
        streamed.target.execute("update replicator.listener set fresh_at = now()")
        alarm.check(is_final=True)
    assert [title.partition(": ")[2] for _, title, _ in webhook.notices] == [
        "the listener does not run",
        "over: the listener does not run",
        "the listener is behind",
        "over: the listener is behind",
    ]


def test_a_killed_target_is_told_within_a_minute_and_once_more_when_it_is_back(
    make_cluster: MakeCluster, make_pair: MakePair, webhook: Webhook
) -> None:
    """By `serve --listen`: two processes look, and tell once."""
    cluster = make_cluster()
    pair = make_pair(target_server=cluster, listens=True)
    pair.source.execute("create table t (id int primary key)")
    pair.publish()
    configure(pair, webhook.address, tables=["public.t"], serve={"port": 0})
    with Serving(pair, "--listen") as serving:
        wait_for_stream(serving.running)
        pair.target.close()
        cluster.stop("immediate")
        killed = time.monotonic()
        wait_until(lambda: webhook.notices, 60, what="an alert")
        assert time.monotonic() - killed < 60
        cluster.start()
        pair.target = cluster.connect(pair.target_db)
        wait_until(lambda: len(webhook.notices) > 1, 60, what="the recovery")
        pair.source.execute("insert into t values (1)")
        wait_until_equal(pair, "public.t", timeout_s=60)
        # Who looks again sees nothing that is not told.
        watch(pair).check(is_final=True)
        serving.running.send(signal.SIGTERM)
        serving.running.wait(60, check=0)
    assert [(kind, title) for kind, title, _ in webhook.notices] == [
        ("failure", "replicator default: the target does not answer"),
        ("success", "replicator default: over: the target does not answer"),
    ]
