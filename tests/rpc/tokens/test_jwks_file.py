"""The key set in a file: when it is read again, and what a broken file changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.errors import StartRefusedError, TokenInvalidError
from service.rpc.tokens.jwks import FILE_CHECK_SECONDS, JwksFile
from service.rpc.tokens.verifier import REMEMBERED_SECONDS, TokenRules, TokenVerifier
from tests.rpc.tokens.signing import AUDIENCE, EC_JWK, ED_JWK, ISSUER, Clock, document, refused, signed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_bytes(document(ED_JWK))
    return path


def replace(path: Path, content: bytes | None) -> None:
    """As a careful operator does it: whole, under another name, then renamed; None takes the file away."""
    if content is None:
        path.unlink()
        return
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)


async def test_file_gives_its_keys(path: Path) -> None:
    assert (await JwksFile(path).key("ed")).kid == "ed"


async def test_changed_file_is_read_again(path: Path, clock: Clock) -> None:
    source = JwksFile(path, clock=clock)
    replace(path, document(EC_JWK))
    clock.now += FILE_CHECK_SECONDS
    assert (await source.key("ec")).kid == "ec"
    with pytest.raises(TokenInvalidError):
        await source.key("ed")


async def test_file_is_not_looked_at_for_each_call(path: Path, clock: Clock) -> None:
    source = JwksFile(path, clock=clock)
    clock.now += FILE_CHECK_SECONDS
    await source.key("ed")
    replace(path, document(EC_JWK))
    clock.now += FILE_CHECK_SECONDS - 0.1
    assert (await source.key("ed")).kid == "ed"


@pytest.mark.parametrize("content", [b"{", document(), None])
async def test_broken_file_keeps_the_old_keys_and_is_reported_once(
    path: Path, clock: Clock, content: bytes | None
) -> None:
    source = JwksFile(path, clock=clock)
    replace(path, content)
    with capture_logs() as logs:
        for _ in range(5):
            clock.now += FILE_CHECK_SECONDS
            assert (await source.key("ed")).kid == "ed"
    assert [entry["event"] for entry in logs] == ["key_set_unreadable"]


async def test_mended_file_is_read(path: Path, clock: Clock) -> None:
    source = JwksFile(path, clock=clock)
    for content, kid in ((b"{", "ed"), (document(EC_JWK), "ec")):
        replace(path, content)
        clock.now += FILE_CHECK_SECONDS
        assert (await source.key(kid)).kid == kid


@pytest.mark.parametrize("content", [b"{", document(), document({"kty": "oct", "k": "AAAA"}), None])
def test_start_is_refused_for_a_broken_file(path: Path, content: bytes | None) -> None:
    replace(path, content)
    with pytest.raises(StartRefusedError, match=r"LEADKEEP_AUTH_JWKS: the key set .*jwks\.json cannot be used: "):
        JwksFile(path)


def test_ignored_keys_are_reported(path: Path) -> None:
    path.write_bytes(document(ED_JWK, {"kty": "oct", "k": "AAAA"}))
    with capture_logs() as logs:
        JwksFile(path)
    assert [(entry["log_level"], entry["event"]) for entry in logs] == [("warning", "keys_ignored")]
    assert "shared secret" in logs[0]["why"][0]


async def test_removed_key_is_refused_within_a_minute_and_a_look(path: Path, clock: Clock) -> None:
    verifier = TokenVerifier(JwksFile(path, clock=clock), TokenRules(ISSUER, AUDIENCE), clock=clock)
    token = signed()
    await verifier.verify(token)
    replace(path, document(EC_JWK))
    clock.now += REMEMBERED_SECONDS
    await refused(verifier, token)
