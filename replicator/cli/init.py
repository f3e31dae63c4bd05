"""The command `init`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import wrap

from replicator.cli.output import as_text, print_json
from replicator.config.settings import Settings, dsn_has_password
from replicator.config.settings_source import CONFIG_VARIABLE, FILE_NAME, check_env_file
from replicator.config.template import WIDTH, SuggestedTable, format_toml, render_config
from replicator.db import check_conninfo, closing, connect, translated
from replicator.errors import EXIT_OK, ConfigError, UsageError
from replicator.preflight.introspection import Found, Introspection, introspect, name_patterns
from replicator.selection import parse_pattern
from replicator.sync.planning import forbid_writing

SOURCE_VARIABLE = "REPLICATOR_SOURCE__DSN"
EVERYTHING = "public.*"


def write_config(
    config: Path | None,
    source: str | None,
    target: str | None,
    patterns: Sequence[str],
    *,
    force: bool,
    as_json: bool,
) -> int:
    """Look at the source and write a configuration for it.

    Raises UsageError for a password among the arguments, and for a file that is there already.
    """
    path = config or Path(os.environ.get(CONFIG_VARIABLE) or FILE_NAME)
    for option, dsn in (("--source", source), ("--target", target)):
        _refuse_password(option, dsn)
    if path.exists() and not force:
        raise _exists(path)
    names = name_patterns(patterns or [EVERYTHING])
    dsn = source or _read_dsn(path)
    check_conninfo(dsn, "--source" if source else SOURCE_VARIABLE)
    settings = Settings.model_validate({"source": {"dsn": dsn}, "tables": [{"name": n} for n in names]})
    found = _look(settings, each_pattern=bool(patterns))
    text = render_config(source or "", target, _suggest(names, found)) + "".join(_offer_views(found.views))
    _write(path, text, force=force)
    if as_json:
        print_json(
            {
                "path": str(path),
                "tables": list(map(_describe, found.tables)),
                "views": list(map(_describe, found.views)),
            }
        )
    else:
        _print_result(path, found)
    return EXIT_OK


def _refuse_password(option: str, dsn: str | None) -> None:
    try:
        has_password = dsn is not None and dsn_has_password(dsn)
    except ConfigError as error:
        raise UsageError(f"{option} is not a connection string", why=error.why, hint=error.hint) from None
    if has_password:
        raise UsageError(
            f"{option} holds a password",
            why="every user of this machine can read the arguments of a command",
            hint=f"keep it in PGPASSFILE, in a service file, or put {SOURCE_VARIABLE} into .env and leave --source out",
        )


def _read_dsn(path: Path) -> str:
    """Return the source's connection string of the environment, or of `.env` beside the configuration."""
    from dotenv import dotenv_values

    env_file = path.parent / ".env"
    check_env_file(env_file)
    dsn = os.environ.get(SOURCE_VARIABLE) or (
        dotenv_values(env_file).get(SOURCE_VARIABLE) if env_file.is_file() else None
    )
    if not dsn:
        raise UsageError(
            "--source is missing",
            why=f"{SOURCE_VARIABLE} is neither in the environment nor in {env_file}",
            hint='replicator init --source "postgresql://user@host/database"',
        )
    return dsn


def _exists(path: Path) -> UsageError:
    return UsageError(
        f"{path} is there already", why="nothing is overwritten unasked", hint="add --force, or --config PATH"
    )


def _look(settings: Settings, *, each_pattern: bool) -> Introspection:
    assert settings.source.dsn is not None
    timeout_s = settings.source.connect_timeout.total_seconds()
    dsn = settings.source.dsn.get_secret_value()
    with closing(connect(dsn, side="source", timeout_s=timeout_s, first=True)) as connection, translated("source"):
        forbid_writing(connection)
        return introspect(connection, settings, each_pattern=each_pattern)


def _suggest(patterns: Sequence[str], found: Introspection) -> Iterator[SuggestedTable]:
    """Yield the patterns, then what was named, and each table of which there is more to say than its pattern does."""
    exact = {parse_pattern(pattern) for pattern in patterns if parse_pattern(pattern).exact}
    yield from (SuggestedTable(pattern) for pattern in patterns if not parse_pattern(pattern).exact)
    for one in found.tables:
        if one.says_key or one.watermark or parse_pattern(one.table) in exact:
            yield SuggestedTable(one.table, one.key if one.says_key else (), one.watermark)


def _offer_views(views: Sequence[Found]) -> Iterator[str]:
    """Yield entries for views that nobody named, as comments; a line break in a name is escaped and stays inside."""
    if views:
        yield "\n# Views, materialized views and foreign tables are copied only where an entry names them. Found:\n"
    for view in views:
        listed = f"{view.kind} with columns " + ", ".join(map(format_toml, view.columns))
        yield "#\n"
        yield from (f"{line}\n" for line in wrap(listed, WIDTH, initial_indent="#   ", subsequent_indent="#   "))
        yield f"# [[tables]]\n# name = {format_toml(view.table)}\n"
        if view.key:
            yield f"# key = {format_toml(view.key)}\n"
        if view.watermark:
            yield f"# watermark = {format_toml(view.watermark)}\n"


def _write(path: Path, text: str, *, force: bool) -> None:
    try:
        if not force:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
            return
        beside = path.with_name(f"{path.name}.new")
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written", why=error.strerror, hint="check the directory") from None


def _describe(one: Found) -> dict[str, object]:
    return {
        "table": one.table,
        "kind": one.kind,
        "key": list(one.key),
        "watermark": one.watermark,
        "columns": list(one.columns),
        "estimated_rows": one.estimated_rows,
    }


def _print_result(path: Path, found: Introspection) -> None:
    print(f"wrote {path}")
    for one in found.tables:
        key = ", ".join(one.key) or "none"
        print(as_text(f"  {one.table}  key: {key}  watermark: {one.watermark or 'none'}"))
    if found.views:
        print(f"views not copied: {len(found.views)}; uncomment those you want at the end of the file")
    print("next: replicator check")
