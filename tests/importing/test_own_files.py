"""A lead of a daily file that somebody altered: refused, or as good as any other."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from service.errors import FieldUnreadableError
from service.files.daily_file import MEANINGS
from service.importing.own_files import LeadRefusedError, opened, require_form
from service.keys.encryption import EncryptionService
from service.keys.keyring import Keyring, Purpose
from service.lead import CUSTOMER_FIELDS, SENSITIVE_FIELDS, digested
from tests.harness.documents import places

NOW = datetime.now(UTC)
KEYRING = Keyring.generate(now=NOW)
ENCRYPTION = EncryptionService(KEYRING)
LEAD, OTHER, AGAIN = (UUID(f"01890a5d-ac96-774b-bcce-b302099a805{n}") for n in "789")
MOMENT = "2026-03-29T10:00:00.123456+00:00"
VALUES = {
    "name": "রহিমা খাতুন",
    "phone": "+8801712345678",
    "nid": "1985123456789",
    "address": "1 Lake Road\nDhaka",
    "interested_policy": "Term Life",
    "email": "r@example.com",
    "preferred_contact_time": "mornings",
    "notes": "calls\tback",
    "conversation_id": "chat-1",
    "source": "whatsapp",
}


def submitted(submission: UUID) -> dict[str, Any]:
    """The customer fields of a row, and their digest."""
    fields = {
        name: ENCRYPTION.seal(submission, name, value) if name in SENSITIVE_FIELDS else value
        for name, value in VALUES.items()
    }
    digest = ENCRYPTION.content_digests(digested(VALUES))[0]
    return fields | {"content_digest": base64.b64encode(digest).decode()}


def lead() -> dict[str, Any]:
    event = dict.fromkeys(("fields", "from_status", "to_status", "from_assignee", "to_assignee"))
    event |= {"actor": "agent", "reason": "said yes", "at": MOMENT}
    made = submitted(LEAD) | {
        "id": str(LEAD),
        "status": "contacted",
        "created_at": MOMENT,
        "updated_at": MOMENT,
        "version": 3,
        "assignee": "rahima",
        "resubmissions": 1,
        "phone_shared": False,
        "nid_shared": False,
        "created_by": "chatbot",
        "request_id": "r-1",
        "conversations": [
            {
                "submission_id": str(LEAD),
                "conversation_id": ENCRYPTION.seal(LEAD, "conversation_id", "chat-1"),
                "linked_at": MOMENT,
            }
        ],
        "events": [
            event | {"type": "status_changed", "version": 2, "from_status": "new", "to_status": "contacted"},
            event | {"type": "assigned", "version": 3, "to_assignee": "rahima"},
            event | {"type": "resubmitted", "version": 3},
        ],
        "kept_resubmissions": [
            {"submission_id": str(AGAIN), "actor": "chatbot", "request_id": "r-2", "verified": True}
            | {"submitted_at": MOMENT}
            | submitted(AGAIN)
        ],
        "aliases": [{"id": str(OTHER), "created_by": "chatbot", "created_at": MOMENT}],
    }
    return {name: made[name] for name in MEANINGS}


def accepted(altered: Any) -> bool:
    try:
        require_form(altered)
        opened(altered, ENCRYPTION)
    except (LeadRefusedError, FieldUnreadableError):
        return False
    return True


PLACES = list(places(lead()))
OPTIONAL = {"assignee", "request_id", "reason", "fields", "from_assignee", "to_assignee", "from_status", "to_status"}
TEXTS = {*OPTIONAL, "actor", "created_by"}
"""What nothing proves, and may be any text that the service would have kept."""


def altered(path: tuple[Any, ...], value: object) -> dict[str, Any]:
    made = lead()
    holder: Any = made
    for name in path[:-1]:
        holder = holder[name]
    holder[path[-1]] = value
    return made


def test_what_the_service_wrote_is_accepted() -> None:
    assert accepted(lead())


HOSTILE = [
    *("infinity", "-infinity", "now", "epoch", "0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59+00:00"),
    *("2026-03-29", "2026-W13-7T10:00:00+00:00", "2026-03-29T10:00:00", "2026-13-29T10:00:00+00:00"),
    (NOW + timedelta(days=2)).isoformat(),
    *("\x1b[2J", "a\nb\x1b]0;x\x07", "\x9b2J", "\0", "\ud800", "\u202eabc", "", " ", " x", "x" * 5000),
    *(-1, 0.5, 10**19, True, [], {}, ["x"], {"x": 1}),
]


PLAIN_WORDS = {each for each in HOSTILE if isinstance(each, str) and re.fullmatch(r"[\w:.+-]{3,40}", each)}


@pytest.mark.parametrize("path", PLACES, ids=str)
def test_no_member_takes_what_the_service_never_writes(path: tuple[Any, ...]) -> None:
    let_in = [value for value in HOSTILE if accepted(altered(path, value))]
    # A linked conversation may be in clear, as it was stored before conversation ids were sealed.
    if path[-1] in TEXTS or (path[0] == "conversations" and path[-1] == "conversation_id"):
        let_in = [value for value in let_in if value not in PLAIN_WORDS]
    if path[-1] in {"phone_shared", "nid_shared", "verified"}:
        let_in.remove(True)
    if len(path) == 1 and isinstance(lead()[path[0]], list):
        let_in.remove([])
    assert let_in == []


@pytest.mark.parametrize("path", PLACES, ids=str)
def test_a_member_that_is_empty_or_away_is_refused_unless_it_may_be(path: tuple[Any, ...]) -> None:
    without = lead()
    holder: Any = without
    for name in path[:-1]:
        holder = holder[name]
    del holder[path[-1]]
    assert not accepted(without) or isinstance(path[-1], int)
    if accepted(altered(path, None)):
        assert path[-1] in OPTIONAL


@pytest.mark.parametrize("path", [path for path in PLACES if path[-1] in {*CUSTOMER_FIELDS, "content_digest"}], ids=str)
def test_what_was_submitted_cannot_be_exchanged(path: tuple[Any, ...]) -> None:
    name = path[-1]
    another = (
        ENCRYPTION.seal(AGAIN if path[0] == "kept_resubmissions" else LEAD, name, "+8801999999999")
        if name in SENSITIVE_FIELDS
        else base64.b64encode(bytes(32)).decode()
        if name == "content_digest"
        else "something-else"
    )
    # A conversation that is linked is no part of the submission: its link is believed.
    assert accepted(altered(path, another)) == (path[0] == "conversations")


def test_a_corrected_lead_is_not_compared_with_what_was_submitted() -> None:
    corrected = altered(("name",), "Corrected")
    assert not accepted(corrected)
    assert accepted(corrected | {"version": 4})


def test_a_retired_index_key_still_proves_and_one_that_is_gone_does_not() -> None:
    rotated, made = KEYRING.with_new_key(Purpose.INDEX, now=NOW)
    before = KEYRING.primary(Purpose.INDEX)
    rotated = rotated.with_primary(made.id).with_retired(before.id)
    opened(lead(), EncryptionService(rotated))
    gone = Keyring(key for key in rotated.keys if key.id != before.id)
    with pytest.raises(LeadRefusedError, match="index key of that time"):
        opened(lead(), EncryptionService(gone))


@pytest.mark.parametrize("versions", [(2, 2), (1, 2), (2, 4), (3, 2)])
def test_a_history_fits_the_version(versions: tuple[int, ...]) -> None:
    made = lead()
    for event, version in zip(made["events"], versions, strict=False):
        event["version"] = version
    assert not accepted(made)


@pytest.mark.parametrize("event_type", ["status_changed", "created", "erased", "revealed"])
def test_an_event_fits_its_type(event_type: str) -> None:
    made = lead()
    made["events"][-1]["type"] = event_type
    assert not accepted(made)


@pytest.mark.parametrize("document", [None, [], "x", 7, {}, {"id": 1}])
def test_what_is_no_lead_is_refused(document: object) -> None:
    assert not accepted(document)
