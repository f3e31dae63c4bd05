"""What a table of the stream is defined as: once that changes in ways the stream does not tell, it is read again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from replicator.apply.job import Job
from replicator.relation import TABLE


def define(job: Job, memberships: Mapping[int, str]) -> str:
    """Return a text that stands for all that the table's rows depend on beside their own versions.

    memberships: by root, what ties it to the publication.

    Three words: a hash of what counts by itself, and the versions of a plain table's file and of its columns. TRUNCATE
    gives it another file, and the stream brings that; VACUUM FULL does, and changes no row; ALTER ... SET DEFAULT
    touches a column alone. An ALTER that writes other values into the same columns, which no message tells of, changes
    both. Of a partitioned table every member's file counts: what TRUNCATE does to a partition is not published through
    the root.
    """
    relation = job.mapping.relation
    is_plain = relation.kind == TABLE and not relation.has_children
    facts = {
        "oid": relation.oid,
        "members": [] if is_plain else sorted((m.oid, m.filenode, m.kind) for m in relation.members),
        "columns": [(c.number, c.name, c.type_oid, c.typmod, c.generated, c.missing) for c in relation.columns],
        "types": sorted((t.oid, t.name, t.kind, t.base, t.element, t.labels, t.parts) for t in relation.types.values()),
        "rules": job.rules,
        "key": job.mapping.key,
        "target": job.target,
        "membership": memberships.get(relation.oid),
    }
    files = [m.filenode for m in relation.members] if is_plain else []
    columns = [(c.number, c.version) for c in relation.columns] if is_plain else []
    return " ".join(map(_hash, (facts, files, columns)))


def is_redefined(before: str, now: str) -> bool:
    """Say whether the stream alone cannot bring a table from one definition to the other."""
    old, new = before.split(), now.split()
    return len(old) != len(new) or old[0] != new[0] or (old[1] != new[1] and old[2] != new[2])


def _hash(facts: object) -> str:
    text = json.dumps(facts, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
