"""The checker of erasures finds each broken promise, and nothing in a history that keeps them."""

from __future__ import annotations

import pytest

from tests.faults.chaos.erasure_history import Erased, Kept, Sent, Submission, broken
from tests.faults.chaos.history import Content

ERASED = Sent(Submission(1, Content(1, 1), "r1"), "OK", "id-1")
SAME_REQUEST = Sent(Submission(1, Content(1, 1), "r1"), "OK", "id-1b")
SAME_PERSON = Sent(Submission(2, Content(1, 1), ""), "OK", "id-2")
SAME_PHONE = Sent(Submission(3, Content(1, 7), ""), "OK", "id-3")
SAME_NID_REFUSED = Sent(Submission(4, Content(8, 1), ""), "ALREADY_EXISTS")
STRANGER = Sent(Submission(5, Content(9, 9), ""), "OK", "id-5")
SENT = [ERASED, SAME_REQUEST, SAME_PERSON, SAME_PHONE, SAME_NID_REFUSED, STRANGER]
ERASURES = [Erased("id-1", "OK", ("id-3",))]
ROWS = [
    Kept("lead_conflict", "id-3", "Quillon Attempt 3"),
    Kept("lead_conflict", "id-4", "Quillon Attempt 4"),
    Kept("lead", "id-5", "Quillon Attempt 5"),
]


def without(row_id: str) -> list[Kept]:
    return [row for row in ROWS if row.id != row_id]


def test_what_is_the_persons_may_go_and_the_rest_is_there() -> None:
    assert broken(SENT, ERASURES, ROWS) == []


def test_an_id_that_nobody_knew_is_erased_all_the_same() -> None:
    assert broken(SENT, [Erased("id-1", "NOT_FOUND")], ROWS) == []


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (without("id-5"), ["id-5 (Quillon Attempt 5) was acknowledged, not erased, and is nowhere"]),
        (
            without("id-3"),
            [
                "id-3 (Quillon Attempt 3) was acknowledged, not erased, and is nowhere",
                "id-3 was named as kept, and is no conflict",
            ],
        ),
        (without("id-4"), ["Quillon Attempt 4 was refused, not erased, and is kept nowhere"]),
        ([*ROWS, Kept("lead", "id-1")], ["id-1 () was erased and is in lead"]),
        (
            [*ROWS, Kept("resubmission", "id-1c", "Quillon Attempt 1")],
            ["id-1c (Quillon Attempt 1) was erased and is in resubmission"],
        ),
        ([*ROWS, Kept("lead_conflict", "id-5", "Quillon Attempt 5")], ["id-5 is in 2 rows"]),
    ],
)
def test_a_broken_promise_is_named(rows: list[Kept], found: list[str]) -> None:
    assert broken(SENT, ERASURES, rows) == found


def test_an_unsettled_erasure_is_named() -> None:
    assert broken([STRANGER], [Erased("id-9", "UNAVAILABLE")], without("id-3")[1:]) == [
        "EraseLead of id-9 was answered UNAVAILABLE"
    ]
