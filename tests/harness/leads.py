"""Leads to send: the story's example, and as many different people as a test needs."""

from __future__ import annotations

import itertools
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import options_pb2

STORY = {
    "name": "John Doe",
    "phone": "+1234567890",
    "nid": "123456789",
    "address": "123 Main St, City, Country",
    "interested_policy": "Term Life 20-Year",
    "email": "john@example.com",
}
"""The request of US-013, word for word."""

SENSITIVE = {"phone", "nid", "address", "email", "notes", "conversation_id"}
"""The story's sensitive fields, and the conversation, which often is the phone: said once more here, so that nobody
takes one away by editing the contract."""

MARKED = SENSITIVE | {"transcript_uri"}
"""What the contract marks: the transcript's address holds the conversation's id."""


def is_marked(field: FieldDescriptor) -> bool:
    """Whether the contract marks a field as sensitive."""
    option: Any = options_pb2.sensitive
    return bool(field.GetOptions().Extensions[option])


_numbers = itertools.count(1)


def somebody(**fields: str) -> pb.Lead:
    """A person nobody has seen before; `fields` replace what is made up."""
    number = next(_numbers)
    made_up = {
        "name": f"Person {number}",
        "phone": f"+88017{number:08d}",
        "nid": f"19{number:011d}",
        "address": f"{number} Lake Road, Dhaka",
        "interested_policy": "Term Life 20-Year",
        "email": f"person{number}@example.com",
        "notes": f"note {number}",
    }
    lead = pb.Lead()
    for name, value in (made_up | fields).items():
        setattr(lead, name, value)
    return lead
