"""`python -m bench.every_call ADDRESS TOKEN`: every read and write of the contract once, so that every query is run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import lead_service_pb2_grpc

from tests.harness.leads import somebody


def _lists(lead: pb.Lead) -> list[dict[str, Any]]:
    after = Timestamp(seconds=lead.created_at.seconds - 86_400)
    before = Timestamp(seconds=lead.created_at.seconds + 1)
    return [
        {},
        {"statuses": [pb.LEAD_STATUS_CONTACTED]},
        {"statuses": [pb.LEAD_STATUS_NEW, pb.LEAD_STATUS_CONTACTED]},
        {"created_after": after, "created_before": before},
        {"assignee": "nobody"},
        {"interested_policy": "Term Life 20-Year"},
        {"interested_policy": "No such policy"},
        {"conversation_id": lead.conversation_id},
        {"phone": lead.phone},
        {"nid": lead.nid},
        {"email": lead.email},
        {"reference": lead.reference},
    ]


def main(address: str, token: str) -> None:
    """Make the calls."""
    with grpc.insecure_channel(address) as channel:
        stub = lead_service_pb2_grpc.LeadServiceStub(channel)

        def call(method: Callable[..., Any], request: Any) -> Any:
            return method(request, metadata=[("authorization", f"Bearer {token}")], timeout=60)

        lead = somebody(phone="+4912345678", nid="every1", conversation_id="every-call")
        made = call(stub.CreateLead, pb.CreateLeadRequest(lead=lead, request_id="every-call")).lead
        call(stub.CreateLead, pb.CreateLeadRequest(lead=lead, request_id="every-call"))
        call(stub.ValidateLead, pb.ValidateLeadRequest(lead=lead))
        with suppress(grpc.RpcError):  # refused, as it should be
            call(stub.CreateLead, pb.CreateLeadRequest(lead=lead))
        for view in (pb.LEAD_VIEW_MASKED, pb.LEAD_VIEW_FULL):
            call(stub.GetLead, pb.GetLeadRequest(id=made.id, view=view))
        with suppress(grpc.RpcError):  # there is none: the other tables are looked through
            call(stub.GetLead, pb.GetLeadRequest(id="01900000-0000-7000-8000-00000000ffff"))
        call(stub.GetLeadByConversation, pb.GetLeadByConversationRequest(conversation_id="every-call"))
        month_ago = Timestamp(seconds=made.created_at.seconds - 31 * 86_400)
        for wanted in _lists(made):
            first = call(stub.ListLeads, pb.ListLeadsRequest(page_size=50, **wanted))
            if first.next_page_token:
                again = pb.ListLeadsRequest(page_size=50, page_token=first.next_page_token, **wanted)
                call(stub.ListLeads, again)
        for group in pb.LeadGroup.keys()[1:]:
            call(stub.SummarizeLeads, pb.SummarizeLeadsRequest(created_after=month_ago, group_by=group))
        call(stub.UpdateStatus, pb.UpdateStatusRequest(id=made.id, status=pb.LEAD_STATUS_CONTACTED))
        call(stub.AssignLead, pb.AssignLeadRequest(id=made.id, assignee="agent-7"))
        corrected = pb.Lead(id=made.id, phone="+4912345679")
        call(stub.UpdateLead, pb.UpdateLeadRequest(lead=corrected, update_mask=FieldMask(paths=["phone"])))
        call(stub.ListStatusChanges, pb.ListStatusChangesRequest(lead_id=made.id))
        for newest_first in (False, True):
            request = pb.ListLeadEventsRequest(lead_id=made.id, page_size=2, newest_first=newest_first)
            request.page_token = call(stub.ListLeadEvents, request).next_page_token
            call(stub.ListLeadEvents, request)
            request.page_token, request.include_accesses = "", True
            request.page_token = call(stub.ListLeadEvents, request).next_page_token
            call(stub.ListLeadEvents, request)
        call(stub.ListResubmissions, pb.ListResubmissionsRequest(lead_id=made.id))
        for searched in ({"phone": lead.phone}, {"nid": lead.nid}, {"email": lead.email}):
            call(stub.FindPerson, pb.FindPersonRequest(**searched))
        chosen = [pb.PersonRef(kind=pb.PERSON_MATCH_KIND_LEAD, id=made.id)]
        call(stub.ExportPerson, pb.ExportPersonRequest(refs=chosen))
        gone = pb.PersonRef(kind=pb.PERSON_MATCH_KIND_RESUBMISSION, id="01900000-0000-7000-8000-00000000ffff")
        call(stub.ErasePerson, pb.ErasePersonRequest(refs=[gone], reason="measured"))
        call(stub.ListConflicts, pb.ListConflictsRequest())
        call(stub.ListAccesses, pb.ListAccessesRequest())
        call(stub.EraseLead, pb.EraseLeadRequest(id=made.id, reason="measured"))


if __name__ == "__main__":
    main(*sys.argv[1:])
