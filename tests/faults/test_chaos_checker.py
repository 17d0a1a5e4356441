"""The chaos harness's checker notices every broken promise, and nothing in a history without one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.faults.chaos.checker import Kind, share_of, violations
from tests.faults.chaos.history import SERVICE_DOWN, Call, Content, History, Row, Stored, Window

ANN, BOB, TOM = (Content(number, number) for number in (1, 2, 3))


def create(request_id: str, content: Content, lead_id: str = "", *, at: float = 0, **told: object) -> Call:
    """A CreateLead that took 0.1 s; acknowledged as SAVED when it has an id."""
    call = Call("CreateLead", at, 3.0, request_id=request_id, content=content, ended=at + 0.1, by_server=True)
    if lead_id:
        call.code, call.id, call.state = "OK", lead_id, "SAVED"
    return replace(call, **told)  # type: ignore[arg-type] # fields of Call


def get(lead_id: str, code: str, *, at: float = 9, **told: object) -> Call:
    call = Call("GetLead", at, 3.0, asked=lead_id, ended=at + 0.1, code=code, by_server=True)
    return replace(call, **told)  # type: ignore[arg-type] # fields of Call


def row(lead_id: str, request_id: str | None = None, content: Content = ANN, *, subject: str = "bot") -> Row:
    return Row(lead_id, subject, request_id, bytes([content.phone]) * 32, bytes([content.nid]) * 32)


def conflict(lead_id: str, request_id: str) -> Row:
    return Row(lead_id, "bot", request_id)


def kinds(calls: list[Call], stored: Stored, *windows: Window) -> list[Kind]:
    return [violation.kind for violation in violations(History("bot", calls, list(windows)), stored)]


CLEAN = [
    create("r1", ANN, "a"),
    create("r1", ANN, "a", at=1),
    create("r2", BOB, code="UNAVAILABLE", reason="STORAGE_UNAVAILABLE"),
    create("r2", BOB, "b", at=1, attempt=2, state="DELAYED"),
    create("r3", ANN, code="ALREADY_EXISTS", reason="DUPLICATE_PHONE"),
    create("r4", ANN, "d", state="DELAYED"),
    create("r5", TOM, code="CANCELLED", hung_up=True, by_server=False),
    create("r5", TOM, "e", at=1, attempt=2, state="DELAYED"),
    create("r5", TOM, "f", at=2),
    get("a", "OK"),
    get("d", "FAILED_PRECONDITION", reason="LEAD_IN_CONFLICT"),
    get("b", "UNAVAILABLE", reason="STORAGE_UNAVAILABLE"),
]
STORED = Stored(
    leads=[row("a", "r1", ANN), row("b", "r2", BOB), row("f", "r5", TOM)],
    conflicts=[conflict("d", "r4")],
    aliases={"e": "f"},
)


def test_a_clean_history_has_no_violation() -> None:
    assert kinds(CLEAN, STORED) == []


@pytest.mark.parametrize(
    "without",
    [
        replace(STORED, leads=[lead for lead in STORED.leads if lead.id != "a"]),
        replace(STORED, conflicts=[]),
        replace(STORED, leads=[*STORED.leads, row("e2", "r9", Content(9, 9))], aliases={}),
    ],
    ids=["lead", "conflict", "alias"],
)
def test_an_acknowledged_id_that_is_nowhere_is_lost(without: Stored) -> None:
    assert Kind.LOST in kinds(CLEAN, without)


@pytest.mark.parametrize(
    "twice",
    [
        replace(STORED, conflicts=[*STORED.conflicts, conflict("a", "r8")]),
        replace(STORED, leads=[*STORED.leads, row("a2", "r8", Content(ANN.phone, 9))]),
        replace(STORED, leads=[*STORED.leads, row("a2", "r8", Content(9, ANN.nid))]),
        replace(STORED, leads=[*STORED.leads, row("a2", "r1", Content(9, 9))]),
        replace(STORED, conflicts=[*STORED.conflicts, conflict("a2", "r1")]),
        replace(STORED, conflicts=[*STORED.conflicts, conflict("d2", "r4")]),
    ],
    ids=["id", "phone", "nid", "request in leads", "request in both", "request in conflicts"],
)
def test_a_lead_that_is_stored_twice_is_noticed(twice: Stored) -> None:
    assert kinds(CLEAN, twice) == [Kind.STORED_TWICE]


def test_leads_without_request_ids_of_other_subjects_or_shared_by_decision_are_not_stored_twice() -> None:
    more = [
        row("x1", None, Content(4, 4)),
        row("x2", None, Content(5, 5)),
        row("x3", "r1", Content(6, 6), subject="another"),
        replace(row("x4", "r7"), phone_index=b"", nid_index=b""),
    ]
    assert kinds(CLEAN, replace(STORED, leads=[*STORED.leads, *more])) == []


def test_a_conflict_that_repeats_another_is_the_same_lead_under_a_second_id() -> None:
    repeated = replace(conflict("d2", "r4"), repeats="d")
    calls = [*CLEAN, create("r4", ANN, "d2", at=5, state="DELAYED")]
    assert kinds(calls, replace(STORED, conflicts=[*STORED.conflicts, repeated])) == []


def test_two_ids_for_one_request_are_noticed() -> None:
    calls = [*CLEAN, create("r1", ANN, "b", at=5)]
    assert kinds(calls, STORED) == [Kind.TWO_IDS]


def test_an_acknowledged_id_that_was_not_found_is_noticed() -> None:
    assert kinds([*CLEAN, get("a", "NOT_FOUND")], STORED) == [Kind.MISSING]


def test_an_id_that_was_asked_for_before_it_was_acknowledged_may_be_missing() -> None:
    assert kinds([*CLEAN, get("b", "NOT_FOUND", at=0.5)], STORED) == []


def test_an_acknowledged_request_that_is_refused_later_is_noticed() -> None:
    refused = create("r1", ANN, at=5, code="ALREADY_EXISTS", reason="DUPLICATE_PHONE")
    assert kinds([*CLEAN, refused], STORED) == [Kind.REFUSED]


KILLED, FROZEN = Window(SERVICE_DOWN, 3.0, 4.0), Window("PostgreSQL frozen", 4.5, 6.0)


@pytest.mark.parametrize(
    ("windows", "excused"),
    [
        ([KILLED, FROZEN], True),
        ([KILLED, Window("PostgreSQL down", 1.0, 3.0)], True),
        ([KILLED, Window("PostgreSQL down", 1.0, 1.5)], False),
        ([KILLED], False),
        ([FROZEN], False),
        ([FROZEN, Window(SERVICE_DOWN, 6.0, 7.0)], False),
    ],
    ids=["both", "just back", "long back", "killed", "frozen", "killed later"],
)
def test_only_a_killed_service_without_postgres_may_refuse_an_acknowledged_request(
    windows: list[Window], excused: bool
) -> None:
    refused = create("r1", ANN, at=5, code="ALREADY_EXISTS", reason="DUPLICATE_PHONE")
    assert kinds([*CLEAN, refused], STORED, *windows) == ([] if excused else [Kind.REFUSED])


def test_a_request_that_is_never_settled_is_noticed() -> None:
    assert kinds([*CLEAN, create("r9", TOM, code="UNAVAILABLE")], STORED) == [Kind.UNSETTLED]


@pytest.mark.parametrize(
    "call",
    [
        create("r2", BOB, at=0.5, code="INTERNAL", reason="INTERNAL"),
        create("r2", BOB, at=0.5, code="INVALID_ARGUMENT", reason="LEAD_INVALID"),
        get("a", "DATA_LOSS", reason="FIELD_UNREADABLE"),
    ],
)
def test_an_answer_that_no_fault_explains_is_noticed(call: Call) -> None:
    assert kinds([call, *CLEAN], STORED) == [Kind.UNEXPECTED]


def test_the_same_content_is_never_a_reused_request_id() -> None:
    call = create("r2", BOB, at=0.5, code="ALREADY_EXISTS", reason="REQUEST_ID_REUSED")
    assert kinds([call, *CLEAN], STORED) == [Kind.UNEXPECTED]


def test_calls_without_a_status_of_the_service_are_noticed() -> None:
    silent = get("a", "DEADLINE_EXCEEDED", by_server=False)
    assert kinds([*CLEAN, silent], STORED) == [Kind.UNMARKED]


def test_one_call_in_two_thousand_may_end_without_a_status_of_the_service() -> None:
    answered = [get("a", "OK", at=number) for number in range(2, 2000)]
    assert kinds([*CLEAN, *answered, get("a", "DEADLINE_EXCEEDED", by_server=False)], STORED) == []


@pytest.mark.parametrize(("at", "excused"), [(9.8, False), (9.95, True), (10.5, True), (11.9, True), (12.1, False)])
def test_a_killed_service_excuses_the_calls_of_its_time_alone(at: float, excused: bool) -> None:
    silent = get("a", "UNAVAILABLE", at=at, by_server=False)
    down = [Window(SERVICE_DOWN, 10.0, 12.0), Window("PostgreSQL down", 0.0, 20.0), Window(SERVICE_DOWN, 5.0, 6.0)]
    assert (kinds([*CLEAN, silent], STORED, *down) == []) is excused


def test_the_share_counts_neither_the_excused_nor_those_that_hung_up() -> None:
    calls = [*CLEAN, get("a", "UNAVAILABLE", at=10.5, by_server=False), get("a", "OK", at=20)]
    share = share_of(History("bot", calls, [Window(SERVICE_DOWN, 10.0, 12.0)]))
    assert (share.counted, share.marked, share.excused) == (len(calls) - 2, len(calls) - 2, 2)
