"""Validates what callers send, and brings it into the form in which it is kept.

A description of a violation is fixed text: it never holds the value or a part of it, so it may be shown and logged.
Equal people must give equal values here, because duplicates are found by the normalised phone and NID; whoever
changes what counts as equal adds an index rule.

Index rule 1 compares phones as they are kept. Index rule 2 also counts as one what people and WhatsApp write in two
ways: Brazil's ninth digit, Argentina's 9 and Mexico's 1 for mobiles. The written form is kept in either. A database
names the rule of its leads, and every replica follows it. While the rules change, every replica computes indexes under
the old and under the new ones, whatever its own settings are.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from service.errors import LeadValidationError, Violation
from service.lead import CORRECTABLE_FIELDS, CUSTOMER_FIELDS, FIELD_RULES, IDENTIFIERS, REQUIRED_FIELDS, CustomerFields
from service.scopes import MAX_SUBJECT_CHARACTERS, is_subject
from service.validation.email import email_key, normalise_email
from service.validation.nid import NidNormaliser, NidRule
from service.validation.phone import PhoneNormaliser, PhoneRule, region_of
from service.validation.reference import read_reference
from service.validation.text import MASK, MaskedValueError, PlaceholderError, TextRule, ValueRefusedError

__all__ = ["MASK", "NORMALISER_VERSION", "NidRule", "PhoneRule", "Submission", "ValidationService"]


_TEXTS = {
    name: TextRule(limit=rule.limit, lines=rule.lines, spaces=rule.spaces).normalise
    for name, rule in FIELD_RULES.items()
    if rule.limit is not None
} | {
    "request_id": TextRule(limit=128, spaces=False).normalise,
    "reason": TextRule(limit=500, lines=True).normalise,
    "assignee": TextRule(limit=200).normalise,
}
_POLICY = _TEXTS["interested_policy"]

NORMALISER_VERSION = 2
"""The index rule of new databases. Grows with every change after which two phones or NIDs that were different could
count as equal, or the other way round."""

KNOWS_INDEX_RULE = f"index-rule-{NORMALISER_VERSION}"
"""What a replica publishes besides the keys that it opens with. Releases that know only rule 1 publish nothing."""

# In Brazil only what was a mobile number with eight digits got a ninth one: 9 2xxx is nobody's landline 2xxx.
_WRITTEN_IN_TWO_WAYS = re.compile(r"(\+52)1([0-9]{10})|(\+54)9([0-9]{10})|(\+55[1-9]{2})9([6-9][0-9]{7})")

SHORTEST_PREFIX = 2
"""Characters of a name to look for: a single one finds more leads than are looked through."""

_POLICIES_NAMED = 10
"""How many policies of the catalogue a violation lists."""

_Rule = Callable[[str], str | None]

_MAY_BE_BLANK = frozenset({"assignee", "conversation_id", "source"})
"""Filters that are left out when there is nothing in them."""


class Faults(NamedTuple):
    """What CreateLead would refuse a lead for, and the optional fields that it would leave out."""

    violations: tuple[Violation, ...]
    ignored: tuple[str, ...]


class Submission(NamedTuple):
    """What is kept of a submission."""

    fields: CustomerFields
    ignored: tuple[str, ...]
    """The names of the optional fields that cannot be read and were left out."""
    request_id: str | None


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
        self.normaliser_identity = (
            f"{NORMALISER_VERSION};region={default_region or '-'};phone={PhoneRule(phone_rule)};nid={NidRule(nid_rule)}"
        )
        """What decides which values count as equal in a new database, such as `2;region=BD;phone=e164;nid=BD`.

        Blind indexes that were computed under another identity do not match those of this one.
        """
        self._rules: dict[str, _Rule] = {
            **_TEXTS,
            "phone": self._phone.canonical,
            "nid": self._nid.canonical,
            "interested_policy": self._policy_on_offer,
            "email": normalise_email,
        }
        self._filters: Mapping[str, Callable[[str], object]] = {
            **{name: _TEXTS[name] for name in _MAY_BE_BLANK},
            "phone": self._phone.canonical,
            "nid": self._nid.canonical,
            "email": _email_to_find,
            "interested_policy": self._policy_to_find,
            "reference": read_reference,
            "name_prefix": _name_prefix,
            "created_by": _creator,
        }

    @property
    def index_rules(self) -> dict[str, IndexRule]:
        """The index rules for values that were normalised here, by the identities that name them in a database."""
        settings = self.normaliser_identity.partition(";")[2]
        return {
            f"{version};{settings}": IndexRule(phone_key, self._nid.identity)
            for version, phone_key in _PHONE_KEYS.items()
        }

    def submission(self, fields: Mapping[str, str], *, request_id: str = "", phone_region: str = "") -> Submission:
        """The normalised details of a new lead. A field, or `request_id`, that is missing or empty was not given.

        An optional field that cannot be read is left out and named. `phone_region` stands in for the default region.
        Raises LeadValidationError with every violation when the rest is no lead, and ValueError for a name that no
        customer field has.
        """
        accepted, violations, ignored = self._read({**dict.fromkeys(CUSTOMER_FIELDS), **fields}, phone_region)
        request = None
        try:
            request = _TEXTS["request_id"](request_id)
        except ValueRefusedError as refused:
            violations.append(refused.at("request_id"))
        if len(violations) > len(ignored):
            raise LeadValidationError(violations)
        return Submission(CustomerFields(**accepted), tuple(ignored), request)

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
        if not set(fields) <= set(CUSTOMER_FIELDS):
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

    def filters(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What to look for by each filter, in the form in which values are kept; a text with nothing in it is left out.

        A filter without a rule here is passed on as it is. Raises LeadValidationError with every violation, also for an
        identifier, policy or name with nothing in it.
        """
        wanted: dict[str, Any] = {}
        violations: list[Violation] = []
        for name, value in given.items():
            try:
                found = self._filters[name](value) if name in self._filters else value
            except ValueRefusedError as refused:
                violations.append(refused.at(name))
                continue
            if found is not None:
                wanted[name] = found
            elif name not in _MAY_BE_BLANK:
                violations.append(Violation(name, "is required", "REQUIRED"))
        if wanted.get("unassigned") and wanted.get("assignee"):
            violations.append(Violation("unassigned", "cannot be sent with assignee"))
        if violations:
            raise LeadValidationError(violations)
        return wanted

    def text(self, name: str, value: str, path: str = "") -> str | None:
        """A text of a request as it is kept: that of a customer field, or `reason`, `assignee`, `request_id`.

        None if empty. Violations name its `path`, or else its name. Raises LeadValidationError.
        """
        try:
            return _TEXTS[name](value)
        except ValueRefusedError as refused:
            raise LeadValidationError([refused.at(path or name)]) from None

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

    def _policy_to_find(self, value: str) -> str | None:
        """In the catalogue's spelling; as it is written when it is not there, since leads may be of a former policy."""
        policy = _POLICY(value)
        return policy and self._policies.get(_folded(policy), policy)


def _email_to_find(value: str) -> str | None:
    # No address has a space in it; one that was copied from a text may.
    email = normalise_email("".join(value.split()))
    return email and email_key(email)


def _name_prefix(value: str) -> str | None:
    prefix = _TEXTS["name"](value)
    if prefix is not None and len(prefix) < SHORTEST_PREFIX:
        raise ValueRefusedError(f"must have at least {SHORTEST_PREFIX} characters")
    return prefix


def _creator(value: str) -> str:
    """The subject that created leads, exactly as its token has it."""
    if not is_subject(value):
        raise ValueRefusedError(f"must be 1 to {MAX_SUBJECT_CHARACTERS} visible characters")
    return value


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


def have_same_settings(one: str, other: str) -> bool:
    """Whether two identities differ in nothing but the index rule, which no setting chooses."""
    return one.partition(";")[2] == other.partition(";")[2]


@dataclass(frozen=True, slots=True)
class IndexRule:
    """What the blind index of a normalised phone and nid is computed of."""

    phone_key: Callable[[str], str]
    nid_key: Callable[[str], str]

    @classmethod
    def of(cls, identity: str) -> IndexRule:
        """The rule of a normaliser. Raises ValueError for one that this release does not know."""
        version, *rules = identity.split(";")
        named = dict(rule.partition("=")[::2] for rule in rules)
        if version not in _PHONE_KEYS or set(named) != {"region", "phone", "nid"}:
            raise ValueError("it belongs to a normaliser that this release does not know")
        region = None if named["region"] == "-" else named["region"]
        phone = PhoneNormaliser(region, PhoneRule(named["phone"]))
        nid = NidNormaliser(NidRule(named["nid"]))
        phone_key = _PHONE_KEYS[version]

        def nid_key(value: str) -> str:
            return nid.identity(_canonical(nid.canonical, value))

        return cls(lambda value: phone_key(_canonical(phone.canonical, value)), nid_key)


def _as_one_person(phone: str) -> str:
    if not phone.startswith("+5"):
        return phone
    match = _WRITTEN_IN_TWO_WAYS.fullmatch(phone)
    return phone if match is None else "".join(part for part in match.groups() if part)


_PHONE_KEYS: dict[str, Callable[[str], str]] = {"1": str, "2": _as_one_person}


def _canonical(canonical: Callable[[str], str | None], value: str) -> str:
    try:
        return canonical(value) or value
    except ValueRefusedError:
        return value
