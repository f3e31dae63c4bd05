"""Errors, in two families by what happens next.

    ReplicatorError
    ├── PassingError              retried with jitter, then exit 75
    │   └── LimitReached          exit 1   no connection to spare; only daemons go on trying
    └── OperatorError             stops: somebody must act
        ├── UsageError            exit 2
        ├── ConfigError           exit 3
        ├── PreflightError        exit 4   no first connection, missing table or grant
        ├── LockHeldError         exit 5
        ├── DecisionError         exit 8   a safety stop or schema drift
        │   ├── SafetyStop
        │   └── SchemaDrift
        ├── DataRefused           exit 1   the target refused a row
        ├── FencedError           exit 1   a younger run took over
        ├── StreamError           exit 1   the source's stream is not understood
        ├── StreamedError         none     the table is the listener's, a sync leaves it alone
        └── ExtraMissing          exit 2   an optional package is not installed

Every error says what happened, why, and the command or SQL that mends it. None carries a value of a
row: PostgreSQL's own messages do (`Key (id)=(7) already exists`), so an error that began as one of the
server's is rebuilt from its SQLSTATE, table, column and constraint, and our own words.
"""

from __future__ import annotations

from collections.abc import Iterable

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CONFIG = 3
EXIT_PREFLIGHT = 4
EXIT_LOCKED = 5
EXIT_PARTIAL = 6
EXIT_DIFFERENT = 7
EXIT_DECISION = 8
EXIT_LOST = 75

# Which exit code speaks for a run in which no table landed, the first that any table has.
_EXIT_ORDER = (EXIT_LOST, EXIT_DECISION, EXIT_PREFLIGHT, EXIT_CONFIG, EXIT_LOCKED, EXIT_USAGE, EXIT_FAILED)


class ReplicatorError(Exception):
    """Something went wrong that the user is told about in our own words.

    `id` is stable and is what the README's troubleshooting is sorted by; `sqlstate` is PostgreSQL's, if it
    said one; `lsn` is where the transaction commits that it is about, if it is about one.
    """

    id = "failed"
    exit_code = EXIT_FAILED

    def __init__(
        self,
        what: str,
        *,
        why: str | None = None,
        hint: str | None = None,
        id: str | None = None,
        sqlstate: str | None = None,
        table: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.hint = hint
        self.sqlstate = sqlstate
        self.table = table
        self.lsn: str | None = None
        if id is not None:
            self.id = id

    @property
    def code(self) -> str:
        """Return what `etl_control.error_code` records: the SQLSTATE, else our own id."""
        return self.sqlstate or self.id

    @property
    def message(self) -> str:
        """Return what happened and why in one line, without the hint."""
        return f"{self.what}: {self.why}" if self.why else self.what


class PassingError(ReplicatorError):
    """A fault that passes by itself: a lost connection, a deadlock, a server that is starting."""

    id = "connection_lost"
    exit_code = EXIT_LOST


class LimitReached(PassingError):
    """No connection to spare: others may give theirs back, so a daemon goes on trying; anybody else does not."""

    id = "limit_reached"
    exit_code = EXIT_FAILED


class OperatorError(ReplicatorError):
    """A fault that stays until somebody acts."""


class UsageError(OperatorError):
    """The command's words are off."""

    id = "usage"
    exit_code = EXIT_USAGE


class ExtraMissing(UsageError):
    """The command needs an optional package."""

    id = "extra_missing"


class ConfigError(OperatorError):
    """The configuration cannot be used as it is."""

    id = "config_invalid"
    exit_code = EXIT_CONFIG


class PreflightError(OperatorError):
    """Something that must be there before the first row is missing."""

    id = "preflight"
    exit_code = EXIT_PREFLIGHT


class LockHeldError(OperatorError):
    """Another run of this pipeline is at work."""

    id = "lock_held"
    exit_code = EXIT_LOCKED


class DecisionError(OperatorError):
    """Going on would be possible, but only somebody who knows the data can say whether it is right."""

    id = "decision_needed"
    exit_code = EXIT_DECISION


class SafetyStop(DecisionError):
    """More would be lost than `max_delete_fraction` allows, or the source is not what it was."""

    id = "safety_stop"


class SchemaDrift(DecisionError):
    """The source's columns changed in a way that cannot be followed without losing something."""

    id = "schema_drift"


class DataRefused(OperatorError):
    """The target refused a row: a constraint, a type, a trigger."""

    id = "data_refused"

    def or_aside(self) -> DataRefused:
        """Return the error with the other way out there is for a row that has a key."""
        return DataRefused(
            self.what,
            why=self.why,
            hint=f'{self.hint}; or on_row_error = "quarantine": they are put aside, and quarantine list names them',
            id=self.id,
            sqlstate=self.sqlstate,
            table=self.table,
        )

    def at(self, lsn: str, *, has_key: bool) -> DataRefused:
        """Return the error with the transaction of the source that it is about.

        has_key: the row's key can be looked up, where keys may be printed.
        """
        aside = '; or on_row_error = "quarantine": the stream goes on without it; its key: replicator quarantine show'
        located = DataRefused(
            self.what,
            why=f"{self.why}; in the transaction that commits at {lsn}",
            hint=f"{self.hint}{aside if has_key else ''}",
            id=self.id,
            sqlstate=self.sqlstate,
            table=self.table,
        )
        located.lsn = lsn
        return located


class FencedError(OperatorError):
    """A younger run has taken this table over; this one must not write any more."""

    id = "fenced"


class StreamedError(OperatorError):
    """The table is the listener's: a sync leaves it alone."""

    id = "streamed"

    def __init__(self, table: str) -> None:
        super().__init__(f"{table} is kept by the listener", why="its stream is ahead of any snapshot", table=table)


class StreamError(OperatorError):
    """The source's stream holds something that is not in the protocol; nothing of it is guessed."""

    id = "stream_not_understood"


def choose_exit_code(errors: Iterable[ReplicatorError], *, some_landed: bool) -> int:
    """Return the exit code for tables' errors: 0 without any, 6 when other tables landed, else the gravest's own."""
    codes = {error.exit_code for error in errors}
    if not codes:
        return EXIT_OK
    if some_landed:
        return EXIT_PARTIAL
    return next((code for code in _EXIT_ORDER if code in codes), EXIT_FAILED)


def unexpected(error: Exception) -> OperatorError:
    """Return the error that stands for a fault of our own."""
    wrapped = OperatorError(
        f"replicator failed unexpectedly ({type(error).__name__})",
        why="this is a bug",
        hint="please report it with the traceback: below, or in etl_control.error_traceback",
        id="bug",
    )
    wrapped.__cause__ = error
    return wrapped
