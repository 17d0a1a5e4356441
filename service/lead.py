"""A lead, its fields and its states.

The field names are the story's JSON names; the contract, the stored model and this module agree on them, and a
parity test holds the three together. Nothing here knows how a lead is stored, sealed or sent.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, IntEnum, StrEnum
from operator import itemgetter
from typing import Annotated, Any, get_type_hints
from uuid import UUID


class LeadStatus(StrEnum):
    """Where the sales team stands with a lead (story AC-013.1)."""

    NEW = "new"
    CONTACTED = "contacted"
    CONVERTED = "converted"
    NOT_INTERESTED = "not_interested"


class LeadGroup(StrEnum):
    """What leads can be counted by; the values are columns. None of them is sensitive."""

    STATUS = "status"
    POLICY = "interested_policy"
    SOURCE = "source"
    ASSIGNEE = "assignee"
    DAY = "created_at"


class LeadOrder(Enum):
    """Order of a list of leads: the column that it runs by, and whether the latest comes first."""

    CREATED_DESC = ("created_at", True)
    CREATED_ASC = ("created_at", False)
    UPDATED_DESC = ("updated_at", True)
    UPDATED_ASC = ("updated_at", False)
    RESUBMITTED_DESC = ("resubmitted_at", True)
    RESUBMITTED_ASC = ("resubmitted_at", False)

    @property
    def column(self) -> str:
        """The time that it runs by. A lead without one is not in the list."""
        return self.value[0]

    @property
    def is_descending(self) -> bool:
        """Whether the latest comes first."""
        return self.value[1]


class ConflictResolution(StrEnum):
    """Decision of a person about a submission that matched a lead when it was drained from the spool."""

    KEEP_FIRST = "keep_first"
    """The matched lead stays as it is; the submission's id leads to it."""
    TAKE_NEW = "take_new"
    """The matched lead takes the submission's values; the submission's id leads to it."""
    OWN_LEAD = "own_lead"
    """The submission becomes a lead of its own, besides the matched one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldRule:
    """What holds of one customer field, wherever it is checked, stored, shown or described."""

    meaning: str
    """For readers of a daily file: what it is."""
    limit: int | None = None
    """The most characters; None: the field has a check of its own in service/validation."""
    lines: bool = False
    """Whether newlines and tabs belong to it."""
    spaces: bool = True
    """False for identifiers."""
    required: bool = False
    optional_by_setting: bool = False
    """Whether an operator may do without it, though it is required: see LEADKEEP_OPTIONAL_FIELDS."""
    sensitive: bool = False
    """Sealed wherever it is stored, and masked for those who may not see it."""
    correctable: bool = True
    """Whether UpdateLead may change it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerFields:
    """What a customer entered, normalised, in the contract's order.

    None: it was not given; in a lead that is shown also: it cannot be opened (see `unreadable_fields`). A new field
    comes here, into the contract, and with a migration into lead_models.py; everything else derives from these.
    """

    name: Annotated[str, FieldRule(meaning="the customer's name", limit=200, required=True)]
    phone: Annotated[str | None, FieldRule(meaning="the phone number, + and digits", required=True, sensitive=True)]
    nid: Annotated[
        str | None, FieldRule(meaning="the national ID", required=True, optional_by_setting=True, sensitive=True)
    ]
    address: Annotated[
        str | None,
        FieldRule(
            meaning="the postal address", limit=500, lines=True, required=True, optional_by_setting=True, sensitive=True
        ),
    ]
    interested_policy: Annotated[
        str | None,
        FieldRule(meaning="the policy that the customer asks for", limit=200, required=True, optional_by_setting=True),
    ]
    email: Annotated[
        str | None,
        FieldRule(
            meaning="the e-mail address",
            limit=254,  # RFC 5321
            sensitive=True,
        ),
    ] = None
    preferred_contact_time: Annotated[
        str | None, FieldRule(meaning="when the customer wants to be called", limit=200)
    ] = None
    notes: Annotated[
        str | None, FieldRule(meaning="what the customer said besides", limit=4000, lines=True, sensitive=True)
    ] = None
    # A conversation is linked when the lead comes in, and only on proof of phone and nid: an editable link would let a
    # corrected field open somebody else's lead.
    conversation_id: Annotated[
        str | None,
        FieldRule(
            meaning="the conversation that the lead came from",
            limit=200,
            spaces=False,
            sensitive=True,
            correctable=False,
        ),
    ] = None
    source: Annotated[str | None, FieldRule(meaning="where the lead came from", limit=100)] = None

    def values(self) -> dict[str, Any]:
        """Every field's value, in the contract's order. Any: so that they can be passed on as keyword arguments."""
        return {name: getattr(self, name) for name in CUSTOMER_FIELDS}


FIELD_RULES: dict[str, FieldRule] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(CustomerFields, include_extras=True).items()
}
CUSTOMER_FIELDS = tuple(FIELD_RULES)
REQUIRED_FIELDS = frozenset(name for name, rule in FIELD_RULES.items() if rule.required)
OPTIONAL_BY_SETTING = tuple(name for name, rule in FIELD_RULES.items() if rule.optional_by_setting)
IDENTIFIERS = ("phone", "nid")
"""The fields that duplicates are found by. A misspelt one is never left out, also where it is optional: then duplicates
would not be found."""
SENSITIVE_FIELDS = tuple(name for name, rule in FIELD_RULES.items() if rule.sensitive)
CORRECTABLE_FIELDS = tuple(name for name, rule in FIELD_RULES.items() if rule.correctable)

# Those of the first edition, and those that came later.
_digested_by_place, _DIGESTED_BY_NAME = itemgetter(*CUSTOMER_FIELDS[:9]), CUSTOMER_FIELDS[9:]


def digested(values: Mapping[str, str | None]) -> list[str | None]:
    """What the content digest of a submission covers.

    A field that came later counts only where it is given, with its name before it: without it, a submission has the
    digest that it had before there was such a field.
    """
    covered = list(_digested_by_place(values))
    for name in _DIGESTED_BY_NAME:
        if values[name] is not None:
            covered += [name, values[name]]
    return covered


SEALED_FORM = ".gAAAAAAAAAAA"
"""What every sealed token contains: the dot behind the key id, then Fernet's version byte 0x80 and time 0 in base64."""


def is_sealed(stored: str) -> bool:
    """Whether a stored value is a token. A conversation id that was stored before they were sealed is in clear."""
    return SEALED_FORM in stored


@dataclass(frozen=True, kw_only=True)
class LeadState:
    """What a lead has besides what its customer entered."""

    __slots__ = ()  # the classes below have the slots: two bases with slots cannot be joined

    id: UUID
    status: LeadStatus
    created_at: datetime
    updated_at: datetime
    version: int
    assignee: str | None
    resubmissions: int
    created_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead(CustomerFields, LeadState):
    """One interested person, with every field in clear.

    A sensitive field that could not be opened is None and named in `unreadable_fields`. Name and phone are None only
    then.
    """

    transcript_uri: str | None
    unreadable_fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFields:
    """The customer fields of a row."""

    fields: Mapping[str, str] = field(repr=False)
    """By name, as they are stored: sensitive ones as sealed tokens. One that was not given is absent."""

    @property
    def sealed(self) -> dict[str, str]:
        """The sealed tokens, by field."""
        return {name: token for name in SENSITIVE_FIELDS if (token := self.fields.get(name)) and is_sealed(token)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedLead(StoredFields, LeadState):
    """A lead as it is stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlindIndexes:
    """The blind indexes of one lead: the first pair of columns, the second one, and the plan that they follow.

    None where the plan leaves a pair empty. An index is found by its value, in either pair: two keys never
    make the same one.
    """

    epoch: int
    phone: tuple[bytes | None, bytes | None] = field(repr=False)
    nid: tuple[bytes | None, bytes | None] = field(repr=False)
    conversation: tuple[str, ...] = field(default=(), repr=False)
    """Those of the conversation id, made with each index key; the first one is stored. Outside of pairs and plans."""
    email: str | None = field(default=None, repr=False)
    """That of the e-mail address; None: it has none, or is not stored yet. Outside of pairs and plans, too."""
    scheme: str = ""
    """How those of phone and nid in the first pair that is not empty were made: the beginning of their text form."""

    @property
    def phones(self) -> tuple[bytes, ...]:
        """The indexes of the phone, whatever their pair."""
        return tuple(index for index in self.phone if index is not None)

    @property
    def nids(self) -> tuple[bytes, ...]:
        """The indexes of the nid, whatever their pair."""
        return tuple(index for index in self.nid if index is not None)

    @property
    def texts(self) -> dict[str, str | None]:
        """Those by which resubmissions and conflicts are found, by column: text, like that of the e-mail address."""
        phone, nid = (scheme_text(self.scheme, found[0]) if found else None for found in (self.phones, self.nids))
        return {"phone_index": phone, "nid_index": nid, "email_index": self.email}


def scheme_text(scheme: str, digest: bytes) -> str:
    """A blind index as text, behind the name of the scheme that it was made by."""
    return scheme + base64.urlsafe_b64encode(digest).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedSubmission(StoredFields):
    """One attempt to create a lead, ready to be stored. It becomes the lead `id`, or a resubmission of another."""

    id: UUID
    created_by: str
    request_id: str | None
    content_digest: bytes = field(repr=False)
    """Keyed digest of the normalised content: distinguishes a repeat of a request from a reuse of its request_id."""
    indexes: BlindIndexes = field(repr=False)
    earlier_digests: tuple[bytes, ...] = field(default=(), repr=False)
    """The content's digests with other index keys, one of which an earlier submission may have been kept with."""
    accepted_at: datetime | None = None
    """When it was acknowledged, if that was before the database had it; None: it is not acknowledged yet."""
    accepted_between: tuple[datetime, datetime] | None = None
    """That moment by the database's clock, at the earliest and at the latest; None: unknown."""
    refused: bool = False
    """Whether its caller got the answer that it duplicates another submission in the spool."""
    repeat_window: timedelta = timedelta(0)
    """Without request_id: within which time of an earlier submission with the same content it is a repeat of that."""

    def has_content(self, digest: bytes) -> bool:
        """Whether a kept digest is of the same content."""
        return digest == self.content_digest or digest in self.earlier_digests

    def as_lead(self, created_at: datetime) -> SealedLead:
        """The new lead that it is, or will be."""
        return SealedLead(
            id=self.id,
            fields=self.fields,
            status=LeadStatus.NEW,
            created_at=created_at,
            updated_at=created_at,
            version=1,
            assignee=None,
            resubmissions=0,
            created_by=self.created_by,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedConflict(SealedSubmission):
    """A conflict: a submission, the leads that it matched, and the decision, if any. Its indexes are not kept."""

    accepted_at: datetime
    phone_lead_id: UUID | None
    nid_lead_id: UUID | None
    request_lead_id: UUID | None
    erased_lead_id: UUID | None
    """A lead that shared its phone or its nid, and was erased since."""
    found_at: datetime
    resolution: ConflictResolution | None
    resolved_by: str | None
    resolved_at: datetime | None
    reason: str | None

    @property
    def met_fields(self) -> tuple[str, ...]:
        """Which of phone, nid and request_id match a lead; `erased`: one that matched was erased since."""
        matched = {
            "phone": self.phone_lead_id,
            "nid": self.nid_lead_id,
            "request_id": self.request_lead_id,
            "erased": self.erased_lead_id,
        }
        return tuple(name for name, lead_id in matched.items() if lead_id is not None)

    @property
    def lead_ids(self) -> tuple[UUID, ...]:
        """The leads that it matched, each once."""
        matched = (self.phone_lead_id, self.nid_lead_id, self.request_lead_id)
        return tuple(dict.fromkeys(lead_id for lead_id in matched if lead_id is not None))


class LeadEventType(IntEnum):
    """What happened to a lead; the numbers of the contract, which are also those that are stored."""

    CREATED = 1
    CORRECTED = 2
    STATUS_CHANGED = 3
    ASSIGNED = 4
    RESUBMITTED = 5
    CONFLICT_DECIDED = 6
    ERASED = 7
    """What stays of the history of an erased lead."""
    REVEALED = 8
    """A look at values in clear. The access record has it; it is not stored twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeadEvent:
    """One event of a lead's history. It holds no value of a customer field."""

    id: int
    """Of the event, or of the access that it is made of: two kinds of numbers."""
    type: LeadEventType
    lead_id: UUID
    version: int
    """The lead's version after it; 0 for an access, which knows none."""
    fields: tuple[str, ...]
    """The customer fields that were corrected, or shown."""
    from_status: LeadStatus | None
    to_status: LeadStatus | None
    from_assignee: str | None
    to_assignee: str | None
    actor: str
    reason: str | None
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedResubmission(StoredFields):
    """A refused duplicate as it is stored. Its tokens are bound to `submission_id`, not to the lead that it matched."""

    submission_id: UUID
    submitted_at: datetime
    actor: str
    verified: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Resubmission(CustomerFields):
    """A refused duplicate, opened. `verified`: phone and nid both match the lead that it is kept with."""

    transcript_uri: str | None
    submitted_at: datetime
    actor: str
    verified: bool
    unreadable_fields: tuple[str, ...] = ()
