"""The requests that this process acknowledged lately: a repeat gets the same answer while the database is away."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from uuid import UUID

from service.lead import SealedLead, SealedSubmission
from service.storage.decision import Earlier, Found, Outcome, decide

REQUESTS_KEPT = 50_000
"""Some minutes of a busy service, in about 20 MB: a client repeats within seconds or not at all."""


class RecentRequests:
    """Requests that the database has, by subject and request_id; the oldest are forgotten. Lost with the process."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], Earlier] = OrderedDict()
        self._erased: OrderedDict[UUID, None] = OrderedDict()

    def remember(self, submission: SealedSubmission, lead: SealedLead) -> None:
        """The submission was answered with this lead."""
        if submission.request_id is None or lead.id in self._erased:
            return
        self._known[submission.created_by, submission.request_id] = Earlier(
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
        if submission.request_id is None:
            return None
        return decide(submission, Found(request=self._known.get((submission.created_by, submission.request_id))))
