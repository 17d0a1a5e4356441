"""The reason for reading values: how callers send it, and which one is accepted."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.errors import (
    LeadkeepError,
    ReasonNotAcceptedError,
    ReasonRequiredError,
    invalid,
)

if TYPE_CHECKING:
    from service.rpc.call import Call  # commands that call nothing load the rules, too

REASON = "leadkeep-reason"
"""The metadata, and header, of a reason. gRPC's metadata takes ASCII only."""

REASON_BIN = "leadkeep-reason-bin"
"""The same for any script: UTF-8 over gRPC, its base64 over HTTP."""


@dataclass(frozen=True, slots=True)
class ReasonRules:
    """What is asked of a reason."""

    check: Callable[[str, str], str | None]
    """Normalises a reason, given its name in errors, or raises LeadValidationError; None: it is empty."""
    required: bool = False
    purposes: tuple[str, ...] = ()
    """The words of which it must be one, or begin with as in `WORD: text`; none: any reason will do."""

    def sent_with(self, call: Call) -> str | None:
        """The reason of a call, normalised; None: it has none. Raises LeadValidationError."""
        encoded = call.metadata.get(REASON_BIN)
        if encoded is None:
            return self.check(_text(call), REASON)
        if REASON in call.metadata:
            raise invalid(REASON_BIN, f"must not be sent together with {REASON}")
        return self.check(_decoded(encoded), REASON_BIN)

    def fault_of(self, reason: str | None) -> LeadkeepError | None:
        """Why nothing is shown for this reason; None: it is accepted."""
        if reason is None:
            return ReasonRequiredError(self.purposes) if self.required or self.purposes else None
        if not self.purposes or any(reason == word or reason.startswith(f"{word}: ") for word in self.purposes):
            return None
        return ReasonNotAcceptedError(self.purposes)


def _text(call: Call) -> str:
    sent = call.metadata.get(REASON, "")
    if call.transport != "http":
        return sent
    try:
        # HTTP's headers are read as Latin-1; what people type into them is UTF-8.
        return sent.encode("latin-1").decode()
    except UnicodeError:
        return sent


def _decoded(encoded: str) -> str:
    try:
        # gRPC's own libraries leave the padding out.
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except ValueError:
        raise invalid(REASON_BIN, "must be base64 of UTF-8 text, once") from None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise invalid(REASON_BIN, "must be UTF-8 text") from None
