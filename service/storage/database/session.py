"""The session of a connection: the settings that the code relies on, set last and proven on each new connection.

One query sets the settings, whatever the operator's `options`, the role, the database or a PG… variable chose before,
and returns what the server has then, together with the identity of the database. A pooler lends its server connections
to other clients, so nothing is set through one: there the settings come from the role (`ALTER ROLE … SET`, by `leadkeep
migrate` or deploy/postgres-init.sh), and the same query only proves them. A pooler is recognised by the process id of
the server, which is not the one that the protocol named.

Caveat: the proof holds as long as the server connection. Behind a pooler that is one transaction, so there each
transaction begins with it (`Database`).
"""

from __future__ import annotations

import logging
import os
import re
import select
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from uuid import UUID

import psycopg
from psycopg import pq, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from service.errors import StartRefusedError

Driver = psycopg.AsyncConnection[Any]

# It prints errors that it ignores as PostgreSQL worded them, with the values of a row.
logging.getLogger("psycopg").disabled = True

SETTINGS: Mapping[str, str] = {
    # What is confirmed is on disk, and on the synchronous standby's if there is one.
    "synchronous_commit": "on",
    # PostgreSQL warns when a commit did not wait for that standby (`may_give_up_standby`), but only who wants warnings.
    "client_min_messages": "notice",
    # A foreign lock on a row is waited for this long; then the transaction is undone and tried again.
    "lock_timeout": "200ms",
    # A transaction whose process froze must not keep its locks for longer than its callers can wait.
    "idle_in_transaction_session_timeout": "10s",
    # The driver reads and writes values in these forms.
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
    # The look-up of a duplicate must see what a rival committed while it waited (leads/submissions.py).
    "default_transaction_isolation": "read committed",
    # Row-level security hides nothing: what it would hide is an error. Who sees no tombstone would store the erased.
    "row_security": "off",
    # Where the migrations make the tables, and nothing of another owner in front of it.
    "search_path": "public",
}
"""As the server shows them (`SHOW`). deploy/postgres-init.sh has the same list for the role."""

_PROVEN = {
    # Triggers refuse what was erased, and count: a replica's sessions, or those of a bulk load, run none.
    "session_replication_role": "origin",
}
"""Settings that only a superuser may change, so that they are proven alone."""
_WANTED = {**SETTINGS, **_PROVEN}

CONNECT_SECONDS = 2
"""How long one host of the URL is tried (libpq knows nothing shorter): after a failover to the next host, a first
host that is frozen costs this much."""

_DEFAULTS: Mapping[str, Any] = {
    "connect_timeout": CONNECT_SECONDS,
    # A peer that vanished without a word is noticed after about 15 seconds.
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 15_000,
}
"""Parameters of libpq where the URL names none."""

_ANOTHER_DATABASE = (
    "another database answers than the one that this service has confirmed: nothing was written to it. Lead "
    "LEADKEEP_DATABASE_URL to that one, or restart the service, which then confirms the new one"
)

_AWAY = "57"
"""Class of the SQLSTATEs of a server that starts or stops: it is away rather than refuses."""

_NUMBERS = (
    *("connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
    "tcp_user_timeout",
)
"""Parameters that libpq reads as numbers only when it uses them."""

_NO_FOLDER = "/no-folder-of-leadkeep"
"""Stands for each host while a URL is checked: libpq finds no socket there, after it has read everything else."""


class SessionRefusedError(StartRefusedError):
    """A connection must not be used; its text is for the operator, `word` is the reason of readiness."""

    def __init__(self, word: str, detail: str) -> None:
        super().__init__(detail)
        self.word = word


@dataclass(frozen=True, slots=True)
class Session:
    """What the server answered to the proof."""

    server_pid: int
    """Process id of the server's side of this connection, or of this transaction behind a pooler."""
    behind_pooler: bool


def parameters_of(url: str, name: str, **more: Any) -> dict[str, Any]:
    """libpq's parameters for a URL, whose own ones are kept. `name` is shown where the operator chose none."""
    chosen = {**_DEFAULTS, **more, "fallback_application_name": name, **conninfo_to_dict(url)}
    return chosen | {"client_encoding": SETTINGS["client_encoding"]}


def hosts_of(parameters: Mapping[str, Any]) -> list[dict[str, str]]:
    """Host, address and port of each server that a URL names, as libpq pairs them: one value serves all servers."""
    lists = {name: str(parameters.get(name) or "").split(",") for name in ("host", "hostaddr", "port")}
    count = max(len(lists["host"]), len(lists["hostaddr"]))
    return [{name: (given * count)[number] for name, given in lists.items()} for number in range(count)]


@lru_cache(maxsize=8)  # that of every transaction behind a pooler is one of two
def proof(protocol_pid: int | None, *, identity: bool) -> str:
    """The query that returns what `session_of` reads. With the protocol's pid it sets what is not behind a pooler."""
    own = sql.SQL("false") if protocol_pid is None else sql.SQL("pg_backend_pid() = {}").format(protocol_pid)
    settings = (
        sql.SQL("CASE WHEN {own} THEN set_config({name}, {value}, false) ELSE current_setting({name}) END").format(
            own=own, name=name, value=value
        )
        for name, value in SETTINGS.items()
    )
    proven = (sql.SQL("current_setting({})").format(name) for name in _PROVEN)
    return (
        sql.SQL("SELECT pg_backend_pid(), current_setting('server_encoding'), {}, ARRAY[{}]")
        .format(
            sql.SQL("(SELECT database FROM public.key_canary)" if identity else "CAST(NULL AS uuid)"),
            sql.SQL(", ").join((*settings, *proven)),
        )
        .as_string()
    )


def session_of(row: Sequence[Any] | None, protocol_pid: int, identity: UUID | None) -> Session:
    """The session that a row of `proof` describes, on the database with this identity (None: any).

    Raises SessionRefusedError. Whatever else a server must prove to be used belongs here and into `proof`.
    """
    if row is None:
        raise AssertionError("a query without FROM has one row")
    server_pid, encoding, database, found = row
    if identity not in (None, database):
        raise SessionRefusedError("database_refused", _ANOTHER_DATABASE)
    if encoding != "UTF8":
        raise SessionRefusedError("database_refused", encoding_refusal(encoding))
    behind_pooler = server_pid != protocol_pid
    lost = [name for name, has in zip(_WANTED, found, strict=True) if has != _WANTED[name]]
    if lost:
        raise SessionRefusedError("settings_lost", _settings_refusal(lost, behind_pooler=behind_pooler))
    return Session(server_pid, behind_pooler)


def encoding_refusal(encoding: str) -> str:
    """Why a database that is not UTF8 is refused, and what to do."""
    return (
        f"the database's encoding is {encoding}, and only UTF8 keeps every name: move to a database that is made with "
        "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
    )


def _settings_refusal(lost: Sequence[str], *, behind_pooler: bool) -> str:
    sets = "; ".join(f"ALTER ROLE … SET {name} = {shown(name)}" for name in lost)
    where = (
        "a pooler is in front of the database, so the role of LEADKEEP_DATABASE_URL must have them"
        if behind_pooler
        else "the server did not take them, or only a superuser may set them"
    )
    return (
        f"settings that Leadkeep relies on are lost ({', '.join(lost)}): {where}. Run leadkeep migrate as a role that "
        f"may alter it, or as a superuser: {sets}; remove PGTZ, PGDATESTYLE and client options that say otherwise; "
        "then let the pooler connect anew (PgBouncer: RECONNECT)"
    )


def shown(name: str) -> str:
    """The value of a setting as `ALTER ROLE … SET` takes it. DateStyle is a list of words; none holds a quote."""
    return ", ".join(f"'{part}'" for part in _WANTED[name].split(", "))


def open_unproven(url: str, name: str, *, autocommit: bool = False, **more: Any) -> psycopg.Connection:
    """A connection for an operator's command that sets what it relies on itself.

    Raises psycopg.Error, and SessionRefusedError when a server or pooler refuses it.
    """
    conninfo = make_conninfo(**parameters_of(url, name, **more))
    try:
        return psycopg.connect(conninfo, autocommit=autocommit)
    except psycopg.Error as error:
        if error.pgconn is not None and (sqlstate := refusing_sqlstate(conninfo)) is not None:
            raise connection_refusal(sqlstate) from None
        raise


def connect(url: str, name: str, *, identity: UUID | None = None, **more: Any) -> psycopg.Connection:
    """A proven connection in autocommit mode, for commands and processes without an event loop.

    Nothing is prepared on the server behind a pooler. Raises psycopg.Error and SessionRefusedError.
    """
    connection = open_unproven(url, name, autocommit=True, **more)
    try:
        query = proof(connection.info.backend_pid, identity=identity is not None).encode()
        _accepted(connection, connection.execute(query).fetchone(), identity)
    except BaseException:
        connection.close()
        raise
    return connection


async def prove(connection: Driver, identity: UUID | None) -> Session:
    """Prove a new connection. Nothing is prepared on the server behind a pooler. Raises SessionRefusedError."""
    cursor = await connection.execute(proof(connection.info.backend_pid, identity=identity is not None).encode())
    return _accepted(connection, await cursor.fetchone(), identity)


def _accepted(connection: psycopg.Connection | Driver, row: Sequence[Any] | None, identity: UUID | None) -> Session:
    session = session_of(row, connection.info.backend_pid, identity)
    if session.behind_pooler:
        connection.prepare_threshold = None  # a prepared statement stays with one server
    return session


def shut_down(connection: pq.abc.PGconn) -> None:
    """End what waits for the server on this connection: it reads the end of the stream, as if the server had gone.

    May be called from another thread. Nothing happens to a connection that is closed.
    """
    with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.socket)) as ours:
        ours.shutdown(socket.SHUT_RDWR)


def url_is_valid(url: str) -> bool:
    """Whether libpq can read a URL and every parameter in it. Connects nowhere."""
    try:
        parameters = conninfo_to_dict(url)
        for name in _NUMBERS:
            int(parameters.get(name) or 0)
    except (psycopg.Error, ValueError):
        return False
    hosts = len(hosts_of(parameters))
    tried = make_conninfo(url, host=",".join([_NO_FOLDER] * hosts), hostaddr="")
    connection = pq.PGconn.connect_start(tried.encode())
    try:
        # Once for each host that it tried; a fault of the URL is another message.
        return connection.get_error_message().count(_NO_FOLDER) >= hosts
    finally:
        connection.finish()


def refusing_sqlstate(conninfo: str) -> str | None:
    """SQLSTATE with which a server or pooler refuses a connection; None when it is away or takes it. Blocks.

    libpq hides it from the driver, so this connects once more and reads libpq's own trace. That names it from libpq 18
    on, which the driver brings; an older one answers None.
    """
    connection = pq.PGconn.connect_start(conninfo.encode())
    descriptor = os.memfd_create("leadkeep-trace")
    try:
        connection.trace(descriptor)
        end = time.monotonic() + CONNECT_SECONDS
        while (state := connection.connect_poll()) in (pq.PollingStatus.READING, pq.PollingStatus.WRITING):
            poll = select.poll()
            poll.register(connection.socket, select.POLLIN if state == pq.PollingStatus.READING else select.POLLOUT)
            if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                break
        connection.untrace()
        found = re.findall(rb'\tErrorResponse\t.* C "([0-9A-Z]{5})"', os.pread(descriptor, 1_000_000, 0))
    finally:
        connection.finish()
        os.close(descriptor)
    sqlstate = found[-1].decode() if found and state == pq.PollingStatus.FAILED else None
    return None if sqlstate is None or sqlstate.startswith(_AWAY) else sqlstate


_NO_CONNECTION_LEFT = "53300"


def connection_refusal(sqlstate: str) -> SessionRefusedError:
    """The refusal of a server or pooler that does not take the connection."""
    mend = (
        "it has no connection left: raise max_connections, or CONNECTION LIMIT of the role or the database, or end "
        "other clients"
        if sqlstate == _NO_CONNECTION_LEFT
        else "see its log; user, password, database name and options of LEADKEEP_DATABASE_URL must be such that it "
        "takes them (PgBouncer takes options with ignore_startup_parameters = options, and drops them; or its pool, or "
        "max_client_conn, is too small)"
    )
    return SessionRefusedError(
        "connection_refused",
        f"PostgreSQL, or a pooler in front of it, refuses the connection (SQLSTATE {sqlstate}): {mend}",
    )
