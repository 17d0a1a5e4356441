"""The messages that are sent and answered, one set for every contender. `PLACE` is where each call differs."""

from __future__ import annotations

import json

from google.protobuf.json_format import ParseDict
from leadkeep.v1 import lead_service_pb2 as pb

from bench.load.plan import PLACE

_NUMBER = PLACE.decode()

PERSON = {
    "name": f"Person {_NUMBER}",
    "phone": f"+8801{_NUMBER}",
    "nid": f"19{_NUMBER}",
    "address": f"{_NUMBER} Lake Road, Dhaka",
    "interested_policy": "Term Life 20-Year",
    "email": f"person{_NUMBER}@example.com",
    "notes": f"note {_NUMBER}",
    "conversation_id": f"chat-{_NUMBER}",
}
"""The story's fields, with a number in place of `PLACE`."""

CREATE_LEAD = pb.CreateLeadRequest(lead=ParseDict(PERSON, pb.Lead())).SerializeToString()
CREATE_LEAD_JSON = json.dumps(PERSON).encode()

_AGAIN = PERSON | {"notes": f"asks again {_NUMBER}"}
"""The same person with other notes: with the same ones it would be a repeat."""

CREATE_AGAIN = pb.CreateLeadRequest(lead=ParseDict(_AGAIN, pb.Lead())).SerializeToString()
CREATE_AGAIN_JSON = json.dumps(_AGAIN).encode()

ANSWERED_LEAD = ParseDict(PERSON, pb.Lead())
ANSWERED_LEAD.id = "01900000-0000-7000-8000-000000000000"
ANSWERED_LEAD.status = pb.LEAD_STATUS_NEW
ANSWERED_LEAD.version = 1
ANSWERED_LEAD.masked = True
ANSWERED_LEAD.created_at.FromMilliseconds(1_700_000_000_123)
ANSWERED_LEAD.updated_at.FromMilliseconds(1_700_000_000_123)

CREATED = pb.CreateLeadResponse(
    id=ANSWERED_LEAD.id,
    message="Lead created successfully",
    state=pb.SAVE_STATE_SAVED,
    confirmation=pb.Confirmation(
        text=f"Thank you for your interest, Person {_NUMBER}. We have your request; its reference is 0000-0000.",
        next_steps=[
            "One of our advisers reads your request and prepares for the call.",
            "We call you within one business day.",
            "Keep your reference 0000-0000 at hand: with it we find your request at once.",
        ],
        reference="0000-0000",
        locale="en",
    ),
    lead=ANSWERED_LEAD,
)
"""What the empty call answers with; as long as Leadkeep's answer."""


def numbered(text: str, number: int) -> str:
    """A text of `PERSON` with a number in its place, as the load generator puts it there."""
    return text.replace(_NUMBER, f"{number:010}")
