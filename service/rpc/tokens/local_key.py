"""The signing key of a service that has no issuer: `leadkeep token` signs with it, `leadkeep serve` verifies.

Whoever can read the file can be anyone, so it is made readable for its owner only and refused otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from jwt.algorithms import OKPAlgorithm
from jwt.utils import base64url_encode

from service.errors import StartRefusedError, TokenInvalidError
from service.keys.secret_file import create_secret_file, read_secret_file
from service.rpc.tokens.verifier import PublicKey
from service.scopes import Scope, is_subject

LOCAL_ISSUER = "leadkeep"
LOCAL_AUDIENCE = "leadkeep"
"""Issuer and audience of tokens that the service signs for itself."""


class LocalSigningKey:
    """An Ed25519 key that signs tokens and, as a KeySource, verifies them."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.kid = _thumbprint(private_key)
        self._public_key = PublicKey(self.kid, private_key.public_key(), ("EdDSA",))

    @classmethod
    def load_or_create(cls, path: Path) -> LocalSigningKey:
        """The key of the file at `path`, made on first use. Raises StartRefusedError as `load` does.

        Of two processes that make it at the same moment one wins, and both use the winner's. A crash leaves
        the whole key or none.
        """
        try:
            if not path.exists():
                new_key = Ed25519PrivateKey.generate()
                create_secret_file(path, new_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        except OSError as error:
            raise StartRefusedError(f"the signing key {path} cannot be made: {error.strerror}") from None
        return cls.load(path)

    @classmethod
    def load(cls, path: Path) -> LocalSigningKey:
        """The key of the file at `path` (PKCS #8, PEM).

        Raises StartRefusedError when it is missing, open to others than its owner, or no Ed25519 key.
        """
        pem = read_secret_file(path)
        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise StartRefusedError(
                f"the signing key {path} is not an Ed25519 key in PEM without a password; move it away to have a"
                " new one made (tokens signed with the old one end with it)"
            )
        return cls(key)

    async def key(self, kid: str | None) -> PublicKey:
        """See KeySource."""
        if kid not in (None, self.kid):
            raise TokenInvalidError
        return self._public_key

    def issue(self, subject: str, scopes: Iterable[Scope], ttl: timedelta, *, now: float) -> str:
        """A token for `subject` from `now` (seconds since 1970) for `ttl`.

        Raises ValueError for a subject that the token check would refuse, and for a `ttl` below one second.
        """
        if not is_subject(subject):
            raise ValueError("a subject is 1 to 200 visible characters")
        if ttl < timedelta(seconds=1):
            raise ValueError("a token must be good for a second at least")
        claims = {
            "iss": LOCAL_ISSUER,
            "aud": LOCAL_AUDIENCE,
            "sub": subject,
            "iat": int(now),
            "exp": int(now + ttl.total_seconds()),
            "scope": " ".join(sorted(scopes)),
        }
        # RFC 9068, 2.1: `at+jwt` marks an access token.
        headers = {"typ": "at+jwt", "kid": self.kid}
        return jwt.encode(claims, self._private_key, algorithm="EdDSA", headers=headers)


def _thumbprint(private_key: Ed25519PrivateKey) -> str:
    """The thumbprint (RFC 7638) of the public key as in RFC 8037, so that equal keys have equal ids."""
    jwk = OKPAlgorithm.to_jwk(private_key.public_key(), as_dict=True)
    canonical = json.dumps(jwk, sort_keys=True, separators=(",", ":")).encode()
    return base64url_encode(sha256(canonical).digest()).decode()
