"""Reads a JSON Web Key Set (RFC 7517): which public keys may verify a token, and with which algorithms.

The algorithms come from the key, never from the token (RFC 8725, 3.1). Whatever cannot safely verify is left out
and named in `KeySet.ignored`: one odd key of an issuer must not take its good keys away.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWTError
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

MAX_JWKS_BYTES = 256 * 1024
"""Large issuers publish about 20 KiB; what is far beyond is not a key set."""

MIN_RSA_BITS = 2048
"""RFC 7518, 3.3 and 3.5."""

_ALGORITHMS: dict[tuple[str, str | None], tuple[str, ...]] = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
_READERS = {"RSA": RSAAlgorithm.from_jwk, "EC": ECAlgorithm.from_jwk, "OKP": OKPAlgorithm.from_jwk}

ALGORITHMS = frozenset(name for names in _ALGORITHMS.values() for name in names)
"""Every algorithm a token may be signed with: asymmetric ones only, so that no verifier could also sign."""


class JwksError(Exception):
    """The document is not a key set that could verify a token; the text says why, without its content."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that verifies tokens, and the algorithms that fit its type (and its own `alg`, if it names one)."""

    kid: str | None
    material: RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey
    algorithms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KeySet:
    """The usable keys of a key set; `ignored` says which others it holds and why they are not used."""

    keys: tuple[PublicKey, ...]
    ignored: tuple[str, ...] = ()

    def find(self, kid: str | None) -> PublicKey | None:
        """The key that a token means; a token without `kid` means the only key, where there is only one."""
        if kid is None:
            return self.keys[0] if len(self.keys) == 1 else None
        return next((key for key in self.keys if key.kid == kid), None)


def read_jwks(document: bytes) -> KeySet:
    """The keys of a JWKS document. Raises JwksError when it holds none that could verify a token."""
    if len(document) > MAX_JWKS_BYTES:
        raise JwksError(f"it is larger than {MAX_JWKS_BYTES // 1024} KiB")
    try:
        parsed = json.loads(document)
    except (ValueError, RecursionError):
        raise JwksError("it is not JSON") from None
    entries = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(entries, list):
        raise JwksError('it is not a JSON Web Key Set: an object with a list "keys"')
    keys: list[PublicKey] = []
    ignored: list[str] = []
    for position, entry in enumerate(entries, start=1):
        try:
            key = _read_key(entry)
        except JwksError as why:
            ignored.append(f"key {position}: {why}")
            continue
        if key.kid is not None and any(key.kid == other.kid for other in keys):
            ignored.append(f"key {position}: an earlier key has the same kid")
        else:
            keys.append(key)
    if not keys:
        raise JwksError("; ".join(["it holds no usable key", *ignored]))
    return KeySet(tuple(keys), tuple(ignored))


def _read_key(entry: Any) -> PublicKey:
    if not isinstance(entry, dict):
        raise JwksError("not an object")
    kid, kty = entry.get("kid"), entry.get("kty")
    if kid is not None and not isinstance(kid, str):
        raise JwksError("its kid is not a string")
    if kty == "oct":
        raise JwksError("a shared secret (kty oct) could also sign; only public keys are used")
    if "d" in entry:
        raise JwksError("it holds a private key; publish the public half of a new one")
    operations = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        raise JwksError("it is not meant for signatures")
    return _public_key(kid, kty, entry)


def _public_key(kid: str | None, kty: Any, entry: dict[str, Any]) -> PublicKey:
    members: dict[str, Any] = {name: entry[name] for name in ("kty", "n", "e", "crv", "x", "y") if name in entry}
    if not all(isinstance(value, str) for value in members.values()):
        raise JwksError("its members are not strings")
    algorithms = _ALGORITHMS.get((kty, members.get("crv")))
    if algorithms is None:
        raise JwksError("its type or curve is not supported")
    if "alg" in entry:
        algorithms = tuple(name for name in algorithms if name == entry["alg"])
        if not algorithms:
            raise JwksError("its alg does not fit its type, or is not for signatures")
    try:
        material = _READERS[kty](members)
    except (PyJWTError, ValueError, KeyError, UnsupportedAlgorithm):
        raise JwksError("it is damaged") from None
    if isinstance(material, RSAPublicKey) and material.key_size < MIN_RSA_BITS:
        raise JwksError(f"RSA below {MIN_RSA_BITS} bits")
    if not isinstance(material, RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey):
        raise JwksError("it is not a public key")
    return PublicKey(kid, material, algorithms)
