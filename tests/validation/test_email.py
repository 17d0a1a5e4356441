from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.validation.email import email_key, normalise_email
from service.validation.text import ValueRefusedError

VECTORS = json.loads((Path(__file__).parents[1] / "vectors/normalisation.json").read_text())["email_keys"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["case"])
def test_addresses_of_one_mailbox_have_one_key(vector: dict[str, str]) -> None:
    kept = normalise_email(vector["input"])

    assert kept == vector["canonical"]
    assert email_key(kept) == vector["key"]
    assert email_key(vector["key"]) == vector["key"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("john@example.com", "john@example.com"),
        ("  John@EXAMPLE.com\n", "John@example.com"),
        ("jürgen@bücher.example", "jürgen@bücher.example"),
        ("x@xn--bcher-kva.example", "x@bücher.example"),
        ("lead@chatbot.test", "lead@chatbot.test"),
    ],
)
def test_an_address_is_kept_with_its_domain_in_lower_case(given: str, kept: str) -> None:
    assert normalise_email(given) == kept


@pytest.mark.parametrize(
    "given",
    [
        "john",
        "a@b c",
        "a@b",
        "a@test",
        "a@[192.0.2.1]",
        "a@host.local",
        "John <john@example.com>",
        '"john doe"@example.com',
        "a@@example.com",
        "a\x00@example.com",
        "a\ud800@example.com",
        "a@exa\u202emple..com",
        f"{'a' * 243}@example.com",
        f"{'x@' * 500}example.com",
    ],
)
def test_what_is_no_address_is_refused_without_telling_any_of_it(given: str) -> None:
    with pytest.raises(ValueRefusedError) as refused:
        normalise_email(given)

    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None
    assert given.strip() not in refused.value.description
