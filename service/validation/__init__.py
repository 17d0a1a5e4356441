"""Validates what callers send, and brings it into the form in which it is kept.

A description of a violation is fixed text: it never holds the value or a part of it, so it may be shown and logged.
Equal people must give equal values here, because duplicates are found by the normalised phone and NID; whoever
changes what counts as equal adds an index rule (index_rule.py).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

from service.errors import LeadValidationError, Violation
from service.lead import CORRECTABLE_FIELDS, CUSTOMER_FIELDS, FIELD_RULES, IDENTIFIERS, REQUIRED_FIELDS, CustomerFields
from service.scopes import MAX_SUBJECT_CHARACTERS, is_subject
from service.validation.email import email_key, normalise_email
from service.validation.index_rule import NORMALISER_VERSION, IndexRule, identity_of, rules_of_normalised
from service.validation.nid import NidNormaliser, NidRule
from service.validation.phone import PhoneNormaliser, PhoneRule, region_of
from service.validation.reference import read_reference
from service.validation.text import MASK, MaskedValueError, PlaceholderError, TextRule, ValueRefusedError

__all__ = ["MASK", "NORMALISER_VERSION", "NidRule", "PhoneRule", "Submission", "ValidationService"]


_TEXTS = {
    name: TextRule(limit=rule.limit, lines=rule.lines, spaces=rule.spaces).normalise
    for name, rule in FIELD_RULES.items()
    if rule.limit is not None
}
_REQUEST_ID = TextRule(limit=128, spaces=False)
_POLICY = _TEXTS["interested_policy"]
_REASON = TextRule(limit=500, lines=True)
_ASSIGNEE = TextRule(limit=200)

SHORTEST_PREFIX = 2
"""Characters of a name to look for: a single one finds more leads than are looked through."""

_POLICIES_NAMED = 10
"""How many policies of the catalogue a violation lists."""

_Rule = Callable[[str], str | None]
T = TypeVar("T")


class Faults(NamedTuple):
    """What CreateLead would refuse a lead for, and the optional fields that it would leave out."""

    violations: tuple[Violation, ...]
    ignored: tuple[str, ...]


class Submission(NamedTuple):
    """What is kept of a submission, and the names of the optional fields that cannot be read and were left out."""

    fields: CustomerFields
    ignored: tuple[str, ...]


class ValidationService:
    """Checks and normalises what callers send. Immutable, and safe to share between threads.

    default_region: ISO country code (BD) of phone numbers without `+`; None refuses such numbers.
    policies: the policies on offer; empty accepts any.
    required: the fields without which there is no lead.
    Raises ValueError for a region, rule or policy that it cannot work with.
    """

    def __init__(
        self,
        *,
        default_region: str | None = None,
        phone_rule: PhoneRule | str = PhoneRule.E164,
        nid_rule: NidRule | str = NidRule.ANY,
        policies: Collection[str] = (),
        required: Collection[str] = REQUIRED_FIELDS,
    ) -> None:
        self._phone = PhoneNormaliser(default_region, PhoneRule(phone_rule))
        self._nid = NidNormaliser(NidRule(nid_rule))
        self._policies = _catalogue(policies)
        self.required = frozenset(required)
        """The fields without which there is no lead."""
        self._identity = identity_of(default_region, PhoneRule(phone_rule), NidRule(nid_rule))
        self._rules: dict[str, _Rule] = {
            **_TEXTS,
            "phone": self._phone.canonical,
            "nid": self._nid.canonical,
            "interested_policy": self._policy_on_offer,
            "email": normalise_email,
        }

    @property
    def normaliser_identity(self) -> str:
        """What decides which values count as equal in a new database, such as `2;region=BD;phone=e164;nid=BD`.

        Blind indexes that were computed under another identity do not match those of this one.
        """
        return self._identity

    @property
    def index_rules(self) -> dict[str, IndexRule]:
        """The index rules for values that were normalised here, by the identities that name them in a database."""
        return rules_of_normalised(self._identity, self._nid.identity)

    def submission(self, fields: Mapping[str, str], *, phone_region: str = "") -> Submission:
        """The normalised details of a new lead. A field that is missing or empty was not given.

        An optional field that cannot be read is left out and named. `phone_region` stands in for the default region.
        Raises LeadValidationError with every violation when the rest is no lead, and ValueError for a name that no
        customer field has.
        """
        accepted, violations, ignored = self._read({**dict.fromkeys(CUSTOMER_FIELDS), **fields}, phone_region)
        if len(violations) > len(ignored):
            raise LeadValidationError(violations)
        return Submission(CustomerFields(**accepted), tuple(ignored))

    def faults(self, fields: Mapping[str, str], *, phone_region: str = "") -> Faults:
        """What is wrong with some fields of a new lead; one that is missing or empty is not looked at.

        `phone_region` stands in for the default region. Raises ValueError for a name that no customer field has.
        """
        _, violations, ignored = self._read({name: value for name, value in fields.items() if value}, phone_region)
        left_out = {f"lead.{name}" for name in ignored}
        return Faults(tuple(each for each in violations if each.field not in left_out), tuple(ignored))

    def correction(self, fields: Mapping[str, str], *, phone_region: str = "") -> dict[str, str | None]:
        """The normalised values of the fields that a correction names; None empties an optional one.

        `phone_region` stands in for the default region. Raises LeadValidationError with every violation, and ValueError
        for a name that no customer field has.
        """
        accepted, violations, _ = self._read(fields, phone_region, corrects=True)
        if violations:
            raise LeadValidationError(violations)
        return accepted

    def _read(
        self, fields: Mapping[str, str | None], phone_region: str, *, corrects: bool = False
    ) -> tuple[dict[str, Any], list[Violation], list[str]]:
        """The normalised fields, the faults, and which of these belong to optional fields that are left out.

        Any: which fields may be None is known to the settings, not to the type checker.
        """
        if not self._rules.keys() >= set(fields):
            raise ValueError("the caller of ValidationService passed a field that customers do not have")
        violations: list[Violation] = []
        ignored: list[str] = []
        rules = self._rules_for(phone_region, violations)
        accepted: dict[str, Any] = {}
        for name, value in fields.items():
            accepted[name] = None
            if corrects and name not in CORRECTABLE_FIELDS:
                violations.append(Violation(f"lead.{name}", "is set with the new lead and cannot be changed"))
                continue
            try:
                accepted[name] = rules[name](value) if value else None
            except ValueRefusedError as refused:
                violations.append(refused.at(f"lead.{name}"))
                if self._may_be_left_out(name, refused):
                    ignored.append(name)
            else:
                if accepted[name] is None and name in self.required:
                    emptied = " and cannot be emptied" if corrects else ""
                    violations.append(Violation(f"lead.{name}", f"is required{emptied}", "REQUIRED"))
        return accepted, violations, ignored

    def phone_key(self, value: str, path: str = "phone") -> str:
        """The canonical phone number to look for. Raises LeadValidationError, also for an empty value."""
        return _required(self._phone.canonical, value, path)

    def nid_key(self, value: str, path: str = "nid") -> str:
        """The canonical NID to look for. Raises LeadValidationError, also for an empty value."""
        return _required(self._nid.canonical, value, path)

    def email_key(self, value: str, path: str = "email") -> str:
        """What to look for an e-mail address by. Raises LeadValidationError, also for an empty value."""
        # No address has a space in it; one that was copied from a text may.
        return email_key(_required(normalise_email, "".join(value.split()), path))

    def reference(self, value: str, path: str = "reference") -> bytes:
        """The end of the ids that a reference stands for. Raises LeadValidationError."""
        return _required(read_reference, value, path)

    def nid_identity(self, nid: str) -> str:
        """What the blind index of a canonical NID is computed of: equal for two NIDs of one person."""
        return self._nid.identity(nid)

    def policy_key(self, value: str, path: str = "interested_policy") -> str:
        """The policy to look for, in the catalogue's spelling when it is there.

        Leads may be of a policy that is no longer on offer, so another one is looked for as it is written. Raises
        LeadValidationError, also for an empty value.
        """
        policy = _required(_POLICY, value, path)
        return self._policies.get(_folded(policy), policy)

    def reason(self, value: str, path: str = "reason") -> str | None:
        """Why something was done: at most 500 characters, in lines; None if empty. Raises LeadValidationError."""
        return _optional(_REASON.normalise, value, path)

    def assignee(self, value: str, path: str = "assignee") -> str | None:
        """Who takes care: at most 200 characters in one line; None if empty. Raises LeadValidationError."""
        return _optional(_ASSIGNEE.normalise, value, path)

    def request_id(self, value: str, path: str = "request_id") -> str | None:
        """At most 128 visible characters; None if empty. Raises LeadValidationError."""
        return _optional(_REQUEST_ID.normalise, value, path)

    def conversation_id(self, value: str, path: str = "conversation_id") -> str | None:
        """At most 200 visible characters; None if empty. Raises LeadValidationError."""
        return _optional(_TEXTS["conversation_id"], value, path)

    def source(self, value: str, path: str = "source") -> str | None:
        """Where leads came from, at most 100 characters in one line; None if empty. Raises LeadValidationError."""
        return _optional(_TEXTS["source"], value, path)

    def creator(self, value: str, path: str = "created_by") -> str:
        """The subject that created leads, exactly as its token has it. Raises LeadValidationError."""
        if not is_subject(value):
            raise LeadValidationError([Violation(path, f"must be 1 to {MAX_SUBJECT_CHARACTERS} visible characters")])
        return value

    def name_prefix(self, value: str, path: str = "name_prefix") -> str:
        """How a name begins, in the form in which names are kept. Raises LeadValidationError."""
        prefix = _required(_TEXTS["name"], value, path)
        if len(prefix) < SHORTEST_PREFIX:
            raise LeadValidationError([Violation(path, f"must have at least {SHORTEST_PREFIX} characters")])
        return prefix

    def _rules_for(self, phone_region: str, violations: list[Violation]) -> Mapping[str, _Rule]:
        if not phone_region:
            return self._rules
        try:
            region = region_of(phone_region)
        except ValueRefusedError as refused:
            violations.append(refused.at("phone_region"))
            # Without it nobody can tell what is wrong with the phone.
            return {**self._rules, "phone": str}
        return {**self._rules, "phone": partial(self._phone.canonical, region=region)}

    def _may_be_left_out(self, name: str, refused: ValueRefusedError) -> bool:
        """Whether a lead is taken without a field that cannot be read.

        Never without one that the caller masked, which is a fault of its program.
        """
        if name in self.required or isinstance(refused, MaskedValueError):
            return False
        return name not in IDENTIFIERS or isinstance(refused, PlaceholderError)

    def _policy_on_offer(self, value: str) -> str | None:
        policy = _POLICY(value)
        if policy is None or not self._policies:
            return policy
        spelling = self._policies.get(_folded(policy))
        if spelling is None:
            named = ", ".join(list(self._policies.values())[:_POLICIES_NAMED])
            more = ", …" if len(self._policies) > _POLICIES_NAMED else ""
            raise ValueRefusedError(f"is not one of the policies on offer: {named}{more}", "NOT_ON_OFFER")
        return spelling


def _optional(rule: Callable[[str], T | None], value: str, path: str) -> T | None:
    try:
        return rule(value)
    except ValueRefusedError as refused:
        violation = refused.at(path)
    raise LeadValidationError([violation])


def _required(rule: Callable[[str], T | None], value: str, path: str) -> T:
    normal = _optional(rule, value, path)
    if normal is None:
        raise LeadValidationError([Violation(path, "is required", "REQUIRED")])
    return normal


def _catalogue(policies: Collection[str]) -> dict[str, str]:
    """The policies on offer by the form in which they are compared. Raises ValueError."""
    catalogue: dict[str, str] = {}
    for policy in policies:
        try:
            spelling = _POLICY(policy)
        except ValueRefusedError as refused:
            raise ValueError(f"a policy on offer {refused.description}") from None
        if spelling is None:
            raise ValueError("a policy on offer is empty")
        if _folded(spelling) in catalogue:
            raise ValueError(f"the policy {spelling} is on offer twice")
        catalogue[_folded(spelling)] = spelling
    return catalogue


def _folded(policy: str) -> str:
    return unicodedata.normalize("NFC", " ".join(policy.split()).casefold())
