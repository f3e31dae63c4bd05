"""What shows in one cheap look that a table's definition may have changed, so that only such a table is looked into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from replicator.db import Connection, reading_catalog
from replicator.statement import statement


@dataclass(frozen=True, slots=True)
class Signatures:
    """Signatures of one moment.

    by_oid: of each root that is there: its columns and their types, indexes, files, members, identities, and what ties
    it to the publication. shared: of the publication itself; once it changes, each of the tables may have changed.
    """

    by_oid: dict[int, str]
    shared: str

    def find_changed(self, since: Signatures) -> set[int]:
        """Return the roots that may be defined otherwise than at an earlier look, and those that are gone or new."""
        if self.shared != since.shared:
            return self.by_oid.keys() | since.by_oid.keys()
        return {
            oid for oid in self.by_oid.keys() | since.by_oid.keys() if self.by_oid.get(oid) != since.by_oid.get(oid)
        }


def read_signatures(connection: Connection, publication: str, oids: Sequence[int]) -> Signatures:
    """Return the signatures of tables, in one round trip for any number of them.

    A signature is another one after each DDL that may concern the table, one that changed nothing too. VACUUM, ANALYZE
    and changes of rows leave it as it is.
    """
    with reading_catalog():
        rows = connection.execute(
            statement("replication.signatures"), {"publication": publication, "oids": list(oids)}
        ).fetchall()
    found = {row["oid"]: row["signature"] for row in rows}
    shared = found.pop(None)
    return Signatures(found, shared)
