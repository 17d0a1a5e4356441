"""What this process has acknowledged lately, so that a repeat hears the same while the database cannot be asked."""

from __future__ import annotations

from collections import OrderedDict

from service.lead import SealedLead, SealedSubmission
from service.storage.outcomes import RequestIdReused, Waiting

REQUESTS_KEPT = 50_000
"""Some minutes of a busy service, in about 20 MB: a client repeats within seconds or not at all."""


class RequestMemory:
    """Requests that the database has, by subject and request_id; the oldest are forgotten. Lost with the process."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], tuple[bytes, Waiting]] = OrderedDict()

    def remember(self, submission: SealedSubmission, lead: SealedLead) -> None:
        """The submission was answered with this lead."""
        if submission.request_id is None:
            return
        key = (submission.created_by, submission.request_id)
        self._known[key] = (submission.content_digest, Waiting(lead.id, lead.created_at, decided=True))
        if len(self._known) > REQUESTS_KEPT:
            self._known.popitem(last=False)

    def answer(self, submission: SealedSubmission) -> Waiting | RequestIdReused | None:
        """What a repeat hears; None when the request is not known."""
        if submission.request_id is None:
            return None
        known = self._known.get((submission.created_by, submission.request_id))
        if known is None:
            return None
        digest, outcome = known
        return outcome if submission.has_content(digest) else RequestIdReused()
