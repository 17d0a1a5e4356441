"""Compares what callers were told with what is stored. Pure: the same history and rows give the same verdict."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

from tests.faults.chaos.history import SERVICE_DOWN, SETTLED, Call, History, Row, Stored

LEAST_SHARE = 0.999
"""Of the calls that a killed service does not excuse, so many must carry a status made by the service."""

NOTICED_SECONDS = 3.0
"""The service may take so long to notice that PostgreSQL is back."""

EXPECTED = {
    "CreateLead": {"OK", "ALREADY_EXISTS", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED"},
    "GetLead": {"OK", "NOT_FOUND", "FAILED_PRECONDITION", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"},
}
"""What a valid call may be answered while PostgreSQL is away. NOT_FOUND is judged by itself."""


class Kind(Enum):
    """How a promise can be broken."""

    LOST = "an acknowledged id is nowhere in PostgreSQL"
    STORED_TWICE = "one lead is stored twice"
    TWO_IDS = "two ids were acknowledged for one request"
    MISSING = "an acknowledged id was answered NOT_FOUND"
    REFUSED = "an acknowledged request was refused later"
    UNSETTLED = "a request was neither acknowledged nor refused in the end"
    UNEXPECTED = "a call was answered what it never must be"
    UNMARKED = "too many calls ended without a status of the service"


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise."""

    kind: Kind
    what: str
    request_id: str = ""
    """The request that it is about, if it is about one."""

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.what}"


@dataclass(frozen=True, slots=True)
class Share:
    """How many calls had to carry a status of the service, and how many did."""

    counted: int
    marked: int
    excused: int
    """Calls under way while the service was killed or down, and those whose caller hung up."""

    @property
    def value(self) -> float:
        """Of the counted calls; 1 when there are none."""
        return self.marked / self.counted if self.counted else 1.0


def violations(history: History, stored: Stored) -> list[Violation]:
    """Every broken promise."""
    return [
        *_lost(history, stored),
        *_stored_twice(history, stored),
        *_two_ids(history, stored),
        *_missing(history),
        *_refused(history),
        *_unsettled(history),
        *_unexpected(history),
        *_unmarked(history),
    ]


def share_of(history: History) -> Share:
    """Which share of the calls carried a status made by the service."""
    counted = [call for call in _not_excused(history) if not call.hung_up]
    marked = sum(call.by_server for call in counted)
    return Share(len(counted), marked, len(history.calls) - len(counted))


def unmarked(history: History) -> list[Call]:
    """The calls that ended without a status of the service and without an excuse."""
    return [call for call in _not_excused(history) if not call.hung_up and not call.by_server]


def _lost(history: History, stored: Stored) -> Iterator[Violation]:
    known = {row.id for row in (*stored.leads, *stored.conflicts)} | stored.aliases.keys()
    for call in history.acknowledged():
        if call.id not in known:
            yield Violation(Kind.LOST, f"{call.id} ({call.state}) of request {call.request_id}", call.request_id)


def _stored_twice(history: History, stored: Stored) -> Iterator[Violation]:
    for row_id, times in Counter(row.id for row in (*stored.leads, *stored.conflicts)).items():
        if times > 1:
            yield Violation(Kind.STORED_TWICE, f"id {row_id} is in {times} rows")
    for index, times in _times(row.phone_index for row in stored.leads if row.phone_index):
        yield Violation(Kind.STORED_TWICE, f"{times} leads with the phone index {index.hex()[:12]}…")
    for index, times in _times(row.nid_index for row in stored.leads if row.nid_index):
        yield Violation(Kind.STORED_TWICE, f"{times} leads with the nid index {index.hex()[:12]}…")
    by_request: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in (*stored.leads, *stored.conflicts):
        if row.request_id is not None and row.repeats is None:
            by_request[row.created_by, row.request_id].append(row)
    for (subject, request_id), rows in by_request.items():
        if len(rows) > 1:
            ids = ", ".join(row.id for row in rows)
            what = f"request {request_id} of {subject} is in {len(rows)} rows: {ids}"
            yield Violation(Kind.STORED_TWICE, what, request_id)


def _times(values: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    return ((value, times) for value, times in Counter(values).items() if times > 1)


def _two_ids(history: History, stored: Stored) -> Iterator[Violation]:
    answered: dict[str, dict[str, str]] = defaultdict(dict)
    stand_for = stored.stand_for()
    for call in history.acknowledged():
        lead_id = call.id
        while lead_id in stand_for:
            lead_id = stand_for[lead_id]
        answered[call.request_id][lead_id] = call.state
    for request_id, leads in answered.items():
        if len(leads) > 1:
            told = ", ".join(f"{lead_id} ({state})" for lead_id, state in leads.items())
            yield Violation(Kind.TWO_IDS, f"request {request_id}: {told}", request_id)


def _missing(history: History) -> Iterator[Violation]:
    first = _first_acknowledged(history, lambda call: call.id)
    requests = {call.id: call.request_id for call in history.acknowledged()}
    for call in history.calls:
        if call.code == "NOT_FOUND" and first.get(call.asked, call.ended) < call.began:
            what = f"{call.asked}, {call.began - first[call.asked]:.2f} s after it"
            yield Violation(Kind.MISSING, what, requests[call.asked])


def refused_later(history: History) -> list[tuple[Call, bool]]:
    """Repeats of acknowledged requests that were refused all the same, and whether that is excused.

    While PostgreSQL is away and the service was killed since the acknowledgement, nobody can know that such a request
    is older than a duplicate of it in the spool: docs/clients.md says so.
    """
    first = _first_acknowledged(history, lambda call: call.request_id)
    kills = [window for window in history.windows if window.kind == SERVICE_DOWN]
    away = [replace(w, ended=w.ended + NOTICED_SECONDS) for w in history.windows if w.kind != SERVICE_DOWN]
    found = []
    for call in history.calls:
        since = first.get(call.request_id, call.ended)
        if call.code == "ALREADY_EXISTS" and since < call.began:
            forgotten = any(since < kill.ended and kill.began < call.ended for kill in kills)
            found.append((call, forgotten and any(window.overlaps(call) for window in away)))
    return found


def _refused(history: History) -> Iterator[Violation]:
    for call, excused in refused_later(history):
        if not excused:
            yield Violation(Kind.REFUSED, f"request {call.request_id} with {call.reason}", call.request_id)


def _unsettled(history: History) -> Iterator[Violation]:
    last = {call.request_id: call for call in history.calls if call.rpc == "CreateLead"}
    for request_id, call in last.items():
        if call.code not in SETTLED:
            what = f"request {request_id}: {call.code} {call.reason}, attempt {call.attempt}"
            yield Violation(Kind.UNSETTLED, what, request_id)


def _unexpected(history: History) -> Iterator[Violation]:
    for call in history.calls:
        answered = call.code not in EXPECTED[call.rpc] and not call.hung_up
        if answered or call.reason == "REQUEST_ID_REUSED":
            what = f"{call.rpc} {call.request_id}{call.asked}: {call.code} {call.reason}"
            yield Violation(Kind.UNEXPECTED, what, call.request_id)


def _unmarked(history: History) -> Iterator[Violation]:
    share = share_of(history)
    if share.value < LEAST_SHARE:
        yield Violation(Kind.UNMARKED, f"{share.marked} of {share.counted} carry one, {share.value:.3%}")


def _first_acknowledged(history: History, key: Callable[[Call], str]) -> dict[str, float]:
    first: dict[str, float] = {}
    for call in history.acknowledged():
        first[key(call)] = min(call.ended, first.get(key(call), call.ended))
    return first


def _not_excused(history: History) -> Iterator[Call]:
    down = sorted((w for w in history.windows if w.kind == SERVICE_DOWN), key=lambda window: window.began)
    starts = [window.began for window in down]
    for call in history.calls:
        # One service is killed, so its times do not overlap: the last one that began before the call's end decides.
        before = bisect_right(starts, call.ended)
        if not before or not down[before - 1].overlaps(call):
            yield call
