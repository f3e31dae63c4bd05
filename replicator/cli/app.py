"""The command tree. Each command imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer

from replicator import __version__
from replicator.cli.output import describe_error, print_error, print_json
from replicator.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE, ReplicatorError, UsageError, unexpected

app = typer.Typer(
    name="replicator",
    help="Copies tables from one PostgreSQL to another, keeps them equal, and proves it row by row.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
target_app = typer.Typer(help="The embedded target: start it, stop it, say how to connect.", no_args_is_help=True)
app.add_typer(target_app, name="target")
slot_app = typer.Typer(help="The replication slot of this pipeline on the source.", no_args_is_help=True)
app.add_typer(slot_app, name="slot")
quarantine_app = typer.Typer(
    help="Rows that the target refused: those put aside, and the one that stopped the listener.", no_args_is_help=True
)
app.add_typer(quarantine_app, name="quarantine")
alert_app = typer.Typer(help="Alerts to the addresses of [alerts].", no_args_is_help=True)
app.add_typer(alert_app, name="alert")
Ids = Annotated[list[int] | None, typer.Argument(metavar="ID", help="Numbers that `list` shows; all by default.")]

Config = Annotated[
    Path | None, typer.Option("--config", help="Configuration file; replicator.toml by default.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Tables = Annotated[
    list[str] | None, typer.Argument(metavar="TABLE", help="Source tables, like public.t; all by default.")
]

Jobs = Annotated[int | None, typer.Option("--jobs", min=1, max=64, help="Tables at a time.", show_default=False)]
ExecutionId = Annotated[UUID | None, typer.Option("--execution-id", hidden=True, help="Its name in the record.")]


# What typer raises for the command line has no public name; every kind of it descends from the parent of this one.
_MISUSE: type[Exception] = typer.BadParameter.__mro__[1]


class Trigger(StrEnum):
    """Who started a run."""

    manual = "manual"
    scheduler = "scheduler"
    api = "api"


TriggeredBy = Annotated[Trigger, typer.Option("--triggered-by", help="For the record.")]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
    config: Config = None,
) -> None:
    """Print the version where that is asked for, and hand a configuration that is named here to the command."""
    if version:
        typer.echo(f"replicator {__version__}")
        raise typer.Exit
    if config is not None:
        context.default_map = _default_config(context.command, str(config))


def _default_config(command: Any, config: str) -> dict[str, Any]:
    """Return the defaults of a command and of all below it: what they take as --config where they are not told."""
    below = getattr(command, "commands", {})
    return {"config": config} | {name: _default_config(one, config) for name, one in below.items()}


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the two servers up.")] = False,
    stop: Annotated[
        Path | None, typer.Option("--stop", help="Stop what --keep left up in this directory.", show_default=False)
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Then open the dashboard on it, until Ctrl-C.")] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Of the dashboard; 0 takes a free one.")] = 8321,
    json: Json = False,
) -> None:
    """Show all of it on two embedded servers, in under two minutes; needs no configuration and no root."""
    from replicator.cli.demo import run_demo, stop_demo

    if stop is not None:
        stop_demo(stop)
        _exit(EXIT_OK)
    _exit(run_demo(keep=keep, as_json=json, serve=serve, port=port))


@app.command()
def init(
    source: Annotated[
        str | None,
        typer.Option("--source", metavar="DSN", help="Connection string of the source, without its password."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="DSN", help="The same of the target; left out: an embedded PostgreSQL."),
    ] = None,
    tables: Annotated[
        list[str] | None,
        typer.Option("--tables", metavar="PATTERN", help="Tables, like public.t or sales.*; public.* by default."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Look at a source and write a commented replicator.toml for it."""
    from replicator.cli.init import write_config

    _exit(write_config(config, source, target, tables or [], force=force, as_json=json))


@app.command()
def check(
    deep: Annotated[
        bool, typer.Option("--deep", help="Also scan the tables for changes that did not move their watermark.")
    ] = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Look for what would stop or slow a sync, with the SQL that mends it; writes nothing."""
    from replicator.cli.check import show_check

    _exit(show_check(config, deep=deep, as_json=json))


@app.command()
def plan(config: Config = None, json: Json = False) -> None:
    """Show what the next sync would do, table by table; writes nothing."""
    from replicator.cli.plan import show_plan

    _exit(show_plan(config, as_json=json))


@app.command()
def sync(
    tables: Tables = None,
    full: Annotated[bool, typer.Option("--full", help="Read everything, not only what changed.")] = False,
    allow_deletes: Annotated[
        int,
        typer.Option(
            "--allow-deletes",
            metavar="N",
            min=0,
            help="Rows of each table that this run may delete whatever max_delete_fraction says.",
            show_default=False,
        ),
    ] = 0,
    jobs: Jobs = None,
    triggered_by: TriggeredBy = Trigger.manual,
    execution_id: ExecutionId = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Bring the target to the source's present state: the nightly job."""
    from replicator.cli.sync import run_sync

    _exit(
        run_sync(
            config,
            tables or [],
            full=full,
            allowed_deletes=allow_deletes,
            jobs=jobs,
            triggered_by=triggered_by.value,
            execution_id=execution_id,
            as_json=json,
        )
    )


@app.command()
def listen(
    until_caught_up: Annotated[
        bool,
        typer.Option("--until-caught-up", help="End once all that was committed before the start is in the target."),
    ] = False,
    until_lsn: Annotated[
        str | None, typer.Option("--until-lsn", metavar="X/Y", help="End at this position of the source's WAL.")
    ] = None,
    repair_gap: Annotated[
        bool, typer.Option("--repair-gap", help="Pull what a lost slot can no longer send, then go on.")
    ] = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Follow the source by logical replication: every change within moments, exactly once."""
    from replicator.cli.listen import run_listen

    _exit(run_listen(config, until_caught_up=until_caught_up, until_lsn=until_lsn, repair_gap=repair_gap, as_json=json))


@app.command()
def resync(
    tables: Tables = None,
    yes: Annotated[bool, typer.Option("--yes", help="Really do it.")] = False,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, max=64, help="Tables at a time, or ranges of a large one.", show_default=False),
    ] = None,
    triggered_by: TriggeredBy = Trigger.manual,
    execution_id: ExecutionId = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Read tables whole again and exchange their contents; readers never see an empty moment."""
    from replicator.cli.resync import run_resync

    _exit(
        run_resync(
            config,
            tables or [],
            yes=yes,
            jobs=jobs,
            triggered_by=triggered_by.value,
            execution_id=execution_id,
            as_json=json,
        )
    )


@app.command()
def verify(
    tables: Tables = None,
    repair: Annotated[bool, typer.Option("--repair", help="Mend the rows that differ, and only those.")] = False,
    show_values: Annotated[bool, typer.Option("--show-values", help="Also print what differs in them.")] = False,
    max_rate: Annotated[
        float | None,
        typer.Option("--max-rate", metavar="MB/s", min=0.001, help="Read each side no faster.", show_default=False),
    ] = None,
    jobs: Jobs = None,
    triggered_by: TriggeredBy = Trigger.manual,
    execution_id: ExecutionId = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Compare source and target row by row; exit 7 when they differ and nothing was repaired."""
    from replicator.cli.verify import run_verify

    _exit(
        run_verify(
            config,
            tables or [],
            repair=repair,
            show_values=show_values,
            max_rate=max_rate,
            jobs=jobs,
            triggered_by=triggered_by.value,
            execution_id=execution_id,
            as_json=json,
        )
    )


@app.command()
def status(config: Config = None, json: Json = False) -> None:
    """Show where every table stands."""
    from replicator.cli.report import show_status

    _exit(show_status(config, as_json=json))


@app.command()
def history(
    table: Annotated[str | None, typer.Option("--table", help="Only this source table.", show_default=False)] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many batches.")] = 20,
    config: Config = None,
    json: Json = False,
) -> None:
    """Show the batches of etl_control, newest first."""
    from replicator.cli.report import show_history

    _exit(show_history(config, table, limit, as_json=json))


@app.command()
def health(config: Config = None, json: Json = False) -> None:
    """Say in one line whether all is well; exit 0 when it is, 1 when not."""
    from replicator.cli.health import show_health

    _exit(show_health(config, as_json=json))


# Negative numbers are keys, not options.
@app.command(context_settings={"ignore_unknown_options": True})
def why(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="Source table, like public.t.")],
    key: Annotated[list[str], typer.Argument(metavar="KEY", help="The values of its key in the source, in order.")],
    config: Config = None,
    json: Json = False,
) -> None:
    """Say why the target has of one row what it has: both rows, the rules between them, what the next sync does."""
    from replicator.cli.why import show_why

    _exit(show_why(config, table, key, as_json=json))


@app.command()
def serve(
    listen: Annotated[bool, typer.Option("--listen", help="Keep the listener running too.")] = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Run the nightly sync at its time, and show and start it in a browser and by a REST API."""
    from replicator.cli.serve import run_serve

    _exit(run_serve(config, listens=listen, as_json=json))


@app.command()
def schedule(config: Config = None, json: Json = False) -> None:
    """Show the next five runs of `serve`, and where daylight saving bites."""
    from replicator.cli.schedule import show_schedule

    _exit(show_schedule(config, as_json=json))


@app.command()
def forget(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="Source table, like public.t.")],
    yes: Annotated[bool, typer.Option("--yes", help="Really do it.")] = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Drop what is known of a table that left the configuration; the target's rows stay."""
    from replicator.cli.forget import forget_table

    _exit(forget_table(config, table, yes=yes, as_json=json))


@target_app.command("up")
def target_up(config: Config = None, json: Json = False) -> None:
    """Start the embedded target and leave it running."""
    from replicator.cli.target import up

    _exit(up(config, as_json=json))


@target_app.command("down")
def target_down(config: Config = None, json: Json = False) -> None:
    """Stop the embedded target."""
    from replicator.cli.target import down

    _exit(down(config, as_json=json))


@target_app.command("dsn")
def target_dsn(config: Config = None, json: Json = False) -> None:
    """Print how to connect to the target."""
    from replicator.cli.target import dsn

    _exit(dsn(config, as_json=json))


@slot_app.command("list")
def slot_list(config: Config = None, json: Json = False) -> None:
    """Show the slot: how far it is, what it holds back, whether it is in danger."""
    from replicator.cli.slot import list_slots

    _exit(list_slots(config, as_json=json))


@slot_app.command("drop")
def slot_drop(
    yes: Annotated[bool, typer.Option("--yes", help="Really do it.")] = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Drop the slot, and the publication if this tool made it; the next `listen` copies everything."""
    from replicator.cli.slot import drop_slots

    _exit(drop_slots(config, yes=yes, as_json=json))


@quarantine_app.command("list")
def quarantine_list(config: Config = None, json: Json = False) -> None:
    """Show which rows wait, and what refused them."""
    from replicator.cli.quarantine import list_rows

    _exit(list_rows(config, as_json=json))


@quarantine_app.command("show")
def quarantine_show(
    number: Annotated[
        int | None,
        typer.Argument(metavar="ID", help="Number that `list` shows; without one: what stopped the listener."),
    ] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Show one row: its table, its key, what refused it, and where in the stream."""
    from replicator.cli.quarantine import show_row

    _exit(show_row(config, number, as_json=json))


@quarantine_app.command("retry")
def quarantine_retry(ids: Ids = None, config: Config = None, json: Json = False) -> None:
    """Read rows again at the source and write them; those refused once more stay."""
    from replicator.cli.quarantine import retry

    _exit(retry(config, ids or [], as_json=json))


@quarantine_app.command("discard")
def quarantine_discard(
    ids: Ids = None,
    yes: Annotated[bool, typer.Option("--yes", help="Really do it.")] = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Give rows up: what the target has of them stays, later changes are taken again."""
    from replicator.cli.quarantine import discard

    _exit(discard(config, ids or [], yes=yes, as_json=json))


@alert_app.command("test")
def alert_test(config: Config = None, json: Json = False) -> None:
    """Send a test alert to every address of [alerts]."""
    from replicator.cli.alert import send_test

    _exit(send_test(config, as_json=json))


def _exit(code: int) -> None:
    raise typer.Exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command, ship what it logged, and return its exit code."""
    try:
        return _run(arguments)
    finally:
        if "replicator.telemetry.log_ship" in sys.modules:
            from replicator.telemetry.log import close_logging

            close_logging()


def _run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; every error of ours is told on stderr."""
    as_json = "--json" in arguments
    try:
        _check_arguments(arguments)
        code = app(args=list(arguments), prog_name="replicator", standalone_mode=False)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else EXIT_OK if end.code is None else EXIT_FAILED
    except _MISUSE as error:
        return _explain_misuse(error, as_json=as_json)
    except typer.Abort:
        return EXIT_FAILED
    except ReplicatorError as error:
        print_error(error, as_json=as_json)
        return error.exit_code
    except Exception as error:  # noqa: BLE001  # a raw traceback would show messages, and messages carry cell values
        from replicator.telemetry.trace import scrub_traceback

        print_error(unexpected(error), as_json=as_json)
        typer.echo(scrub_traceback(error), err=True)
        return EXIT_FAILED
    return code if isinstance(code, int) else EXIT_OK


def _check_arguments(arguments: Sequence[str]) -> None:
    """Raise UsageError for an argument that is no text: Python hands its bytes on as surrogates, which no text has."""
    for number, argument in enumerate(arguments, 1):
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise UsageError(
                f"argument {number} is not text",
                why="it holds bytes that the encoding of this shell's locale does not have",
                hint="write it in UTF-8, in a shell whose locale is UTF-8: LC_ALL=C.UTF-8 replicator ...",
            )


def _explain_misuse(error: Any, *, as_json: bool) -> int:
    """Tell of a command line that typer does not understand, in its words; return the exit code."""
    if as_json:
        told = UsageError(error.format_message(), hint="replicator COMMAND --help shows what it takes")
        print_json({"error": describe_error(told)})
    error.show()
    return EXIT_USAGE
