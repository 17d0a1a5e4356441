"""Keys, clocks and tokens for the tests of the token check: good ones, and ones that no library would make."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from service.errors import TokenInvalidError
from service.rpc.tokens.jwks import KeySet
from service.rpc.tokens.verifier import PublicKey, TokenVerifier

NOW = 1_800_000_000.0
ISSUER = "https://issuer.example/"
AUDIENCE = "leadkeep"

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = Ed25519PrivateKey.generate()

RSA_PUBLIC = PublicKey("rsa", RSA_KEY.public_key(), ("RS256", "PS256"))
EC_PUBLIC = PublicKey("ec", EC_KEY.public_key(), ("ES256",))
ED_PUBLIC = PublicKey("ed", ED_KEY.public_key(), ("EdDSA",))


class Keys:
    """A key source whose set the test changes, and which counts how often it is asked."""

    def __init__(self, *keys: PublicKey) -> None:
        self.set = KeySet(keys)
        self.asked = 0

    async def key(self, kid: str | None) -> PublicKey:
        self.asked += 1
        key = self.set.find(kid)
        if key is None:
            raise TokenInvalidError
        return key


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


ABSENT = object()


def claims(**changes: object) -> dict[str, object]:
    """The claims of a good token, with changes; ABSENT takes one away."""
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "chatbot", "exp": NOW + 300, "scope": "leads:create"}
    return {name: value for name, value in {**good, **changes}.items() if value is not ABSENT}


def signed(
    content: dict[str, object] | None = None,
    *,
    key: Any = ED_KEY,
    algorithm: str = "EdDSA",
    headers: dict[str, Any] | None = None,
) -> str:
    return jwt.encode(
        claims() if content is None else content,
        key,
        algorithm=algorithm,
        headers={"kid": "ed"} if headers is None else headers,
    )


def base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def signed_as_is(header: dict[str, object], payload: bytes) -> str:
    """A token with a true Ed25519 signature over a header and payload that a library would refuse to make."""
    signing_input = f"{base64url(json.dumps(header).encode())}.{base64url(payload)}"
    return f"{signing_input}.{base64url(ED_KEY.sign(signing_input.encode()))}"


async def refused(verifier: TokenVerifier, token: str) -> TokenInvalidError:
    with pytest.raises(TokenInvalidError) as caught:
        await verifier.verify(token)
    return caught.value


def jwk(key: Any, kid: str | None, **members: object) -> dict[str, Any]:
    """A key as JWK: of a private key the private one, of a public key the public one."""
    if isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey):
        entry = json.loads(RSAAlgorithm.to_jwk(key))
    elif isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
        entry = json.loads(ECAlgorithm.to_jwk(key))
    else:
        entry = json.loads(OKPAlgorithm.to_jwk(key))
    entry.pop("key_ops", None)
    return {**entry, **({} if kid is None else {"kid": kid}), **members}


ED_JWK = jwk(ED_KEY.public_key(), "ed")
EC_JWK = jwk(EC_KEY.public_key(), "ec")
RSA_JWK = jwk(RSA_KEY.public_key(), "rsa")


def document(*keys: object) -> bytes:
    return json.dumps({"keys": keys}).encode()
