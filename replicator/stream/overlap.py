"""Tables whose changes come under another table's name: a stream brings those once, so only one of the two has it.

    partition ──► its root              of the publication, with publish_via_partition_root
    child     ──► its parent            a SELECT on the parent returns the child's rows
    child     ──► the first of two parents that share it

What is left out stays with the nightly sync. All tables of the configuration are looked at together, parked ones too:
who keeps a member must not change while a stream runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from replicator.capture.publication import Family, find_publishing_roots, read_families
from replicator.db import Connection
from replicator.relation import PARTITIONED
from replicator.selection import format_identifier, format_table_name
from replicator.sync.inventory import Chosen


@dataclass(frozen=True, slots=True)
class Overlap:
    """Why a stream leaves a table out, and what would let it in."""

    reason: str
    hint: str


def find_overlaps(connection: Connection, publication: str, tables: Sequence[Chosen]) -> dict[str, Overlap]:
    """Return those of the tables that a stream has to leave out.

    connection: to the source. The publication may be somebody else's, and there may be none yet.
    """
    names = {(table.schema, table.name): table.table for table in tables}
    families = {names[family.schema, family.name]: family for family in read_families(connection, list(names))}
    overlaps = find_shared(families)
    left = {family.oid: table for table, family in families.items() if table not in overlaps}
    for oid, root in find_publishing_roots(connection, publication, list(left)).items():
        overlaps[left[oid]] = _published_as(publication, format_table_name(*root))
    return overlaps


def find_shared(families: Mapping[str, Family]) -> dict[str, Overlap]:
    """Return those of the tables whose rows, or some of them, another of the tables returns too. Pure.

    The one with the most members keeps them: of a root and its partitions that is the root.
    """
    owners: dict[int, str] = {}
    overlaps: dict[str, Overlap] = {}
    for table in sorted(families, key=lambda name: (-len(families[name].members), name)):
        family = families[table]
        taken = sorted({owners[oid] for oid in family.members if oid in owners})
        if taken:
            overlaps[table] = _shared(taken[0], families[taken[0]].kind, is_within=family.oid in owners)
        else:
            owners |= dict.fromkeys(family.members, table)
    return overlaps


def _shared(other: str, kind: str, *, is_within: bool) -> Overlap:
    child = "partition" if kind == PARTITIONED else "child table"
    return Overlap(
        f"its changes travel as those of {other}, of which it is a {child}"
        if is_within
        else f"it shares a {child} with {other}, and changes of that travel as those of {other}",
        f"name only one of them under [[tables]]; {other} brings the same rows live",
    )


def _published_as(publication: str, root: str) -> Overlap:
    return Overlap(
        f"publication {publication} tells its changes as those of {root}",
        f"name {root} under [[tables]] instead; or, as the publication's owner: "
        f"alter publication {format_identifier(publication)} set (publish_via_partition_root = false)",
    )
