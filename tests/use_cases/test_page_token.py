from __future__ import annotations

import base64
import hmac
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import PageTokenInvalidError
from service.use_cases.page_token import make_page_token, read_page_token

LEAD = UUID("01a20a63-8ee1-744a-afa5-abde66ecd311")
MOMENT = datetime(2026, 1, 31, 9, 30, 0, 123_456, tzinfo=UTC)


def tag(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, payload, "sha256")


def tags(payload: bytes) -> list[bytes]:
    return [tag(b"key", payload)]


def tags_otherwise(payload: bytes) -> list[bytes]:
    return [tag(b"another key", payload)]


def tags_after_rotation(payload: bytes) -> list[bytes]:
    return [tag(b"another key", payload), tag(b"key", payload)]


def token(moment: datetime = MOMENT, lead_id: UUID = LEAD) -> str:
    return make_page_token(moment, lead_id, list_identity="filter", tags=tags)


@given(
    moment=st.datetimes(timezones=st.just(UTC)),
    number=st.integers(min_value=0, max_value=2**128 - 1),
)
def test_a_token_keeps_its_place_to_the_microsecond(moment: datetime, number: int) -> None:
    place = (moment, UUID(int=number))

    assert read_page_token(token(*place), UUID, list_identity="filter", tags=tags) == place


@given(moment=st.datetimes(timezones=st.just(UTC)), number=st.integers(min_value=0, max_value=2**63 - 1))
def test_a_token_keeps_the_place_of_a_row_with_a_number(moment: datetime, number: int) -> None:
    made = make_page_token(moment, number, list_identity="filter", tags=tags)

    assert read_page_token(made, int, list_identity="filter", tags=tags) == (moment, number)


def test_a_token_with_a_uuid_is_refused_where_rows_have_numbers() -> None:
    dressed_up = token(lead_id=UUID(int=7))

    with pytest.raises(PageTokenInvalidError):
        read_page_token(dressed_up, int, list_identity="filter", tags=tags)


def test_a_token_with_a_number_is_refused_where_rows_have_uuids() -> None:
    made = make_page_token(MOMENT, 7, list_identity="filter", tags=tags)

    with pytest.raises(PageTokenInvalidError):
        read_page_token(made, UUID, list_identity="filter", tags=tags)


def test_one_moment_in_two_zones_is_one_place() -> None:
    elsewhere = MOMENT.astimezone(timezone(timedelta(hours=6)))

    assert token(elsewhere) == token(MOMENT)


def test_the_moment_that_is_read_knows_its_zone() -> None:
    moment, _ = read_page_token(token(), UUID, list_identity="filter", tags=tags)

    assert moment.utcoffset() == timedelta(0)


def test_a_token_needs_no_escaping_in_a_url() -> None:
    for _ in range(50):
        assert set(token(lead_id=uuid4())) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_a_token_of_another_list_is_refused() -> None:
    with pytest.raises(PageTokenInvalidError):
        read_page_token(token(), UUID, list_identity="another filter", tags=tags)


def test_a_token_of_another_key_is_refused() -> None:
    with pytest.raises(PageTokenInvalidError):
        read_page_token(token(), UUID, list_identity="filter", tags=tags_otherwise)


def test_a_token_outlives_a_rotation_of_its_key() -> None:
    assert read_page_token(token(), UUID, list_identity="filter", tags=tags_after_rotation) == (MOMENT, LEAD)


def test_a_token_with_any_bit_changed_is_refused() -> None:
    raw = base64.urlsafe_b64decode(token() + "==")
    for at in range(len(raw)):
        changed = bytearray(raw)
        changed[at] ^= 1
        with pytest.raises(PageTokenInvalidError):
            read_page_token(base64.urlsafe_b64encode(changed).decode(), UUID, list_identity="filter", tags=tags)


@pytest.mark.parametrize("cut", [1, 2, 20, 53])
def test_a_shortened_token_is_refused(cut: int) -> None:
    with pytest.raises(PageTokenInvalidError):
        read_page_token(token()[:-cut], UUID, list_identity="filter", tags=tags)


@pytest.mark.parametrize("nonsense", ["", "x", "====", "☃", "\x00", "a b", "A" * 54, "A" * 10_000])
def test_what_is_no_token_is_refused(nonsense: str) -> None:
    with pytest.raises(PageTokenInvalidError):
        read_page_token(nonsense, UUID, list_identity="filter", tags=tags)


@given(st.text())
def test_no_text_raises_anything_else(text: str) -> None:
    with pytest.raises(PageTokenInvalidError):
        read_page_token(text, UUID, list_identity="filter", tags=tags)
