"""A reference is read in every usual writing, as the end of the one id that it spells, and nothing else is guessed."""

from __future__ import annotations

from uuid import UUID

import pytest

from service.factories import new_id
from service.validation.reference import REFERENCE_BYTES, read_reference, reference_of
from service.validation.text import ValueRefusedError

LEAD = UUID("01989f6e-7c1a-7d3e-9b52-0a1b2c3d4e5f")
REFERENCE = "LK-3CP3-TKJZ"
SHARED_LETTERS = UUID("01989f6e-7c1a-7d3e-9b52-0a0000008421")
"""Its reference is `LK-0000-1111`, once."""


def test_a_reference_spells_the_end_of_the_id() -> None:
    assert reference_of(LEAD) == REFERENCE
    assert read_reference(REFERENCE) == LEAD.bytes[-REFERENCE_BYTES:]


def test_every_reference_is_read_as_what_it_spells() -> None:
    for _ in range(2000):
        lead_id = new_id()
        assert read_reference(reference_of(lead_id)) == lead_id.bytes[-5:]
        assert read_reference(reference_of(lead_id).removeprefix("LK-")) == lead_id.bytes[-5:]


@pytest.mark.parametrize(
    "written",
    [
        "lk-3cp3-tkjz",
        "3CP3TKJZ",
        "3cp3 tkjz",
        "LK3CP3TKJZ",
        "  LK 3CP3 TKJZ\n",
        "LK\u20133CP3\u2011TKJZ",
        "\u202aLK-3CP3-TKJZ\u202c",
        "LK-3CP3-TKJZ.",
        "\uff2c\uff2b\uff0d\uff13\uff23\uff30\uff13\uff0d\uff34\uff2b\uff2a\uff3a",
        "LK-৩CP৩-TKJZ",
        "IK-3CP3-TKJZ",
    ],
)
def test_however_it_is_written_it_is_the_same(written: str) -> None:
    assert read_reference(written) == LEAD.bytes[-5:]


@pytest.mark.parametrize("written", ["LK-OoO0-1Il1", "lkoooo1111", "OOOO-IIII", "0000 LLLL"])
def test_letters_that_look_like_digits_are_digits(written: str) -> None:
    assert read_reference(written) == SHARED_LETTERS.bytes[-5:]


def test_a_reference_that_begins_with_the_prefix_keeps_it() -> None:
    begins_with_it = read_reference("LK-1K00-0000")

    assert read_reference("LK000000") == begins_with_it
    assert read_reference("1k00 0000") == begins_with_it


@pytest.mark.parametrize(
    "written",
    [
        *("", " ", "LK", "LK-", "LK-3CP3-TKJ", "LK-3CP3-TKJZ1", "LK-3CP3-TKJU", "XX-3CP3-TKJZ", "LK-3CP3-TK#Z"),
        *(str(LEAD), "LK-3CP3-TKJZ LK-3CP3-TKJZ", "L" * 1_000_000, "3CP3TK\u00df", "3CP3TKJ\ufb00"),
    ],
)
def test_what_is_no_reference_is_refused_without_telling_any_of_it(written: str) -> None:
    with pytest.raises(ValueRefusedError) as refused:
        read_reference(written)

    assert "TKJ" not in refused.value.description
