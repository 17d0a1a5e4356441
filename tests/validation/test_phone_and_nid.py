from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from service.errors import LeadValidationError
from service.validation import NORMALISER_VERSION, NidRule, ValidationService
from service.validation.nid import NidNormaliser
from service.validation.text import ValueRefusedError

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors/normalisation.json").read_text())


def named(vectors: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(vector, id=f"{vector['case']}-{number}") for number, vector in enumerate(vectors)]


def test_the_vectors_belong_to_this_version() -> None:
    assert VECTORS["normaliser_version"] == NORMALISER_VERSION


@pytest.mark.parametrize("vector", named(VECTORS["phone"]))
def test_a_phone_number_has_the_canonical_form_of_its_vector(vector: dict[str, Any]) -> None:
    service = ValidationService(default_region=vector["region"], phone_rule=vector["rule"])
    if vector["canonical"] is None:
        with pytest.raises(LeadValidationError):
            service.phone_key(vector["input"])
    else:
        assert service.phone_key(vector["input"]) == vector["canonical"]


@pytest.mark.parametrize("vector", named(VECTORS["nid"]))
def test_an_nid_has_the_canonical_form_of_its_vector(vector: dict[str, Any]) -> None:
    service = ValidationService(nid_rule=vector["rule"])
    if vector["canonical"] is None:
        with pytest.raises(LeadValidationError):
            service.nid_key(vector["input"])
    else:
        canonical = service.nid_key(vector["input"])
        assert (canonical, service.nid_identity(canonical)) == (vector["canonical"], vector["identity"])


def test_a_number_without_country_code_is_refused_with_a_hint(service: ValidationService) -> None:
    with pytest.raises(LeadValidationError) as refused:
        service.phone_key("01712345678")

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
