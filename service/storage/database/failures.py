"""Meaning of database errors, decided once, by SQLSTATE and constraint name; and the retry loop of storage calls.

The driver's own texts never leave this module: PostgreSQL prints the values of a failing row into them.

A lost reply to COMMIT is such an error: nobody knows whether the transaction is stored. So every write that is retried
finds what an earlier attempt stored, a new lead by its own id (leads/decision.py), a change by its version. The waits
between attempts grow exponentially, with full jitter, and end with the caller's deadline. That and the listener for
retries travel in a context variable, so that nothing between the call and the database has to pass them on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

import psycopg
from psycopg.errors import Diagnostic
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from service.errors import LeadkeepError, StorageUnavailableError
from service.storage.database.session import SessionRefusedError
from service.supervisor import jittered_wait

T = TypeVar("T")

BUSY = frozenset(
    {
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "55P03",  # lock_not_available: lock_timeout ran out
        # Ours (migration 0006): sealed or indexed as it is no longer accepted. It goes to the spool, and the drain
        # seals and indexes it anew.
        "LK001",
        "LK002",
    }
)
"""The transaction was undone because of another one; the same again may succeed."""

UNREACHABLE_CLASSES = frozenset(
    {
        "08",  # connection exceptions
        "53",  # insufficient resources: too many connections, disk full, out of memory
        "57",  # operator intervention: shutdown, crash, starting up, cancelled
        "58",  # system errors outside PostgreSQL, such as I/O errors
    }
)
UNREACHABLE = frozenset(
    {
        "25006",  # read_only_sql_transaction: the primary that we knew was demoted
        "25P03",  # idle_in_transaction_session_timeout: this process was frozen, and the server ended its session
        "25P04",  # transaction_timeout, likewise
        "3D000",  # invalid_catalog_name: the database is being restored
        "0A000",  # of us only "cached plan must not change result type": a migration came; a new connection plans anew
    }
)


CONTENT_CLASSES = frozenset(
    {
        "22",  # data exceptions
        "23",  # violated constraints
    }
)
"""What PostgreSQL may refuse for what a caller entered. In a broken environment it refuses everything like this, too:
see `SubmissionStore.trial`."""


class DatabaseHungError(Exception):
    """The database did not finish an attempt in time. The attempt was left behind; its outcome is not known."""


class LeftBehindError(Exception):
    """The server is still at work on an attempt that was left behind: another one would only join it."""


class NotConfirmedError(Exception):
    """The database has not been confirmed as the one that this keyring and this normaliser belong to."""


class NoStandbyError(Exception):
    """Leads must reach a synchronous standby (LEADKEEP_REQUIRE_STANDBY), and the server's commits wait for none."""


class NotStoredError(Exception):
    """PostgreSQL took a statement and stored less than it was given: a trigger or a rule of others drops rows.

    A refusal without an error. What was given is not stored, and must not be confirmed.
    """


class RecentRefusal:
    """Why the database refused something lately."""

    def __init__(self, seconds: float) -> None:
        """It is reported for so many `seconds`, unless it is over before: nobody may try again for long."""
        self._seconds = seconds
        self._cause: str | None = None
        self._at = 0.0

    def note(self, cause: str | None) -> None:
        """It was refused; None: it has passed again."""
        self._cause, self._at = cause, time.monotonic()

    @property
    def cause(self) -> str | None:
        """The SQLSTATE, or word, of the last refusal; None: none is recent."""
        return self._cause if time.monotonic() < self._at + self._seconds else None


class StorageFaultError(Exception):
    """A statement failed for a reason that no caller can mend; `cause` is its SQLSTATE.

    `is_refusal`: whether PostgreSQL refused it, and nothing proves that it did so for the statement's content.
    """

    def __init__(self, cause: str, *, is_refusal: bool = False) -> None:
        super().__init__(f"the database refused a statement (SQLSTATE {cause})")
        self.cause = cause
        self.is_refusal = is_refusal


class CommitNotDurableError(Exception):
    """PostgreSQL committed locally but gave up waiting for its synchronous standby: see `may_give_up_standby`.

    A failover may lose such a commit, so it confirms nothing. It is settled like a commit whose answer was lost: by
    looking the submission up in a transaction that waits for the standby itself.
    """


_WORDS: dict[type[BaseException], str] = {
    CommitNotDurableError: "not_durable",
    DatabaseHungError: "hung",
    LeftBehindError: "left_behind",
    NoStandbyError: "no_standby",
    NotConfirmedError: "not_confirmed",
    NotStoredError: "not_stored",
    PoolTimeoutError: "pool_timeout",
}
"""What errors without an SQLSTATE are called. All but NotStoredError may pass by themselves."""


def cause_of(error: BaseException) -> str:
    """The SQLSTATE behind an error, or a fixed word where there is none. Holds no value, so it may be logged."""
    if isinstance(error, SessionRefusedError):
        return error.word
    return _WORDS.get(type(error)) or _sqlstate(error) or "connection"


def _driver_error(error: BaseException) -> BaseException | None:
    return error.orig if isinstance(error, DBAPIError) else error


def _sqlstate(error: BaseException) -> str | None:
    driver_error = _driver_error(error)
    return driver_error.sqlstate if isinstance(driver_error, psycopg.Error) else None


def is_driver_error(error: BaseException) -> bool:
    """Whether the error comes from the database or its driver."""
    return isinstance(error, DBAPIError | psycopg.Error)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: nothing was stored, or what was stored is found by its id."""
    if type(error) in _WORDS or isinstance(error, SessionRefusedError | OSError):
        return not isinstance(error, NotStoredError)
    driver_error = _driver_error(error)
    if not isinstance(driver_error, psycopg.Error):
        return False
    sqlstate = driver_error.sqlstate
    if sqlstate is None:
        # The server did not answer: the connection was lost, or was never made. InternalError: a pooler's own error
        # follows that of a server which ended in the middle of a command, and the driver knows only one answer to it.
        return isinstance(driver_error, psycopg.OperationalError | psycopg.InternalError)
    return sqlstate in BUSY or sqlstate in UNREACHABLE or sqlstate[:2] in UNREACHABLE_CLASSES


def is_fault_of_ours(error: BaseException) -> bool:
    """Whether the error is a bug in our code: no repetition helps, and PostgreSQL has refused nothing."""
    return not (is_transient(error) or is_refused(error) or isinstance(error, LeadkeepError))


def is_refused(error: BaseException) -> bool:
    """Whether PostgreSQL answered and refused, neither because of another transaction nor because it is going away."""
    return isinstance(error, NotStoredError) or (_sqlstate(error) is not None and not is_transient(error))


def may_concern_content(error: BaseException) -> bool:
    """Whether PostgreSQL may have refused the values of a statement, and not the statement itself."""
    return (_sqlstate(error) or "")[:2] in CONTENT_CLASSES


def leaves_nothing(error: BaseException) -> bool:
    """Whether a transaction that ended with this error is known to have stored nothing.

    False when that is unknown: the server did not answer, or may have answered after its commit.
    """
    if isinstance(error, SessionRefusedError | NotConfirmedError | LeftBehindError | NoStandbyError | PoolTimeoutError):
        return True
    sqlstate = _sqlstate(error)
    return bool(sqlstate) and sqlstate != "40003" and str(sqlstate)[:2] not in UNREACHABLE_CLASSES


def is_busy(error: BaseException) -> bool:
    """Whether the transaction was undone because of another one."""
    return cause_of(error) in BUSY


def spoils_connection(error: BaseException) -> bool:
    """Whether the connection leads to a server that can no longer serve, though it still answers.

    The pool notices only connections that broke; a demoted primary refuses writes on connections that work.
    """
    sqlstate = cause_of(error)
    return sqlstate in UNREACHABLE or sqlstate[:3] == "57P"


def may_give_up_standby(notice: Diagnostic) -> bool:
    """Whether a notice reports, or may report, that PostgreSQL stopped waiting for its synchronous standby.

    That warning has no SQLSTATE of its own and its text is translated; only the function that reports it is certain.
    Warnings of other functions (of a trigger, an extension) do not count. A notice from which a pooler removed its
    severity or its function may be that warning, so it counts.
    """
    is_warning = notice.severity_nonlocalized in (None, "WARNING")
    return is_warning and notice.source_function in (None, "SyncRepWaitForLSN")


def violated_constraint(error: BaseException) -> str | None:
    """The name of the constraint that a statement violated."""
    driver_error = _driver_error(error)
    return driver_error.diag.constraint_name if isinstance(driver_error, psycopg.Error) else None


FIRST_WAIT = 0.02
"""Seconds before the first retry, at most (full jitter): about the time in which a rival's transaction ends."""

LONGEST_WAIT = 1.0
"""Seconds between retries, at most: a database that comes back is noticed within a second."""

LONGEST_FORESEEN = 0.25
"""Seconds that another attempt is expected to take, at most: it may wait 200 ms for a lock. An attempt that took longer
hung on a server that has gone since, and does not predict the next one."""

LONGEST_RETRY = 10.0
"""Seconds that storage is retried for one call, however long its caller would wait, unless callers who set no deadline
wait longer: a database that did not come back by then is in an outage, and its caller is better served by an error."""


@dataclass(frozen=True, slots=True)
class Retry:
    """One repeated storage call: which attempt failed, how long we wait now (seconds), and why (SQLSTATE)."""

    attempt: int
    wait: float
    cause: str


@dataclass(frozen=True, slots=True)
class RetryScope:
    """Until when the current call may retry (on the monotonic clock), and the listener for its retries."""

    deadline: float
    on_retry: Callable[[Retry], None]


retry_scope: ContextVar[RetryScope | None] = ContextVar("retry_scope", default=None)


async def with_retries(operation: Callable[[], Awaitable[T]]) -> T:
    """Return the operation's result, after as many attempts as the caller's time allows.

    Raises StorageUnavailableError when the time is over and StorageFaultError for what the database always refuses;
    lets every other error through.
    """
    scope = retry_scope.get()
    began = time.monotonic()
    deadline = began + LONGEST_RETRY if scope is None else scope.deadline
    failures = 0
    while True:
        try:
            return await operation()
        except Exception as error:
            if not is_transient(error):
                if is_driver_error(error) or is_refused(error):
                    raise StorageFaultError(cause_of(error), is_refusal=is_refused(error)) from None
                raise
            cause = cause_of(error)
        now = time.monotonic()
        # Another attempt must not only begin in time, it must end in time.
        left = deadline - now - min(now - began, LONGEST_FORESEEN)
        if left <= 0:
            raise StorageUnavailableError
        wait = jittered_wait(failures, first=FIRST_WAIT, longest=min(LONGEST_WAIT, left))
        failures += 1
        if scope is not None:
            scope.on_retry(Retry(failures, wait, cause))
        await asyncio.sleep(wait)
        began = time.monotonic()
