"""Connection strings that lead to one of several servers: which one it was, and each of them."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_OF_HOST = ("host", "hostaddr", "port")


def narrow_conninfo(conninfo: str, connection: psycopg.Connection[Any]) -> str:
    """Return the string that leads to the very server of a connection, by its address if it has one."""
    info = connection.info
    if info.host.startswith(("/", "@")) or not info.hostaddr:
        return make_conninfo(conninfo, host=info.host, port=info.port)
    return make_conninfo(conninfo, host=info.host, hostaddr=info.hostaddr, port=info.port)


def split_hosts(conninfo: str) -> list[str]:
    """Return a string for each server that one names; none where it names only one."""
    known = conninfo_to_dict(conninfo)
    lists = {key: str(known[key]).split(",") for key in _OF_HOST if known.get(key)}
    count = max((len(values) for key, values in lists.items() if key != "port"), default=1)
    if count == 1:
        return []
    # libpq takes a single port for all hosts.
    chosen = ({key: values[n % len(values)] for key, values in lists.items()} for n in range(count))
    return [make_conninfo(conninfo, **one) for one in chosen]


def picks_at_random(connection: psycopg.Connection[Any], conninfo: str) -> bool:
    """Say whether the next connection may lead to another server although this one answers."""
    # PQconninfo has the password as well: nothing but this one value may leave here.
    values = [option.val for option in connection.pgconn.info if option.keyword == b"load_balance_hosts"]
    return values == [b"random"] and bool(split_hosts(conninfo))
