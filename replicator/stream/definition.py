"""What a table of the stream is defined as: once that changes in ways the stream does not tell, it is read again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from replicator.apply.job import Job
from replicator.relation import TABLE


def define(job: Job, memberships: Mapping[int, str]) -> str:
    """Return a hash of all that the table's rows depend on beside their own versions.

    memberships: by root, what ties it to the publication.

    A fingerprint without what TRUNCATE and VACUUM FULL change in a plain table: the stream brings the first, and the
    second changes no row. Of a partitioned table every member counts, its file too: what TRUNCATE does to a partition
    is not published through the root.
    """
    relation = job.mapping.relation
    members = relation.members if relation.kind != TABLE or relation.has_children else ()
    facts = {
        "oid": relation.oid,
        "members": sorted((m.oid, m.filenode, m.kind) for m in members),
        "columns": [(c.number, c.name, c.type_oid, c.typmod, c.generated, c.missing) for c in relation.columns],
        "types": sorted((t.oid, t.name, t.kind, t.base, t.element, t.labels, t.parts) for t in relation.types.values()),
        "rules": job.rules,
        "key": job.mapping.key,
        "target": job.target,
        "membership": memberships.get(relation.oid),
    }
    return hashlib.sha256(json.dumps(facts, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
