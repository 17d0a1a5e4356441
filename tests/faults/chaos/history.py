"""What every caller sent and what it was told, and when which part was taken away.

All times are on the monotonic clock. Only appended to, by any thread.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic

from leadkeep.v1 import lead_service_pb2 as pb

SETTLED = ("OK", "ALREADY_EXISTS")
"""The answers to a CreateLead after which its caller has no reason to repeat it."""

MARKERS = ("Brambleway", "chaosmail", "marzipan")
"""Words that every person's address, e-mail address and notes hold, and nothing else does."""

NAME_MARKER = "Quillon"
"""The word that every person's name holds, and nothing else does."""


@dataclass(frozen=True, slots=True)
class Content:
    """Which lead: the number of the person whose phone it has, and of the one whose national ID it has."""

    phone: int
    nid: int
    converses: bool = field(default=False, kw_only=True)
    """Whether it has a conversation id, which holds the phone."""

    def lead(self) -> pb.Lead:
        """The same lead each time it is asked for."""
        return pb.Lead(
            name=f"Quillon Person {self.phone}",
            phone=f"+88017{self.phone:08d}",
            nid=f"19{self.nid:011d}",
            address=f"{self.phone} Brambleway Road, Dhaka",
            interested_policy="Term Life 20-Year",
            email=f"person{self.phone}@chaosmail.example",
            notes=f"note {self.nid} on marzipan",
            conversation_id=f"whatsapp:+88017{self.phone:08d}" if self.converses else "",
        )


@dataclass(slots=True)
class Call:
    """One call, from its start to what its caller was told."""

    rpc: str
    began: float
    patience: float
    """Seconds from its beginning to its deadline."""
    request_id: str = ""
    content: Content | None = None
    asked: str = ""
    """The id that a GetLead asked for."""
    attempt: int = 1
    ended: float = math.inf
    code: str = ""
    reason: str = ""
    """Of the ErrorInfo; empty when there is none."""
    by_server: bool = False
    """Whether the trailing metadata says that the service made the status. grpc ends a call at its deadline by itself,
    so a status of the service was also in time."""
    hung_up: bool = False
    id: str = ""
    state: str = ""

    @property
    def acknowledged(self) -> bool:
        """Whether it was told that its lead is durable."""
        return self.rpc == "CreateLead" and self.code == "OK"


@dataclass(slots=True)
class Window:
    """A time in which a part was taken away."""

    kind: str
    began: float
    ended: float = math.inf

    def overlaps(self, call: Call) -> bool:
        """Whether a call was under way during this time."""
        return call.began <= self.ended and call.ended >= self.began


SERVICE_DOWN = "service killed"


@dataclass(slots=True)
class History:
    """Everything that happened in one scenario; `subject` is whom its token names."""

    subject: str
    calls: list[Call] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)

    @contextmanager
    def window(self, kind: str) -> Iterator[None]:
        """Note a time in which a part was taken away."""
        noted = Window(kind, monotonic())
        self.windows.append(noted)
        try:
            yield
        finally:
            noted.ended = monotonic()

    def acknowledged(self) -> Iterator[Call]:
        """The calls that were told that their lead is durable."""
        return (call for call in self.calls if call.acknowledged)


@dataclass(frozen=True, slots=True)
class Row:
    """One lead of the table `lead`, or one submission of `lead_conflict`."""

    id: str
    created_by: str
    request_id: str | None
    phone_index: bytes = b""
    """Empty when it is shared by decision, or in a conflict; likewise `nid_index`."""
    nid_index: bytes = b""
    repeats: str | None = None
    """The conflict whose request and content this one has, acknowledged under another id while nobody could know."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What PostgreSQL holds in the end."""

    leads: Sequence[Row]
    conflicts: Sequence[Row]
    aliases: Mapping[str, str]
    """From an acknowledged id to the lead that it stands for."""

    def stand_for(self) -> dict[str, str]:
        """Each id that stands for another one, by that one."""
        return {row.id: row.repeats for row in self.conflicts if row.repeats is not None} | dict(self.aliases)
