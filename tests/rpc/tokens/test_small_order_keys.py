"""Ed25519 keys for which anyone can sign: points of small order, in every encoding."""

from __future__ import annotations

from itertools import product

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from service.rpc.tokens.jwks import SMALL_ORDER_Y, JwksError, read_jwks
from tests.rpc.tokens.signing import base64url, document

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
ENCODINGS = [
    (written | sign << 255).to_bytes(32, "little")
    for y, beyond, sign in product(sorted(SMALL_ORDER_Y), (0, P), (0, 1))
    if (written := y + beyond) < 2**255
]

Point = tuple[int, int]


def added(one: Point, other: Point) -> Point:
    """The sum of two points of edwards25519 (RFC 8032, 5.1)."""
    (x1, y1), (x2, y2) = one, other
    product_of_all = D * x1 * x2 * y1 * y2
    return (
        (x1 * y2 + x2 * y1) * pow(1 + product_of_all, -1, P) % P,
        (y1 * y2 + x1 * x2) * pow(1 - product_of_all, -1, P) % P,
    )


def points_at(y: int) -> set[Point]:
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    root = pow(square, (P + 3) // 8, P)
    if root * root % P != square:
        root = root * pow(2, (P - 1) // 4, P) % P
    assert root * root % P == square
    return {(root, y), (-root % P, y)}


def test_the_list_is_the_whole_torsion_group() -> None:
    points = set().union(*map(points_at, SMALL_ORDER_Y))
    # The curve has exactly eight points whose order divides 8.
    assert len(points) == 8
    for point in points:
        eightfold = point
        for _ in range(3):
            eightfold = added(eightfold, eightfold)
        assert eightfold == (0, 1)


def test_anyone_could_sign_for_such_a_key() -> None:
    identity = (1).to_bytes(32, "little")
    Ed25519PublicKey.from_public_bytes(identity).verify(identity + bytes(32), b"any text")


@pytest.mark.parametrize("encoding", ENCODINGS, ids=bytes.hex)
def test_key_of_small_order_is_left_out(encoding: bytes) -> None:
    entry = {"kty": "OKP", "crv": "Ed25519", "kid": "x", "x": base64url(encoding)}
    with pytest.raises(JwksError, match="small order"):
        read_jwks(document(entry))
