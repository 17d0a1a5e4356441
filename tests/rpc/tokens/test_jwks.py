"""What of a key set is used: keys that can verify safely; the others are left out and named."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from service.rpc.tokens.jwks import MAX_JWKS_BYTES, JwksError, read_jwks
from tests.rpc.tokens.signing import EC_JWK, EC_KEY, ED_JWK, ED_KEY, RSA_JWK, RSA_KEY, document, jwk


@pytest.mark.parametrize(
    ("entry", "algorithms"),
    [
        (ED_JWK, {"EdDSA"}),
        (EC_JWK, {"ES256"}),
        (jwk(ec.generate_private_key(ec.SECP384R1()).public_key(), "ec"), {"ES384"}),
        (RSA_JWK, {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
        ({**RSA_JWK, "alg": "PS256"}, {"PS256"}),
        ({**RSA_JWK, "use": "sig", "key_ops": ["verify"]}, {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
    ],
)
def test_key_fixes_the_algorithms(entry: dict[str, Any], algorithms: set[str]) -> None:
    assert set(read_jwks(document(entry)).keys[0].algorithms) == algorithms


@pytest.mark.parametrize(
    "entry",
    [
        {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "kid": "x"},
        jwk(ED_KEY, "x"),
        jwk(RSA_KEY, "x"),
        {**RSA_JWK, "kid": "x", "use": "enc"},
        {**RSA_JWK, "kid": "x", "key_ops": ["encrypt"]},
        {**RSA_JWK, "kid": "x", "key_ops": 1},
        {**RSA_JWK, "kid": "x", "alg": "RSA-OAEP"},
        {**RSA_JWK, "kid": "x", "alg": "HS256"},
        {**RSA_JWK, "kid": "x", "alg": "none"},
        {**RSA_JWK, "kid": "x", "n": 5},
        {**EC_JWK, "kid": "x", "alg": "ES384"},
        {**EC_JWK, "kid": "x", "crv": "P-384"},
        {**EC_JWK, "kid": "x", "y": EC_JWK["x"]},
        {"kty": "EC", "crv": "P-256", "kid": "x"},
        {**ED_JWK, "kid": "x", "x": "AAAA"},
        {**ED_JWK, "kid": "x", "kty": "unheard"},
        {**ED_JWK, "kid": 5},
        ED_JWK,
        jwk(rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key(), "x"),
        jwk(ec.generate_private_key(ec.SECP256K1()).public_key(), "x"),
        "text",
        None,
    ],
)
def test_odd_key_is_left_out_and_named(entry: object) -> None:
    keys = read_jwks(document(ED_JWK, entry))
    assert [key.kid for key in keys.keys] == ["ed"]
    assert len(keys.ignored) == 1
    assert keys.ignored[0].startswith("key 2: ")


def test_keys_without_kid_are_several_keys() -> None:
    keys = read_jwks(document(jwk(ED_KEY.public_key(), None), jwk(EC_KEY.public_key(), None)))
    assert keys.find(None) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b'{"keys": {}}', b'{"keys": []}', b"\xff", b"[" * 100_000, b" " * (MAX_JWKS_BYTES + 1)],
)
def test_document_without_keys_is_not_a_key_set(content: bytes) -> None:
    with pytest.raises(JwksError):
        read_jwks(content)


def test_reasons_do_not_repeat_a_secret() -> None:
    with pytest.raises(JwksError) as caught:
        read_jwks(document({"kty": "oct", "k": "s3cret"}, {**jwk(ED_KEY, "x"), "d": "s3cret"}))
    assert "s3cret" not in str(caught.value)
