"""The roles of sql/source and sql/target can do their work, and nothing else, on every version."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow
from ruamel.yaml import YAML

from tests.conftest import NEWEST, SharedServers
from tests.servers import VERSIONS, Rows, Server, find_binaries

ROOT = Path(__file__).resolve().parents[2]
SOURCE_ROLES, TARGET_ROLES = ROOT / "sql/source/roles.sql", ROOT / "sql/target/roles.sql"
PASSWORD = "s3cret"

SCHEMA = """
create role :"owner";
create schema sales authorization :"owner";
create table public.message (message_id int primary key, body text);
insert into public.message values (1, 'a'), (2, 'b');
create view public.message_view as select * from public.message;
create materialized view public.message_count as select count(*) from public.message;
create table sales."Odd ""T"" name" (id int primary key);
create table sales.hidden (id int primary key);
create sequence public.number;
"""

ACLS = """
select 'database', datname::text, datacl::text from pg_database where datname = current_database()
union all select 'schema', nspname, nspacl::text from pg_namespace
union all select 'relation', oid::regclass::text, relacl::text from pg_class where oid >= 16384
union all select 'default', defaclrole::regrole::text || defaclnamespace::regnamespace::text, defaclacl::text
          from pg_default_acl
union all select 'parameter', parname, paracl::text from pg_parameter_acl
union all select 'role', rolname,
                 row(rolsuper, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls)::text
          from pg_roles where oid >= 16384
order by 1, 2, 3
"""

FORBIDDEN = [
    "insert into public.message values (3, 'c')",
    "update public.message set body = 'x'",
    "delete from public.message",
    "truncate public.message",
    "select from public.message for update",
    "alter table public.message add column extra int",
    "refresh materialized view public.message_count",
    "select nextval('public.number')",
    "select from public.number",
    "select from sales.hidden",
    "create table public.mine (id int)",
    "create schema mine",
    "create publication mine for table public.message",
    "select pg_create_physical_replication_slot('mine')",
]
"""What a role that may only read must not do to SCHEMA."""

Connection = psycopg.Connection[TupleRow]
Finished = subprocess.CompletedProcess[str]


class Database:
    """A fresh database, with names of roles that no other test uses."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.name = server.create_database()
        self.reader, self.writer, self.owner = (server.invent_name(role) for role in ("reader", "writer", "owner"))
        self.hostile = f'{server.invent_name("x")}"; drop table t; --'

    def remove(self) -> None:
        """Drop the database and the roles that were made for it."""
        self.server.drop_database(self.name)
        for role in (self.reader, self.writer, self.owner, self.hostile, "replicator_reader", "replicator_writer"):
            self.server.drop_role(role)

    def connect(self, user: str, options: str = "") -> Connection:
        """Give a role a password and connect as that role, autocommit."""
        statement = sql.SQL("alter role {} password {}").format(sql.Identifier(user), sql.Literal(PASSWORD))
        self.server.execute(statement)
        dsn = self.server.dsn(self.name, user=user, password=PASSWORD)
        return psycopg.connect(dsn, autocommit=True, options=options)

    def psql(self, script: str, *, env: Mapping[str, str] | None = None, variables: Mapping[str, str]) -> Finished:
        """Paste a script into psql as the superuser."""
        options = [option for name, value in variables.items() for option in ("-v", f"{name}={value}")]
        return subprocess.run(
            [str(find_binaries(NEWEST) / "psql"), "-X", "-q", "-d", self.server.admin_dsn(self.name), *options],
            input=script, capture_output=True, text=True, timeout=60, env={**os.environ, **(env or {})},
        )  # fmt: skip

    def make_reader(self, **variables: str) -> None:
        """Run sql/source/roles.sql, which must say nothing."""
        done = self.psql(SOURCE_ROLES.read_text(), variables={"reader": self.reader, **variables})
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def make_writer(self, **variables: str) -> None:
        """Run sql/target/roles.sql, which must say nothing."""
        done = self.psql(TARGET_ROLES.read_text(), variables={"writer": self.writer, **variables})
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def execute(self, query: str) -> Rows:
        """Run statements as superuser and return the rows of the last."""
        return self.server.execute(query.encode(), dbname=self.name)


@pytest.fixture(params=VERSIONS)
def database(request: pytest.FixtureRequest, shared_servers: SharedServers) -> Iterator[Database]:
    """Make an empty database."""
    database = Database(shared_servers.get("source", request.param))
    yield database
    database.remove()


@pytest.fixture
def source(database: Database) -> Database:
    """Make a database with an application's tables in it."""
    done = database.psql(SCHEMA, variables={"owner": database.owner, "ON_ERROR_STOP": "1"})
    assert (done.returncode, done.stderr) == (0, "")
    return database


def test_the_reader_may_select_and_lock_in_access_share_mode(source: Database) -> None:
    source.make_reader()
    with source.connect(source.reader) as reader, reader.transaction():
        reader.execute("lock table public.message, public.message_view in access share mode")
        assert reader.execute("select count(*) from public.message").fetchall() == [(2,)]
        assert reader.execute("select count(*) from public.message_view").fetchall() == [(2,)]
        assert reader.execute("select count from public.message_count").fetchall() == [(2,)]


def test_the_reader_can_do_nothing_else(source: Database) -> None:
    source.make_reader()
    with source.connect(source.reader) as reader:
        for statement in FORBIDDEN:
            with pytest.raises(errors.InsufficientPrivilege):
                reader.execute(statement.encode())


def test_the_reader_may_ask_the_server_what_a_sync_has_to_know(source: Database) -> None:
    source.make_reader()
    with source.connect(source.reader) as reader, reader.transaction():
        reader.execute("set transaction isolation level repeatable read read only")
        facts = reader.execute(
            "select pg_export_snapshot(), pg_current_snapshot(), pg_walfile_name(pg_current_wal_lsn()),"
            " (select system_identifier from pg_control_system()), (select timeline_id from pg_control_checkpoint()),"
            " (select count(*) from pg_locks where locktype = 'virtualxid'), (select count(*) from pg_prepared_xacts),"
            " pg_relation_size('public.message')"
        ).fetchone()
    assert facts is not None
    assert None not in facts


@pytest.mark.parametrize("creator", ["superuser", "owner"])
def test_a_table_made_later_is_readable(source: Database, creator: str) -> None:
    source.make_reader(schemas="public, sales")
    source.execute(f"set role {source.owner if creator == 'owner' else 'none'}; create table sales.later (id int)")
    with source.connect(source.reader) as reader:
        assert reader.execute("select from sales.later").fetchall() == []


def test_with_a_list_of_tables_the_reader_reads_only_those(source: Database) -> None:
    source.make_reader(tables='public.message_view, sales."Odd ""T"" name"')
    with source.connect(source.reader) as reader:
        assert reader.execute("select count(*) from public.message_view").fetchall() == [(2,)]
        assert reader.execute('select from sales."Odd ""T"" name"').fetchall() == []
        for hidden in ("select from public.message", "select from sales.hidden"):
            with pytest.raises(errors.InsufficientPrivilege):
                reader.execute(hidden.encode())


def test_sequences_are_readable_only_when_asked_for(source: Database) -> None:
    source.make_reader(sequences="on")
    with source.connect(source.reader) as reader:
        assert reader.execute("select last_value from public.number").fetchall() == [(1,)]
        with pytest.raises(errors.InsufficientPrivilege):
            reader.execute("select nextval('public.number')")


@pytest.mark.parametrize(("variable", "column"), [("replication", "rolreplication"), ("bypass_rls", "rolbypassrls")])
def test_attributes_are_given_only_when_asked_for(source: Database, variable: str, column: str) -> None:
    query = f"select {column} from pg_roles where rolname = '{source.reader}'"
    source.make_reader()
    assert source.execute(query) == [(False,)]
    source.make_reader(**{variable: "on"})
    assert source.execute(query) == [(True,)]


def test_row_security_refuses_the_read_until_the_reader_bypasses_it(source: Database) -> None:
    source.make_reader()
    source.execute(
        "alter table public.message enable row level security; create policy everything on public.message using (true)"
    )
    with source.connect(source.reader, options="-c row_security=off") as reader:
        with pytest.raises(errors.InsufficientPrivilege):
            reader.execute("select from public.message")
        source.make_reader(bypass_rls="on")
        assert reader.execute("select count(*) from public.message").fetchall() == [(2,)]


def test_a_second_run_changes_nothing(source: Database) -> None:
    source.make_reader(schemas="public, sales")
    source.make_writer(schemas="public, landing")
    before = source.execute(ACLS)
    source.make_reader(schemas="public, sales")
    source.make_writer(schemas="public, landing")
    assert source.execute(ACLS) == before


@pytest.mark.parametrize(
    ("script", "variables"),
    [
        (SOURCE_ROLES, {"schemas": "public, missing"}),
        (SOURCE_ROLES, {"tables": "public.message, public.missing"}),
        (TARGET_ROLES, {"tables": "public.missing"}),
    ],
)
def test_a_name_that_is_not_there_leaves_nothing_behind(
    source: Database, script: Path, variables: dict[str, str]
) -> None:
    before = source.execute(ACLS)
    roles = {"reader": source.reader, "writer": source.writer}
    done = source.psql(script.read_text(), variables=roles | variables)
    assert done.returncode == 3
    assert "missing" in done.stderr
    assert source.execute(ACLS) == before


def test_hostile_names_stay_names(database: Database) -> None:
    hostile = database.hostile
    database.execute('create table public.t (); create schema "My Schema"; create table "My Schema".t ()')
    variables = {"reader": hostile, "schemas": '"My Schema", public'}
    assert database.psql(SOURCE_ROLES.read_text(), variables=variables).stderr == ""
    variables = {"writer": hostile, "schemas": '"New ""Schema"""'}
    assert database.psql(TARGET_ROLES.read_text(), variables=variables).stderr == ""
    with database.connect(hostile) as role:
        assert role.execute('select from "My Schema".t, public.t').fetchall() == []
        role.execute('create table "New ""Schema""".mine (id int)')


def test_the_writer_makes_its_control_schema_its_tables_and_its_staging(database: Database) -> None:
    database.execute(f"revoke all on database {database.name} from public")
    database.make_writer(schemas="public, landing")
    with database.connect(database.writer) as writer:
        writer.execute("create schema replicator create table etl_control (id int)")
        writer.execute("create table public.message (id int primary key)")
        writer.execute("create table landing.message (id int primary key)")
        writer.execute("create temporary table staging (like public.message)")
        writer.execute("alter table public.message add column body text")
    query = "select nspname from pg_namespace where pg_get_userbyid(nspowner) = '{}' order by 1"
    assert database.execute(query.format(database.writer)) == [("landing",), ("replicator",)]


def test_the_writer_may_switch_triggers_off_unless_told_otherwise(database: Database) -> None:
    database.make_writer(replica_role="off")
    with database.connect(database.writer) as writer:
        with pytest.raises(errors.InsufficientPrivilege):
            writer.execute("set session_replication_role = replica")
        database.make_writer()
        writer.execute("set session_replication_role = replica")


def test_the_writer_writes_a_table_that_was_there_only_when_it_is_named(source: Database) -> None:
    upsert = "insert into public.message values (1, 'z') on conflict (message_id) do update set body = excluded.body"
    source.make_writer()
    with source.connect(source.writer) as writer:
        with pytest.raises(errors.InsufficientPrivilege):
            writer.execute(upsert.encode())
        source.make_writer(tables="public.message")
        writer.execute(upsert.encode())
        writer.execute("delete from public.message where message_id = 2")
        with pytest.raises(errors.InsufficientPrivilege):
            writer.execute("alter table public.message add column extra int")
        with pytest.raises(errors.InsufficientPrivilege):
            writer.execute("select from sales.hidden")


@pytest.mark.parametrize(("side", "secret"), [("source", "READER_PASSWORD"), ("target", "WRITER_PASSWORD")])
def test_first_start_scripts_of_compose_make_the_roles_the_nightly_job_uses(
    shared_servers: SharedServers, side: str, secret: str
) -> None:
    server = shared_servers.get(side, NEWEST)
    services = YAML(typ="safe").load(ROOT / "docker-compose.yml")["services"]
    dsn = services["nightly"]["environment"][f"REPLICATOR_{side.upper()}__DSN"]
    assert dsn.endswith(f"@{side}/{services[side]['environment']['POSTGRES_DB']}")
    database = Database(server)

    def connect(password: str) -> Connection:
        uri = re.sub(r"\$\{.*?\}", password, dsn)
        return psycopg.connect(make_conninfo(uri, host=server.host, port=server.port, dbname=database.name))

    try:
        script = (ROOT / f"deploy/compose/{side}.sql").read_text()
        script = script.replace("/sql/roles.sql", str(ROOT / f"sql/{side}/roles.sql"))
        done = database.psql(script, env={secret: PASSWORD}, variables={"ON_ERROR_STOP": "1"})
        assert (done.returncode, done.stderr) == (0, "")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            connect("wrong")
        with connect(PASSWORD) as job:
            if side == "source":
                assert job.execute("select count(*) from public.message").fetchall() == [(3,)]
            else:
                job.execute("set session_replication_role = replica")
                job.execute("create schema replicator")
    finally:
        database.remove()
