"""What may be told about an exception: where it was raised, its class, its SQLSTATE. Never its message.

PostgreSQL's messages carry cell values (`invalid input syntax for type integer: "..."`), and so do those of
drivers and of Python itself (`KeyError`). Only our own errors speak, because they are built from our own words.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from traceback import walk_tb

from replicator.errors import ReplicatorError

MAX_FRAMES = 40

_PACKAGE = Path(__file__).resolve().parent.parent


def scrub_traceback(error: BaseException) -> str:
    """Return frames and classes of the exception and of what caused it, the cause first, one a line.

    Of each exception the innermost 40 frames are kept. A context counts as cause unless it was suppressed.
    """
    return "\nled to\n".join("\n".join(_scrub_one(link)) for link in reversed(list(walk_causes(error))))


def describe_error(error: BaseException) -> str:
    """Return one line: our own message, or the class and SQLSTATE of a foreign exception."""
    return error.message if isinstance(error, ReplicatorError) else _name_class(error)


def error_fields(error: BaseException) -> dict[str, str]:
    """Return the log fields of an exception: `error_type`, `error_message`, and if known `sqlstate` and `table`."""
    fields = {"error_type": type(error).__qualname__, "error_message": describe_error(error)}
    if sqlstate := find_sqlstate(error):
        fields["sqlstate"] = sqlstate
    if isinstance(error, ReplicatorError) and error.table:
        fields["table"] = error.table
    return fields


def find_sqlstate(error: BaseException) -> str | None:
    """Return the SQLSTATE of the exception, else of the nearest cause that has one."""
    return next((state for link in walk_causes(error) if (state := _sqlstate(link))), None)


def walk_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the exception, then its cause, then that one's, each once."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _scrub_one(error: BaseException) -> Iterator[str]:
    frames = [(frame.f_code, line) for frame, line in walk_tb(error.__traceback__)]
    if len(frames) > MAX_FRAMES:
        yield f"  ... {len(frames) - MAX_FRAMES} frames left out"
    for code, line in frames[-MAX_FRAMES:]:
        yield f"  {_shorten_path(code.co_filename)}:{line}:{code.co_qualname}"
    name = _name_class(error)
    yield f"{name}: {error.message}" if isinstance(error, ReplicatorError) else name


def _name_class(error: BaseException) -> str:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    sqlstate = _sqlstate(error)
    return f"{name} [{sqlstate}]" if sqlstate else name


def _sqlstate(error: BaseException) -> str | None:
    sqlstate = getattr(error, "sqlstate", None)
    return sqlstate if isinstance(sqlstate, str) and sqlstate else None


def _shorten_path(file_name: str) -> str:
    """Return a path that tells nothing of the machine: from our package on, in a library, or the bare file name."""
    path = Path(file_name)
    if path.is_relative_to(_PACKAGE):
        return str(path.relative_to(_PACKAGE.parent))
    parts = path.parts
    if "site-packages" in parts:
        return str(Path(*parts[len(parts) - parts[::-1].index("site-packages") :]))
    return path.name
