"""The connections to PostgreSQL, and the two ways to use one.

`write` runs a transaction and answers only when its commit is durable, a synchronous standby included. `read` runs
single statements. Both retry as `retry.py` says; what they are given may therefore run more than once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from psycopg.errors import Diagnostic
from sqlalchemy import event, make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from service.storage.failures import CommitNotDurableError, spoils_connection
from service.storage.retry import with_retries

T = TypeVar("T")
Work = Callable[[AsyncConnection], Awaitable[T]]

CONNECTIONS = 16
"""Per process. More would only queue inside PostgreSQL: a transaction takes about a millisecond."""

CHECKOUT_SECONDS = 5.0
"""How long a call waits for a free connection before it counts as unavailable and is retried."""

CONNECT_SECONDS = 5
"""How long one host of the URL is tried."""

SESSION_SETTINGS = {
    # A foreign lock on a row is waited for this long; then the transaction is undone and tried again.
    "lock_timeout": "200ms",
    # A transaction whose process froze must not keep its locks for longer than its callers can wait.
    "idle_in_transaction_session_timeout": "10s",
    # What is confirmed is on disk, and on the synchronous standby's if there is one, whatever role or database say.
    "synchronous_commit": "on",
}

_COMMIT_WARNINGS = "commit_warnings"


class Database:
    """A pool of connections as the role of `serve`. Connects when it is first used."""

    def __init__(self, url: str) -> None:
        options = " ".join(f"-c {name}={value}" for name, value in SESSION_SETTINGS.items())
        self._engine = create_async_engine(
            sqlalchemy_url(url),
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=CHECKOUT_SECONDS,
            hide_parameters=True,
            connect_args={
                "connect_timeout": CONNECT_SECONDS,
                "options": options,
                "application_name": "leadkeep",
                # A peer that vanished without a word is noticed after about 15 seconds.
                "keepalives_idle": 5,
                "keepalives_interval": 5,
                "keepalives_count": 2,
                "tcp_user_timeout": 15_000,
            },
        )
        event.listen(self._engine.sync_engine, "connect", _collect_warnings)
        self._reader = self._engine.execution_options(isolation_level="AUTOCOMMIT")

    async def write(self, work: Work[T]) -> T:
        """Run `work` in one transaction; the result is returned only when the commit is durable.

        Raises StorageUnavailableError when that cannot be had in time, and what `work` itself raises.
        """

        async def attempt() -> T:
            async with self._engine.connect() as connection:
                try:
                    result = await work(connection)
                    warnings: list[str] = (await connection.get_raw_connection()).info[_COMMIT_WARNINGS]
                    warnings.clear()
                    await connection.commit()
                except Exception as error:
                    if spoils_connection(error):
                        await connection.invalidate()
                    raise
                if warnings:
                    raise CommitNotDurableError
                return result

        return await with_retries(attempt)

    async def read(self, work: Work[T]) -> T:
        """Run `work`, whose statements each stand alone. Raises like `write`."""

        async def attempt() -> T:
            async with self._reader.connect() as connection:
                return await work(connection)

        return await with_retries(attempt)

    async def answers(self) -> bool:
        """Whether the database can be reached and takes writes now. Tries once."""
        try:
            async with self._reader.connect() as connection:
                return not (await connection.execute(text("SELECT pg_is_in_recovery()"))).scalar_one()
        except Exception:  # noqa: BLE001 # whatever the cause, the answer is no
            return False

    async def close(self) -> None:
        """Give all connections back."""
        await self._engine.dispose()


def sqlalchemy_url(url: str) -> str:
    """An operator's `postgresql://` URL, which names no driver, as SQLAlchemy's with psycopg 3.

    Several hosts (`postgresql://a,b/db`) are libpq's own notation; SQLAlchemy takes them as query arguments.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("postgresql", "postgres"):
        raise ValueError("a database URL starts with postgresql://")
    authority, slash, tail = rest.partition("/")
    credentials, at, hosts = authority.rpartition("@")
    if "," not in hosts:
        return f"postgresql+psycopg://{rest}"
    path, _, query = tail.partition("?")
    listed = "&".join(f"host={host}" for host in hosts.split(","))
    parsed = make_url(f"postgresql+psycopg://{credentials}{at}{slash}{path}?{query}&{listed}".replace("?&", "?"))
    return parsed.render_as_string(hide_password=False)


def _collect_warnings(driver_connection: Any, entry: ConnectionPoolEntry) -> None:
    """Keep the warnings that a connection receives, so that a commit can be checked for them.

    The one that matters says that the wait for a synchronous standby was cancelled. It has no SQLSTATE of its own and
    its text is translated, and no other warning belongs into a commit: each one counts as "not durable".
    """
    warnings: list[str] = []
    entry.info[_COMMIT_WARNINGS] = warnings

    def notice(diagnostic: Diagnostic) -> None:
        if diagnostic.severity_nonlocalized == "WARNING":
            warnings.append(diagnostic.sqlstate or "")

    driver_connection.driver_connection.add_notice_handler(notice)
