from __future__ import annotations

import base64
import hmac
import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st

from service.errors import FieldUnreadableError
from service.keys.encryption import PADDED_BYTES, PADDED_FIELDS, EncryptionService, KeyCanary
from service.keys.keyring import Keyring, KeyState, Purpose, RootKey
from service.lead import CUSTOMER_FIELDS, SEALED_FORM, SENSITIVE_FIELDS, CustomerFields, digested

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "encryption.json").read_text("utf-8"))
KEYRING = Keyring.from_json(json.dumps(VECTORS["keyring"]))
ENCRYPTION = EncryptionService(KEYRING)
LEAD = UUID("01a20a63-8ee1-744a-afa5-abde66ecd311")
OTHER_LEAD = UUID("01a20a63-8ee1-744a-afa5-abde66ecd312")
NOW = datetime(2026, 1, 31, tzinfo=UTC)


def root(key_id: str) -> bytes:
    return next(key.secret for key in KEYRING.keys if key.id == key_id)


def hkdf_sha256(secret: bytes, info: bytes) -> bytes:
    """RFC 5869 by hand, for one block of output: another way than the one under test."""
    extracted = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def derived(root_id: str, label: str) -> bytes:
    [found] = [v["key_hex"] for v in VECTORS["derived_keys"] if (v["root"], v["label"]) == (root_id, label)]
    return bytes.fromhex(found)


def keyring_in_which(states: dict[str, KeyState]) -> Keyring:
    """The vectors' keyring with other states; a key without one is left out."""
    return Keyring(
        RootKey(key.purpose, key.id, states.get(key.id, key.state), key.created_at, key.secret) for key in KEYRING.keys
    )


class TestVectors:
    def test_their_description_says_how_to_check_them(self) -> None:
        described = " ".join(VECTORS["description"])

        assert all(f"{name}:" in described or name == "keyring" for name in VECTORS if name != "description")

    @pytest.mark.parametrize("vector", VECTORS["derived_keys"], ids=lambda vector: vector["label"])
    def test_a_key_is_derived_by_hkdf_with_its_label(self, vector: dict[str, str]) -> None:
        info = b"leadkeep/v1/" + vector["label"].encode()

        assert hkdf_sha256(root(vector["root"]), info).hex() == vector["key_hex"]

    @pytest.mark.parametrize("vector", VECTORS["sealed"], ids=lambda vector: vector["field"])
    def test_a_sealed_field_opens(self, vector: dict[str, str]) -> None:
        opened = ENCRYPTION.open(UUID(vector["lead_id"]), vector["field"], vector["sealed"])

        assert opened == vector["value"]

    @pytest.mark.parametrize("vector", VECTORS["sealed"], ids=lambda vector: vector["field"])
    def test_a_sealed_field_is_what_the_description_says(self, vector: dict[str, str]) -> None:
        key_id, _, token = vector["sealed"].partition(".")
        name, value = vector["field"].encode(), vector["value"].encode()
        plaintext = UUID(vector["lead_id"]).bytes + struct.pack(">BH", len(name), len(value)) + name + value
        if vector["field"] in ("phone", "nid"):
            plaintext = plaintext.ljust(16 + 3 + 5 + 128, b"\x00")
        fernet = Fernet(base64.urlsafe_b64encode(derived(key_id, f"seal/{key_id}")))

        assert plaintext.hex() == vector["plaintext_hex"]
        assert fernet.decrypt(token).hex() == vector["plaintext_hex"]
        assert fernet.extract_timestamp(token) == 0

    @pytest.mark.parametrize("vector", VECTORS["blind_indexes"], ids=lambda vector: vector["field"])
    def test_a_blind_index_is_an_hmac_with_the_fields_key(self, vector: dict[str, str]) -> None:
        field, value = vector["field"], vector["value"]

        assert ENCRYPTION.blind_index(field, value).hex() == vector["index_hex"]
        assert hmac.digest(derived("i-1", f"index/{field}"), value.encode(), "sha256").hex() == vector["index_hex"]

    @pytest.mark.parametrize("vector", VECTORS["conversation_indexes"], ids=lambda vector: vector["value"])
    def test_a_conversations_index_names_its_key(self, vector: dict[str, str]) -> None:
        digest = hmac.digest(derived(vector["key_id"], "index/conversation_id"), vector["value"].encode(), "sha256")

        assert ENCRYPTION.text_indexes("conversation_id", vector["value"]) == (vector["index"],)
        assert vector["index"] == f"{vector['key_id']}.{base64.urlsafe_b64encode(digest).decode()}"

    @pytest.mark.parametrize("vector", VECTORS["email_indexes"], ids=lambda vector: vector["value"])
    def test_an_emails_index_names_its_key_and_is_half_a_digest(self, vector: dict[str, str]) -> None:
        digest = hmac.digest(derived(vector["key_id"], "index/email"), vector["value"].encode(), "sha256")

        assert ENCRYPTION.text_indexes("email", vector["value"]) == (vector["index"],)
        assert vector["index"] == f"{vector['key_id']}.{base64.urlsafe_b64encode(digest[:16]).decode()}"

    @pytest.mark.parametrize("vector", VECTORS["content_digests"], ids=lambda vector: str(len(vector["values"])))
    def test_a_content_digest_frames_every_value(self, vector: dict[str, Any]) -> None:
        assert ENCRYPTION.content_digests(vector["values"])[0].hex() == vector["digest_hex"]

    def test_a_field_that_came_later_is_digested_with_its_name_and_only_when_it_is_present(self) -> None:
        before, with_source = (vector["values"] for vector in VECTORS["content_digests"][:2])
        details = CustomerFields(**dict(zip(CUSTOMER_FIELDS, before, strict=False)))

        assert digested(details.values()) == before
        assert digested(replace(details, source="whatsapp").values()) == with_source

    @pytest.mark.parametrize("vector", VECTORS["page_token_tags"])
    def test_a_page_token_is_signed(self, vector: dict[str, str]) -> None:
        assert ENCRYPTION.page_token_tags(bytes.fromhex(vector["payload_hex"]))[0].hex() == vector["tag_hex"]

    def test_the_keyring_confirms_its_canary(self) -> None:
        canary = KeyCanary(VECTORS["canary_sealed"], bytes.fromhex(VECTORS["canary_index_hex"]))

        assert ENCRYPTION.confirms(canary)

    def test_every_digest_differs(self) -> None:
        digests = [vector["digest_hex"] for vector in VECTORS["content_digests"]]

        assert len(set(digests)) == len(digests)

    def test_each_use_has_a_key_of_its_own(self) -> None:
        keys = [vector["key_hex"] for vector in VECTORS["derived_keys"]]

        assert len(set(keys)) == len(keys)


class TestSealing:
    @given(field=st.sampled_from(SENSITIVE_FIELDS), value=st.text(max_size=32))
    def test_what_is_sealed_opens(self, field: str, value: str) -> None:
        assert ENCRYPTION.open(LEAD, field, ENCRYPTION.seal(LEAD, field, value)) == value

    def test_the_longest_note_opens(self) -> None:
        note = "𐐀" * 4000

        assert ENCRYPTION.open(LEAD, "notes", ENCRYPTION.seal(LEAD, "notes", note)) == note

    def test_equal_values_have_different_tokens(self) -> None:
        assert ENCRYPTION.seal(LEAD, "phone", "+1234567890") != ENCRYPTION.seal(LEAD, "phone", "+1234567890")

    def test_a_token_holds_nothing_of_the_value(self) -> None:
        key_id, _, token = ENCRYPTION.seal(LEAD, "notes", "canary").partition(".")

        assert key_id == "e-new"
        assert b"canary" not in base64.urlsafe_b64decode(token)

    def test_a_token_has_the_form_that_the_database_asks_for(self) -> None:
        assert SEALED_FORM in ENCRYPTION.seal(LEAD, "phone", "+1234567890")

    def test_a_token_tells_no_time(self) -> None:
        token = ENCRYPTION.seal(LEAD, "phone", "+1234567890").partition(".")[2]

        assert base64.urlsafe_b64decode(token)[1:9] == bytes(8)

    @pytest.mark.parametrize("field", sorted(PADDED_FIELDS))
    @pytest.mark.parametrize("value", ["", "+1234567", "+123456789012345", "𐐀" * 32])
    def test_phones_and_nids_have_tokens_of_one_length(self, field: str, value: str) -> None:
        shortest = ENCRYPTION.seal(LEAD, "nid", "1234")

        assert len(ENCRYPTION.seal(LEAD, field, value)) == len(shortest)

    def test_the_padding_fits_the_longest_nid(self) -> None:
        assert len(("𐐀" * 32).encode()) == PADDED_BYTES


def flipped(token: str) -> Iterator[str]:
    """The token with one bit changed, at every byte of its content."""
    key_id, _, content = token.partition(".")
    raw = base64.urlsafe_b64decode(content)
    for at in range(len(raw)):
        changed = bytearray(raw)
        changed[at] ^= 1
        yield f"{key_id}.{base64.urlsafe_b64encode(changed).decode()}"


class TestOpening:
    @pytest.fixture
    def token(self) -> str:
        return ENCRYPTION.seal(LEAD, "address", "1 Lake Road")

    def test_another_leads_token_does_not_open(self, token: str) -> None:
        with pytest.raises(FieldUnreadableError) as refused:
            ENCRYPTION.open(OTHER_LEAD, "address", token)

        assert refused.value.metadata == {"fields": "address"}

    @pytest.mark.parametrize("field", sorted(set(SENSITIVE_FIELDS) - {"address"}))
    def test_another_fields_token_does_not_open(self, token: str, field: str) -> None:
        with pytest.raises(FieldUnreadableError):
            ENCRYPTION.open(LEAD, field, token)

    def test_a_padded_fields_token_does_not_open_as_the_other_padded_field(self) -> None:
        with pytest.raises(FieldUnreadableError):
            ENCRYPTION.open(LEAD, "phone", ENCRYPTION.seal(LEAD, "nid", "123456789"))

    def test_no_token_opens_when_any_bit_was_changed(self, token: str) -> None:
        for changed in flipped(token):
            with pytest.raises(FieldUnreadableError):
                ENCRYPTION.open(LEAD, "address", changed)

    @pytest.mark.parametrize("nonsense", ["", ".", "e-new.", "e-new.x", "e-new.gAAAAAAAAAAA", "clear text", "e-new.☃"])
    def test_what_is_no_token_does_not_open(self, nonsense: str) -> None:
        with pytest.raises(FieldUnreadableError):
            ENCRYPTION.open(LEAD, "address", nonsense)

    def test_a_genuine_token_with_a_short_content_does_not_open(self) -> None:
        fernet = Fernet(base64.urlsafe_b64encode(derived("e-new", "seal/e-new")))

        with pytest.raises(FieldUnreadableError):
            ENCRYPTION.open(LEAD, "address", f"e-new.{fernet.encrypt(b'short').decode()}")

    def test_another_key_ids_token_does_not_open(self, token: str) -> None:
        with pytest.raises(FieldUnreadableError):
            ENCRYPTION.open(LEAD, "address", "e-old." + token.partition(".")[2])

    def test_the_error_holds_neither_token_nor_value(self, token: str) -> None:
        with pytest.raises(FieldUnreadableError) as refused:
            ENCRYPTION.open(OTHER_LEAD, "address", token)

        assert "Lake" not in str(refused.value)
        assert token not in str(refused.value)

    def test_an_active_key_opens_but_does_not_seal(self) -> None:
        swapped = EncryptionService(keyring_in_which({"e-old": KeyState.PRIMARY, "e-new": KeyState.ACTIVE}))
        token = ENCRYPTION.seal(LEAD, "address", "1 Lake Road")

        assert swapped.open(LEAD, "address", token) == "1 Lake Road"
        assert swapped.seal(LEAD, "address", "1 Lake Road").startswith("e-old.")

    def test_a_retired_key_opens_nothing(self, token: str) -> None:
        retired = EncryptionService(keyring_in_which({"e-old": KeyState.PRIMARY, "e-new": KeyState.RETIRED}))

        with pytest.raises(FieldUnreadableError):
            retired.open(LEAD, "address", token)


class TestBlindIndexes:
    def test_equal_values_have_equal_indexes_of_32_bytes(self) -> None:
        index = ENCRYPTION.blind_index("phone", "+1234567890")

        assert index == ENCRYPTION.blind_index("phone", "+1234567890")
        assert len(index) == 32

    def test_an_equal_phone_and_nid_have_different_indexes(self) -> None:
        assert ENCRYPTION.blind_index("phone", "123456789") != ENCRYPTION.blind_index("nid", "123456789")

    def test_another_index_root_makes_other_indexes(self) -> None:
        other = EncryptionService(Keyring.generate(now=NOW))

        assert other.blind_index("phone", "+1234567890") != ENCRYPTION.blind_index("phone", "+1234567890")

    def test_another_encryption_root_makes_the_same_indexes(self) -> None:
        swapped = EncryptionService(keyring_in_which({"e-old": KeyState.PRIMARY, "e-new": KeyState.RETIRED}))

        assert swapped.blind_index("phone", "+1234567890") == ENCRYPTION.blind_index("phone", "+1234567890")


class TestContentDigest:
    def test_values_that_run_into_each_other_differ(self) -> None:
        contents: list[list[str | None]] = [
            ["ab", "c"],
            ["a", "bc"],
            ["abc"],
            ["abc", ""],
            ["abc", None],
            [None, "abc"],
        ]

        for one, other in combinations(contents, 2):
            assert ENCRYPTION.content_digests(one) != ENCRYPTION.content_digests(other)


class TestCanary:
    def test_a_keyring_confirms_its_own(self) -> None:
        assert ENCRYPTION.confirms(ENCRYPTION.make_canary())

    def test_another_keyring_does_not(self) -> None:
        assert not EncryptionService(Keyring.generate(now=NOW)).confirms(ENCRYPTION.make_canary())

    @pytest.mark.parametrize("purpose", [Purpose.ENCRYPTION, Purpose.INDEX])
    def test_a_keyring_with_one_other_root_does_not(self, purpose: Purpose) -> None:
        stranger = Keyring.generate(now=NOW)
        mixed = Keyring(
            [
                *(key for key in KEYRING.keys if key.purpose is not purpose),
                *(key for key in stranger.keys if key.purpose is purpose),
            ]
        )

        assert not EncryptionService(mixed).confirms(ENCRYPTION.make_canary())

    def test_a_rotated_keyring_that_still_opens_it_does(self) -> None:
        canary = ENCRYPTION.make_canary()
        rotated = EncryptionService(keyring_in_which({"e-old": KeyState.PRIMARY, "e-new": KeyState.ACTIVE}))

        assert rotated.confirms(canary)


class TestRotation:
    """One keyring takes the place of another."""

    def rotated(self, purpose: Purpose) -> Keyring:
        keyring, made = KEYRING.with_new_key(purpose, now=NOW)
        return keyring.with_primary(made.id)

    def test_what_was_sealed_before_still_opens_and_new_tokens_are_of_the_new_key(self) -> None:
        service = EncryptionService(KEYRING)
        before = service.seal(LEAD, "notes", "note")
        service.take(self.rotated(Purpose.ENCRYPTION))

        assert service.open(LEAD, "notes", before) == "note"
        assert not service.is_sealed_with_primary(before)
        assert service.is_sealed_with_primary(service.seal(LEAD, "notes", "note"))

    def test_a_retired_key_opens_nothing(self) -> None:
        before = ENCRYPTION.seal(LEAD, "notes", "note")
        retired = self.rotated(Purpose.ENCRYPTION).with_retired(before.partition(".")[0])

        with pytest.raises(FieldUnreadableError):
            EncryptionService(retired).open(LEAD, "notes", before)

    def test_earlier_content_is_recognised_with_every_index_key_also_a_retired_one(self) -> None:
        rotated = self.rotated(Purpose.INDEX)
        [before] = ENCRYPTION.content_digests(["a", None])

        for keyring in (rotated, rotated.with_retired("i-1")):
            first, *others = EncryptionService(keyring).content_digests(["a", None])
            assert first != before
            assert others == [before]

    def test_a_blind_index_is_of_the_key_that_is_named(self) -> None:
        service = EncryptionService(self.rotated(Purpose.INDEX))

        assert service.blind_index("phone", "+1", key_id="i-1") == ENCRYPTION.blind_index("phone", "+1")
        assert service.blind_index("phone", "+1") != ENCRYPTION.blind_index("phone", "+1")

    def test_the_key_of_a_canary_is_found_among_all(self) -> None:
        service = EncryptionService(self.rotated(Purpose.INDEX))

        assert service.index_key_of(ENCRYPTION.make_canary().index) == "i-1"
        assert service.index_key_of(bytes(32)) is None


def test_the_program_in_the_vectors_readme_finds_that_all_hold() -> None:
    page = (Path(__file__).parents[1] / "vectors" / "README.md").read_text("utf-8")
    program = page.partition("```python\n")[2].partition("```")[0]

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )

    assert done.stdout == "all vectors hold\n", done.stderr


def test_the_vectors_readme_explains_every_file_of_vectors() -> None:
    folder = Path(__file__).parents[1] / "vectors"
    page = (folder / "README.md").read_text("utf-8")

    assert [path.name for path in sorted(folder.glob("*.json")) if f"({path.name})" not in page] == []
