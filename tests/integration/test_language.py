"""Servers that speak German: nothing is read from their words."""

from __future__ import annotations

import locale
import subprocess
from collections.abc import Callable

import pytest
from psycopg import sql

from tests.conftest import MakeCluster, MakePair
from tests.pair import Pair
from tests.receiver import Webhook
from tests.servers import Cluster, ServerFailed, StopMode
from tests.streaming import listening, wait_until_equal
from tests.wait import wait_until

GERMAN = "de_DE.UTF-8"


@pytest.fixture
def german(make_cluster: MakeCluster) -> Cluster:
    """Return a server with German messages: only Debian's PostgreSQL has translations."""
    listed = subprocess.run(["locale", "-a"], capture_output=True, text=True, check=True).stdout
    if "de_DE.utf8" not in listed.split():
        raise ServerFailed(f"no locale {GERMAN}: apt-get install locales; localedef -i de_DE -f UTF-8 {GERMAN}")
    return make_cluster(15, settings={"lc_messages": GERMAN})


@pytest.fixture
def pair(german: Cluster, make_pair: MakePair) -> Pair:
    pair = make_pair(source_server=german, listens=True)
    pair.source.execute("create table t (id int primary key); insert into t select generate_series(1, 10)")
    pair.publish()
    pair.write_config(tables=["public.t"], source={"connect_timeout": "1s"})
    with pytest.raises(Exception, match="existiert nicht"):
        pair.source.execute("select from nothing")
    return pair


def alter_reader(pair: Pair, words: str) -> None:
    pair.source_server.execute(sql.SQL("alter role {} " + words).format(sql.Identifier(pair.reader)))


def alter_database(pair: Pair, words: str) -> None:
    pair.source_server.execute(sql.SQL("alter database {} " + words).format(sql.Identifier(pair.source_db)))


def end_sessions(pair: Pair) -> None:
    """End the tool's sessions, so that it has to connect again."""
    pair.source_server.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", [pair.reader]
    )


def lock_out_by_hba(pair: Pair) -> None:
    server = pair.source_server
    assert isinstance(server, Cluster)
    path = server.data / "pg_hba.conf"
    path.write_text("local all postgres trust\n")
    server.execute("select pg_reload_conf()")


def let_in_by_hba(pair: Pair) -> None:
    server = pair.source_server
    assert isinstance(server, Cluster)
    server.write_settings()
    server.execute("select pg_reload_conf()")


Act = Callable[[Pair], None]
SHUT: dict[str, tuple[Act, Act]] = {
    "database": (
        lambda pair: alter_database(pair, "allow_connections false"),
        lambda pair: alter_database(pair, "allow_connections true"),
    ),
    "role": (lambda pair: alter_reader(pair, "nologin"), lambda pair: alter_reader(pair, "login")),
    "password": (
        lambda pair: alter_reader(pair, "password 'another'"),
        lambda pair: alter_reader(pair, f"password '{pair.reader_password}'"),
    ),
    "connections": (
        lambda pair: alter_reader(pair, "connection limit 0"),
        lambda pair: alter_reader(pair, "connection limit -1"),
    ),
    "pg_hba.conf": (lock_out_by_hba, let_in_by_hba),
}


def is_refused(log: str) -> bool:
    """Say whether a listener was refused a connection: for what the server says, or for a limit."""
    return "no_connection" in log or "limit_reached" in log


@pytest.mark.parametrize("how", SHUT)
def test_a_running_listener_is_let_in_again_whatever_the_server_said_meanwhile(pair: Pair, how: str) -> None:
    """S41: any refusal under a running listener is tried again for ever."""
    shut, reopen = SHUT[how]
    with listening(pair) as listener:
        shut(pair)
        end_sessions(pair)
        wait_until(lambda: is_refused(listener.stderr) or not listener.running, 60, what="a refusal")
        assert listener.running, listener.wait()
        reopen(pair)
        pair.source.execute("insert into t values (11)")
        wait_until(lambda: pair.target.execute("select from t where id = 11").rowcount, 60, what="a row")
    pair.assert_equal("t")


def test_an_alert_tells_of_a_source_that_refuses_a_running_listener(pair: Pair) -> None:
    """S41: it is tried for ever, so somebody has to hear of it."""
    with Webhook() as webhook:
        pair.write_config(tables=["public.t"], source={"connect_timeout": "1s"}, alerts={"urls": [webhook.address]})
        with listening(pair):
            alter_reader(pair, "nologin")
            end_sessions(pair)
            wait_until(lambda: any("does not answer" in one[1] for one in webhook.notices), 60, what="an alert")
            alter_reader(pair, "login")
            wait_until(lambda: any(one[0] == "success" for one in webhook.notices), 90, what="the end of it")


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_running_listener_outlives_restarts(pair: Pair, german: Cluster, mode: StopMode) -> None:
    """S41: a server that stops and starts refuses connections for a moment, in its own words."""
    with listening(pair) as listener:
        for number in range(3):
            pair.source.close()
            german.restart(mode)
            pair.source = german.connect(pair.source_db)
            pair.source.execute("insert into t values (%s)", [100 + number])
            wait_until_equal(pair, "t", timeout_s=60)
        assert listener.running
    pair.assert_equal("t")


REFUSALS: dict[str, tuple[Callable[[Pair], str], str]] = {
    "password": (lambda p: p.dsn_of_source(password="wrong"), "did not accept the role's password"),
    "database": (lambda p: p.dsn_of_source(dbname="nowhere"), "the database does not exist"),
    "role": (lambda p: p.dsn_of_source(user="nobody"), "password"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_refusal_has_its_cause_in_any_language(pair: Pair, what: str) -> None:
    """S41: libpq tells the SQLSTATE of a refused connection, if asked for it."""
    dsn, words = REFUSALS[what]
    pair.write_config(tables=["public.t"], source={"dsn": dsn(pair)})
    finished = pair.run("sync", check=4)
    assert "error [no_connection]" in finished.stderr
    assert words in finished.stderr


def test_a_starting_server_is_waited_for(pair: Pair, german: Cluster) -> None:
    """S41: as one that refuses for good is not."""
    assert locale.setlocale(locale.LC_MESSAGES) == "C"
    alter_reader(pair, "connection limit 0")
    pair.write_config(tables=["public.t"], source={"connect_timeout": "20s"})
    running = pair.popen("sync")
    wait_until(lambda: german.log_text().count("zu viele Verbindungen") > 2, what="refusals")
    alter_reader(pair, "connection limit -1")
    running.wait(check=0)
    pair.assert_equal("t")
