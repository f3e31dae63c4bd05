"""Why a connection could not be had, in our own words.

What a server said is known by its SQLSTATE alone, as its words may be in any language. libpq's own words are English in
a process that sets no LC_MESSAGES. They are never repeated: of a URI whose password holds an unescaped `@`, `/` or `:`
what libpq takes for the host, the port or the database is a part of the password.
"""

from __future__ import annotations

import re

from psycopg.conninfo import conninfo_to_dict

from replicator.connect_probe import Refusal

_URI = re.compile(r"^postgres(?:ql)?://")
_NAMES = (("role", "user"), ("database", "dbname"), ("host", "host"), ("port", "port"))
_OF_SERVER = {
    "28P01": "the server did not accept the role's password",
    "28000": "the server lets nobody in from here with this role and database: pg_hba.conf has no entry for them, or "
    "the role does not exist or may not log in",
    "3D000": "the database does not exist",
    "42501": "the database does not let the role in",
    "53300": "the server has no connection to spare",
    "55000": "the database takes no connections now",
    "57P03": "the server is starting or stopping, or does not take connections yet",
    "08P01": "a pooler, or another program than PostgreSQL, refused the connection",
}
_OF_WALSENDER = {
    "42501": "the role may not open a replication connection",
    "53300": "the server has no walsender or no connection to spare",
}
# Of libpq. The first that fits speaks.
_OF_CLIENT = (
    (r"no password supplied|fe_sendauth", "the server asks for a password, and none was given"),
    (
        r"session is (?:not )?read-only|hot standby|target_session_attrs",
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
)
_NEVER_ANSWERS = re.compile(r"could not translate host name|invalid|No such file", re.IGNORECASE)
# Starting, stopping, in recovery, out of connections; a pooler whose server is away.
_AWAITED_CLASSES = ("53", "57", "58", "08")
# Said while a database is put back from a backup: it was dropped, renamed, or closed to everybody.
_MADE_ANEW = frozenset({"3D000", "55000"})
_ESCAPE = "a character of the password must be percent-encoded (%40 for @, %2F for /, %3A for :)"


def is_final(refusal: Refusal) -> bool:
    """Say whether asking again would bring the same answer, as far as it can be known."""
    if refusal.is_answered or any(state.startswith(_AWAITED_CLASSES) for state in refusal.sqlstates):
        return False
    return bool(refusal.sqlstates) or bool(_NEVER_ANSWERS.search(refusal.said))


def is_made_anew(refusal: Refusal) -> bool:
    """Say whether a database that was there before may be there again in a moment."""
    return bool(_MADE_ANEW.intersection(refusal.sqlstates))


def explain_refusal(refusal: Refusal, conninfo: str, *, replication: bool = False) -> str:
    """Return why there is no connection, and where: the cause in our words, with what is safe to show of the string."""
    cause = _find_cause(refusal, replication=replication)
    if is_ambiguous(conninfo):
        return f"{cause}; {_ESCAPE}"
    parameters = conninfo_to_dict(conninfo)
    where = ", ".join(f"{word} {parameters[key]}" for word, key in _NAMES if parameters.get(key))
    return f"{cause} ({where})" if where else cause


def _find_cause(refusal: Refusal, *, replication: bool) -> str:
    for state in refusal.sqlstates:
        known = (_OF_WALSENDER if replication else {}).get(state) or _OF_SERVER.get(state)
        return known or f"the server refused the connection with SQLSTATE {state}"
    if refusal.is_answered:
        return "the server answered only after a while"
    silence = "the server did not answer" if refusal.said else "the server did not answer in time"
    return next((words for cause, words in _OF_CLIENT if re.search(cause, refusal.said)), silence)


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
