"""What a person needs to understand a broken promise: the calls around it, among the faults of that time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.faults.chaos.checker import Violation, unmarked
from tests.faults.chaos.history import Call, History, Window

SHOWN = 10
"""Requests and calls that are told of, each; more of them say no more."""


def evidence(history: History, broken: Sequence[Violation]) -> Iterator[str]:
    """Every call about the persons of the requests concerned, and calls that ended without a status of the service."""
    zero = history.calls[0].began if history.calls else 0.0
    for request_id in list(dict.fromkeys(violation.request_id for violation in broken if violation.request_id))[:SHOWN]:
        yield f"about {request_id}:"
        yield from (f"  {_told(call, zero)}" for call in _about(history, request_id))
    for call in unmarked(history)[:SHOWN]:
        yield f"no status of the service: {_told(call, zero)} ({_around(call, history, zero)})"


def _about(history: History, request_id: str) -> Iterator[Call]:
    contents = [call.content for call in history.calls if call.request_id == request_id and call.content is not None]
    phones, nids = {content.phone for content in contents}, {content.nid for content in contents}
    calls = [
        call for call in history.calls if call.content and {call.content.phone} & phones | {call.content.nid} & nids
    ]
    ids = {call.id for call in calls if call.id}
    calls += [call for call in history.calls if call.asked in ids]
    return iter(sorted(calls, key=lambda call: call.began))


def _told(call: Call, zero: float) -> str:
    what = f"{call.rpc} {call.request_id}{call.asked}"
    answer = f"{call.code} {call.reason}{call.state} {call.id}"
    return f"{_times(call, zero)} of {call.patience:.1f} s, {what}, attempt {call.attempt}: {answer}"


def _around(call: Call, history: History, zero: float) -> str:
    near = [window for window in history.windows if window.ended > call.began - 3 and window.began < call.ended + 1]
    return ", ".join(f"{window.kind} {_times(window, zero)}" for window in near)


def _times(of: Call | Window, zero: float) -> str:
    return f"{of.began - zero:.3f}-{of.ended - zero:.3f}"
