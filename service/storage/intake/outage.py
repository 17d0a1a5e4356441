"""Memory for outages: since when the database takes no submissions, and the requests that were acknowledged lately."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection
from datetime import UTC, datetime
from uuid import UUID

import structlog

from service.lead import SealedLead, SealedSubmission
from service.storage.leads.decision import Earlier, Found, Outcome, decide

BLIP_SECONDS = 2.0
"""A restart or a failover is over in about this time, and callers are better served by waiting for it than by a
delay; what lasts longer is an outage, and new leads go to the spool at once."""

REQUESTS_KEPT = 50_000
"""Some minutes of a busy service, in about 20 MB: a client repeats within seconds or not at all."""


class Outage:
    """Begins when the database takes no submissions and ends with a transaction that was committed."""

    def __init__(self) -> None:
        self._since: float | None = None
        self.refused = False
        """Whether the database answers and refuses whatever is submitted."""
        self.cause: str | None = None
        """Why the last attempt failed: an SQLSTATE, or a word of failures.py. None: there is no outage."""

    @property
    def lasting(self) -> bool:
        """Whether waiting for its end is no use."""
        return self.refused or (self._since is not None and time.monotonic() - self._since >= BLIP_SECONDS)

    def began(self, cause: str, *, since: float | None = None, refused: bool = False) -> None:
        """An attempt that began at `since` (on the monotonic clock; None: now) stored nothing.

        `refused`: the database answered, and refused a made-up submission too. That is no blip, and lasts until
        somebody mends it.
        """
        if self.cause != cause:
            structlog.get_logger("leadkeep.storage").warning("the database takes no leads", cause=cause)
        if self._since is None:
            self._since = time.monotonic() if since is None else since
        self.refused, self.cause = refused, cause

    def over(self) -> None:
        """The database has committed."""
        if self._since is not None:
            seconds = round(time.monotonic() - self._since, 1)
            self._since, self.refused, self.cause = None, False, None
            structlog.get_logger("leadkeep.storage").info("the database takes leads again", seconds=seconds)


class RecentRequests:
    """Requests that the database has, by subject and request_id or else content: the answer to a repeat in an outage.

    The oldest are forgotten, and all of them with the process.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str | bytes], Earlier] = OrderedDict()
        self._erased: OrderedDict[UUID, None] = OrderedDict()

    def remember(self, submission: SealedSubmission, lead: SealedLead) -> None:
        """The submission was answered with this lead."""
        if lead.id in self._erased:
            return
        self._known[submission.created_by, submission.request_id or submission.content_digest] = Earlier(
            id=lead.id, accepted_at=lead.created_at, content_digest=submission.content_digest, decided=True
        )
        if len(self._known) > REQUESTS_KEPT:
            self._known.popitem(last=False)

    def forget(self, lead_ids: Collection[UUID]) -> None:
        """These leads were erased, also if one of them is only about to be remembered."""
        fresh = {lead_id for lead_id in lead_ids if lead_id not in self._erased}
        if not fresh:
            return
        self._erased.update(dict.fromkeys(fresh))
        while len(self._erased) > REQUESTS_KEPT:
            self._erased.popitem(last=False)
        for key in [key for key, earlier in self._known.items() if earlier.id in fresh]:
            del self._known[key]

    def answer(self, submission: SealedSubmission) -> Outcome | None:
        """The outcome of a repeat; None when the request is not known."""
        contents = (submission.content_digest, *submission.earlier_digests)
        names = contents if submission.request_id is None else (submission.request_id,)
        known = next((each for name in names if (each := self._known.get((submission.created_by, name)))), None)
        return decide(submission, Found(request=known, person=known, now=datetime.now(UTC)))
