"""What a lead is and which states it has.

The field names are the story's JSON names; the contract, the stored model and this module agree on them, and a
parity test holds the three together. Nothing here knows how a lead is stored, sealed or sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID


class LeadStatus(StrEnum):
    """Where the sales team stands with a lead (story AC-013.1)."""

    NEW = "new"
    CONTACTED = "contacted"
    CONVERTED = "converted"
    NOT_INTERESTED = "not_interested"


class ConflictResolution(StrEnum):
    """What a person decided about a submission that met a lead when it came out of the spool."""

    KEEP_FIRST = "keep_first"
    """The lead that was met stays as it is; the submission's id leads to it."""
    TAKE_NEW = "take_new"
    """The lead that was met takes the submission's values; the submission's id leads to it."""
    OWN_LEAD = "own_lead"
    """The submission becomes a lead of its own, beside the one it met."""


CUSTOMER_FIELDS = (
    "name",
    "phone",
    "nid",
    "address",
    "interested_policy",
    "email",
    "preferred_contact_time",
    "notes",
    "conversation_id",
)
"""What a caller may set when a lead is created, in the contract's order."""

SENSITIVE_FIELDS = ("phone", "nid", "address", "email", "notes")
"""What is sealed wherever it is stored, and masked for those who may not see it; the contract's `debug_redact`."""

REQUIRED_FIELDS = frozenset({"name", "phone", "nid", "address", "interested_policy"})
"""The mandatory fields of the story (AC-013.1)."""

CORRECTABLE_FIELDS = tuple(name for name in CUSTOMER_FIELDS if name != "conversation_id")
"""What UpdateLead may change. A conversation is linked when the lead comes in, and only on proof of phone and nid;
an editable link would let a corrected field open somebody else's lead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerDetails:
    """What a customer told the chatbot, normalised. An optional field that was not given is None."""

    name: str
    phone: str
    nid: str
    address: str
    interested_policy: str
    email: str | None = None
    preferred_contact_time: str | None = None
    notes: str | None = None
    conversation_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """One interested person, with every field in clear.

    A sensitive field that could not be opened is None and named in `unreadable_fields`. The required fields are
    None only then.
    """

    id: UUID
    name: str
    phone: str | None
    nid: str | None
    address: str | None
    interested_policy: str
    email: str | None
    preferred_contact_time: str | None
    notes: str | None
    conversation_id: str | None
    status: LeadStatus
    created_at: datetime
    updated_at: datetime
    version: int
    assignee: str | None
    transcript_uri: str | None
    resubmissions: int
    unreadable_fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedLead:
    """A lead as it is stored: sensitive fields as sealed tokens, everything else in clear."""

    id: UUID
    name: str
    interested_policy: str
    preferred_contact_time: str | None
    conversation_id: str | None
    status: LeadStatus
    created_at: datetime
    updated_at: datetime
    version: int
    assignee: str | None
    resubmissions: int
    created_by: str
    sealed: Mapping[str, str] = field(repr=False)
    """Sealed token by sensitive field; a field that was not given is absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlindIndexes:
    """The blind indexes of one lead: the first pair of columns, the second one, and the plan that they follow.

    None where the plan leaves a pair empty. An index is found by its value, in whatever pair it stands: two keys never
    make the same one.
    """

    epoch: int
    phone: tuple[bytes | None, bytes | None] = field(repr=False)
    nid: tuple[bytes | None, bytes | None] = field(repr=False)

    @property
    def phones(self) -> tuple[bytes, ...]:
        """The indexes of the phone, whatever their pair."""
        return tuple(index for index in self.phone if index is not None)

    @property
    def nids(self) -> tuple[bytes, ...]:
        """The indexes of the nid, whatever their pair."""
        return tuple(index for index in self.nid if index is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedSubmission:
    """One attempt to create a lead, ready to be stored. It becomes the lead `id`, or a resubmission of another."""

    id: UUID
    name: str
    interested_policy: str
    preferred_contact_time: str | None
    conversation_id: str | None
    created_by: str
    request_id: str | None
    content_digest: bytes = field(repr=False)
    """Keyed digest of the normalised content, to tell a repeat of a request from its request_id used again."""
    indexes: BlindIndexes = field(repr=False)
    sealed: Mapping[str, str] = field(repr=False)
    earlier_digests: tuple[bytes, ...] = field(default=(), repr=False)
    """The content's digests with other index keys, one of which an earlier submission may have been kept with."""
    accepted_at: datetime | None = None
    """When it was acknowledged, if that was before the database had it; None: it is not acknowledged yet."""
    refused: bool = False
    """Whether its caller was told that it is a duplicate of another submission in the spool."""

    def has_content(self, digest: bytes) -> bool:
        """Whether a kept digest is of the same content."""
        return digest == self.content_digest or digest in self.earlier_digests

    def as_lead(self, created_at: datetime) -> SealedLead:
        """The new lead that it is, or will be."""
        return SealedLead(
            id=self.id,
            name=self.name,
            interested_policy=self.interested_policy,
            preferred_contact_time=self.preferred_contact_time,
            conversation_id=self.conversation_id,
            status=LeadStatus.NEW,
            created_at=created_at,
            updated_at=created_at,
            version=1,
            assignee=None,
            resubmissions=0,
            created_by=self.created_by,
            sealed=self.sealed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedConflict:
    """A conflict as it is stored: the submission's side sealed and bound to `id`, and which leads it met."""

    id: UUID
    name: str
    interested_policy: str
    preferred_contact_time: str | None
    conversation_id: str | None
    created_by: str
    request_id: str | None
    phone_lead_id: UUID | None
    nid_lead_id: UUID | None
    request_lead_id: UUID | None
    erased_lead_id: UUID | None
    """A lead that shared its phone or its nid, and was erased since."""
    accepted_at: datetime
    found_at: datetime
    resolution: ConflictResolution | None
    resolved_by: str | None
    resolved_at: datetime | None
    reason: str | None
    content_digest: bytes = field(repr=False)
    sealed: Mapping[str, str] = field(repr=False)

    @property
    def lead_ids(self) -> tuple[UUID, ...]:
        """The leads that it met, each once."""
        met = (self.phone_lead_id, self.nid_lead_id, self.request_lead_id)
        return tuple(dict.fromkeys(lead_id for lead_id in met if lead_id is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusChange:
    """One row of a lead's status history."""

    from_status: LeadStatus
    to_status: LeadStatus
    actor: str
    reason: str | None
    changed_at: datetime
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentChange:
    """One row of a lead's assignment history; None stands for nobody."""

    from_assignee: str | None
    to_assignee: str | None
    actor: str
    reason: str | None
    changed_at: datetime
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedResubmission:
    """A refused duplicate as it is stored. Its tokens are bound to `submission_id`, not to the lead that it met."""

    submission_id: UUID
    name: str
    interested_policy: str
    preferred_contact_time: str | None
    conversation_id: str | None
    submitted_at: datetime
    actor: str
    verified: bool
    sealed: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resubmission:
    """A refused duplicate, opened. `verified`: phone and nid both met the lead that it is kept with."""

    name: str
    phone: str | None
    nid: str | None
    address: str | None
    interested_policy: str
    email: str | None
    preferred_contact_time: str | None
    notes: str | None
    conversation_id: str | None
    transcript_uri: str | None
    submitted_at: datetime
    actor: str
    verified: bool
    unreadable_fields: tuple[str, ...] = ()
