"""`leadkeep` as it would be with one transaction a lead: what the group commit is measured against."""

from __future__ import annotations

from service.cli.main import main
from service.lead import SealedSubmission
from service.storage.outcomes import Outcome
from service.storage.writer import LeadWriter


async def _create(writer: LeadWriter, submission: SealedSubmission) -> Outcome:
    return await writer._repository.create(submission)  # noqa: SLF001 # the one thing that is different here


if __name__ == "__main__":
    LeadWriter.create = _create  # type: ignore[assignment]
    main()
