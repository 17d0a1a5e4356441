"""The token check: a bearer token becomes a Caller, or the call ends here.

Follows RFC 7515 and 7519 (JWS, JWT), RFC 8725 (JWT best practice), RFC 9068 (access tokens) and OWASP ASVS v5,
chapter 9 (self-contained tokens). The text of an error is fixed: no part of a token is shown or logged.
A token cannot be withdrawn: it is good until `exp`, or until its key leaves the key set and a minute has passed.
"""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from service.errors import TokenExpiredError, TokenInvalidError, TokenMissingError
from service.scopes import Caller, Scope, is_subject

MAX_TOKEN_BYTES = 8 * 1024
"""gRPC's own limit for all metadata of a call; checked before anything is parsed."""

REMEMBERED_SECONDS = 60.0
"""How long a removed key may still be trusted, against 90 to 170 microseconds a verification."""

NOT_BEFORE_LEEWAY = 5.0
"""Issuers set `nbf` to the moment of issue, and clocks differ a little. `exp` has no leeway: late is late."""

KEY_ALGORITHMS: dict[str, tuple[str, ...]] = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC P-256": ("ES256",),
    "EC P-384": ("ES384",),
    "EC P-521": ("ES512",),
    "OKP Ed25519": ("EdDSA",),
}
"""The algorithms of each type of key (`kty` and `crv`): asymmetric ones only, so that no verifier could also sign."""

_ALGORITHMS = frozenset(name for names in KEY_ALGORITHMS.values() for name in names)
_ACCESS_TOKEN_TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
# RFC 6750, 2.1: `Bearer`, one space, b64token. More spaces are forgiven, a second token is not.
_CREDENTIALS = re.compile(r" *([A-Za-z0-9._~+/-]+=*) *")
_SCOPES = {scope.value: frozenset({scope}) for scope in Scope}
_IN_ID_TOKENS = ("at_hash", "c_hash", "s_hash")
"""Claims that OpenID Connect Core has in ID tokens only."""


def bearer_token(authorization: str | None) -> str:
    """The token of an `authorization` header or metadata value (RFC 6750, 2.1).

    Raises TokenMissingError when there is none (no value, another scheme, nothing after `Bearer`), and
    TokenInvalidError when what follows `Bearer` is not exactly one token.
    """
    scheme, _, credentials = (authorization or "").strip(" ").partition(" ")
    if scheme.lower() != "bearer" or not credentials:
        raise TokenMissingError
    match = _CREDENTIALS.fullmatch(credentials)
    if match is None:
        raise TokenInvalidError("the authorization value must be 'Bearer TOKEN', with exactly one token")
    return match.group(1)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that verifies tokens, and the algorithms that fit its type (and its own `alg`, if it names one)."""

    kid: str | None
    material: RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey
    algorithms: tuple[str, ...]


class KeySource(Protocol):
    """The keys that may verify a token now."""

    async def key(self, kid: str | None) -> PublicKey:
        """The key named `kid`; None means the only key of the set.

        Must raise TokenInvalidError when the set has no such key (or several, for None), and a RetryableError
        when no key set is known: then nobody knows whether a token is good. Must not block the event loop.
        """


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What the issuer's tokens look like, and which of them are for this service."""

    issuer: str
    audience: str | None
    """What `aud` must hold; None: a token with `aud` is for somebody else."""
    client_ids: frozenset[str] = frozenset()
    """The clients whose tokens are accepted without `aud`, by `client_id`, as Amazon Cognito issues them."""
    scope_claims: tuple[str, ...] = ("scope",)
    """The claims that hold scopes: as one text, separated by spaces, or as a list."""
    scopes: Mapping[str, frozenset[Scope]] = field(default_factory=dict)
    """The issuer's own words for scopes; the scopes' own names are known without it."""


@dataclass(frozen=True, slots=True)
class _Verified:
    """A token that passed: its caller, when it expires, and when it was verified."""

    caller: Caller
    expires: float
    since: float


class TokenVerifier:
    """Verifies tokens of one issuer for this service, signed by a key of `keys`.

    Verified tokens are remembered by their SHA-256 digest, the `remembered` most recently used, for a minute at
    most and never past `exp`. `clock` gives the seconds since 1970.
    """

    def __init__(
        self,
        keys: KeySource,
        rules: TokenRules,
        *,
        clock: Callable[[], float] = time.time,
        remembered: int = 4096,
    ) -> None:
        if not rules.issuer or not (rules.audience or rules.client_ids):
            raise ValueError("issuer and audience must be set: a token for someone else would pass")
        self._keys = keys
        self._rules = rules
        self._scopes = {**_SCOPES, **rules.scopes}
        self._clock = clock
        self._capacity = remembered
        self._remembered: OrderedDict[bytes, _Verified] = OrderedDict()

    async def verify(self, token: str) -> Caller:
        """The caller that the token names.

        Raises TokenExpiredError for a token that was good once, TokenInvalidError for any other that does not
        pass, and KeysUnavailableError when the issuer's keys were never reachable (then no token can be verified).
        """
        if len(token) > MAX_TOKEN_BYTES or not token.isascii():
            raise TokenInvalidError
        digest = hashlib.sha256(token.encode("ascii")).digest()
        now = self._clock()
        verified = self._remembered.pop(digest, None)
        # `since` bounds from below too: a clock set back must not stretch the minute.
        if verified is None or not verified.since <= now < verified.since + REMEMBERED_SECONDS:
            verified = await self._check(token)
        elif now >= verified.expires:
            raise TokenExpiredError
        self._remembered[digest] = verified
        if len(self._remembered) > self._capacity:
            self._remembered.popitem(last=False)
        return verified.caller

    async def _check(self, token: str) -> _Verified:
        key = await self._keys.key(_key_id(token))
        try:
            # The time is judged below, by `clock`; the signature and all else here.
            claims = jwt.decode(
                token,
                key.material,
                algorithms=key.algorithms,
                issuer=self._rules.issuer,
                options={
                    "require": ["exp", "iss", "sub"],
                    # Judged below: some issuers name the client instead.
                    "verify_aud": False,
                    "verify_exp": False,
                    "verify_nbf": False,
                    # RFC 7519 gives `iat` no such meaning: `nbf` is the claim for "not yet".
                    "verify_iat": False,
                },
            )
        # Of a token that the issuer has signed, the claim that is wrong is named: its owner must know what to change.
        except jwt.MissingRequiredClaimError:
            raise TokenInvalidError("the token must have exp, iss and sub") from None
        except jwt.InvalidIssuerError:
            raise TokenInvalidError("the token's iss is not the issuer whose tokens are accepted here") from None
        except (jwt.PyJWTError, ValueError):
            raise TokenInvalidError from None
        if not _is_access_token(claims):
            raise TokenInvalidError("the token is an ID or refresh token: send the access token")
        if not self._is_for_us(claims):
            raise TokenInvalidError("the token is for another service: its aud (or client_id) is not accepted here")
        now = self._clock()
        expires = _seconds(claims["exp"])
        if "nbf" in claims and _seconds(claims["nbf"]) > now + NOT_BEFORE_LEEWAY:
            raise TokenInvalidError("the token is not valid yet")
        if not is_subject(claims["sub"]):
            raise TokenInvalidError("the token's sub must be 1 to 200 visible characters")
        if not all(_is_text_or_list(claims.get(name, "")) for name in self._rules.scope_claims):
            raise TokenInvalidError("the token's scopes must be one string, separated by spaces, or a list of strings")
        caller = Caller(claims["sub"], self._scopes_of(claims))
        if now >= expires:
            raise TokenExpiredError
        return _Verified(caller, expires, since=now)

    def _is_for_us(self, claims: dict[str, Any]) -> bool:
        if "aud" not in claims:
            client = claims.get("client_id")
            return isinstance(client, str) and client in self._rules.client_ids
        audiences = claims["aud"]
        return _is_text_or_list(audiences) and self._rules.audience in (
            [audiences] if isinstance(audiences, str) else audiences
        )

    def _scopes_of(self, claims: dict[str, Any]) -> frozenset[Scope]:
        """The scopes of the caller. The issuer's words for other services are passed over."""
        held: set[Scope] = set()
        for name in self._rules.scope_claims:
            words = claims.get(name, "")
            # RFC 8693, 4.2, has one string; Okta, Entra's roles and Auth0's permissions are lists.
            for word in words.split(" ") if isinstance(words, str) else words:
                held |= self._scopes.get(word, frozenset())
        return frozenset(held)


def _key_id(token: str) -> str | None:
    """The `kid` of a token whose header is acceptable.

    Nothing in the header can bring its own key: `jwk`, `jku`, `x5c` and `x5u` are not read (RFC 8725, 3.10).
    """
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError):
        raise TokenInvalidError from None
    # Checked before the key: a token that cannot pass must not make the issuer's keys be fetched.
    algorithm, kind = header.get("alg"), header.get("typ", "JWT")
    if not isinstance(algorithm, str) or algorithm not in _ALGORITHMS:
        raise TokenInvalidError
    # RFC 7515, 4.1.11: what is critical must be understood, and no extension is understood here.
    if "crit" in header:
        raise TokenInvalidError
    # RFC 8725, 3.11: a logout or proof token of the same issuer is not an access token.
    if not isinstance(kind, str) or kind.lower() not in _ACCESS_TOKEN_TYPES:
        raise TokenInvalidError
    kid: str | None = header.get("kid")
    return kid


def _seconds(value: object) -> float:
    """A NumericDate (RFC 7519, 2). JSON of Python's reader also knows NaN, which compares as never expired."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise TokenInvalidError
    return float(value)


def _is_access_token(claims: dict[str, Any]) -> bool:
    """Whether the claims are not those of an ID, refresh or logout token of the same issuer (RFC 8725, 3.11).

    Amazon Cognito says it in `token_use`, Keycloak in the claim `typ`. A `nonce` is that of a login, which only ID
    tokens have (Entra's have nothing else of their own, and may hold `roles`); Keycloak once wrote it into all tokens.
    """
    return (
        claims.get("token_use", "access") == "access"
        and claims.get("typ", "Bearer") == "Bearer"
        and ("nonce" not in claims or "typ" in claims)
        and not any(name in claims for name in _IN_ID_TOKENS)
    )


def _is_text_or_list(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))
