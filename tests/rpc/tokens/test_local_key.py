"""The local signing key: a file for its owner only, one for all who start at once, and tokens that verify."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from service.errors import StartRefusedError, TokenExpiredError, TokenInvalidError
from service.rpc.tokens.local_key import LOCAL_AUDIENCE, LOCAL_ISSUER, LocalSigningKey
from service.rpc.tokens.verifier import TokenRules, TokenVerifier
from service.scopes import ROLES, Caller
from tests.rpc.tokens.signing import NOW, Clock, refused


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "signing-key.pem"


@pytest.fixture
def key(path: Path) -> LocalSigningKey:
    return LocalSigningKey.load_or_create(path)


@pytest.fixture
def verifier(key: LocalSigningKey, clock: Clock) -> TokenVerifier:
    return TokenVerifier(key, TokenRules(LOCAL_ISSUER, LOCAL_AUDIENCE), clock=clock)


async def test_issued_token_verifies(key: LocalSigningKey, verifier: TokenVerifier) -> None:
    token = key.issue("bot", ROLES["chatbot"], timedelta(hours=1), now=NOW)
    assert await verifier.verify(token) == Caller("bot", ROLES["chatbot"])


async def test_issued_token_ends_with_its_ttl(key: LocalSigningKey, verifier: TokenVerifier, clock: Clock) -> None:
    token = key.issue("bot", [], timedelta(minutes=1), now=NOW)
    clock.now += 60
    with pytest.raises(TokenExpiredError):
        await verifier.verify(token)


async def test_token_of_another_key_is_refused(verifier: TokenVerifier, tmp_path: Path) -> None:
    other = LocalSigningKey.load_or_create(tmp_path / "other.pem")
    await refused(verifier, other.issue("bot", [], timedelta(hours=1), now=NOW))


async def test_token_issued_for_another_audience_is_refused(key: LocalSigningKey, clock: Clock) -> None:
    other = TokenVerifier(key, TokenRules(LOCAL_ISSUER, "other"), clock=clock)
    await refused(other, key.issue("bot", [], timedelta(hours=1), now=NOW))


async def test_unknown_kid_is_refused(key: LocalSigningKey) -> None:
    with pytest.raises(TokenInvalidError):
        await key.key("other")


@pytest.mark.parametrize("subject", ["", " bot", "a\nb", "x" * 201])
def test_subject_that_would_not_verify_is_not_issued(key: LocalSigningKey, subject: str) -> None:
    with pytest.raises(ValueError, match="subject"):
        key.issue(subject, [], timedelta(hours=1), now=NOW)


@pytest.mark.parametrize("seconds", [-1, 0, 0.5])
def test_token_without_a_life_is_not_issued(key: LocalSigningKey, seconds: float) -> None:
    with pytest.raises(ValueError, match="second"):
        key.issue("bot", [], timedelta(seconds=seconds), now=NOW)


def test_key_id_is_the_thumbprint_of_rfc_8037() -> None:
    # The private key and thumbprint of RFC 8037, A.1 and A.3.
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    key = LocalSigningKey(Ed25519PrivateKey.from_private_bytes(seed))
    assert key.kid == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


# The file


def test_file_is_for_its_owner_only(key: LocalSigningKey, path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


def test_no_draft_of_the_key_is_left(key: LocalSigningKey, path: Path) -> None:
    assert list(path.parent.iterdir()) == [path]


def test_existing_key_is_kept(key: LocalSigningKey, path: Path) -> None:
    assert LocalSigningKey.load_or_create(path).kid == key.kid


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_file_open_to_others_is_refused(key: LocalSigningKey, path: Path, mode: int) -> None:
    path.chmod(mode)
    with pytest.raises(StartRefusedError, match="chmod 600"):
        LocalSigningKey.load_or_create(path)


def test_missing_file_is_not_made_by_load(path: Path) -> None:
    with pytest.raises(StartRefusedError, match=r"signing-key\.pem"):
        LocalSigningKey.load(path)
    assert not path.exists()


def _ec_pem() -> bytes:
    private = ec.generate_private_key(ec.SECP256R1())
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\n", b"\xff" * 100, _ec_pem()])
def test_file_without_an_ed25519_key_is_refused_and_kept(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(StartRefusedError, match="not an Ed25519 key"):
        LocalSigningKey.load_or_create(path)
    assert path.read_bytes() == content


def test_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(StartRefusedError, match="signing key"):
        LocalSigningKey.load_or_create(tmp_path / "data" / "signing-key.pem")


_RACER = """
import sys, pathlib
from service.rpc.tokens.local_key import LocalSigningKey
print("ready", flush=True)  # the slow imports are done
sys.stdin.readline()
print(LocalSigningKey.load_or_create(pathlib.Path(sys.argv[1])).kid)
"""


def test_racing_processes_agree_on_one_key(path: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdout
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("go\n")
        racer.stdin.flush()
    answers = {racer.communicate(timeout=60)[0] for racer in racers}
    assert answers == {LocalSigningKey.load(path).kid + "\n"}
