"""The configuration: every key, its default, its unit and its reason; frozen once loaded.

`load_settings` is the only way in. A key is taken from the first of: environment (`REPLICATOR_SOURCE__DSN`),
`.env` beside the configuration file, the file itself, the default here. Nothing read is ever printed: errors
name the key and what it should be.
"""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, SecretStr, StringConstraints, field_validator, model_validator

from replicator.config.section import (
    JSON_TEXT,
    Days,
    Duration,
    OptionalPath,
    OptionalSecret,
    Section,
    Size,
    Text,
    Wait,
)
from replicator.config.settings_source import load_tree, validate_tree
from replicator.config.table_setting import TableEntry, TableSettings, decide_keys
from replicator.errors import ConfigError
from replicator.selection import parse_pattern

PIPELINE = "<pipeline>"

LogFormat = Literal["auto", "console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_SLOT_NAME = re.compile(r"[a-z0-9_]{1,63}")


class SourceSettings(Section):
    """The database that is read."""

    dsn: OptionalSecret = Field(
        default=None,
        description="Connection string of the source: any libpq conninfo or URI. PGPASSFILE, service files and PG* "
        "variables work untouched; keep passwords there or in .env.",
    )
    connect_timeout: Wait = Field(
        default=timedelta(seconds=10), description="How long the first connection to source or target may take."
    )
    lock_timeout: Wait = Field(
        default=timedelta(seconds=30),
        description="How long a read waits for its ACCESS SHARE locks; a table locked for longer fails alone.",
    )
    max_hold: Wait = Field(
        default=timedelta(seconds=60),
        description="Once somebody waits for a stronger lock on a table that is being read, the read is given up after "
        "this long and tried again at the end of the run: an ALTER in the queue blocks the application.",
    )


class TargetSettings(Section):
    """The database that is written."""

    dsn: OptionalSecret = Field(
        default=None,
        description="Connection string of the target. Empty: an embedded PostgreSQL kept in data_dir.",
    )
    control_schema: Annotated[str, StringConstraints(min_length=1, max_length=63)] = Field(
        default="replicator", description="Schema in the target for etl_control, its views and private state."
    )

    @field_validator("control_schema")
    @classmethod
    def _check_control_schema(cls, value: str) -> str:
        if "\0" in value or len(value.encode()) > 63 or value.startswith("pg_"):
            raise ValueError("should be a schema name of at most 63 bytes that does not begin with pg_")
        return value


class PrivacySettings(Section):
    """Secrets of masking."""

    mask_key_file: OptionalPath = Field(
        default=None,
        description="File with the secret of mask hash = hex sha256(secret || text of the value in UTF-8). Its last "
        "line end does not count. Keep it readable by its owner alone.",
    )


class ScheduleSettings(Section):
    """When `replicator serve` runs the nightly sync."""

    cron: Text = Field(default="0 3 * * *", description="Time of the nightly sync: minute, hour, day, month, weekday.")
    timezone: Text = Field(
        default="UTC", description="IANA time zone of cron; `replicator schedule` shows where it bites."
    )

    @field_validator("cron")
    @classmethod
    def _check_cron(cls, value: str) -> str:
        from datetime import UTC, datetime

        from cronsim import CronSim, CronSimError

        problem = "should be five cron fields (minute hour day month weekday), like 0 3 * * *"
        # With a sixth it would count seconds first, and run every hour what was meant for the night.
        if len(value.split()) != 5:
            raise ValueError(problem)
        try:
            CronSim(value, datetime.now(UTC))
        except CronSimError:
            raise ValueError(problem) from None
        return value

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, value: str) -> str:
        from zoneinfo import ZoneInfo

        try:
            ZoneInfo(value)
        except (ValueError, OSError, LookupError):
            if value != "UTC":
                raise ValueError("should be an IANA time zone like UTC or Europe/Lisbon") from None
        return value


class ListenSettings(Section):
    """The live listener."""

    publication: Text = Field(default=f"replicator_{PIPELINE}", description="Publication on the source.")
    slot: Text = Field(default=f"replicator_{PIPELINE}", description="Replication slot on the source.")
    on_table_error: Literal["park", "stop"] = Field(
        default="park",
        description="What trouble of one table alone does: park leaves that table out until its cause is gone, and all "
        "others go on; stop ends the listener.",
    )
    batch_bytes: Size = Field(default=64 * 1024**2, description="Memory for changes in hand; past it reading pauses.")
    heartbeat: Wait = Field(
        default=timedelta(seconds=30),
        description="How often a message is written to the source's WAL, where the role may: an idle database would "
        "otherwise pin the WAL of the whole server.",
    )


class TlsSettings(Section):
    """Certificates of the connection to NATS."""

    ca: OptionalPath = Field(default=None, description="File of the certificate authority.")
    cert: OptionalPath = Field(default=None, description="File of the client's certificate.")
    key: OptionalPath = Field(default=None, description="File of the client's key.")


class ChangelogSettings(Section):
    """The JetStream between `replicator capture` and `replicator apply` (planned; read by these two alone)."""

    url: OptionalSecret = Field(
        default=None,
        description="Servers, separated by commas, like nats://a:4222,nats://b:4222. Only for capture and apply.",
    )
    stream: Text = Field(default=f"replicator_{PIPELINE}", description="Name of the stream.")
    partitions: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="Number of partitions; as many appliers can share the work."
    )
    partition_by: Literal["none", "table", "key"] = Field(
        default="none",
        description="none keeps source transactions whole; table and key promise order per table or key only.",
    )
    replicas: Annotated[int, Field(ge=1, le=5)] = Field(default=3, description="Servers that hold each message.")
    max_age: Duration = Field(default=timedelta(days=7), description="How long changes are kept.")
    max_bytes: Size = Field(default=50 * 1024**3, description="How much is kept; a full stream pauses the capture.")
    publish: Literal["native", "json"] = Field(default="native", description="native, or json for other consumers.")
    credentials: OptionalPath = Field(default=None, description="NATS credentials file.")
    tls: TlsSettings = TlsSettings()


class ServeSettings(Section):
    """Scheduler, REST API, dashboard and metrics."""

    host: Text = Field(
        default="127.0.0.1", description="Address to listen on; anything but loopback needs the token file."
    )
    port: Annotated[int, Field(ge=0, le=65_535)] = Field(
        default=8321, description="Port to listen on; 0 takes a free one."
    )
    token_file: OptionalPath = Field(
        default=Path("api.token"),
        description="File with the bearer token of the API; a relative path is looked up beside the configuration.",
    )


class AlertSettings(Section):
    """Who is told when something is wrong."""

    urls: Annotated[tuple[SecretStr, ...], JSON_TEXT] = Field(
        default=(), description="Apprise URLs: Slack, e-mail, webhook and others. They hold tokens: better set in .env."
    )
    stale_after: Wait = Field(
        default=timedelta(hours=26), description="Alert, and `health` fails, when the last success is older than this."
    )


class LogSettings(Section):
    """Where logs go and how they look."""

    format: LogFormat = Field(
        default="auto", description="Of stderr: auto (console on a terminal, JSON otherwise), console or json."
    )
    level: LogLevel = Field(default="info", description="Least level that is logged: debug, info, warning or error.")
    dir: OptionalPath = Field(
        default=Path("logs/etl"),
        description="Folder of etl_YYYYMMDD.log (JSON lines, UTC days) and the link etl_latest.log; empty: no files.",
    )
    retention_days: Days = Field(default=30, description="Days that log files are kept.")
    ship_url: OptionalSecret = Field(default=None, description="OTLP/HTTP logs endpoint; needs the extra otel.")

    @field_validator("ship_url")
    @classmethod
    def _check_ship_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _is_http_url(value.get_secret_value()):
            raise ValueError("should be an address like http://host:4318/v1/logs, with http or https")
        return value


def _is_http_url(text: str) -> bool:
    from urllib.parse import urlsplit

    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0 and text.isprintable()
    except ValueError:
        return False


class Settings(Section):
    """The whole configuration of one pipeline."""

    # Values of variables stay text until the key's own type reads them, so that a bad one is reported like any other.
    model_config = ConfigDict(**{**Section.model_config, "enable_decoding": False})  # type: ignore[typeddict-unknown-key]

    pipeline: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,52}$")] = Field(
        default="default",
        description="Name of this pipeline, part of slot, publication and lock names: a-z, 0-9 and _, at most 52.",
    )
    data_dir: Path = Field(
        default=Path(".replicator"), description="Folder of the embedded target and of spooled data."
    )
    lock_wait: Duration = Field(
        default=timedelta(seconds=30),
        description="How long a command waits for another's lock: after a kill -9 it may live on for a moment.",
    )
    metrics_textfile: OptionalPath = Field(
        default=None,
        description="File for node-exporter's textfile collector, written after one-shot commands; empty: none.",
    )
    source: SourceSettings = SourceSettings()
    target: TargetSettings = TargetSettings()
    defaults: TableSettings = TableSettings()
    tables: Annotated[tuple[TableEntry, ...], JSON_TEXT] = Field(
        default=(),
        description="A table to copy, or a pattern of tables. A name wins over a pattern, of patterns the closer one.",
    )
    privacy: PrivacySettings = PrivacySettings()
    schedule: ScheduleSettings = ScheduleSettings()
    listen: ListenSettings = ListenSettings()
    changelog: ChangelogSettings = ChangelogSettings()
    serve: ServeSettings = ServeSettings()
    alerts: AlertSettings = AlertSettings()
    logs: LogSettings = LogSettings()

    @field_validator("tables")
    @classmethod
    def _check_tables(cls, entries: tuple[TableEntry, ...]) -> tuple[TableEntry, ...]:
        patterns = [parse_pattern(entry.name) for entry in entries]
        if len(set(patterns)) < len(patterns):
            raise ValueError("name the same table or pattern twice")
        return entries

    @model_validator(mode="after")
    def _check_slot(self) -> Self:
        if not _SLOT_NAME.fullmatch(self.slot_name):
            raise ValueError("listen.slot should be at most 63 of a-z, 0-9 and _")
        if len(self.publication_name.encode()) > 63:
            raise ValueError("listen.publication should be at most 63 bytes long")
        return self

    @property
    def names_database(self) -> bool:
        """Say whether a source or a target is configured at all."""
        return self.source.dsn is not None or self.target.dsn is not None

    @property
    def entries(self) -> tuple[TableEntry, ...]:
        """Return the tables to copy; `public.*` when none is configured."""
        return self.tables or (TableEntry(name="public.*"),)

    @property
    def slot_name(self) -> str:
        """Return the replication slot's name, pipeline filled in."""
        return self.listen.slot.replace(PIPELINE, self.pipeline)

    @property
    def publication_name(self) -> str:
        """Return the publication's name, pipeline filled in."""
        return self.listen.publication.replace(PIPELINE, self.pipeline)

    @property
    def stream_name(self) -> str:
        """Return the JetStream stream's name, pipeline filled in."""
        return self.changelog.stream.replace(PIPELINE, self.pipeline)


def load_settings(config: Path | None = None, *, cwd: Path | None = None) -> Settings:
    """Read the configuration of `config`, else of REPLICATOR_CONFIG, else of `replicator.toml` in `cwd`.

    Raises ConfigError with every problem in one message; never with a value.
    """
    return validate_tree(Settings, load_tree(Settings, config, cwd or Path.cwd()))


def table_settings(settings: Settings, entry: TableEntry | None) -> TableSettings:
    """Return every key of a table decided: its entry's over those of `[defaults]` over the built-in ones."""
    return settings.defaults if entry is None else decide_keys(settings.defaults, entry)


def source_dsn(settings: Settings) -> str:
    """Return the source's connection string in clear. Raises ConfigError when there is none."""
    if settings.source.dsn is None:
        raise ConfigError(
            "source.dsn is not set",
            why="this command reads the source database",
            hint="put it into replicator.toml, or set REPLICATOR_SOURCE__DSN in the environment or in .env; "
            "`replicator init --source DSN` writes a configuration",
        )
    return settings.source.dsn.get_secret_value()


def target_dsn(settings: Settings) -> str | None:
    """Return the target's connection string in clear, None for the embedded target."""
    return None if settings.target.dsn is None else settings.target.dsn.get_secret_value()


def read_mask_key(settings: Settings) -> bytes | None:
    """Return the secret of `hash`, without one line end after it; None when no file is configured.

    Raises ConfigError when the file cannot be read, is empty, or holds what `set_config` cannot carry: the secret
    reaches the source as text.
    """
    path = settings.privacy.mask_key_file
    if path is None:
        return None
    hint = "write one: `openssl rand -hex 32 > FILE && chmod 600 FILE`"
    try:
        key = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"privacy.mask_key_file: {path} cannot be read", why=error.strerror or "unknown reason", hint=hint
        ) from None
    key = key.removesuffix(b"\n").removesuffix(b"\r")
    if not key:
        raise ConfigError(f"privacy.mask_key_file: {path} is empty", why="hashes could be guessed", hint=hint)
    if b"\0" in key or not _is_utf8(key):
        raise ConfigError(f"privacy.mask_key_file: {path} is not text in UTF-8", why="SQL carries text", hint=hint)
    return key


def mask_key_is_exposed(settings: Settings) -> bool:
    """Tell whether others than its owner may read the mask key file; False when there is none."""
    path = settings.privacy.mask_key_file
    return path is not None and path.exists() and bool(path.stat().st_mode & 0o077)


def dsn_has_password(dsn: str) -> bool:
    """Tell whether a connection string, as URI or keywords, carries a password.

    Raises ConfigError, without the text, when it is no connection string.
    """
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        parameters = conninfo_to_dict(dsn)
    except ProgrammingError:
        raise ConfigError(
            "this is not a connection string",
            why="PostgreSQL's client library cannot read it",
            hint="write a URI (postgresql://user@host/database) or keywords (host=... dbname=... user=...)",
        ) from None
    return any(parameters.get(word) for word in ("password", "sslpassword", "oauth_client_secret"))


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
