"""The token check: signature and header. Each test is an attack that some verifier once let through."""

from __future__ import annotations

import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from service.rpc.tokens.verifier import MAX_TOKEN_BYTES, PublicKey, TokenRules, TokenVerifier
from tests.rpc.tokens.signing import (
    AUDIENCE,
    EC_PUBLIC,
    ED_KEY,
    ED_PUBLIC,
    ISSUER,
    NOW,
    RSA_KEY,
    Clock,
    Keys,
    base64url,
    claims,
    refused,
    signed,
    signed_as_is,
)


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", None])
async def test_unsigned_token_is_refused(verifier: TokenVerifier, algorithm: object) -> None:
    token = signed_as_is({"alg": algorithm, "kid": "ed"}, json.dumps(claims()).encode())
    await refused(verifier, token)
    await refused(verifier, token.rpartition(".")[0] + ".")


@pytest.mark.parametrize(("kid", "public"), [("rsa", RSA_KEY.public_key()), ("ed", ED_KEY.public_key())])
async def test_hs256_with_the_public_key_as_secret_is_refused(verifier: TokenVerifier, kid: str, public: Any) -> None:
    secret = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    header = base64url(json.dumps({"alg": "HS256", "typ": "JWT", "kid": kid}).encode())
    signing_input = f"{header}.{base64url(json.dumps(claims()).encode())}"
    signature = hmac.digest(secret, signing_input.encode(), "sha256")
    await refused(verifier, f"{signing_input}.{base64url(signature)}")


async def test_disallowed_algorithm_does_not_even_ask_for_a_key(verifier: TokenVerifier, keys: Keys) -> None:
    await refused(verifier, jwt.encode(claims(), "s" * 32, algorithm="HS256", headers={"kid": "new"}))
    assert keys.asked == 0


async def test_algorithm_must_fit_the_type_of_the_key(verifier: TokenVerifier) -> None:
    await refused(verifier, signed(key=RSA_KEY, algorithm="RS256", headers={"kid": "ec"}))


async def test_algorithm_must_be_one_of_the_key(clock: Clock) -> None:
    only_rs256 = PublicKey("rsa", RSA_KEY.public_key(), ("RS256",))
    verifier = TokenVerifier(Keys(only_rs256), TokenRules(ISSUER, AUDIENCE), clock=clock)
    await refused(verifier, signed(key=RSA_KEY, algorithm="PS256", headers={"kid": "rsa"}))


@pytest.mark.parametrize("part", [0, 1, 2])
async def test_changed_token_is_refused(verifier: TokenVerifier, part: int) -> None:
    parts = signed().split(".")
    middle = len(parts[part]) // 2
    parts[part] = parts[part][:middle] + ("A" if parts[part][middle] != "A" else "B") + parts[part][middle + 1 :]
    await refused(verifier, ".".join(parts))


async def test_more_rights_under_an_old_signature_are_refused(verifier: TokenVerifier) -> None:
    header, _, signature = signed().split(".")
    richer = base64url(json.dumps(claims(scope="leads:erase")).encode())
    await refused(verifier, f"{header}.{richer}.{signature}")


async def test_key_that_the_token_brings_along_is_not_used(verifier: TokenVerifier) -> None:
    own = Ed25519PrivateKey.generate()
    jwk = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(own.public_key()))
    await refused(verifier, signed(key=own, headers={"kid": "ed", "jwk": jwk}))


async def test_key_address_that_the_token_brings_along_is_not_used(verifier: TokenVerifier) -> None:
    own = Ed25519PrivateKey.generate()
    links = {"jku": "https://evil.example/jwks", "x5u": "https://evil.example/cert"}
    await refused(verifier, signed(key=own, headers={"kid": "ed", **links}))


@pytest.mark.parametrize("crit", [["exp"], ["b64"], [], None])
async def test_critical_extension_is_refused(verifier: TokenVerifier, crit: object) -> None:
    header: dict[str, object] = {"alg": "EdDSA", "kid": "ed", "crit": crit, "b64": True, "exp": NOW + 300}
    await refused(verifier, signed_as_is(header, json.dumps(claims()).encode()))


@pytest.mark.parametrize("kind", ["logout+jwt", "dpop+jwt", 7])
async def test_token_of_another_kind_is_refused(verifier: TokenVerifier, kind: object) -> None:
    header: dict[str, object] = {"alg": "EdDSA", "kid": "ed", "typ": kind}
    await refused(verifier, signed_as_is(header, json.dumps(claims()).encode()))


async def test_unknown_kid_is_refused(verifier: TokenVerifier) -> None:
    await refused(verifier, signed(headers={"kid": "nobody"}))


async def test_kid_that_is_no_string_is_refused(verifier: TokenVerifier) -> None:
    await refused(verifier, signed_as_is({"alg": "EdDSA", "kid": 1}, json.dumps(claims()).encode()))


async def test_token_without_kid_is_refused_when_there_are_two_keys(clock: Clock) -> None:
    verifier = TokenVerifier(Keys(ED_PUBLIC, EC_PUBLIC), TokenRules(ISSUER, AUDIENCE), clock=clock)
    await refused(verifier, signed(headers={}))


@pytest.mark.parametrize(
    "token", ["", ".", "..", "a.b.c", "tök.en.en", "\ud800.a.b", "e30.e30.e30", "bnVsbA.e30.AA", "a.b", "a.b.c.d"]
)
async def test_what_is_no_token_is_refused(verifier: TokenVerifier, token: str) -> None:
    await refused(verifier, token)


@pytest.mark.parametrize("payload", [b"[]", b"null", b"\xff", b"[" * 3000, b'{"exp":' + b"9" * 5000 + b"}"])
async def test_signed_payload_that_is_no_object_is_refused(verifier: TokenVerifier, payload: bytes) -> None:
    await refused(verifier, signed_as_is({"alg": "EdDSA", "kid": "ed"}, payload))


async def test_token_beyond_8_kib_is_refused_before_it_is_parsed(verifier: TokenVerifier, keys: Keys) -> None:
    token = signed(claims(padding="x" * 10_000))
    assert len(token) > MAX_TOKEN_BYTES
    await refused(verifier, token)
    assert keys.asked == 0
