"""The ground that contenders meet on: two PostgreSQL 18 servers with fsync on, and a million conversations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from tests.pair import Pair
from tests.servers import Cluster, open_workspace

SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "dynamic_shared_memory_type": "posix",
    # A transaction that touches thousands of tables locks each.
    "max_locks_per_transaction": "512",
}
IDLE_ROWS = 100_000

COLUMNS = {
    "id": "bigint",
    "account_id": "int",
    "inbox_id": "int",
    "contact_id": "int",
    "message_count": "int",
    "status": "text",
    "channel": "text",
    "subject": "text",
    "labels": "text[]",
    "attributes": "jsonb",
    "notes": "text",
    "created_at": "timestamptz",
    "last_activity_at": "timestamptz",
    "updated_at": "timestamptz",
}

FILL = """
insert into {table}
select n, n %% 50, n %% 400, n %% 90000, n %% 60, (array['open', 'resolved', 'pending'])[n %% 3 + 1],
       (array['email', 'whatsapp', 'web'])[n %% 3 + 1], 'Order ' || md5(n::text),
       array['vip', 'label ' || n %% 20], jsonb_build_object('plan', n %% 5, 'source', 'campaign ' || n %% 100),
       left(repeat(md5((n * 7)::text), 7), 200),
       '2026-01-01'::timestamptz + n * interval '7 seconds', '2026-02-01'::timestamptz + n * interval '7 seconds',
       '2026-02-01'::timestamptz + n * interval '7 seconds'
from generate_series(1, %s) as n
"""

IDLE = """
create table {table} as
select n::bigint as id, n %% 50 as account_id, 'Order ' || n as subject, 'open'::text as status,
       '2026-02-01'::timestamptz + n * interval '7 seconds' as updated_at
from generate_series(1, %s) as n
"""

CHANGE = """
update conversations
set message_count = message_count + 1, status = 'changed', last_activity_at = clock_timestamp(), updated_at = now()
where id > %(first)s and id <= %(last)s
"""

CHECKSUM = "select count(*), sum(hashtextextended(t::text, 0))::text from {table} as t"


@dataclass
class Arena:
    """Source and target, reached by every contender as `reader` and as `writer`.

    cluster: the target's server; source_cluster: the source's.
    """

    pair: Pair
    cluster: Cluster
    source_cluster: Cluster
    rows: int

    @property
    def source(self) -> psycopg.Connection[TupleRow]:
        """Return the superuser's connection to the source database."""
        return self.pair.source

    def fill_conversations(self) -> None:
        """Create and fill the big table."""
        self.source.execute(define_table("conversations"))
        self.source.execute(sql.SQL(FILL).format(table=sql.Identifier("conversations")), [self.rows])
        self.source.execute("alter table conversations add primary key (id)")
        self.source.execute("create index on conversations (updated_at)")
        self.source.execute("analyze conversations")
        self.pair.grant()

    def change_tenth(self, number: int) -> str:
        """Change a tenth of the rows, neighbours as the latest conversations are; return their common stamp."""
        share = self.rows // 10
        first = self.rows - share * (1 + number % 10)
        with self.source.transaction():
            self.source.execute(CHANGE, {"first": first, "last": first + share})
            row = self.source.execute("select now()::text").fetchone()
        assert row is not None
        return str(row[0])

    def fill_idle(self, tables: int) -> None:
        """Create the schema `idle` with tables of 100,000 rows, five columns each."""
        self.source.execute("create schema idle")
        for number in range(tables):
            table = sql.Identifier("idle", f"conversations_{number:02}")
            self.source.execute(sql.SQL(IDLE).format(table=table), [min(IDLE_ROWS, self.rows)])
            self.source.execute(sql.SQL("alter table {} add primary key (id)").format(table))
        self.pair.grant()

    def create_target(self) -> str:
        """Create one more database on the target server, owned by `writer`; return its name."""
        return self.pair.target_server.create_database(
            self.pair.target_server.invent_name("contender"), owner=self.pair.writer
        )

    def settle(self, *databases: str) -> None:
        """Do the work that the last turns left behind, so that the next does not pay for it."""
        self.source.execute("vacuum")
        self.source.execute("checkpoint")
        for database in databases:
            self.pair.target_server.execute("vacuum", dbname=database)
        self.pair.target_server.execute("checkpoint")

    def assert_equal(self, database: str, *table: str) -> None:
        """Prove by count and hash that a contender's table holds the source's rows."""
        query = sql.SQL(CHECKSUM).format(table=sql.Identifier(*table))
        expected = self.source.execute(query).fetchall()
        actual = self.pair.target_server.execute(query, dbname=database)
        assert expected == actual, f"{'.'.join(table)} in {database}: {actual} instead of {expected}"


def define_table(*name: str) -> sql.Composed:
    """Return the CREATE TABLE of conversations, a heap without any index."""
    columns = [sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL(kind)) for column, kind in COLUMNS.items()]
    return sql.SQL("create table {} ({})").format(sql.Identifier(*name), sql.SQL(", ").join(columns))


@contextmanager
def open_arena(rows: int) -> Iterator[Arena]:
    """Start two servers of their own, and leave nothing of them behind."""
    with ExitStack() as stack:
        workspace = stack.enter_context(open_workspace())
        source, target = (stack.enter_context(Cluster(18, workspace, settings=SETTINGS)) for _ in range(2))
        folder = workspace.path / "run"
        folder.mkdir()
        pair = Pair(source, target, folder)
        stack.callback(pair.source.close)
        stack.callback(pair.target.close)
        yield Arena(pair, target, source, rows)
