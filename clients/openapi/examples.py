"""Examples of the OpenAPI document: what a caller sends to each rpc, and what CreateLead answers."""

from __future__ import annotations

from clients.openapi.schemas import Json
from service.cli.serve import EXAMPLE
from service.lead import CUSTOMER_FIELDS

LEAD_ID = "01989f6e-7c1a-7d3e-9b52-0a1b2c3d4e5f"

SUBMISSION: Json = EXAMPLE
"""The request of the user story, which the first start of the service prints too."""

REQUESTS: dict[str, Json] = {
    "CreateLead": {"lead": SUBMISSION, "request_id": "0b1f6c1e-7f0c-4a55-9d7c-2f1f4a3c9a10", "locale": "en"},
    "ValidateLead": {"lead": {"phone": "+1234567890"}, "locale": "en"},
    "GetLead": {"id": LEAD_ID, "view": "LEAD_VIEW_MASKED"},
    "UpdateStatus": {"id": LEAD_ID, "status": "LEAD_STATUS_CONTACTED", "reason": "called", "expected_version": "1"},
    "UpdateLead": {"lead": {"id": LEAD_ID, "interested_policy": "Whole Life"}, "update_mask": "interested_policy"},
    "GetLeadByConversation": {"conversation_id": "chat-42", "view": "LEAD_VIEW_MASKED"},
    "ListLeads": {"page_size": 10, "statuses": ["LEAD_STATUS_NEW", "LEAD_STATUS_CONTACTED"]},
    "SummarizeLeads": {"created_after": "2026-01-01T00:00:00Z", "group_by": "LEAD_GROUP_STATUS"},
    "ListStatusChanges": {"lead_id": LEAD_ID},
    "ListAssignments": {"lead_id": LEAD_ID},
    "ListLeadEvents": {"lead_id": LEAD_ID, "page_size": 10},
    "ListResubmissions": {"lead_id": LEAD_ID, "page_size": 10},
    "AssignLead": {"id": LEAD_ID, "assignee": "sam", "reason": "speaks Spanish"},
    "EraseLead": {"id": LEAD_ID, "reason": "the customer asked for it"},
    "FindPerson": {"email": "john@example.com"},
    "ExportPerson": {"refs": [{"kind": "PERSON_MATCH_KIND_LEAD", "id": LEAD_ID}]},
    "ErasePerson": {
        "refs": [{"kind": "PERSON_MATCH_KIND_RESUBMISSION", "id": LEAD_ID}],
        "reason": "the customer asked for it",
    },
    "ListConflicts": {"page_size": 10},
    "ResolveConflict": {"id": LEAD_ID, "resolution": "CONFLICT_RESOLUTION_KEEP_FIRST", "reason": "the same person"},
    "ListAccesses": {"page_size": 10, "lead_id": LEAD_ID},
    "Check": {"service": "leadkeep.v1.LeadService"},
}
"""A request of each rpc, in JSON."""

LEAD: Json = {
    "id": LEAD_ID,
    **dict.fromkeys(CUSTOMER_FIELDS, ""),
    **SUBMISSION,
    "phone": "+1•••90",
    "nid": "•••89",
    "address": "•••",
    "email": "j•••@example.com",
    "status": "LEAD_STATUS_NEW",
    "created_at": "2026-01-31T09:00:00.123456Z",
    "updated_at": "2026-01-31T09:00:00.123456Z",
    "version": "1",
    "assignee": "",
    "masked": True,
    "transcript_uri": "",
    "resubmissions": "0",
    "unreadable_fields": [],
    "reference": "LK-3CP3-TKJZ",
    "created_by": "",
    "masked_fields": ["phone", "nid", "address", "email"],
}
"""How a chatbot is shown the lead of the story."""


def created(state: str) -> Json:
    """The answer to the story's request."""
    return {
        "id": LEAD_ID,
        "message": "Lead created successfully",
        "state": state,
        "confirmation": {
            "text": "Thank you, John Doe. Your reference is LK-3CP3-TKJZ.",
            "next_steps": ["A colleague calls you within one working day."],
            "reference": "LK-3CP3-TKJZ",
            "locale": "en",
        },
        "lead": LEAD,
        "ignored_fields": [],
        "is_repeat": False,
    }
