from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from service.errors import StartRefusedError
from service.keys.keyring import KEY_ID, Keyring, KeyState, Purpose, RootKey, create_keyring, keyring_file

NOW = datetime(2026, 1, 31, 9, tzinfo=UTC)


def document() -> dict[str, Any]:
    made: dict[str, Any] = json.loads(Keyring.generate(now=NOW).to_json())
    return made


class TestGenerated:
    def test_it_has_one_primary_key_for_each_purpose(self) -> None:
        keys = Keyring.generate(now=NOW).keys

        assert [(key.purpose, key.state) for key in keys] == [(purpose, KeyState.PRIMARY) for purpose in Purpose]

    def test_its_roots_are_256_bits_and_independent(self) -> None:
        secrets = {key.secret for key in (*Keyring.generate(now=NOW).keys, *Keyring.generate(now=NOW).keys)}

        assert len(secrets) == 2 * len(Purpose)
        assert {len(secret) for secret in secrets} == {32}

    def test_its_ids_tell_the_purpose_and_can_stand_before_a_dot(self) -> None:
        for key in Keyring.generate(now=NOW).keys:
            assert key.id[0] == key.purpose.value[0]
            assert KEY_ID.fullmatch(key.id)

    def test_it_survives_its_file(self) -> None:
        keyring = Keyring.generate(now=NOW)

        assert Keyring.from_json(keyring.to_json()).keys == keyring.keys

    def test_no_representation_shows_a_secret(self) -> None:
        for key in Keyring.generate(now=NOW).keys:
            shown = repr(key) + str(key)
            assert repr(key.secret) not in shown
            assert base64.urlsafe_b64encode(key.secret).decode() not in shown


class TestUse:
    def test_the_primary_key_is_among_the_usable_ones_and_a_retired_one_is_not(self) -> None:
        generated = Keyring.generate(now=NOW)
        active = RootKey(Purpose.INDEX, "i-active", KeyState.ACTIVE, NOW, bytes(32))
        retired = RootKey(Purpose.INDEX, "i-retired", KeyState.RETIRED, NOW, bytes(32))

        keyring = Keyring([*generated.keys, active, retired])

        assert keyring.primary(Purpose.INDEX) == generated.primary(Purpose.INDEX)
        assert keyring.usable(Purpose.INDEX) == (generated.primary(Purpose.INDEX), active)


class TestChange:
    def test_a_new_key_only_opens(self) -> None:
        keyring, made = Keyring.generate(now=NOW).with_new_key(Purpose.INDEX, now=NOW)

        assert made.state is KeyState.ACTIVE
        assert made in keyring.usable(Purpose.INDEX)
        assert keyring.primary(Purpose.INDEX) != made

    def test_of_two_keys_of_a_purpose_one_is_primary(self) -> None:
        generated = Keyring.generate(now=NOW)
        keyring, made = generated.with_new_key(Purpose.INDEX, now=NOW)
        promoted = keyring.with_primary(made.id)

        assert promoted.primary(Purpose.INDEX).id == made.id
        assert promoted.find(generated.primary(Purpose.INDEX).id).state is KeyState.ACTIVE  # type: ignore[union-attr]
        assert promoted.primary(Purpose.ENCRYPTION) == generated.primary(Purpose.ENCRYPTION)

    def test_the_primary_key_cannot_be_retired_nor_a_retired_one_promoted(self) -> None:
        keyring, made = Keyring.generate(now=NOW).with_new_key(Purpose.SPOOL, now=NOW)

        with pytest.raises(ValueError, match="exactly one primary key"):
            keyring.with_retired(keyring.primary(Purpose.SPOOL).id)
        with pytest.raises(ValueError, match="exactly one primary key"):
            keyring.with_retired(made.id).with_primary(made.id)


def _without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["keys"][0].pop(name)


def _with(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["keys"][0].__setitem__(name, value)


SHORT = base64.urlsafe_b64encode(b"secret-canary").decode()

FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another format": (lambda d: d.__setitem__("format", "other"), "format is not leadkeep-keyring"),
    "a newer version": (lambda d: d.__setitem__("version", 2), "version is not 1"),
    "no keys": (lambda d: d.pop("keys"), "no list of keys"),
    "a key that is no object": (lambda d: d["keys"].__setitem__(0, "secret-canary"), "key 1 is not an object"),
    "no id": (_without("id"), "key 1 has no id"),
    "no secret": (_without("secret"), "key 1 has no secret"),
    "no purpose": (_without("purpose"), "key 1 has no purpose"),
    "no state": (_without("state"), "key 1 has no state"),
    "no time": (_without("created_at"), "key 1 has no created_at"),
    "an id with a dot": (_with("id", "a.b"), "no usable id"),
    "an id that is a number": (_with("id", 7), "no usable id"),
    "an empty id": (_with("id", ""), "no usable id"),
    "a short secret": (_with("secret", SHORT), "does not hold 32 bytes"),
    "a secret that is not base64": (_with("secret", "secret-canary!"), "key 1"),
    "a secret that is a number": (_with("secret", 7), "key 1 has a secret that is not"),
    "a time without an offset": (_with("created_at", "2026-01-31T09:00:00"), "without an offset"),
    "a time that is a number": (_with("created_at", 7), "key 1 has a created_at that is no time"),
    "an unknown purpose": (_with("purpose", "other"), "has a purpose or a state"),
    "an unknown state": (_with("state", "other"), "has a purpose or a state"),
    "a purpose without a primary key": (lambda d: d["keys"].pop(0), "exactly one primary key for encryption"),
    "two primary keys": (_with("purpose", "index"), "exactly one primary key"),
    "two keys of one id": (lambda d: d["keys"][0].__setitem__("id", d["keys"][1]["id"]), "the same id"),
}


PLACES: list[tuple[Any, ...]] = [
    *(("format",), ("version",), ("keys",), ("keys", 0)),
    *(("keys", 0, name) for name in ("purpose", "id", "state", "created_at", "secret")),
]


class TestDamaged:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_the_fault_is_named_without_a_secret(self, fault: str) -> None:
        damage, told = FAULTS[fault]
        damaged = document()
        damage(damaged)

        with pytest.raises(ValueError, match=told) as refused:
            Keyring.from_json(json.dumps(damaged))

        assert "secret-canary" not in str(refused.value)
        for key in damaged.get("keys", []):
            assert not isinstance(key, dict) or not key.get("secret") or str(key["secret"]) not in str(refused.value)

    @pytest.mark.parametrize("path", PLACES, ids=str)
    def test_a_secret_in_any_place_is_not_repeated(self, path: tuple[Any, ...]) -> None:
        damaged = document()
        secret = damaged["keys"][1]["secret"]
        shown = ""
        for value in (secret, secret.lower(), [secret], {secret: secret}, f"{secret}:", f"2026-01-31T{secret}"):
            holder: Any = damaged
            for name in path[:-1]:
                holder = holder[name]
            holder[path[-1]] = value
            try:
                Keyring.from_json(json.dumps(damaged))
            except ValueError as refused:
                shown += str(refused).lower()
        assert secret[:8].lower() not in shown

    @pytest.mark.parametrize("depth", [1_000, 100_000])
    def test_deep_nesting_is_refused(self, depth: int) -> None:
        with pytest.raises(ValueError, match="nested too deeply"):
            Keyring.from_json('{"keys":' + "[" * depth)

    def test_a_name_that_stands_twice_is_refused(self) -> None:
        with pytest.raises(ValueError, match="twice"):
            Keyring.from_json(Keyring.generate(now=NOW).to_json().replace('"version"', '"version": 1, "version"'))

    @pytest.mark.parametrize("content", ["", "not json", "[]", "null", '"text"', b"\xff\xfe\xff"])
    def test_what_is_no_keyring_at_all_is_refused(self, content: str | bytes) -> None:
        with pytest.raises(ValueError, match=r"not JSON|format"):
            Keyring.from_json(content)


class TestFile:
    def test_a_made_keyring_can_be_loaded(self, tmp_path: Path) -> None:
        path = tmp_path / "folder" / "keyring.json"

        assert create_keyring(path, now=NOW)

        assert {key.created_at for key in keyring_file(path).load().keys} == {NOW}

    def test_only_its_owner_may_read_it(self, tmp_path: Path) -> None:
        create_keyring(tmp_path / "keyring.json", now=NOW)

        assert (tmp_path / "keyring.json").stat().st_mode & 0o777 == 0o600

    def test_a_keyring_is_never_overwritten(self, tmp_path: Path) -> None:
        path = tmp_path / "keyring.json"
        create_keyring(path, now=NOW)
        before = path.read_bytes()

        assert not create_keyring(path, now=NOW)

        assert path.read_bytes() == before

    def test_a_missing_keyring_says_what_to_do(self, tmp_path: Path) -> None:
        with pytest.raises(StartRefusedError, match="leadkeep keys init"):
            keyring_file(tmp_path / "keyring.json").load()

    def test_a_keyring_that_others_may_read_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "keyring.json"
        create_keyring(path, now=NOW)
        path.chmod(0o640)

        with pytest.raises(StartRefusedError, match="chmod 600"):
            keyring_file(path).load()

    def test_a_damaged_keyring_names_the_file_and_the_fault(self, tmp_path: Path) -> None:
        path = tmp_path / "keyring.json"
        create_keyring(path, now=NOW)
        path.write_text(path.read_text()[:100])

        with pytest.raises(StartRefusedError) as refused:
            keyring_file(path).load()

        assert str(path) in str(refused.value)
        assert "not JSON" in str(refused.value)
