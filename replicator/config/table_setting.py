"""The keys of a table: all decided in `[defaults]`, each of them free to be left out in a `[[tables]]` entry."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from replicator.config.section import (
    Days,
    Duration,
    Fraction,
    Names,
    Section,
    Size,
    SomeNames,
    Text,
    TextByColumn,
    TimeZone,
)
from replicator.selection import check_target, parse_pattern

Strategy = Literal["auto", "xmin", "watermark", "full"]
Deletes = Literal["hard", "soft", "ignore"]
OnSchemaChange = Literal["evolve", "freeze", "ignore"]
OnRowError = Literal["stop", "quarantine"]
Indexes = Literal["key", "all"]


def _check_columns(keys: TableSettings | TableEntry) -> None:
    if keys.include is not None and keys.exclude is not None:
        raise ValueError("include and exclude cannot stand together")
    if keys.rename and len(set(keys.rename.values())) < len(keys.rename):
        raise ValueError("rename gives two columns the same name")
    if keys.key and len(set(keys.key)) < len(keys.key):
        raise ValueError("key names a column twice")


BY_COLUMN = (
    "key", "watermark", "where", "include", "exclude", "rename", "mask", "nan_to_null", "null_values",
    "assume_timezone",
)  # fmt: skip
"""Keys that speak of columns: documented under `[[tables]]`, the others under `[defaults]`."""


class TableSettings(Section):
    """What holds for every table.

    Any key of [[tables]] but name and target may stand here too, and any key from here in a [[tables]] entry,
    which is asked first.
    """

    strategy: Strategy = Field(
        default="auto",
        description="How changed rows are found: auto, xmin (exact, scans the heap), watermark (bounded, needs a "
        "timestamp column) or full. `replicator plan` says what auto chose and why.",
    )
    xmin_scan_limit: Size = Field(
        default=8 * 1024**3, description="auto: heaps larger than this that have an indexed watermark use watermark."
    )
    watermark_slack: Duration | None = Field(
        default=None,
        description="Changes are taken to be stamped within this long of their transaction's start. Unset: 60s for "
        "timestamp with time zone, 26h for timestamp without, which may be of any zone.",
        examples=["60s"],
    )
    audit_every: Duration = Field(
        default=timedelta(days=7),
        description="What watermark may have missed is looked for and mended this often; views and tables under a "
        "million rows: in every sync.",
    )
    verify_share: Fraction = Field(
        default=0.0, description="Part of every table's key ranges proved equal in each nightly sync, 0.0 to 1.0."
    )
    deletes: Deletes = Field(
        default="hard",
        description="Rows gone from the source: hard deletes them, soft fills the column _deleted_at, ignore keeps "
        "them.",
    )
    max_delete_fraction: Fraction = Field(
        default=0.10,
        description="Safety stop before more than max(1000 rows, this part of the target) would be deleted. 1.0 "
        "switches every delete stop off, the one for an empty source too.",
    )
    on_schema_change: OnSchemaChange = Field(
        default="evolve",
        description="When the source's columns change: evolve follows, freeze stops, ignore keeps the old columns.",
    )
    on_row_error: OnRowError = Field(
        default="stop",
        description="When the target refuses a row: stop the table, or put the row into quarantine and go on.",
    )
    indexes: Indexes = Field(
        default="key",
        description="Indexes made on a new target table: key, or all of the source's secondary indexes too.",
    )
    sync_sequences: bool = Field(
        default=False,
        description="Move the sequences of the target's serial, identity and default columns past the highest copied "
        "value, so that the target can take the source's place.",
    )
    retention_days: Days = Field(default=90, description="Days that rows of etl_control are kept.")
    key: SomeNames | None = Field(
        default=None,
        description="Columns that name a row. Unset: the primary key, else the replica identity index.",
        examples=[["id"]],
    )
    watermark: Text | None = Field(
        default=None,
        description="Column that the source stamps with the time of each change, for strategy watermark.",
        examples=["updated_at"],
    )
    where: Text | None = Field(
        default=None,
        description="SQL condition over the row's columns: only its rows are copied.",
        examples=["account_id = 7"],
    )
    include: SomeNames | None = Field(
        default=None,
        description="Copy only these columns. Not together with exclude.",
        examples=[["id", "status"]],
    )
    exclude: SomeNames | None = Field(
        default=None,
        description="Copy all other columns. Not together with include.",
        examples=[["contact_phone"]],
    )
    rename: TextByColumn = Field(
        default={},
        description="Source column = name in the target. Those of [defaults] hold unless the column is named again.",
        examples=[{"conversation_updated_at": "updated_at"}],
    )
    mask: TextByColumn = Field(
        default={},
        description="Source column = hash (keyed, see privacy.mask_key_file), null, or an SQL expression over the "
        "row's columns. Those of [defaults] hold unless the column is named again.",
        examples=[{"contact_name": "hash"}],
    )
    nan_to_null: bool = Field(
        default=False, description="NaN of float and numeric columns becomes NULL.", examples=[True]
    )
    null_values: Names = Field(
        default=(),
        description="These strings become NULL in text columns.",
        examples=[["NaT", "NaN"]],
    )

    assume_timezone: TimeZone = Field(
        default="",
        description="IANA time zone of the source's timestamp columns whose target column is timestamptz. Unset: such "
        "a pair is refused.",
        examples=["America/Sao_Paulo"],
    )

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        _check_columns(self)
        return self


class TableEntry(Section):
    """One `[[tables]]` entry. A key left out is that of `[defaults]`."""

    name: Text = Field(
        description="Table, partitioned table, view, materialized view or foreign table, written as in SQL; "
        "public.* and *.* are patterns (of tables and partitioned tables). No [[tables]] at all means public.*.",
        examples=["public.conversations"],
    )
    target: Text | None = Field(
        default=None,
        description="Name in the target. Unset: the same schema and name. raw.* maps a pattern's schema.",
        examples=["analytics.conversations"],
    )
    strategy: Strategy | None = None
    xmin_scan_limit: Size | None = None
    watermark_slack: Duration | None = None
    audit_every: Duration | None = None
    verify_share: Fraction | None = None
    deletes: Deletes | None = None
    max_delete_fraction: Fraction | None = None
    on_schema_change: OnSchemaChange | None = None
    on_row_error: OnRowError | None = None
    indexes: Indexes | None = None
    sync_sequences: bool | None = None
    retention_days: Days | None = None
    key: SomeNames | None = None
    watermark: Text | None = None
    where: Text | None = None
    include: SomeNames | None = None
    exclude: SomeNames | None = None
    rename: TextByColumn | None = None
    mask: TextByColumn | None = None
    nan_to_null: bool | None = None
    null_values: Names | None = None
    assume_timezone: TimeZone | None = None

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        parse_pattern(value)
        return value

    @field_validator("target")
    @classmethod
    def _check_target_name(cls, value: str | None) -> str | None:
        if value is not None:
            parse_pattern(value)
        return value

    @model_validator(mode="after")
    def _check_entry(self) -> Self:
        if self.target is not None:
            try:
                check_target(self.name, self.target)
            except ValueError as error:
                raise ValueError(f"target {error}") from None
        _check_columns(self)
        return self


def decide_keys(defaults: TableSettings, entry: TableEntry) -> TableSettings:
    """Decide every key of a table: the entry's, else that of `[defaults]`, which are the built-in ones if unset.

    `mask` and `rename` are decided column by column, so that an entry with a mask of its own does not lift those
    of `[defaults]`. `include` and `exclude` are one decision: an entry with either drops both of `[defaults]`.
    """
    chosen: dict[str, Any] = {key: getattr(entry, key) for key in TableSettings.model_fields}
    update = {key: value for key, value in chosen.items() if value is not None}
    for key in ("mask", "rename"):
        if key in update:
            update[key] = {**getattr(defaults, key), **update[key]}
    if "include" in update or "exclude" in update:
        update = {"include": None, "exclude": None, **update}
    return defaults.model_copy(update=update)
