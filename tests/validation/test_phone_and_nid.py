from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from service.errors import LeadValidationError
from service.validation import NORMALISER_VERSION, IndexRule, NidRule, ValidationService
from service.validation.nid import NidNormaliser
from service.validation.phone import ANY_COUNTRY
from service.validation.text import ValueRefusedError

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors/normalisation.json").read_text())


def named(vectors: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(vector, id=f"{vector['case']}-{number}") for number, vector in enumerate(vectors)]


def test_the_vectors_belong_to_this_version() -> None:
    assert VECTORS["normaliser_version"] == NORMALISER_VERSION


@pytest.mark.parametrize("vector", named(VECTORS["phone"]))
def test_a_phone_number_has_the_canonical_form_of_its_vector(vector: dict[str, Any]) -> None:
    own = None if vector["region"] == ANY_COUNTRY else vector["region"]
    service = ValidationService(default_region=own, phone_rule=vector["rule"])
    for region in ("", vector["region"] or "") if own == vector["region"] else (vector["region"],):
        if vector["canonical"] is None:
            with pytest.raises(LeadValidationError):
                service.correction({"phone": vector["input"]}, phone_region=region)
        else:
            assert service.correction({"phone": vector["input"]}, phone_region=region)["phone"] == vector["canonical"]


@pytest.mark.parametrize("vector", named(VECTORS["phone_index_keys"]))
@pytest.mark.parametrize("rule", ["1", "2"])
def test_a_phone_number_has_the_index_key_of_its_vector(vector: dict[str, Any], rule: str) -> None:
    service = ValidationService()
    identity = f"{rule};region=-;phone=e164;nid=any"

    assert service.filters({"phone": vector["canonical"]}) == {"phone": vector["canonical"]}
    for index_rule in (service.index_rules[identity], IndexRule.of(identity)):
        key = index_rule.phone_key(vector["canonical"])
        assert key == vector[f"rule_{rule}"]
        assert index_rule.phone_key(key) == key


@pytest.mark.parametrize("vector", named(VECTORS["nid"]))
def test_an_nid_has_the_canonical_form_of_its_vector(vector: dict[str, Any]) -> None:
    service = ValidationService(nid_rule=vector["rule"])
    if vector["canonical"] is None:
        with pytest.raises(LeadValidationError):
            service.filters({"nid": vector["input"]})
    else:
        canonical = service.filters({"nid": vector["input"]})["nid"]
        identity = service.index_rules[service.normaliser_identity].nid_key(canonical)
        assert (canonical, identity) == (vector["canonical"], vector["identity"])


def test_a_number_without_country_code_is_refused_with_a_hint(service: ValidationService) -> None:
    with pytest.raises(LeadValidationError) as refused:
        service.filters({"phone": "01712345678"})

    assert "with + and the country code" in refused.value.violations[0].description


def test_no_character_makes_an_nid_whose_canonical_form_is_not_its_own() -> None:
    nids = NidNormaliser(NidRule.ANY)
    unstable = []
    for character in map(chr, range(sys.maxunicode + 1)):
        if unicodedata.normalize("NFKC", character) == character == character.upper():
            continue  # nothing changes it, so nothing can change it twice
        try:
            canonical = nids.canonical(f"1234{character}")
        except ValueRefusedError:
            continue
        if canonical is None or nids.canonical(canonical) != canonical:
            unstable.append(character)

    assert unstable == []
