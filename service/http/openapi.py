"""The OpenAPI document, which `make generate` makes of the contract, its comments and the table of routes."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from service.http.json_codec import encoded
from service.lead import REQUIRED_FIELDS

DOCUMENT = Path(__file__).with_suffix(".json")


def described(required: Collection[str] = REQUIRED_FIELDS) -> bytes:
    """The document in JSON. `required`: the fields without which there is no lead, of REQUIRED_FIELDS."""
    document = json.loads(DOCUMENT.read_bytes())
    submission = document["components"]["schemas"]["LeadSubmission"]
    for name in REQUIRED_FIELDS.difference(required):
        submission["required"].remove(name)
        del submission["properties"][name]["minLength"]
    return encoded(document)
