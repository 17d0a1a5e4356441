"""Between leads in clear and leads as they are stored.

Everything sensitive passes here on its way into storage and out of it. Which fields those are is handed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from urllib.parse import quote
from uuid import UUID

from service.encryption import EncryptionService
from service.errors import FieldUnreadableError
from service.lead import (
    CUSTOMER_FIELDS,
    CustomerDetails,
    Lead,
    LeadStatus,
    Resubmission,
    SealedLead,
    SealedResubmission,
    SealedSubmission,
)
from service.storage.requests import Correction
from service.validation import ValidationService


class LeadSealer:
    """Seals and opens whole leads. `transcript_url` holds `{conversation_id}`; None: leads have no transcript."""

    def __init__(
        self,
        encryption: EncryptionService,
        validation: ValidationService,
        *,
        sensitive_fields: Sequence[str],
        transcript_url: str | None,
    ) -> None:
        self._encryption = encryption
        self._validation = validation
        self._sensitive = tuple(sensitive_fields)
        self._transcript_url = transcript_url

    def phone_index(self, phone: str) -> bytes:
        """The blind index of a normalised phone."""
        return self._encryption.blind_index("phone", phone)

    def nid_index(self, nid: str) -> bytes:
        """The blind index of a normalised nid: equal for two nids of one person."""
        return self._encryption.blind_index("nid", self._validation.nid_identity(nid))

    def seal(
        self, lead_id: UUID, details: CustomerDetails, *, created_by: str, request_id: str | None
    ) -> SealedSubmission:
        """A submission, ready to be stored as the lead `lead_id`."""
        values: dict[str, str | None] = {name: getattr(details, name) for name in CUSTOMER_FIELDS}
        sealed = {
            name: self._encryption.seal(lead_id, name, value)
            for name in self._sensitive
            if (value := values[name]) is not None
        }
        return SealedSubmission(
            id=lead_id,
            name=details.name,
            interested_policy=details.interested_policy,
            preferred_contact_time=details.preferred_contact_time,
            conversation_id=details.conversation_id,
            created_by=created_by,
            request_id=request_id,
            content_digest=self._encryption.content_digest(values.values()),
            phone_index=self.phone_index(details.phone),
            nid_index=self.nid_index(details.nid),
            sealed=sealed,
        )

    def refreshed(self, submission: SealedSubmission) -> SealedSubmission:
        """The submission with its digest and blind indexes computed afresh from its opened fields.

        Raises FieldUnreadableError.
        """
        values, unreadable = self._open_fields(submission.id, submission.sealed)
        if unreadable:
            raise FieldUnreadableError(unreadable)
        phone, nid = values["phone"], values["nid"]
        if phone is None or nid is None:
            raise FieldUnreadableError([name for name in ("phone", "nid") if values[name] is None])
        content = [values[name] if name in values else getattr(submission, name) for name in CUSTOMER_FIELDS]
        return replace(
            submission,
            content_digest=self._encryption.content_digest(content),
            phone_index=self.phone_index(phone),
            nid_index=self.nid_index(nid),
        )

    def correction(self, lead_id: UUID, changed: Mapping[str, str | None]) -> Correction:
        """New normalised values of a lead's fields, ready to be stored; None removes an optional one."""
        columns: dict[str, str | bytes | bool | None] = {}
        for name, value in changed.items():
            is_sealed = name in self._sensitive and value is not None
            columns[name] = self._encryption.seal(lead_id, name, value or "") if is_sealed else value
        if phone := changed.get("phone"):
            columns |= {"phone_index": self.phone_index(phone), "phone_shared": False}
        if nid := changed.get("nid"):
            columns |= {"nid_index": self.nid_index(nid), "nid_shared": False}
        return Correction(columns=columns)

    def acknowledged(self, lead_id: UUID, details: CustomerDetails, accepted_at: datetime) -> Lead:
        """The lead that a submission is acknowledged as before the database has it."""
        return Lead(
            id=lead_id,
            **{name: getattr(details, name) for name in CUSTOMER_FIELDS},
            status=LeadStatus.NEW,
            created_at=accepted_at,
            updated_at=accepted_at,
            version=1,
            assignee=None,
            transcript_uri=self._transcript_uri(details.conversation_id),
            resubmissions=0,
        )

    def value_of(self, sealed: SealedLead, name: str) -> str | None:
        """The present value of a customer field; None also for one that cannot be opened: a correction mends it."""
        if name not in self._sensitive:
            value: str | None = getattr(sealed, name)
            return value
        tokens = {name: sealed.sealed[name]} if name in sealed.sealed else {}
        return self._open_fields(sealed.id, tokens)[0][name]

    def open(self, sealed: SealedLead, *, flag_unreadable: bool = False) -> Lead:
        """A lead in clear. Raises FieldUnreadableError unless such fields are to be left out and named."""
        values, unreadable = self._open_fields(sealed.id, sealed.sealed)
        if unreadable and not flag_unreadable:
            raise FieldUnreadableError(unreadable)
        return Lead(
            id=sealed.id,
            name=sealed.name,
            interested_policy=sealed.interested_policy,
            preferred_contact_time=sealed.preferred_contact_time,
            conversation_id=sealed.conversation_id,
            status=sealed.status,
            created_at=sealed.created_at,
            updated_at=sealed.updated_at,
            version=sealed.version,
            assignee=sealed.assignee,
            transcript_uri=self._transcript_uri(sealed.conversation_id),
            resubmissions=sealed.resubmissions,
            unreadable_fields=unreadable,
            **values,
        )

    def open_resubmission(self, sealed: SealedResubmission) -> Resubmission:
        """A resubmission in clear; fields that cannot be opened are left out and named."""
        values, unreadable = self._open_fields(sealed.submission_id, sealed.sealed)
        return Resubmission(
            name=sealed.name,
            interested_policy=sealed.interested_policy,
            preferred_contact_time=sealed.preferred_contact_time,
            conversation_id=sealed.conversation_id,
            transcript_uri=self._transcript_uri(sealed.conversation_id),
            submitted_at=sealed.submitted_at,
            actor=sealed.actor,
            verified=sealed.verified,
            unreadable_fields=unreadable,
            **values,
        )

    def _open_fields(
        self, sealed_for: UUID, tokens: Mapping[str, str]
    ) -> tuple[dict[str, str | None], tuple[str, ...]]:
        values: dict[str, str | None] = dict.fromkeys(self._sensitive)
        unreadable: list[str] = []
        for name, token in tokens.items():
            try:
                values[name] = self._encryption.open(sealed_for, name, token)
            except FieldUnreadableError:
                unreadable.append(name)
        return values, tuple(unreadable)

    def _transcript_uri(self, conversation_id: str | None) -> str | None:
        if self._transcript_url is None or conversation_id is None:
            return None
        return self._transcript_url.replace("{conversation_id}", quote(conversation_id, safe=""))
