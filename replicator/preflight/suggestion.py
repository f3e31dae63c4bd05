"""What a relation offers where nobody has chosen yet: a key, a watermark. Guesses for people, never for a sync."""

from __future__ import annotations

from replicator.relation import FOREIGN, MATVIEW, VIEW, Index, Relation

# In the order of trust: names that frameworks stamp at every change, before those of other habits.
WATERMARK_NAMES = (
    "updated_at",
    "modified_at",
    "last_modified_at",
    "changed_at",
    "last_updated_at",
    "updated_on",
    "modified_on",
    "updated",
    "modified",
    "last_modified",
    "last_updated",
    "last_update",
    "update_time",
    "modify_time",
    "date_updated",
    "date_modified",
    "write_date",
)
_TIMES = frozenset({"timestamptz", "timestamp"})


def suggest_watermark(relation: Relation) -> str | None:
    """Return the column that looks like the time of a row's last change; indexed ones come first, then usual names.

    A column like `conversation_updated_at` counts by its ending, as views name them.
    """
    candidates = [
        (relation.index_on(column.name) is None, rank, position, column.name)
        for position, column in enumerate(relation.columns)
        if _is_time(relation, column.type_oid) and (rank := _rank(column.name)) is not None
    ]
    return min(candidates)[-1] if candidates else None


def suggest_key(relation: Relation) -> tuple[str, ...]:
    """Return the columns of a unique index that could serve as a key; of what has no indexes, what looks like one.

    A wrong guess does no harm: a key that is not unique is refused at the first load.
    """
    index = suggest_key_index(relation)
    if index is not None:
        return index.columns
    if relation.kind not in (VIEW, MATVIEW, FOREIGN) or not relation.columns:
        return ()
    first = relation.columns[0].name
    return ("id",) if "id" in relation.by_name else (first,) if first.endswith("_id") else ()


def suggest_key_index(relation: Relation) -> Index | None:
    """Return a unique index over columns without NULLs, the one with the fewest columns."""
    # A materialized view has no NOT NULL; its unique index is made for REFRESH ... CONCURRENTLY, which needs a key too.
    fitting = [
        index
        for index in relation.indexes
        if index.unique
        and index.covers_all
        and not index.deferrable
        and (relation.kind == MATVIEW or all(relation.by_name[column].not_null for column in index.columns))
    ]
    return min(fitting, key=lambda index: (len(index.columns), index.name), default=None)


def _is_time(relation: Relation, type_oid: int) -> bool:
    found = relation.types.get(type_oid)
    while found is not None and found.base:
        found = relation.types.get(found.base)
    return found is not None and found.schema == "pg_catalog" and found.name in _TIMES


def _rank(name: str) -> int | None:
    plain = name.lower().replace("updatedat", "updated_at").replace("modifiedat", "modified_at")
    for rank, known in enumerate(WATERMARK_NAMES):
        if plain == known:
            return rank
    for rank, known in enumerate(WATERMARK_NAMES, len(WATERMARK_NAMES)):
        if plain.endswith(f"_{known}"):
            return rank
    return None
