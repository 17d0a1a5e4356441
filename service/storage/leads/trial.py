"""Made-up submissions, stored and rolled back to find out whether the database accepts submissions at all.

When PostgreSQL refuses a submission, that may be the submission's fault or the environment's: a right, a table, a
trigger, an encoding. If these are refused too, it is the environment's, and nothing is wrong with the submission.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

from service.lead import SEALED_FORM, SENSITIVE_FIELDS, BlindIndexes, SealedSubmission

_NAME = "নমুনা Ж 例 😀"
"""Characters of one to four bytes: an encoding that lacks some of them refuses this like a customer's name."""

_EVERY_PLAN = 2**62
"""A plan of blind indexes that is never too old."""


def made_up_submissions() -> tuple[list[SealedSubmission], list[SealedSubmission]]:
    """New submissions, and drained ones to be stored after them: a lead, a duplicate, an alias and a conflict.

    They share nothing with anybody, and their tokens name no key.
    """
    clear = {"name": _NAME, "interested_policy": _NAME, "preferred_contact_time": _NAME, "source": _NAME}
    lead = SealedSubmission(
        id=uuid4(),
        fields={**clear, **dict.fromkeys(SENSITIVE_FIELDS, f"trial{SEALED_FORM}")},
        created_by="leadkeep-trial",
        request_id=str(uuid4()),
        content_digest=secrets.token_bytes(32),
        indexes=BlindIndexes(
            epoch=_EVERY_PLAN,
            phone=(secrets.token_bytes(32), None),
            nid=(secrets.token_bytes(32), None),
            conversation=(f"trial.{uuid4()}",),
            email=f"trial.{uuid4()}",
        ),
    )
    duplicate = replace(lead, id=uuid4(), request_id=None)
    alias = replace(lead, id=uuid4(), accepted_at=datetime.now(UTC))
    other_nid = replace(lead.indexes, nid=(secrets.token_bytes(32), None))
    conflict = replace(alias, id=uuid4(), request_id=None, indexes=other_nid)
    return [lead, duplicate], [alias, conflict]
