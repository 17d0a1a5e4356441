"""What this process has acknowledged lately, so that a repeat hears the same while the database cannot be asked."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from uuid import UUID

from service.lead import SealedLead, SealedSubmission
from service.storage.outcomes import RequestIdReused, Waiting

REQUESTS_KEPT = 50_000
"""Some minutes of a busy service, in about 20 MB: a client repeats within seconds or not at all."""


class RequestMemory:
    """Requests that the database has, by subject and request_id; the oldest are forgotten. Lost with the process."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], tuple[bytes, Waiting]] = OrderedDict()
        self._erased: OrderedDict[UUID, None] = OrderedDict()

    def remember(self, submission: SealedSubmission, lead: SealedLead) -> None:
        """The submission was answered with this lead."""
        if submission.request_id is None or lead.id in self._erased:
            return
        key = (submission.created_by, submission.request_id)
        self._known[key] = (submission.content_digest, Waiting(lead.id, lead.created_at, decided=True))
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
        for key in [key for key, (_, answer) in self._known.items() if answer.id in fresh]:
            del self._known[key]

    def answer(self, submission: SealedSubmission) -> Waiting | RequestIdReused | None:
        """What a repeat hears; None when the request is not known."""
        if submission.request_id is None:
            return None
        known = self._known.get((submission.created_by, submission.request_id))
        if known is None:
            return None
        digest, outcome = known
        return outcome if submission.has_content(digest) else RequestIdReused()
