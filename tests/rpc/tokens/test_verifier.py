"""The token check: what passes, what claims never do, and for how long a success is remembered."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.errors import TokenExpiredError, TokenInvalidError, TokenMissingError
from service.rpc.tokens.jwks import KeySet
from service.rpc.tokens.verifier import REMEMBERED_SECONDS, TokenRules, TokenVerifier, bearer_token
from service.scopes import Caller, Scope
from tests.rpc.tokens.signing import (
    ABSENT,
    AUDIENCE,
    EC_KEY,
    EC_PUBLIC,
    ED_KEY,
    ED_PUBLIC,
    ISSUER,
    NOW,
    RSA_KEY,
    RSA_PUBLIC,
    Clock,
    Keys,
    base64url,
    claims,
    refused,
    signed,
    signed_as_is,
)

# What passes


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [
        (ED_KEY, "EdDSA", "ed"),
        (EC_KEY, "ES256", "ec"),
        (RSA_KEY, "RS256", "rsa"),
        (RSA_KEY, "PS256", "rsa"),
    ],
)
async def test_good_token_names_its_caller(verifier: TokenVerifier, key: Any, algorithm: str, kid: str) -> None:
    token = signed(key=key, algorithm=algorithm, headers={"kid": kid})
    assert await verifier.verify(token) == Caller("chatbot", frozenset({Scope.CREATE}))


async def test_token_without_scope_gives_a_caller_who_may_nothing(verifier: TokenVerifier) -> None:
    assert await verifier.verify(signed(claims(scope=ABSENT))) == Caller("chatbot", frozenset())


async def test_scopes_of_other_services_are_passed_over(verifier: TokenVerifier) -> None:
    token = signed(claims(scope="openid leads:read leads:everything LEADS:ERASE"))
    assert (await verifier.verify(token)).scopes == {Scope.READ}


async def test_audience_may_be_one_of_several(verifier: TokenVerifier) -> None:
    assert (await verifier.verify(signed(claims(aud=["other", AUDIENCE])))).subject == "chatbot"


async def test_iat_ahead_of_our_clock_is_no_reason_to_refuse(verifier: TokenVerifier) -> None:
    assert (await verifier.verify(signed(claims(iat=NOW + 100)))).subject == "chatbot"


async def test_nbf_a_few_seconds_ahead_is_two_clocks_that_differ(verifier: TokenVerifier) -> None:
    assert (await verifier.verify(signed(claims(nbf=NOW + 4)))).subject == "chatbot"


async def test_token_without_kid_means_the_only_key(clock: Clock) -> None:
    verifier = TokenVerifier(Keys(ED_PUBLIC), TokenRules(ISSUER, AUDIENCE), clock=clock)
    assert (await verifier.verify(signed(headers={}))).subject == "chatbot"


# Claims


@pytest.mark.parametrize("name", ["exp", "iss", "aud", "sub"])
@pytest.mark.parametrize("value", [ABSENT, None])
async def test_required_claim_that_is_missing_is_refused(verifier: TokenVerifier, name: str, value: object) -> None:
    content = json.dumps(claims(**{name: value})).encode()
    await refused(verifier, signed_as_is({"alg": "EdDSA", "kid": "ed"}, content))


@pytest.mark.parametrize("audience", ["other", "LEADKEEP", "", [], ["other"], [1], {"leadkeep": 1}])
async def test_wrong_audience_is_refused(verifier: TokenVerifier, audience: object) -> None:
    await refused(verifier, signed(claims(aud=audience)))


@pytest.mark.parametrize("issuer", ["https://issuer.example", "https://evil.example/", "", [ISSUER], 1])
async def test_wrong_issuer_is_refused(verifier: TokenVerifier, issuer: object) -> None:
    content = json.dumps(claims(iss=issuer)).encode()
    await refused(verifier, signed_as_is({"alg": "EdDSA", "kid": "ed"}, content))


@pytest.mark.parametrize(
    "subject",
    ["", " ", " admin", "admin ", "x" * 201, "a\nb", "a\x00b", "a\u202eb", "\u200b", "\ud800", 7, True, ["a"], {}],
)
async def test_subject_of_another_kind_is_refused(verifier: TokenVerifier, subject: object) -> None:
    content = json.dumps(claims(sub=subject)).encode()
    await refused(verifier, signed_as_is({"alg": "EdDSA", "kid": "ed"}, content))


@pytest.mark.parametrize("subject", ["x" * 200, "auth0|5f7c", "মিতু", "CN=Chat Bot, O=Example"])
async def test_subject_of_visible_characters_is_accepted(verifier: TokenVerifier, subject: str) -> None:
    assert (await verifier.verify(signed(claims(sub=subject)))).subject == subject


@pytest.mark.parametrize("scope", [{"leads:erase": True}, 1, None, [1], [["leads:erase"]], ["leads:read", None]])
async def test_scope_that_is_neither_text_nor_list_is_refused(verifier: TokenVerifier, scope: object) -> None:
    await refused(verifier, signed(claims(scope=scope)))


@pytest.mark.parametrize("age", [0, 0.5, 1, 3600])
async def test_expired_token_is_told_so(verifier: TokenVerifier, age: float) -> None:
    with pytest.raises(TokenExpiredError):
        await verifier.verify(signed(claims(exp=NOW - age)))


async def test_expired_token_of_another_issuer_is_invalid(verifier: TokenVerifier) -> None:
    await refused(verifier, signed(claims(exp=NOW - 1, iss="https://evil.example/")))


@pytest.mark.parametrize("exp", ["NaN", "Infinity", "1e999", '"1900000000"', "true", "1" + "0" * 400, "[]"])
async def test_exp_that_is_no_moment_is_refused(verifier: TokenVerifier, exp: str) -> None:
    content = json.dumps(claims(exp=0)).replace('"exp": 0', f'"exp": {exp}')
    await refused(verifier, signed_as_is({"alg": "EdDSA", "kid": "ed"}, content.encode()))


async def test_token_that_is_not_valid_yet_is_refused(verifier: TokenVerifier) -> None:
    await refused(verifier, signed(claims(nbf=NOW + 6)))


async def test_nbf_that_is_no_moment_is_refused(verifier: TokenVerifier) -> None:
    await refused(verifier, signed(claims(nbf="soon")))


# Tokens of real issuers


def of_issuer(clock: Clock, **rules: Any) -> TokenVerifier:
    return TokenVerifier(Keys(ED_PUBLIC), TokenRules(**{"issuer": ISSUER, "audience": AUDIENCE} | rules), clock=clock)


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        ("scp", "leads:read leads:update"),
        ("scp", ["leads:read", "leads:update"]),
        ("roles", ["leads:read", "leads:update", "Everything"]),
        ("permissions", ["leads:read", "leads:update"]),
        ("scope", ["leads:read", "leads:update"]),
    ],
)
async def test_scopes_stand_in_the_claim_of_the_issuer(clock: Clock, claim: str, value: object) -> None:
    verifier = of_issuer(clock, scope_claims=(claim,))
    caller = await verifier.verify(signed(claims(**{"scope": ABSENT, claim: value})))
    assert caller.scopes == {Scope.READ, Scope.UPDATE}


async def test_another_claim_than_the_issuers_grants_nothing(clock: Clock) -> None:
    verifier = of_issuer(clock, scope_claims=("scp",))
    assert (await verifier.verify(signed(claims(scope="leads:erase", roles=["leads:erase"])))).scopes == set()


async def test_several_claims_add_up(clock: Clock) -> None:
    verifier = of_issuer(clock, scope_claims=("scp", "roles"))
    assert (await verifier.verify(signed(claims(scp="leads:read")))).scopes == {Scope.READ}
    assert (await verifier.verify(signed(claims(roles=["leads:create"])))).scopes == {Scope.CREATE}
    both = signed(claims(scp="leads:read", roles=["leads:create"]))
    assert (await verifier.verify(both)).scopes == {Scope.READ, Scope.CREATE}


async def test_the_issuers_own_words_mean_scopes(clock: Clock) -> None:
    words = {"leadkeep/read": frozenset({Scope.READ}), "Sales": frozenset({Scope.READ, Scope.UPDATE})}
    verifier = of_issuer(clock, scopes=words)
    for scope, expected in (
        ("leadkeep/read other/read", {Scope.READ}),
        ("Sales", {Scope.READ, Scope.UPDATE}),
        ("sales leadkeep/READ", set()),
        ("leads:create leadkeep/read", {Scope.CREATE, Scope.READ}),
    ):
        assert (await verifier.verify(signed(claims(scope=scope)))).scopes == expected


async def test_a_listed_client_needs_no_audience(clock: Clock) -> None:
    verifier = of_issuer(clock, audience=None, client_ids=frozenset({"bot-client"}))
    good = claims(aud=ABSENT, client_id="bot-client", token_use="access")
    assert (await verifier.verify(signed(good))).subject == "chatbot"


@pytest.mark.parametrize("client", ["other", "", ABSENT, None, ["bot-client"], {"bot-client": 1}])
async def test_another_client_without_audience_is_refused(clock: Clock, client: object) -> None:
    verifier = of_issuer(clock, audience=None, client_ids=frozenset({"bot-client"}))
    await refused(verifier, signed(claims(aud=ABSENT, client_id=client)))


@pytest.mark.parametrize("audience", ["bot-client", AUDIENCE, None, "", [], ["bot-client"], [None]])
async def test_the_client_counts_only_for_tokens_without_aud(clock: Clock, audience: object) -> None:
    verifier = of_issuer(clock, audience=None, client_ids=frozenset({"bot-client"}))
    content = json.dumps(claims(aud=audience, client_id="bot-client")).encode()
    await refused(verifier, signed_as_is({"alg": "EdDSA", "kid": "ed"}, content))


async def test_without_listed_clients_aud_is_required(verifier: TokenVerifier) -> None:
    await refused(verifier, signed(claims(aud=ABSENT, client_id="bot-client")))


@pytest.mark.parametrize(
    "of_another_kind",
    [
        {"token_use": "id"},
        {"typ": "ID"},
        {"typ": "Refresh"},
        {"at_hash": "x"},
        {"c_hash": "x"},
        {"token_use": None},
        {"nonce": "x", "oid": "y", "ver": "2.0", "roles": ["leads:read"]},
    ],
)
async def test_tokens_of_another_kind_are_refused(
    clock: Clock, verifier: TokenVerifier, of_another_kind: dict[str, object]
) -> None:
    await refused(verifier, signed(claims(**of_another_kind)))
    without = of_issuer(clock, audience=None, client_ids=frozenset({"bot-client"}))
    await refused(without, signed(claims(aud=ABSENT, client_id="bot-client", **of_another_kind)))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"aud": "api://leadkeep"}, "its aud"),
        ({"iss": "https://sts.example/"}, "the token's iss"),
        ({"sub": ABSENT}, "exp, iss and sub"),
        ({"exp": ABSENT}, "exp, iss and sub"),
        ({"token_use": "id"}, "send the access token"),
    ],
)
async def test_what_is_wrong_with_a_token_is_said_to_who_holds_one_of_the_issuers(
    verifier: TokenVerifier, changed: dict[str, object], named: str
) -> None:
    with pytest.raises(TokenInvalidError, match=named):
        await verifier.verify(signed(claims(**changed)))
    with pytest.raises(TokenInvalidError, match=r"^the token is not valid here$"):
        await verifier.verify(signed(claims(**changed))[:-8] + "AAAAAAAA")


async def test_keycloaks_own_type_is_an_access_token(verifier: TokenVerifier) -> None:
    assert (await verifier.verify(signed(claims(typ="Bearer", azp="dashboard", nonce="n")))).subject == "chatbot"


# Memory


async def test_token_is_verified_once_a_minute(verifier: TokenVerifier, keys: Keys, clock: Clock) -> None:
    token = signed()
    for _ in range(10):
        await verifier.verify(token)
    assert keys.asked == 1
    clock.now += REMEMBERED_SECONDS
    await verifier.verify(token)
    assert keys.asked == 2


async def test_use_does_not_prolong_the_minute(verifier: TokenVerifier, keys: Keys, clock: Clock) -> None:
    token = signed()
    await verifier.verify(token)
    keys.set = KeySet((RSA_PUBLIC, EC_PUBLIC))
    clock.now += REMEMBERED_SECONDS - 1
    await verifier.verify(token)
    clock.now += 1
    await refused(verifier, token)


async def test_clock_set_back_does_not_prolong_the_minute(verifier: TokenVerifier, keys: Keys, clock: Clock) -> None:
    token = signed()
    await verifier.verify(token)
    clock.now -= 3600
    await verifier.verify(token)
    assert keys.asked == 2


async def test_token_that_expires_while_remembered_is_refused(verifier: TokenVerifier, clock: Clock) -> None:
    token = signed(claims(exp=NOW + 10))
    await verifier.verify(token)
    clock.now += 10
    with pytest.raises(TokenExpiredError):
        await verifier.verify(token)


async def test_changed_copy_of_a_remembered_token_is_refused(verifier: TokenVerifier) -> None:
    token = signed()
    await verifier.verify(token)
    header, payload, signature = token.split(".")
    richer = base64url(json.dumps(claims(scope="leads:erase")).encode())
    await refused(verifier, f"{header}.{richer}.{signature}")
    await refused(verifier, f"{header}.{payload}.{'A' * len(signature)}")


async def test_failures_are_not_remembered(verifier: TokenVerifier, keys: Keys) -> None:
    token = signed()
    keys.set = KeySet((RSA_PUBLIC, EC_PUBLIC))
    await refused(verifier, token)
    keys.set = KeySet((ED_PUBLIC,))
    assert (await verifier.verify(token)).subject == "chatbot"


async def test_least_recently_used_token_is_forgotten_first(keys: Keys, clock: Clock) -> None:
    verifier = TokenVerifier(keys, TokenRules(ISSUER, AUDIENCE), clock=clock, remembered=2)
    first, second, third = (signed(claims(sub=name)) for name in ("first", "second", "third"))
    for token in (first, second, first, third, first):
        await verifier.verify(token)
    assert keys.asked == 3
    await verifier.verify(second)
    assert keys.asked == 4


async def test_no_error_shows_a_part_of_the_token(verifier: TokenVerifier) -> None:
    bad = [claims(sub="s3cret\n"), claims(scope={"s3cret": 1}), claims(iss="s3cret"), claims(exp="s3cret")]
    for content in bad:
        token = signed_as_is({"alg": "EdDSA", "kid": "ed"}, json.dumps(content).encode())
        error = await refused(verifier, token)
        assert "s3cret" not in str(error)
        assert error.__cause__ is None


@pytest.mark.parametrize(("issuer", "audience"), [("", AUDIENCE), (ISSUER, "")])
def test_verifier_without_issuer_or_audience_cannot_be_made(keys: Keys, issuer: str, audience: str) -> None:
    with pytest.raises(ValueError, match="must be set"):
        TokenVerifier(keys, TokenRules(issuer, audience))


# The authorization value


@pytest.mark.parametrize("value", ["Bearer a.b.c", "bearer a.b.c", "BEARER  a.b.c ", " Bearer a.b.c"])
def test_bearer_token_is_read(value: str) -> None:
    assert bearer_token(value) == "a.b.c"


@pytest.mark.parametrize("value", [None, "", "  ", "Bearer", "Bearer ", "Basic YTpi", "a.b.c", "Bearera.b.c"])
def test_value_without_a_bearer_token_is_missing(value: str | None) -> None:
    with pytest.raises(TokenMissingError):
        bearer_token(value)


@pytest.mark.parametrize("value", ["Bearer a b", "Bearer a, Bearer b", "Bearer a\tb", "Bearer ä", "Bearer a\n"])
def test_malformed_bearer_value_is_invalid(value: str) -> None:
    with pytest.raises(TokenInvalidError):
        bearer_token(value)
