"""Why a connection could not be had, in our own words.

libpq repeats what it took for the host, the port or the database. Of a URI whose password holds an unescaped `@`, `/`
or `:` that is a part of the password, so nothing that it says is repeated.
"""

from __future__ import annotations

import re

from psycopg.conninfo import conninfo_to_dict

_URI = re.compile(r"^postgres(?:ql)?://")
_NAMES = (("role", "user"), ("database", "dbname"), ("host", "host"), ("port", "port"))
# The first that fits speaks. A server's own words may be in any language; those of libpq are English here.
_CAUSES = (
    (r"password authentication failed|authentication failed", "the server did not accept the role's password"),
    (r"no password supplied|fe_sendauth", "the server asks for a password, and none was given"),
    (r"no pg_hba\.conf entry|pg_hba\.conf rejects", "pg_hba.conf lets nobody in from here with this role and database"),
    (r'role ".*" does not exist', "the role does not exist"),
    (r'database ".*" does not exist', "the database does not exist"),
    (r"not permitted to log in", "the role may not log in"),
    (r"permission denied for database|not currently accepting", "the database does not let the role in"),
    (r"WAL sender|walsender|replication role", "the role may not open a replication connection"),
    (r"too many|connection slots", "the server has no connection to spare"),
    (r"starting up|shutting down|recovery mode", "the server is starting or stopping"),
    (
        r"read-only|read-write|hot standby|target_session_attrs",
        "no server has the state that target_session_attrs asks for",
    ),
    (r"certificate|SSL|GSS", "the encrypted connection could not be made"),
    (r"resolve host|translate host name|Name or service|name resolution", "the host's name could not be resolved"),
    (r"definition of service|service file", "the service file does not have this service"),
    (r"invalid .*(?:port|value|option|keyword)|missing ", "the connection string holds a value that libpq cannot use"),
    (r"refused", "nothing listens at that address: the connection was refused"),
    (r"No such file", "there is no socket in that directory"),
    (r"unreachable|No route", "the network has no way to the host"),
    (r"timeout|timed out", "the server did not answer in time"),
    (r"FATAL", "the server refused the connection"),
)
_ESCAPE = "a character of the password must be percent-encoded (%40 for @, %2F for /, %3A for :)"


def explain_refusal(said: str, conninfo: str) -> str:
    """Return why libpq gave up, and where: the cause in our words, with what is safe to show of the string."""
    if is_ambiguous(conninfo):
        return f"{_find_cause(said)}; {_ESCAPE}"
    parameters = conninfo_to_dict(conninfo)
    where = ", ".join(f"{word} {parameters[key]}" for word, key in _NAMES if parameters.get(key))
    return f"{_find_cause(said)} ({where})" if where else _find_cause(said)


def _find_cause(said: str) -> str:
    return next((words for cause, words in _CAUSES if re.search(cause, said)), "the server did not answer")


def is_ambiguous(conninfo: str) -> bool:
    """Say whether a part of the password may have ended in host, port or database."""
    # Of the text after "?" an @ is nobody's delimiter, as in user=me@tenant.
    _, _, rest = conninfo.partition("://")
    authority, _, path = rest.partition("?")[0].partition("/")
    if _URI.match(conninfo) and ("@" in path or authority.count("@") > 1):
        return True
    parameters = conninfo_to_dict(conninfo)
    ports = str(parameters.get("port") or "").replace(",", "")
    has_odd_port = bool(ports) and not ports.isdigit()
    return has_odd_port or any("@" in str(parameters.get(key) or "")[1:] for key in ("host", "hostaddr"))


def explain_escape(key: str) -> tuple[str, str]:
    """Return why an ambiguous connection string is refused, and what mends it."""
    return (
        "its host, port or database holds what may be a part of the password",
        f"{_ESCAPE} in {key}; or keep the password in PGPASSFILE",
    )
