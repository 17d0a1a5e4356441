"""The fence: a server that was superseded by a promoted standby is never used again.

A promotion begins a new timeline of PostgreSQL's log. An old primary that comes back (thawed, or put back by a cluster
manager's mistake) still takes writes on the timeline before, and another standby may still confirm them; all of that is
lost when it is rewound. So a server on an older timeline than this service has seen of the same cluster is refused.

The memory lies in the spool's folder, never in the database that is judged. With several hosts in the URL all of them
are asked whenever a connection is opened and every two seconds, so that a promotion is noticed while the connections
still lead to the old primary. A server whose timeline cannot be read (managed services) is never refused.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg
import structlog
from psycopg.conninfo import make_conninfo

from service.keys.secret_file import replace_secret_file
from service.storage.database.session import Driver, SessionRefusedError, hosts_of, parameters_of, shut_down

LOOK_SECONDS = 2.0
"""Seconds between two looks at all hosts: for so long at most may an old primary that was never frozen be used."""

ANSWER_SECONDS = 1.0
"""How long a host may take to answer a look. One that is frozen or gone shows nothing, and delays a new connection by
this much."""

FILE = "timelines.json"

_TIMELINE = (
    "SELECT system_identifier, CASE WHEN pg_is_in_recovery()"
    # A standby's last checkpoint may be older than the log that it has received.
    " THEN greatest(timeline_id, (SELECT received_tli FROM pg_stat_wal_receiver))"
    # A promoted primary's control file names the timeline before until its first checkpoint.
    " ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END"
    " FROM pg_control_system(), pg_control_checkpoint()"
)


@dataclass(frozen=True, slots=True)
class Timeline:
    """Where a server's log stands: the cluster that it belongs to, and the number of its timeline."""

    cluster: str
    number: int


async def timeline_of(driver: Driver) -> Timeline | None:
    """The timeline of a connection's server, None if it cannot be read."""
    try:
        row = await (await driver.execute(_TIMELINE)).fetchone()
    except psycopg.Error:
        if driver.closed:
            raise
        return None
    return None if row is None or row[1] is None else Timeline(str(row[0]), row[1])


class Fence:
    """Refuses superseded servers. With `remembers`, the timelines that it has seen outlive the process."""

    def __init__(self, url: str, folder: Path, *, remembers: bool = True) -> None:
        self._path = folder / FILE
        self._remembers = remembers
        self.on_promotion: list[Callable[[], Awaitable[None]]] = []
        """Called when a look has found a newer timeline than was known."""
        self._hosts = _one_each(url)
        self._watched: dict[str, Driver] = {}
        self._look: asyncio.Task[None] | None = None
        self._seen = _read(self._path)

    @property
    def several_hosts(self) -> bool:
        """Whether a promotion is noticed while connections still lead to the old primary."""
        return len(self._hosts) > 1

    async def check(self, driver: Driver) -> None:
        """Raise SessionRefusedError if a connection leads to a superseded server."""
        own = await timeline_of(driver)
        await self.look()
        if own is None:
            return
        newest = self._seen.get(own.cluster, own.number)
        if own.number < newest:
            raise SessionRefusedError(
                "server_superseded",
                f"the server {driver.info.host}:{driver.info.port} writes timeline {own.number} of its log, and "
                f"timeline {newest} of the same cluster was seen: a standby was promoted in its place. Stop that "
                f"server. If it is meant to be used again, remove {self._path}",
            )
        await self._note(own)

    async def look(self) -> None:
        """Ask every host of the URL for its timeline, if there are several. A look that runs is joined."""
        if not self.several_hosts:
            return
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._look_at_all())
        await asyncio.shield(self._look)

    async def run(self) -> None:
        """Look every two seconds."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def close(self) -> None:
        """Close the connections of the looks."""
        if self._look is not None:
            self._look.cancel()
            await asyncio.wait({self._look})
        for host in list(self._watched):
            await self._forget(host)

    async def _look_at_all(self) -> None:
        found = await asyncio.gather(*map(self._ask, self._hosts))
        newer = [await self._note(timeline) for timeline in found if timeline is not None]
        if any(newer):
            for notify in self.on_promotion:
                await notify()

    async def _ask(self, host: str) -> Timeline | None:
        try:
            if (driver := self._watched.get(host)) is None:
                async with asyncio.timeout(ANSWER_SECONDS):
                    driver = self._watched[host] = await Driver.connect(host, autocommit=True)
            # Not a timeout: a cancelled psycopg would wait for a frozen server.
            timer = asyncio.get_running_loop().call_later(ANSWER_SECONDS, shut_down, driver.pgconn)
            try:
                return await timeline_of(driver)
            finally:
                timer.cancel()
        except (OSError, psycopg.Error):
            await self._forget(host)
            return None

    async def _forget(self, host: str) -> None:
        if (driver := self._watched.pop(host, None)) is not None:
            await driver.close()

    async def _note(self, found: Timeline) -> bool:
        """Remember a timeline for good; whether it is newer than one that was known of its cluster."""
        known = self._seen.get(found.cluster)
        if known is not None and known >= found.number:
            return False
        self._seen[found.cluster] = found.number
        # In memory first: what cannot be written must not stop the fence of this process.
        if self._remembers:
            await asyncio.to_thread(_write, self._path, dict(self._seen))
            log = structlog.get_logger("leadkeep").info
            log("the database's timeline", cluster=found.cluster, timeline=found.number, before=known)
        return known is not None


def _one_each(url: str) -> list[str]:
    """A connection string for each host of the URL, to whatever server is there."""
    given = parameters_of(url, "leadkeep-fence") | {"target_session_attrs": "any"}
    hosts = ({name: value or None for name, value in host.items()} for host in hosts_of(given))
    return [make_conninfo("", **(given | host)) for host in hosts]


def _read(path: Path) -> dict[str, int]:
    try:
        return {cluster: int(number) for cluster, number in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError):
        structlog.get_logger("leadkeep").error("the timelines seen before cannot be read", file=str(path))
        return {}


def _write(path: Path, seen: dict[str, int]) -> None:
    try:
        replace_secret_file(path, json.dumps(seen).encode())
    except OSError as error:
        structlog.get_logger("leadkeep").error("the timeline cannot be noted", file=str(path), error=error.strerror)
