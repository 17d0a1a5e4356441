"""Tokens that must not pass, sent to both endpoints of a running service whose issuer publishes its keys at a URL.

Rule by rule of OWASP ASVS v5, chapter V9; docs/security.md lists them.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import grpc
import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import lead_service_pb2_grpc

from tests.conftest import StartService
from tests.faults import times
from tests.harness.answers import fails
from tests.harness.postgres import TestDatabase
from tests.harness.running_service import RunningService
from tests.rpc.tokens.signing import (
    ABSENT,
    AUDIENCE,
    EC_JWK,
    EC_KEY,
    ED_JWK,
    ED_KEY,
    ISSUER,
    RSA_JWK,
    RSA_KEY,
    base64url,
    claims,
    document,
    jwk,
    signed,
    signed_as_is,
)
from tests.rpc.tokens.test_jwks_url import Issuer

UNKNOWN_KIDS = times(500, whole=10_000)
CALLERS = 64

STRANGER = Ed25519PrivateKey.generate()
SOON = 300.0


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer() as server:
        server.body = document(ED_JWK, EC_JWK, RSA_JWK)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def service(issuer: Issuer, service_database: TestDatabase, start_shared: StartService) -> RunningService:
    settings = {
        "LEADKEEP_AUTH_JWKS": issuer.url,
        "LEADKEEP_AUTH_ISSUER": ISSUER,
        "LEADKEEP_AUTH_AUDIENCE": AUDIENCE,
    }
    return start_shared(database_url=service_database.serve_url, settings=settings)


def now_claims(**changes: object) -> dict[str, object]:
    """The claims of a token that is good now and may list leads."""
    return claims(**({"exp": time.time() + SOON, "scope": "leads:read"} | changes))


def forged_hmac(public: Any, kid: str) -> str:
    """HS256 with the text of the public key as its secret, as by a verifier that takes the token's word for it."""
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    header = base64url(json.dumps({"alg": "HS256", "typ": "JWT", "kid": kid}).encode())
    signing_input = f"{header}.{base64url(json.dumps(now_claims()).encode())}"
    algorithm = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    return f"{signing_input}.{base64url(algorithm.sign(signing_input.encode(), pem))}"


def unsigned(algorithm: str) -> str:
    header = base64url(json.dumps({"alg": algorithm, "typ": "JWT", "kid": "ed"}).encode())
    return f"{header}.{base64url(json.dumps(now_claims()).encode())}."


def tampered() -> str:
    header, _, signature = signed(now_claims(scope="")).split(".")
    return f"{header}.{base64url(json.dumps(now_claims()).encode())}.{signature}"


def with_header(key: Any = STRANGER, **members: object) -> str:
    return signed(now_claims(), key=key, headers={"kid": "ed", **members})


REFUSED: dict[str, tuple[Any, str]] = {
    "none": (lambda: unsigned("none"), "TOKEN_INVALID"),
    "None": (lambda: unsigned("None"), "TOKEN_INVALID"),
    "no alg": (lambda: unsigned(""), "TOKEN_INVALID"),
    "HS256 with the RSA key": (lambda: forged_hmac(RSA_KEY.public_key(), "rsa"), "TOKEN_INVALID"),
    "HS256 with the EC key": (lambda: forged_hmac(EC_KEY.public_key(), "ec"), "TOKEN_INVALID"),
    "HS256 with the Ed25519 key": (lambda: forged_hmac(ED_KEY.public_key(), "ed"), "TOKEN_INVALID"),
    "another key's algorithm": (
        lambda: signed(now_claims(), key=RSA_KEY, algorithm="RS256", headers={"kid": "ed"}),
        "TOKEN_INVALID",
    ),
    "a stranger's signature": (lambda: with_header(), "TOKEN_INVALID"),
    "other claims under the signature": (tampered, "TOKEN_INVALID"),
    "no signature": (lambda: signed(now_claims()).rpartition(".")[0] + ".", "TOKEN_INVALID"),
    "embedded jwk": (lambda: with_header(jwk=jwk(STRANGER.public_key(), "ed")), "TOKEN_INVALID"),
    "embedded jwk of an unknown kid": (
        lambda: with_header(kid="stranger", jwk=jwk(STRANGER.public_key(), "stranger")),
        "TOKEN_INVALID",
    ),
    "jku": (lambda: with_header(jku="http://127.0.0.1:9/jwks"), "TOKEN_INVALID"),
    "x5u": (lambda: with_header(x5u="http://127.0.0.1:9/cert"), "TOKEN_INVALID"),
    "x5c": (lambda: with_header(x5c=["MIIB"]), "TOKEN_INVALID"),
    "crit": (lambda: with_header(ED_KEY, crit=["exp"]), "TOKEN_INVALID"),
    "unknown kid": (lambda: with_header(ED_KEY, kid="other"), "TOKEN_INVALID"),
    "no kid among several keys": (
        lambda: signed_as_is({"alg": "EdDSA", "typ": "JWT"}, json.dumps(now_claims()).encode()),
        "TOKEN_INVALID",
    ),
    "another kind of token": (lambda: with_header(ED_KEY, typ="logout+jwt"), "TOKEN_INVALID"),
    "wrong audience": (lambda: signed(now_claims(aud="another")), "TOKEN_INVALID"),
    "no audience": (lambda: signed(now_claims(aud=ABSENT)), "TOKEN_INVALID"),
    "wrong issuer": (lambda: signed(now_claims(iss="https://other.example/")), "TOKEN_INVALID"),
    "no issuer": (lambda: signed(now_claims(iss=ABSENT)), "TOKEN_INVALID"),
    "no subject": (lambda: signed(now_claims(sub=ABSENT)), "TOKEN_INVALID"),
    "expired": (lambda: signed(now_claims(exp=time.time() - 1)), "TOKEN_EXPIRED"),
    "never expires": (lambda: signed(now_claims(exp=ABSENT)), "TOKEN_INVALID"),
    "not yet valid": (lambda: signed(now_claims(nbf=time.time() + 60)), "TOKEN_INVALID"),
    "10 KB of claims": (lambda: signed(now_claims(padding="x" * 10_000)), "TOKEN_INVALID"),
    "no scope": (lambda: signed(now_claims(scope=ABSENT)), "SCOPE_MISSING"),
    "an empty scope": (lambda: signed(now_claims(scope="")), "SCOPE_MISSING"),
    "another scope": (lambda: signed(now_claims(scope="leads:create openid")), "SCOPE_MISSING"),
    "scopes that are numbers": (lambda: signed(now_claims(scope=[1])), "TOKEN_INVALID"),
    "an ID token": (lambda: signed(now_claims(scope="leads:read", at_hash="x")), "TOKEN_INVALID"),
}

CODES = {"SCOPE_MISSING": (grpc.StatusCode.PERMISSION_DENIED, 403)}
UNAUTHENTICATED = (grpc.StatusCode.UNAUTHENTICATED, 401)


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_with_its_reason_at_both_endpoints(case: str, service: RunningService) -> None:
    make, reason = REFUSED[case]
    code, status = CODES.get(reason, UNAUTHENTICATED)
    token = make()

    # A connection with twenty bad tokens within a second would be slowed down.
    with grpc.insecure_channel(service.grpc_address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = lead_service_pb2_grpc.LeadServiceStub(channel)
        failure = fails(
            lambda: stub.ListLeads(pb.ListLeadsRequest(), metadata=[("authorization", f"Bearer {token}")], timeout=10)
        )
    answer = httpx.get(f"{service.http_url}/api/leads", headers={"authorization": f"Bearer {token}"}, timeout=10)

    assert (failure.code, failure.reason) == (code, reason)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert token not in answer.text + failure.text


@pytest.mark.parametrize(
    "token",
    [
        lambda: signed(now_claims()),
        lambda: signed(now_claims(), key=EC_KEY, algorithm="ES256", headers={"kid": "ec"}),
        lambda: signed(now_claims(), key=RSA_KEY, algorithm="RS256", headers={"kid": "rsa"}),
        lambda: signed(now_claims(nbf=time.time() - 1, aud=["another", AUDIENCE], scope="openid leads:read")),
    ],
)
def test_a_good_one_passes(token: Any, stub: lead_service_pb2_grpc.LeadServiceStub) -> None:
    metadata = [("authorization", f"Bearer {token()}")]
    assert list(stub.ListLeads(pb.ListLeadsRequest(), metadata=metadata, timeout=10).leads) == []


def test_unknown_key_ids_make_no_more_than_one_fetch_a_minute(service: RunningService, issuer: Issuer) -> None:
    template = signed(now_claims(), key=STRANGER)
    _, payload, signature = template.split(".")
    waiting = [
        f"{base64url(json.dumps({'alg': 'EdDSA', 'typ': 'JWT', 'kid': str(uuid4())}).encode())}.{payload}.{signature}"
        for _ in range(UNKNOWN_KIDS)
    ]
    told: set[grpc.StatusCode] = set()
    fetched, began = len(issuer.requests), time.monotonic()

    async def send() -> None:
        async with grpc.aio.insecure_channel(service.grpc_address) as channel:
            stub = lead_service_pb2_grpc.LeadServiceStub(channel)

            async def caller() -> None:
                while waiting:
                    metadata = (("authorization", f"Bearer {waiting.pop()}"),)
                    try:
                        await stub.ListLeads(pb.ListLeadsRequest(), metadata=metadata, timeout=20)
                    except grpc.aio.AioRpcError as error:
                        told.add(error.code())

            await asyncio.gather(*(caller() for _ in range(CALLERS)))

    asyncio.run(send())
    # Who sends so many on a connection is also slowed down and refused.
    assert told <= {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(issuer.requests) - fetched <= 1 + (time.monotonic() - began) // 60
