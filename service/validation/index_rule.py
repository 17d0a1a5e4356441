"""Which values count as equal under a normaliser, given by its identity alone, such as `1;region=BD;phone=e164;nid=BD`.

While the rules change, every replica computes indexes under the old and under the new ones, whatever its own settings
are. A stored value that the rules would not accept any more counts as it stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from service.validation.nid import NidNormaliser, NidRule
from service.validation.phone import PhoneNormaliser, PhoneRule
from service.validation.text import ValueRefusedError

NORMALISER_VERSION = 1
"""Grows with every change after which a phone or NID that was stored before could get another canonical form."""


def identity_of(region: str | None, phone_rule: PhoneRule, nid_rule: NidRule) -> str:
    """The identity of the normaliser with these rules."""
    return f"{NORMALISER_VERSION};region={region or '-'};phone={phone_rule};nid={nid_rule}"


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
        if version != str(NORMALISER_VERSION) or set(named) != {"region", "phone", "nid"}:
            raise ValueError("it belongs to a normaliser that this release does not know")
        region = None if named["region"] == "-" else named["region"]
        phone = PhoneNormaliser(region, PhoneRule(named["phone"]))
        nid = NidNormaliser(NidRule(named["nid"]))

        def nid_key(value: str) -> str:
            return nid.identity(_canonical(nid.canonical, value))

        return cls(lambda value: _canonical(phone.canonical, value), nid_key)


def _canonical(canonical: Callable[[str], str | None], value: str) -> str:
    try:
        return canonical(value) or value
    except ValueRefusedError:
        return value
