"""No value of a customer's field is in anything that the system writes, and nothing at all is after an erasure."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import sentinel
from tests.faults.sentinel import CLEAR, SENSITIVE, Trial, forms
from tests.harness.disguises import hidden_in, hidden_under


@pytest.fixture(scope="module")
def gone_through() -> Iterator[Trial]:
    """A trial whose lead went through every path."""
    with sentinel.trial() as on:
        for path in sentinel.PATHS:
            path(on)
        yield on


def test_no_sensitive_value_is_in_anything_that_was_written(gone_through: Trial) -> None:
    assert hidden_under(gone_through.written, forms(SENSITIVE)) == {}


def test_the_same_search_finds_them_where_they_were_asked_for(gone_through: Trial) -> None:
    found = hidden_under([gone_through.folder / "unmasked"], forms(SENSITIVE))
    assert {name for names in found.values() for name in names} >= {
        "phone",
        "nid",
        "email",
        "notes",
        "corrected address",
        "conversation_id",
    }


def test_what_is_kept_in_clear_is_in_no_log(gone_through: Trial) -> None:
    assert hidden_under(sentinel.logs(gone_through), forms(CLEAR)) == {}
    assert hidden_under([gone_through.folder / "here" / "files"], forms(CLEAR)) != {}


@pytest.mark.parametrize("value", SENSITIVE.values())
def test_the_search_finds_a_value_that_hides(value: str, tmp_path: Path) -> None:
    hidden = f"xyz{value} and more".encode()
    looked_for = forms({"value": value})
    phases = [base64.b64encode(hidden[start:]) for start in range(3)]
    for content in (hidden, hidden[::-1], hidden.hex().encode(), hidden.hex().upper().encode(), *phases):
        assert hidden_in(b"\0" * 9000 + content + b"\0" * 9000, looked_for) == {"value"}
    (tmp_path / f"core.{value.replace('/', '')}").touch()
    assert hidden_under([tmp_path], looked_for) != {}


def test_after_an_erasure_no_token_no_digest_and_no_name_is_left(gone_through: Trial) -> None:
    on = gone_through
    sentinel.note_stored(on)
    stored = {name for name in on.traces if not name.startswith("spooled")}
    assert hidden_in(sentinel.dump(on).read_bytes(), on.traces) >= stored
    there = hidden_under([on.there.data_dir / "spool"], on.traces)
    assert {name for names in there.values() for name in names} >= on.traces.keys() - stored - {"spooled id"}

    sentinel.erase(on)

    looked_for = {**on.traces, **forms(SENSITIVE)}
    assert hidden_under(sentinel.after_erasure(on), looked_for) == {}
