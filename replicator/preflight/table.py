"""What a table's plan tells: keys, watermarks, types, foreign keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from psycopg import sql

from replicator.apply.evolve import (
    accepts,
    adds_digits,
    drop_index,
    find_strict_indexes,
    replace_index,
    spelled,
)
from replicator.apply.job import Job
from replicator.apply.types import Resolved
from replicator.catalog import read_foreign_keys
from replicator.db import Connection
from replicator.preflight.finding import Finding, find_error
from replicator.preflight.suggestion import suggest_key, suggest_key_index, suggest_watermark
from replicator.relation import FOREIGN, KIND_NAMES, MATVIEW, PARTITIONED, TABLE, VIEW, Relation, Type
from replicator.rules import Output
from replicator.strategy import FULL, WATERMARK, XMIN
from replicator.sync.inventory import explain_idle_pattern, vanished
from replicator.sync.planning import Plan, TablePlan

Expressions = Mapping[tuple[int, str], str]
_KEYLESS = "read in full at every sync and compared as a multiset; only the difference is written"


def check_plan(plan: Plan, *, deep: bool = False) -> Iterator[Finding]:
    """Find what every table's plan tells, table by table. deep: what its row versions tell, too."""
    if not plan.tables:
        yield Finding(
            "no_table", "warn", "the configuration selects no table", "add [[tables]] entries, or grant USAGE"
        )
    yield from check_selection(plan)
    for table in plan.tables:
        yield from check_table(table, on_standby=plan.facts.is_standby)
        if deep:
            yield from _check_trust(table)
    if plan.observation.prepared and any(table.job and table.job.choice.strategy == WATERMARK for table in plan.tables):
        yield Finding(
            "prepared_transaction",
            "warn",
            f"{plan.observation.prepared} prepared on the source and not ended: until then no watermark advances",
            "select gid, prepared, owner from pg_prepared_xacts; then COMMIT PREPARED or ROLLBACK PREPARED",
        )


def check_selection(plan: Plan) -> Iterator[Finding]:
    """Find patterns that select nothing, and tables that they select no longer."""
    for pattern in plan.idle_patterns:
        message, hint = explain_idle_pattern(pattern)
        yield Finding("pattern_without_match", "warn", message, hint)
    for error in map(vanished, plan.vanished):
        yield Finding(error.id, "warn", error.message, error.hint, error.table)


def check_table(plan: TablePlan, *, on_standby: bool) -> Iterator[Finding]:
    """Find what one table's plan tells; what would stop its sync comes first."""
    if plan.error is not None:
        yield find_error(plan.error, table=plan.table)
    job = plan.job
    if job is None:
        return
    choice = job.choice
    yield Finding("strategy", "ok", f"{choice.strategy} ({choice.guarantee}): {choice.reason}", None, plan.table)
    if job.mapping.relation.kind in (TABLE, PARTITIONED):
        yield from _check_key(job)
    else:
        yield from _check_view(job)
    yield from _check_watermark(job, on_standby=on_standby)
    yield from _check_types(plan, job)
    yield from _check_wider(plan, job)
    yield from _check_unique_indexes(plan, job)
    yield from _check_left_out(plan, job)
    yield from _check_sequences(plan)
    if plan.existing is not None and plan.existing.row_security:
        yield Finding(
            "row_security",
            "error",
            "policies of the target hide rows of the table from the role that writes it",
            sql.SQL("alter table {} disable row level security; or alter role ... bypassrls")
            .format(_name(plan.existing))
            .as_string(),
            plan.table,
        )


def _check_trust(plan: TablePlan) -> Iterator[Finding]:
    """Find watermarks that changes do not move; where no watermark is relied on, that is no fault."""
    trust, job = plan.trust, plan.job
    if trust is None or job is None:
        return
    if trust.unknown is not None or not trust.row_versions:
        yield Finding("watermark_unknown", "ok", trust.sentence, None, plan.table)
    elif not trust.unmoved:
        yield Finding("watermark_moved", "ok", trust.sentence, None, plan.table)
    elif job.settings.strategy in (XMIN, FULL):
        yield Finding(
            "watermark_unmoved", "ok", f"{trust.sentence}; {job.settings.strategy} finds them", None, plan.table
        )
    else:
        found = (
            "what it misses waits for the audit"
            if job.choice.strategy == WATERMARK
            else 'strategy = "auto" reads by xmin up to xmin_scan_limit, and by the watermark from there on'
        )
        yield Finding(
            "watermark_unmoved",
            "warn",
            f"{trust.sentence}; {found}",
            'set strategy = "xmin" for the table, or a shorter audit_every; or let a trigger of the source stamp it',
            plan.table,
        )


def _check_sequences(plan: TablePlan) -> Iterator[Finding]:
    """Find sequences of the target that `sync_sequences` leaves where they are."""
    for fed in plan.left_sequences:
        yield Finding(
            "sequence_left",
            "warn",
            f"column {fed.column} of the target takes its default from sequence {fed.schema}.{fed.name} by way of an "
            "expression or a type that does not tell where the sequence has to stand: it is not moved",
            sql.SQL("after a promotion: select setval({}, ...), by hand")
            .format(sql.Literal(fed.sequence.as_string()))
            .as_string(),
            plan.table,
        )


def _check_key(job: Job) -> Iterator[Finding]:
    relation = job.mapping.relation
    if job.mapping.key:
        return
    index = relation.identity_index
    if relation.has_children:
        yield Finding(
            "no_key",
            "warn",
            f"its SELECT returns the rows of its child tables, which its key does not cover: {_KEYLESS}",
            "where some columns are unique over parent and children together: key = [...] in its [[tables]] entry",
            job.table,
        )
    elif index is not None and index.deferrable:
        yield Finding("deferrable_key", "warn", f"its key is deferrable: {_KEYLESS}", _replace_key(relation), job.table)
    else:
        yield Finding("no_key", "warn", f"it has no key: {_KEYLESS}", _add_key(relation), job.table)


def _replace_key(relation: Relation) -> str:
    index = relation.identity_index
    assert index is not None
    columns = sql.SQL(", ").join(map(sql.Identifier, index.columns))
    kind = sql.SQL("primary key" if index.primary else "unique")
    return (
        sql.SQL("alter table {} drop constraint {}, add {} ({})")
        .format(_name(relation), sql.Identifier(index.name), kind, columns)
        .as_string()
    )


def _add_key(relation: Relation) -> str:
    index = suggest_key_index(relation)
    if index is not None:
        statement = sql.SQL("alter table {} replica identity using index {}")
        return statement.format(_name(relation), sql.Identifier(index.name)).as_string()
    if relation.kind == PARTITIONED:
        return sql.SQL("alter table {} add primary key (...)").format(_name(relation)).as_string()
    free = next(name for name in ("id", "row_id", "replicator_id") if name not in relation.by_name)
    statement = sql.SQL("alter table {} add column {} bigint generated always as identity primary key")
    return statement.format(_name(relation), sql.Identifier(free)).as_string()


def _check_view(job: Job) -> Iterator[Finding]:
    relation, mapping = job.mapping.relation, job.mapping
    kind = KIND_NAMES[relation.kind]
    if not mapping.key:
        columns = suggest_key(relation) or ("...",)
        yield Finding(
            "view_without_key",
            "warn",
            f"a {kind} without a key: {_KEYLESS}",
            f"key = {_list(columns)} in its [[tables]] entry, if those columns are unique",
            job.table,
        )
    elif mapping.watermark is None and job.choice.strategy == FULL and job.settings.strategy != FULL:
        column = suggest_watermark(relation) or "..."
        yield Finding(
            "view_without_watermark",
            "warn",
            f"a {kind} without a watermark: read in full at every sync",
            f'watermark = "{column}" in its [[tables]] entry, a column stamped with the time of each change',
            job.table,
        )


def _check_watermark(job: Job, *, on_standby: bool) -> Iterator[Finding]:
    relation, column = job.mapping.relation, job.mapping.watermark
    if column is None or job.settings.strategy == FULL:
        return
    if on_standby:
        yield Finding(
            "watermark_standby",
            "warn",
            f"the watermark {column.name} is not used: on a standby open transactions cannot be observed",
            "point source.dsn at the primary",
            job.table,
        )
    is_wanted = job.choice.strategy == WATERMARK or relation.heap_bytes > job.settings.xmin_scan_limit
    if relation.kind not in (VIEW, FOREIGN) and is_wanted and relation.index_on(column.name) is None:
        # Neither a partitioned table's index nor anything of a foreign server can be made CONCURRENTLY.
        how = sql.SQL("" if relation.kind == PARTITIONED else "concurrently ")
        statement = sql.SQL("create index {}on {} ({})").format(how, _name(relation), sql.Identifier(column.name))
        yield Finding(
            "watermark_without_index",
            "warn",
            f"no index starts with the watermark {column.name}: every sync scans the {KIND_NAMES[relation.kind]}",
            statement.as_string() + (" -- on the source" if relation.kind != MATVIEW else ""),
            job.table,
        )


def _check_types(plan: TablePlan, job: Job) -> Iterator[Finding]:
    types = job.mapping.relation.types
    lacking = [output for output in job.mapping.outputs if (r := plan.types.get(output.name)) and r.downgraded]
    if not lacking:
        return
    extensions = sorted({t.extension for o in lacking if (t := _innermost(types, o.type_oid)) and t.extension})
    makes = [sql.SQL("create extension {}").format(sql.Identifier(name)).as_string() for name in extensions]
    yield Finding(
        "type_as_text",
        "warn",
        f"{', '.join(output.name for output in lacking)}: the target has no such type, so the values are kept as text",
        ("; ".join(makes) if makes else "create the type under the same name")
        + ", in the target before the first sync",
        job.table,
    )


def _check_wider(plan: TablePlan, job: Job) -> Iterator[Finding]:
    """Find columns whose type in the target holds more than the source's."""
    if plan.existing is None:
        return
    wider = [
        (o.name, plan.spellings[o.name], plan.types[o.name].spelling)
        for o in job.mapping.outputs
        if o.name in plan.spellings
        and not plan.existing.by_name[o.name].generated
        and not plan.types[o.name].downgraded
        and plan.spellings[o.name] != plan.types[o.name].spelling
        and accepts(plan.spellings[o.name], plan.types[o.name].spelling)
    ]
    if not wider:
        return
    column = sql.SQL("alter column {0} type {1} using {0}::{1}")
    changes = sql.SQL(", ").join(column.format(sql.Identifier(name), spelled(theirs)) for name, _, theirs in wider)
    writes_otherwise = any(adds_digits(theirs, ours) for _, ours, theirs in wider)
    yield Finding(
        "type_wider",
        "warn" if writes_otherwise else "ok",
        "; ".join(f"column {name} is {ours} here and {theirs} in the source" for name, ours, theirs in wider)
        + (": the same numbers, written with more digits" if writes_otherwise else ": every value fits"),
        sql.SQL("alter table {} {} -- in the target").format(_name(plan.existing), changes).as_string(),
        plan.table,
    )


def _check_unique_indexes(plan: TablePlan, job: Job) -> Iterator[Finding]:
    """Find unique indexes that refuse a row for the sake of one which the source deleted; `sync` replaces its own."""
    if plan.existing is None:
        return
    for index in find_strict_indexes(plan.existing, job.mapping, job.settings):
        statements = drop_index(plan.existing, index), replace_index(plan.existing, index, job.settings)
        texts = [one.as_string() for one in statements]
        is_ours = set(texts) <= set(plan.ddl)
        yield Finding(
            "unique_index_kept_rows",
            "ok" if is_ours else "warn",
            f'deletes = "{job.settings.deletes}" keeps deleted rows, and index {index.name} is unique: '
            + ("the next sync replaces it" if is_ours else "it refuses a row with the value of a deleted one"),
            None if is_ours else "; ".join(texts) + " -- in the target",
            plan.table,
        )


def _check_left_out(plan: TablePlan, job: Job) -> Iterator[Finding]:
    """Find columns that the rules leave out, and that the target has: somebody may think that nothing is there."""
    existing, mapping = plan.existing, job.mapping
    if existing is None:
        return
    copied = {output.source.name for output in mapping.outputs}
    written = {output.name for output in mapping.outputs}
    left_out = [column.name for column in mapping.relation.columns if column.name not in copied]
    names = [job.settings.rename.get(name, name) for name in left_out]
    for name in names:
        if name in existing.by_name and name not in written:
            yield Finding(
                "left_out_column",
                "warn",
                f"column {name} is left out, and the target still has what was copied of it before",
                sql.SQL("alter table {} drop column {} -- in the target")
                .format(_name(existing), sql.Identifier(name))
                .as_string(),
                plan.table,
            )


def _innermost(types: dict[int, Type], oid: int) -> Type | None:
    found = types.get(oid)
    while found is not None and (found.base or found.element):
        found = types.get(found.base or found.element)
    return found


def check_expressions(tables: Iterable[TablePlan], there: Expressions, here: Expressions) -> Iterator[Finding]:
    """Find columns that both sides compute, each in its own way: they are neither written nor compared.

    there, here: what computes the columns of source and target, by (oid, column). Tables with renamed columns are
    passed over, for the same expression has other words there.
    """
    for plan in tables:
        if plan.relation is None or plan.existing is None or plan.job is None:
            continue
        outputs = plan.job.mapping.outputs
        if any(output.name != output.source.name for output in outputs):
            continue
        for output in outputs:
            theirs = there.get((plan.relation.oid, output.source.name))
            ours = here.get((plan.existing.oid, output.name))
            if theirs is not None and ours is not None and theirs != ours:
                yield Finding(
                    "generated_differs",
                    "warn",
                    f"column {output.name} is computed on both sides, by other expressions: it is not compared",
                    _compute_alike(plan.existing, output, plan.types, theirs),
                    plan.table,
                )


def _compute_alike(existing: Relation, output: Output, types: Mapping[str, Resolved], expression: str) -> str:
    column = sql.Identifier(output.name)
    kind = "virtual" if existing.by_name[output.name].generated == "v" else "stored"
    statement = sql.SQL("alter table {0} drop column {1}, add column {1} {2} generated always as ({3}) {4}").format(
        _name(existing), column, spelled(types[output.name].spelling), spelled(expression), sql.SQL(kind)
    )
    return statement.as_string()


def check_foreign_keys(target: Connection, tables: Iterable[TablePlan], grant: str) -> Iterator[Finding]:
    """Find tables of the target that refer to each other in a circle; only for a role that cannot switch that off.

    grant: the SQL that would let it.
    """
    names = {plan.existing.oid: plan.table for plan in tables if plan.existing is not None}
    ties = [pair for pair in read_foreign_keys(target, names) if pair[0] != pair[1]]
    for circle in find_circles(ties):
        members = sorted(names[oid] for oid in circle)
        yield Finding(
            "foreign_key_cycle",
            "error",
            f"foreign keys of the target tie {', '.join(members)} in a circle: no order of writing them is right",
            grant,
            members[0],
        )


def find_circles(ties: Sequence[tuple[int, int]]) -> list[set[int]]:
    """Return the groups of nodes that reach each other by (from, to) pairs; a pair to oneself makes no circle."""
    reached: dict[int, set[int]] = {}
    for start in {node for pair in ties for node in pair}:
        seen: set[int] = set()
        waiting = [start]
        while waiting:
            node = waiting.pop()
            for origin, end in ties:
                if origin == node and end not in seen:
                    seen.add(end)
                    waiting.append(end)
        reached[start] = seen
    circles: list[set[int]] = []
    for start, ends in sorted(reached.items()):
        circle = {end for end in ends if start in reached[end]} | {start}
        if len(circle) > 1 and circle not in circles:
            circles.append(circle)
    return circles


def _name(relation: Relation) -> sql.Identifier:
    return sql.Identifier(relation.schema, relation.name)


def _list(columns: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{column}"' for column in columns) + "]"
