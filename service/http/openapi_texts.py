"""The words of the OpenAPI document: what each field, path and answer means.

The fields themselves are read from the contract's descriptors; a parity test holds these words, the descriptors and
the limits of ValidationService together.
"""

from __future__ import annotations

from service.lead import FIELD_RULES

ABOUT = """\
Keeps the leads that chatbots collect: encrypted, free of duplicates, and never lost.

This is the JSON endpoint of the gRPC service `leadkeep.v1.LeadService`; both endpoints answer the same. JSON is
protobuf's JSON with the contract's field names: every field is there, an empty text means "not set", and 64-bit
integers are strings. Requests may also use lowerCamelCase names.

Every path under `/api` needs a token: `Authorization: Bearer TOKEN`. Phone, nid, e-mail, address and notes are masked
(`•••`) unless the token has the scope `leads:unmask`, or `reveal` names the field and the token has its scope
(`leads:unmask:phone`); each unmasked look is on record before the answer leaves. Errors are RFC 9457 problem details
whose `reason` is stable; no error repeats a value of the request. A caller that hangs up does not stop what was begun.

A request has at most 16 KiB of line and headers and 256 KiB of body."""

_PHONE_REGION = (
    "The region of a phone number without +: the ISO code of a country (`BD`), or `001` when its digits begin with the "
    "country code, as in WhatsApp's `wa_id`."
)

FIELDS: dict[str, dict[str, str]] = {
    "Lead": {
        "id": "Identifier, a UUIDv7. Output.",
        **{name: rule.description for name, rule in FIELD_RULES.items()},
        "status": "Where the sales team stands. Output.",
        "created_at": "When the lead was accepted. Output.",
        "updated_at": "When the lead was last changed. Output.",
        "version": "Grows by one with each change, from 1. Output.",
        "assignee": "Who of the sales team has the lead; empty for nobody. Output.",
        "masked": "Whether sensitive fields are masked in this answer. Output.",
        "transcript_uri": "Where the conversation's transcript is found, when the operator has configured it. Output.",
        "resubmissions": "How many submissions were refused as duplicates of this lead; erased ones are not counted. "
        "Output.",
        "unreadable_fields": "Sensitive fields that cannot be opened and are left out; only in lists. Output.",
        "reference": "The short reference that the confirmation names, such as `LK-7F3K-9QXM`. Output.",
        "created_by": "Who created it: the `sub` of the token. Only for callers with `leads:read`. Output.",
        "masked_fields": "Sensitive fields that have a value, which this answer masks. Output.",
    },
    "Confirmation": {
        "text": "Thanks the customer by name and gives the reference.",
        "next_steps": "What happens next, and when, a sentence each.",
        "reference": "A short reference that can be read out, such as `LK-7F3K-9QXM`.",
        "locale": "The locale of the texts, a BCP 47 tag.",
    },
    "CreateLeadRequest": {
        "phone_region": _PHONE_REGION,
    },
    "ValidateLeadRequest": {"phone_region": _PHONE_REGION},
    "Violation": {
        "field": "The field's path, such as `lead.phone`.",
        "reason": "Why it is refused; the same words as in the violations of a problem.",
        "text": "The text for the customer, in the language of Accept-Language.",
    },
    "ValidateLeadResponse": {
        "violations": "What a lead with these fields would be refused for; empty when there is nothing.",
        "ignored_fields": "Optional fields that cannot be read and would be left out.",
    },
    "CreateLeadResponse": {
        "id": "The lead's identifier.",
        "message": '"Lead created successfully".',
        "state": "Where the lead lies: SAVED in the database, or DELAYED in the service's durable queue.",
        "confirmation": "What to tell the customer.",
        "lead": "The lead as it was stored.",
        "ignored_fields": "Optional fields that could not be read and were left out.",
        "is_repeat": "Whether this repeats an earlier submission, whose lead is answered: the same Idempotency-Key, or "
        "none and the same fields.",
    },
    "GetLeadResponse": {"lead": "The lead."},
    "UpdateStatusResponse": {"lead": "The lead after the change."},
    "UpdateStatusRequest": {
        "status": "The status to set. Back to `new` is refused; the same again changes nothing and succeeds.",
        "reason": "Why; kept in the history. Write no customer data into it.",
        "expected_version": "The version that the caller has seen, as a number or a string; 0 to change any version.",
    },
    "EraseLeadRequest": {
        "reason": "Why; kept with the tombstone. Write no customer data into it. In the query or in the body.",
    },
    "EraseLeadResponse": {
        "kept_ids": "The conflicts of submissions that share only the phone or only the nid with the erased lead, "
        "until they are decided.",
    },
    "GetLeadByConversationResponse": {
        "lead": "The newest lead that the conversation is linked to and the caller may read.",
        "other_lead_ids": "The other leads, newest first; at most 100.",
    },
    "ListLeadsRequest": {
        "page_size": "How many leads a page holds: 1 to 100, 50 when not given.",
        "page_token": "`next_page_token` of the page before, with the same filters and the same order.",
        "statuses": "Only leads with one of these statuses; repeated, or separated by commas.",
        "created_after": "Only leads created at or after this moment (RFC 3339).",
        "created_before": "Only leads created before this moment (RFC 3339).",
        "assignee": "Only leads assigned to exactly this person.",
        "interested_policy": "Only leads interested in exactly this policy.",
        "conversation_id": "Only leads linked to this conversation.",
        "source": "Only leads that came from exactly here.",
        "updated_after": "Only leads last changed at or after this moment (RFC 3339). No feed: ask again for the last "
        "60 seconds when you poll.",
        "updated_before": "Only leads last changed before this moment (RFC 3339).",
        "unassigned": "`true`: only leads that are assigned to nobody. Not together with `assignee`.",
        "created_by": "Only leads that exactly this subject created.",
        "order_by": "In which order; when not given, newest first. By resubmissions: only leads that have some.",
        "phone": "Only the lead with this phone number. Needs `leads:unmask:phone`. The service logs no query string, "
        "but proxies on the way may: where that matters, ask over gRPC.",
        "nid": "Only the lead with this national ID. Needs `leads:unmask:nid`. The service logs no query string, but "
        "proxies on the way may: where that matters, ask over gRPC.",
        "reference": "Only leads with this reference, as a confirmation named it, in any usual writing.",
        "view": "How sensitive fields are shown: `masked`, or `full` (403 without `leads:unmask`). Not given: unmasked "
        "for callers with `leads:unmask`, else masked.",
        "reveal": "Show exactly these sensitive fields unmasked, separated by commas, as in `phone,email`; in place of "
        "`view`. 403 without the scope of each.",
    },
    "SummarizeLeadsRequest": {
        "created_after": "Leads created at or after this moment (RFC 3339), at most 400 days before `created_before`.",
        "created_before": "Leads created before this moment (RFC 3339); not given: up to now.",
        "group_by": "What is counted by.",
        "time_zone": "The IANA name of the time zone whose days are counted, such as `Asia/Dhaka`; not given: that of "
        "the daily files.",
    },
    "LeadCount": {
        "key": "The group: a status as `LEAD_STATUS_NEW`, a day as `2026-01-31`, else the value itself; empty for "
        "leads without one.",
        "count": "How many leads are in it.",
        "is_other": "Whether it holds all further groups; its key is `other`, which a value may be, too.",
    },
    "SummarizeLeadsResponse": {
        "groups": "By status, all statuses in the contract's order; by day, each day of the span; else the largest "
        "group first, at most 1,000 and one for all others.",
        "total": "How many leads were created within the span: the sum of all groups.",
    },
    "LeadEvent": {
        "id": "Identifier of the event.",
        "type": "What happened. Nobody can list the event of an erased lead.",
        "lead_id": "The lead.",
        "version": "The lead's version after it; 0 for a look at values in clear.",
        "fields": "Names of the customer fields that were corrected or shown.",
        "from_status": "The status before.",
        "to_status": "The status after.",
        "from_assignee": "Who had the lead before; empty for nobody.",
        "to_assignee": "Who has it after; empty for nobody.",
        "actor": "Who did it: the `sub` of the token.",
        "reason": "Why, as it was given.",
        "at": "When. What waited in a queue keeps the moment at which it was accepted.",
    },
    "ListLeadEventsRequest": {
        "page_size": "How many events a page holds: 1 to 100, 50 when not given.",
        "page_token": "`next_page_token` of the page before, of the same lead, order and selection.",
        "newest_first": "The newest event first, instead of the oldest.",
        "include_accesses": "Also who was shown values of the lead unmasked. Needs `leads:operate`.",
    },
    "ListLeadEventsResponse": {
        "events": "The events, in the order that was asked for.",
        "next_page_token": "Send it as `page_token` for the next page; empty on the last page.",
    },
    "Resubmission": {
        "lead": "The submission as it was sent; output fields are not set, but for masked, transcript_uri and "
        "unreadable_fields.",
        "submitted_at": "When it was submitted.",
        "actor": "Who sent it: the `sub` of the token.",
        "verified": "Whether phone and nid both matched the lead that it is kept with.",
    },
    "ListResubmissionsRequest": {
        "page_size": "How many resubmissions a page holds: 1 to 100, 20 when not given.",
        "page_token": "`next_page_token` of the page before, of the same lead.",
    },
    "ListResubmissionsResponse": {
        "resubmissions": "The resubmissions, newest first.",
        "next_page_token": "Send it as `page_token` for the next page; empty on the last page.",
    },
    "Access": {
        "lead_id": "Whose fields were shown; empty when a search by phone or nid met no lead.",
        "subject": "Who was shown them: the `sub` of the token.",
        "operation": "By which call, such as `GetLead`, or by which command, such as `export`.",
        "fields": "Which fields were shown, or searched for.",
        "reason": "Why, as it was given.",
        "request_id": "The call's `x-request-id`; the accesses of one list or one command share it.",
        "recorded_at": "When it was recorded, which is before the values left.",
        "chain_id": "The chain that the entry stands in; see `leadkeep audit verify`.",
        "number": "The entry's number in its chain; 0 for entries from before there were chains.",
    },
    "ListAccessesRequest": {
        "page_size": "How many entries a page holds: 1 to 100, 50 when not given.",
        "page_token": "`next_page_token` of the page before, with the same filters.",
        "lead_id": "Only looks at this lead.",
        "subject": "Only looks of exactly this subject.",
        "recorded_after": "Only looks at or after this moment (RFC 3339).",
        "recorded_before": "Only looks before this moment (RFC 3339).",
    },
    "ListAccessesResponse": {
        "accesses": "The looks, newest first.",
        "next_page_token": "Send it as `page_token` for the next page; empty on the last page.",
    },
    "ListLeadsResponse": {
        "leads": "The leads, in the order that was asked for.",
        "next_page_token": "Send it as `page_token` for the next page; empty on the last page.",
    },
}
"""What each field means, by message. UpdateStatusRequest without `id`, which the path holds."""

LONGEST_REQUEST_ID = 128

LONGEST_REASON = 500

OPERATIONS: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "CreateLead": (
        "Store a new lead",
        "Answers when the lead is on disk. Scope: `leads:create`. A submission that meets an existing lead by phone or "
        "nid is refused with 409 and kept as a resubmission. Output fields of a lead are ignored.",
        (409, 413, 415),
    ),
    "ValidateLead": (
        "Check fields of a new lead",
        "Checks the fields that are given as for a new lead, and answers 200 with their faults. Looks nothing up and "
        "stores nothing. Scope: `leads:create`.",
        (413, 415),
    ),
    "ListLeads": (
        "List leads, newest first or in another order",
        "All filters that are given must match. `name_prefix` goes into the body of "
        "`POST /leadkeep.v1.LeadService/ListLeads`: URLs are logged. Scope: `leads:read`, or `leads:read-own` for the "
        "caller's own.",
        (),
    ),
    "SummarizeLeads": (
        "Count leads",
        "Leads created within a span of at most 400 days, by status, policy, source, assignee or day. Scope: "
        "`leads:read`, or `leads:read-own` for the caller's own.",
        (),
    ),
    "GetLead": ("Show a lead", "Scope: `leads:read`, or `leads:read-own` for the caller's own.", (404,)),
    "UpdateStatus": (
        "Move a lead on",
        "Records the change in the lead's history. Scope: `leads:update`.",
        (404, 409, 413, 415),
    ),
    "ListResubmissions": (
        "List what was refused as a duplicate of a lead, newest first",
        "All that was submitted is kept. Scope: `leads:read`.",
        (404,),
    ),
    "ListLeadEvents": (
        "List everything that happened to a lead, in the order of its versions",
        "Who did what, when and why, and the names of the fields, never a value. Corrections that an earlier release "
        "made are unknown. Scope: `leads:read`.",
        (404,),
    ),
    "EraseLead": (
        "Forget a person",
        "Removes all that the service holds of the lead and leaves a tombstone. Cannot be undone; the same again "
        "succeeds. Scope: `leads:erase`.",
        (404, 413, 415),
    ),
    "GetLeadByConversation": (
        "Show the newest lead of a conversation",
        "A slash in the conversation's id is written %2F. An id with 8 or more digits in a row is recorded as a "
        "search by phone. Scope: `leads:read`, or `leads:read-own` for the caller's own.",
        (404,),
    ),
    "ListAccesses": (
        "List looks at values in clear, newest first",
        "All filters that are given must match. Scope: `leads:operate`.",
        (),
    ),
}
"""Summary, description, and the errors beside those of every call."""

GENERAL_ERRORS = (400, 401, 403, 429, 431, 500, 503, 504)

ERRORS: dict[int, str] = {
    400: "LEAD_INVALID (all violations), PAGE_TOKEN_INVALID, REASON_REQUIRED (no `leadkeep-reason`, where it is "
    "mandatory), REASON_NOT_ACCEPTED (metadata `purposes`: the words of which it must be one, or begin with), or "
    "STATUS_TRANSITION (metadata `from`, `to`).",
    401: "TOKEN_MISSING, TOKEN_INVALID, or TOKEN_EXPIRED.",
    403: "SCOPE_MISSING (metadata `scope`: the one that is needed).",
    404: "LEAD_NOT_FOUND or CONVERSATION_NOT_FOUND, also for what the caller may not read.",
    409: "DUPLICATE_PHONE or DUPLICATE_NID (metadata `fields`), REQUEST_ID_REUSED, or VERSION_MISMATCH (metadata "
    "`current_version`).",
    413: "The body is longer than 256 KiB.",
    415: "The body is not `application/json` (`Accept`), or has a Content-Encoding (`Accept-Encoding`).",
    429: "QUEUE_FULL, DUPLICATE_LIMIT (metadata `limit`: how many duplicates a subject finds within an hour, where the "
    "operator has set it), or UNMASK_LIMIT (metadata `limit`: how many leads a subject is shown unmasked within an "
    "hour). `Retry-After` says when to try again.",
    431: "The request's line and headers are longer than 16 KiB.",
    500: "INTERNAL (metadata `incident_id`: quote it to the operator) or FIELD_UNREADABLE (metadata `fields`).",
    503: "STORAGE_UNAVAILABLE (nothing was confirmed, or an unmasked look cannot be recorded), SERVICE_STOPPING (the "
    "service ends) or KEYS_UNAVAILABLE (no token can be verified). `Retry-After` says when to try again.",
    504: "DEADLINE_TOO_SHORT: what was begun may still complete; repeat with the same Idempotency-Key. QUERY_TIMEOUT: "
    "the database takes too long to find this; ask for less.",
}

EXAMPLE_SUBMISSION = {
    "name": "John Doe",
    "phone": "+1234567890",
    "nid": "123456789",
    "address": "123 Main St, City, Country",
    "interested_policy": "Term Life 20-Year",
    "email": "john@example.com",
}
"""The request of the user story."""

EXAMPLE_LEAD = {
    "id": "01989f6e-7c1a-7d3e-9b52-0a1b2c3d4e5f",
    **dict.fromkeys(FIELD_RULES, ""),
    **EXAMPLE_SUBMISSION,
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
    "created_by": "chatbot",
    "masked_fields": ["phone", "nid", "address", "email"],
}

EXAMPLE_CREATED = {
    "id": EXAMPLE_LEAD["id"],
    "message": "Lead created successfully",
    "state": "SAVE_STATE_SAVED",
    "confirmation": {
        "text": "Thank you, John Doe. Your reference is LK-3CP3-TKJZ.",
        "next_steps": ["A colleague calls you within one working day."],
        "reference": "LK-3CP3-TKJZ",
        "locale": "en",
    },
    "lead": EXAMPLE_LEAD,
    "ignored_fields": [],
    "is_repeat": False,
}
