"""The unmasking interceptor for chains without a database: what is recorded is kept in a list."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from uuid import UUID

from service.errors import UnmaskLimitError
from service.rpc.call import Interceptor
from service.rpc.unmasking import ReasonRules, unmasking
from service.storage.access.record import Access
from service.storage.database.failures import LONGEST_RETRY
from service.validation import ValidationService


class KeptRecord:
    """Keeps accesses, or raises `fault` instead; with `full`, it has no room for any."""

    def __init__(self, fault: Exception | None = None, *, full: bool = False) -> None:
        self.full = full
        self.accesses: list[Access] = []
        self.patience: float | None = None
        self.fault = fault

    async def require_room(self, subject: str, leads: int) -> None:
        if self.full:
            raise UnmaskLimitError(1, 60.0)

    async def record(
        self, accesses: Sequence[Access], *, patience: float = LONGEST_RETRY, limited: bool = True
    ) -> None:
        self.patience = patience
        if self.fault is not None:
            raise self.fault
        self.accesses += accesses


def unmasking_into(record: KeptRecord | None = None, *, reason_required: bool = False) -> Interceptor:
    """The interceptor of the service."""
    return unmasking(record or KeptRecord(), ReasonRules(ValidationService().text, reason_required), _nobody)


async def _nobody(_: Collection[UUID]) -> Collection[UUID]:
    return ()
