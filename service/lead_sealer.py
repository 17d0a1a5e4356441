"""Seals leads for storage and opens stored leads.

Everything sensitive passes through here on its way into storage and out of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote
from uuid import UUID

from service.errors import FieldUnreadableError
from service.keys.encryption import NOT_CONFIRMED, EncryptionService, IndexPlan, IndexScheme
from service.lead import (
    CUSTOMER_FIELDS,
    SENSITIVE_FIELDS,
    BlindIndexes,
    CustomerFields,
    Lead,
    LeadStatus,
    Resubmission,
    SealedLead,
    SealedResubmission,
    SealedSubmission,
    digested,
    scheme_text,
)
from service.storage.leads.changes import Correction
from service.storage.leads.persons import Wanted
from service.storage.spool.search import SearchKeys
from service.validation import MASK, IndexRule, ValidationService
from service.validation.email import email_key


class LeadSealer:
    """Seals and opens whole leads.

    Args:
        transcript_url: holds `{conversation_id}`; None: leads have no transcript.
        repeat_window: within which time the same content without request_id is a repeat; 0: never.
    """

    def __init__(
        self,
        encryption: EncryptionService,
        validation: ValidationService,
        *,
        transcript_url: str | None,
        repeat_window: timedelta = timedelta(0),
    ) -> None:
        self.encryption = encryption
        self.validation = validation
        self._transcript_url = transcript_url
        self._repeat_window = repeat_window
        # What this process normalises is canonical by its own rules already.
        self._rules = validation.index_rules

    def identifier_indexes(self, field: str, value: str) -> tuple[bytes, ...]:
        """The blind indexes by which leads with a normalised phone or nid are found: equal for two of one person."""
        return tuple(self._index(field, value, scheme) for scheme in self._plan().schemes)

    def conversation_indexes(self, conversation_id: str) -> tuple[str, ...]:
        """The blind indexes by which a normalised conversation id is found; new links are stored with the first one.

        The plan's key makes that one, so that no link is stored with the old key when a rotation is over.
        """
        key_id = self._plan().schemes[0].key_id
        return self.encryption.text_indexes("conversation_id", conversation_id, key_id=key_id)

    def email_indexes(self, email: str) -> tuple[str, ...]:
        """The blind indexes by which leads with a normalised e-mail address are found."""
        return self.encryption.text_indexes("email", email_key(email))

    def wanted(self, keys: Mapping[str, str]) -> Wanted:
        """The blind indexes by which a person is found, of what the search for a phone, nid or e-mail begins with."""
        schemes = self.encryption.found_by(self._plan().schemes)
        of_leads: dict[str, tuple[Any, ...]] = {}
        of_submissions: dict[str, tuple[str, ...]] = {}
        for name, key in keys.items():
            if name == "email":
                of_leads[name] = of_submissions[name] = self.email_indexes(key)
                continue
            of_leads[name] = self.identifier_indexes(name, key)
            of_submissions[name] = tuple(scheme_text(each.text, self._index(name, key, each)) for each in schemes)
        return Wanted(of_leads, of_submissions, tuple(scheme.text for scheme in schemes))

    def indexes(
        self, phone: str | None, nid: str | None, conversation_id: str | None = None, email: str | None = None
    ) -> BlindIndexes:
        """The blind indexes of a lead with these normalised values, as they are stored now."""
        plan = self._plan()
        phone_1, phone_2 = (self._index("phone", phone, scheme) if scheme and phone else None for scheme in plan.pairs)
        nid_1, nid_2 = (self._index("nid", nid, scheme) if scheme and nid else None for scheme in plan.pairs)
        return BlindIndexes(
            epoch=plan.epoch,
            phone=(phone_1, phone_2),
            nid=(nid_1, nid_2),
            conversation=self.conversation_indexes(conversation_id) if conversation_id else (),
            # With the plan's key, like that of a conversation.
            email=self.encryption.text_index("email", email_key(email), key_id=plan.schemes[0].key_id)
            if email
            else None,
            scheme=plan.schemes[0].text,
        )

    def _plan(self) -> IndexPlan:
        plan = self.encryption.plan
        if plan is not None:
            return plan
        # Without a confirmed database leads can only be spooled; the drain computes their indexes anew.
        mine = IndexScheme(self.encryption.index_primary_id, self.validation.normaliser_identity)
        return IndexPlan(NOT_CONFIRMED, (mine, None))

    def _index(self, field: str, value: str, scheme: IndexScheme) -> bytes:
        """The blind index of a value by the rules of a scheme, not of the settings: all replicas must agree on it."""
        rule = self._rules.get(scheme.normaliser)
        if rule is None:
            rule = self._rules[scheme.normaliser] = IndexRule.of(scheme.normaliser)
        key = rule.phone_key(value) if field == "phone" else rule.nid_key(value)
        return self.encryption.blind_index(field, key, key_id=scheme.key_id)

    def seal(
        self, lead_id: UUID, entered: CustomerFields, *, created_by: str, request_id: str | None
    ) -> SealedSubmission:
        """A submission, ready to be stored as the lead `lead_id`."""
        values: dict[str, str | None] = entered.values()
        digest, *earlier = self.encryption.content_digests(digested(values))
        return SealedSubmission(
            id=lead_id,
            fields={name: self._stored(lead_id, name, value) for name, value in values.items() if value is not None},
            created_by=created_by,
            request_id=request_id,
            content_digest=digest,
            earlier_digests=tuple(earlier),
            indexes=self.indexes(entered.phone, entered.nid, entered.conversation_id, entered.email),
            repeat_window=self._repeat_window,
        )

    def _stored(self, lead_id: UUID, name: str, value: str) -> str:
        return self.encryption.seal(lead_id, name, value) if name in SENSITIVE_FIELDS else value

    def resealed_and_reindexed(self, submission: SealedSubmission) -> SealedSubmission:
        """The submission with its digests and blind indexes computed afresh from its opened fields.

        Fields that were sealed with another key than the primary one are sealed anew. Raises FieldUnreadableError.
        """
        values, unreadable = self._opened(submission.id, submission.fields)
        if unreadable:
            raise FieldUnreadableError(unreadable)
        digest, *earlier = self.encryption.content_digests(digested(values))
        anew = {
            name: self.encryption.seal(submission.id, name, values[name] or "")
            for name in SENSITIVE_FIELDS
            if name in submission.fields and not self.encryption.is_sealed_with_primary(submission.fields[name])
        }
        return replace(
            submission,
            content_digest=digest,
            earlier_digests=tuple(earlier),
            indexes=self.indexes(values["phone"], values["nid"], values["conversation_id"], values["email"]),
            repeat_window=self._repeat_window,
            fields={**submission.fields, **anew},
        )

    def search_keys(self, submission: SealedSubmission, schemes: Sequence[IndexScheme]) -> SearchKeys:
        """The digests by which a submission is found: of phone and nid by each scheme, of the e-mail by each index key.

        Those of a field that does not open are missing.
        """
        sought = {name: submission.fields[name] for name in ("phone", "nid", "email") if name in submission.fields}
        values, _ = self._opened(submission.id, sought)
        phone, nid, email = values["phone"], values["nid"], values["email"]
        return SearchKeys(
            phones=frozenset(self._index("phone", phone, scheme) for scheme in schemes) if phone else frozenset(),
            nids=frozenset(self._index("nid", nid, scheme) for scheme in schemes) if nid else frozenset(),
            emails=frozenset(self.email_indexes(email)) if email else frozenset(),
        )

    def with_conversation_index(self, submission: SealedSubmission) -> SealedSubmission:
        """The submission with its conversation id sealed and indexed; as it is if that cannot be opened."""
        values, _ = self._opened(submission.id, submission.fields)
        if (conversation_id := values["conversation_id"]) is None:
            return submission
        token = self.encryption.seal(submission.id, "conversation_id", conversation_id)
        return replace(
            submission,
            fields={**submission.fields, "conversation_id": token},
            indexes=replace(submission.indexes, conversation=self.conversation_indexes(conversation_id)),
        )

    def correction(
        self,
        lead_id: UUID,
        changed: Mapping[str, str | None],
        *,
        actor: str,
        reason: str | None = None,
        also_named: Collection[str] = (),
    ) -> Correction:
        """New normalised values of a lead's fields, ready to be stored; None removes an optional one."""
        columns: dict[str, str | bytes | bool | int | None] = {
            name: None if value is None else self._stored(lead_id, name, value) for name, value in changed.items()
        }
        indexes = self.indexes(changed.get("phone"), changed.get("nid"), email=changed.get("email"))
        for name, pair in (("phone", indexes.phone), ("nid", indexes.nid)):
            if name in changed:
                # What the plan leaves empty, or the lead has no more, loses what it had: it would refuse a stranger.
                columns |= {f"{name}_index": pair[0], f"{name}_index_2": pair[1], f"{name}_shared": False}
                columns["index_epoch"] = indexes.epoch
        if "email" in changed:
            columns["email_index"] = indexes.email
        return Correction(columns=columns, actor=actor, reason=reason, also_named=also_named)

    def acknowledged(self, lead_id: UUID, entered: CustomerFields, accepted_at: datetime, created_by: str) -> Lead:
        """The lead that a submission is acknowledged as before the database has it."""
        return Lead(
            id=lead_id,
            **self._shown(entered.values()),
            status=LeadStatus.NEW,
            created_at=accepted_at,
            updated_at=accepted_at,
            version=1,
            assignee=None,
            resubmissions=0,
            created_by=created_by,
        )

    def holds(self, sealed: SealedLead, name: str, value: str | None) -> bool:
        """Whether a customer field has this value now, None: none. One that cannot be opened has another one, so that
        a correction mends it."""
        if value is None or name not in sealed.fields:
            return value is None and name not in sealed.fields
        return self._opened(sealed.id, {name: sealed.fields[name]})[0][name] == value

    def open(self, sealed: SealedLead, *, hidden: Collection[str] = (), flag_unreadable: bool = False) -> Lead:
        """A lead in clear, but for the `hidden` fields: those are not opened, and hold a mask if they are set.

        Raises FieldUnreadableError unless such fields are to be left out and named.
        """
        values, unreadable = self._opened(sealed.id, sealed.fields, hidden)
        if unreadable and not flag_unreadable:
            raise FieldUnreadableError(unreadable)
        return Lead(
            id=sealed.id,
            **self._shown(values),
            status=sealed.status,
            created_at=sealed.created_at,
            updated_at=sealed.updated_at,
            version=sealed.version,
            assignee=sealed.assignee,
            resubmissions=sealed.resubmissions,
            created_by=sealed.created_by,
            unreadable_fields=unreadable,
        )

    def open_resubmission(self, sealed: SealedResubmission, *, hidden: Collection[str] = ()) -> Resubmission:
        """A resubmission in clear, but for the `hidden` fields; those that cannot be opened are left out and named."""
        values, unreadable = self._opened(sealed.submission_id, sealed.fields, hidden)
        return Resubmission(
            **self._shown(values),
            submitted_at=sealed.submitted_at,
            actor=sealed.actor,
            verified=sealed.verified,
            unreadable_fields=unreadable,
        )

    def _opened(
        self, sealed_for: UUID, stored: Mapping[str, str], hidden: Collection[str] = ()
    ) -> tuple[dict[str, str | None], tuple[str, ...]]:
        """Every customer field, None for what is absent or cannot be opened; and which cannot be opened."""
        values: dict[str, str | None] = {name: stored.get(name) for name in CUSTOMER_FIELDS}
        unreadable: list[str] = []
        for name in SENSITIVE_FIELDS:
            if name in stored:
                try:
                    values[name] = MASK if name in hidden else self.encryption.open(sealed_for, name, stored[name])
                except FieldUnreadableError:
                    values[name] = None
                    unreadable.append(name)
        return values, tuple(unreadable)

    def _shown(self, values: Mapping[str, str | None]) -> dict[str, Any]:
        """The fields and the link to the transcript. Any: only the database knows which of them are never None."""
        link = None
        if self._transcript_url is not None and (conversation_id := values["conversation_id"]) is not None:
            link = self._transcript_url.replace("{conversation_id}", quote(conversation_id, safe=""))
        return {**values, "transcript_uri": link}
