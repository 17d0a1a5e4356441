"""Leaves a database connection whose server has stopped in its tracks.

A server that is frozen (SIGSTOP, a hanging disk, a paused machine) still acknowledges what is sent to it, so neither
keepalives nor tcp_user_timeout notice, and no timeout of the server itself runs. A statement that is only slow must
not be cut off. What tells both apart is whether the same server lets another connection in.
"""

from __future__ import annotations

import threading
import time

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from service.storage.database.session import shut_down

_LOOK_SECONDS = 0.5
_PATIENCE_LOOKS = 2
"""Looks at one same statement before the server is asked: most statements take milliseconds."""

_ANSWER_SECONDS = 2
"""How long a server may take to let a connection in: the shortest that libpq knows."""


def leave_when_frozen(url: str, connection: psycopg.Connection) -> None:
    """Shut the connection's socket as soon as its server hangs; what waits for it then fails. Returns at once.

    It may take 4 s: a second of patience, two for the answer, and the looks in between.
    """
    info = connection.info
    same_server = make_conninfo(
        url, host=info.host, port=info.port, target_session_attrs="any", connect_timeout=_ANSWER_SECONDS
    )
    threading.Thread(target=_watch, args=(same_server, connection.pgconn), daemon=True).start()


def _watch(same_server: str, connection: pq.abc.PGconn) -> None:
    looks = 0
    while connection.status == pq.ConnStatus.OK:
        time.sleep(_LOOK_SECONDS)
        looks = looks + 1 if connection.transaction_status == pq.TransactionStatus.ACTIVE else 0
        if looks > _PATIENCE_LOOKS:
            looks = 0
            if not _answers(same_server):
                shut_down(connection)
                return


def _answers(url: str) -> bool:
    """Whether a connection is let in. A refusal is an answer; what is gone for good ends the statement by itself."""
    try:
        psycopg.connect(url).close()
    except psycopg.errors.ConnectionTimeout:
        return False
    except psycopg.Error:
        pass
    return True
