"""What each rpc can show of a lead: a known person's lead, and the request of each rpc that shows most of it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from leadkeep.v1 import lead_service_pb2 as pb

from service.lead import SENSITIVE_FIELDS
from service.rpc.call import SERVICE
from tests.harness.leads import is_marked, somebody
from tests.rpc.calls import Client

CANARY = "clear-canary-01711222333"
"""Its last 8 digits are those of a phone, which a conversation id may hold."""


def all_messages() -> list[Descriptor]:
    return list(pb.DESCRIPTOR.message_types_by_name.values())


def filled(descriptor: Descriptor, text: str) -> Message:
    """A message whose every text, at any depth, is `text`; lists hold two."""
    message = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            if field.is_repeated:
                getattr(message, field.name).extend([text, text])
            else:
                setattr(message, field.name, text)
        elif field.message_type is not None and field.message_type.file is pb.DESCRIPTOR:
            if field.is_repeated:
                getattr(message, field.name).extend([filled(field.message_type, text) for _ in range(2)])
            else:
                getattr(message, field.name).CopyFrom(filled(field.message_type, text))
    return message


def texts(message: Message, *, sensitive: bool) -> Iterator[str]:
    """The sensitive, or the other, texts in a message and in those inside it."""
    for field, value in message.ListFields():
        values = list(value) if field.is_repeated else [value]
        for item in values:
            if isinstance(item, Message):
                yield from texts(item, sensitive=sensitive)
            elif isinstance(item, str) and is_marked(field) == sensitive:
                yield item


def known_person() -> pb.Lead:
    """Somebody whose every sensitive value can be recognised in any text."""
    person = somebody()
    person.address = f"Address canary {uuid4()}"
    person.notes = f"Notes canary {uuid4()}"
    person.email = f"canary-{uuid4()}@example.com"
    person.conversation_id = f"whatsapp:{person.phone}"
    return person


def clear_values(person: pb.Lead) -> list[str]:
    return [getattr(person, name).lstrip("+") for name in SENSITIVE_FIELDS]


def requests_for(rpc: str, lead_id: str, person: pb.Lead) -> Message:
    """A request of each rpc that shows as much as it can of a known person's lead."""
    match rpc:
        case "CreateLead":
            return pb.CreateLeadRequest(lead=known_person())
        case "ValidateLead":
            return pb.ValidateLeadRequest(lead=known_person())
        case "GetLead":
            return pb.GetLeadRequest(id=lead_id)
        case "UpdateStatus":
            return pb.UpdateStatusRequest(id=lead_id, status=pb.LEAD_STATUS_CONTACTED)
        case "UpdateLead":
            return pb.UpdateLeadRequest(lead=pb.Lead(id=lead_id, name=f"Name {uuid4()}"))
        case "GetLeadByConversation":
            return pb.GetLeadByConversationRequest(conversation_id=person.conversation_id)
        case "ListLeads":
            return pb.ListLeadsRequest(conversation_id=person.conversation_id)
        case "SummarizeLeads":
            counted = pb.SummarizeLeadsRequest(group_by=pb.LEAD_GROUP_ASSIGNEE)
            counted.created_after.FromDatetime(datetime.now(UTC) - timedelta(days=1))
            return counted
        case "ListStatusChanges":
            return pb.ListStatusChangesRequest(lead_id=lead_id)
        case "ListAssignments":
            return pb.ListAssignmentsRequest(lead_id=lead_id)
        case "ListLeadEvents":
            return pb.ListLeadEventsRequest(lead_id=lead_id, include_accesses=True)
        case "ListResubmissions":
            return pb.ListResubmissionsRequest(lead_id=lead_id)
        case "AssignLead":
            return pb.AssignLeadRequest(id=lead_id, assignee=f"Sam {uuid4()}")
        case "EraseLead":
            return pb.EraseLeadRequest(id=str(uuid4()))  # its answer is empty, and the other rpcs need the lead
        case "FindPerson":
            return pb.FindPersonRequest(phone=person.phone, nid=person.nid, email=person.email)
        case "ExportPerson":
            refs = [(pb.PERSON_MATCH_KIND_LEAD, lead_id), (pb.PERSON_MATCH_KIND_CONFLICT, CONFLICT_WITH[lead_id])]
            return pb.ExportPersonRequest(refs=[pb.PersonRef(kind=kind, id=each) for kind, each in refs])
        case "ErasePerson":
            nobody = pb.PersonRef(kind=pb.PERSON_MATCH_KIND_RESUBMISSION, id=str(uuid4()))
            return pb.ErasePersonRequest(refs=[nobody])  # as of EraseLead
        case "ListConflicts":
            return pb.ListConflictsRequest(include_resolved=True)
        case "ResolveConflict":
            return pb.ResolveConflictRequest(id=CONFLICT_WITH[lead_id], resolution=pb.CONFLICT_RESOLUTION_KEEP_FIRST)
        case "ListAccesses":
            return pb.ListAccessesRequest(lead_id=lead_id)
        case _:
            raise AssertionError(f"{rpc} is new: say here which request of it shows most of a lead")


CONFLICT_WITH: dict[str, str] = {}
"""The conflict that met a lead, by the lead."""

RPCS = [method.name for method in SERVICE.methods]
MASKED_FOR_ALL = {"FindPerson"}
"""What shows nothing unmasked, whoever calls."""
SHOWING = [
    method.name
    for method in SERVICE.methods
    if list(texts(filled(method.output_type, CANARY), sensitive=True)) and method.name not in MASKED_FOR_ALL
]
WITH_VIEW = [method.name for method in SERVICE.methods if "view" in method.input_type.fields_by_name]


def answered(client: Client, rpc: str, request: Message) -> str:
    """Everything that a call tells its caller, its refusal included."""
    try:
        response: Message = client.call(rpc, request)
    except grpc.RpcError as error:
        return f"{error} {error.trailing_metadata()}"
    return f"{response} {response.SerializeToString()!r}"
