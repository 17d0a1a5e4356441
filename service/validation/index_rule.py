"""Which values count as equal under a normaliser, given by its identity alone, such as `2;region=BD;phone=e164;nid=BD`.

Index rule 1 compares phones as they are kept. Index rule 2 also counts as one what people and WhatsApp write in two
ways: Brazil's ninth digit, Argentina's 9 and Mexico's 1 for mobiles. The written form is kept in either.

A database names the rule of its leads, and every replica follows it. While the rules change, every replica computes
indexes under the old and under the new ones, whatever its own settings are. A stored value that the rules would not
accept any more counts as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from service.validation.nid import NidNormaliser, NidRule
from service.validation.phone import PhoneNormaliser, PhoneRule
from service.validation.text import ValueRefusedError

NORMALISER_VERSION = 2
"""The index rule of new databases. Grows with every change after which two phones or NIDs that were different could
count as equal, or the other way round."""

KNOWS_INDEX_RULE = f"index-rule-{NORMALISER_VERSION}"
"""What a replica publishes besides the keys that it opens with. Releases that know only rule 1 publish nothing."""

# In Brazil only what was a mobile number with eight digits got a ninth one: 9 2xxx is nobody's landline 2xxx.
_WRITTEN_IN_TWO_WAYS = re.compile(r"(\+52)1([0-9]{10})|(\+54)9([0-9]{10})|(\+55[1-9]{2})9([6-9][0-9]{7})")


def identity_of(region: str | None, phone_rule: PhoneRule, nid_rule: NidRule) -> str:
    """The identity of the normaliser with these rules, for a new database."""
    return f"{NORMALISER_VERSION};region={region or '-'};phone={phone_rule};nid={nid_rule}"


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


def rules_of_normalised(identity: str, nid_identity: Callable[[str], str]) -> dict[str, IndexRule]:
    """The index rules by their identities, for values that a normaliser with these settings has made canonical."""
    settings = identity.partition(";")[2]
    return {f"{version};{settings}": IndexRule(phone_key, nid_identity) for version, phone_key in _PHONE_KEYS.items()}


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
