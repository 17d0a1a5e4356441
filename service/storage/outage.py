"""Whether the database can be had now, as those who write to it have seen it last."""

from __future__ import annotations

import time

import structlog

BLIP_SECONDS = 2.0
"""A restart or a failover is over in about this time, and callers are better served by waiting for it than by a
delay; what lasts longer is an outage, and new leads go to the spool at once."""


class Outage:
    """Begins with a failure to reach the database and ends with a transaction that was committed."""

    def __init__(self) -> None:
        self._since: float | None = None

    @property
    def lasting(self) -> bool:
        """Whether it has gone on for so long that waiting for its end is no use."""
        return self._since is not None and time.monotonic() - self._since >= BLIP_SECONDS

    def began(self, cause: str, *, since: float | None = None) -> None:
        """The database was not reached by an attempt that began at `since` (on the monotonic clock; None: now)."""
        if self._since is None:
            self._since = time.monotonic() if since is None else since
            structlog.get_logger("leadkeep.storage").warning("the database cannot be reached", cause=cause)

    def over(self) -> None:
        """The database has committed."""
        if self._since is not None:
            seconds = round(time.monotonic() - self._since, 1)
            self._since = None
            structlog.get_logger("leadkeep.storage").info("the database is back", seconds=seconds)
