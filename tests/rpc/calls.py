"""A caller of the running service, and what a refused call tells."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import psycopg
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from leadkeep.v1 import lead_service_pb2 as pb

from service.scopes import Scope
from tests.harness.answers import failure_of
from tests.harness.running_service import RunningService


class Client:
    """One caller: a role, or exact scopes, and a subject (which is the role's name unless told)."""

    def __init__(
        self,
        service: RunningService,
        channel: grpc.Channel,
        role: str = "admin",
        *,
        subject: str | None = None,
        scopes: set[Scope] | None = None,
    ) -> None:
        self._stub = service.stub(channel)
        self._metadata = service.metadata(role, subject=subject, scopes=scopes)

    def call(self, rpc: str, request: Message) -> Any:
        return getattr(self._stub, rpc)(request, metadata=self._metadata, timeout=10)

    def create(
        self, lead: pb.Lead, *, request_id: str = "", locale: str = "", phone_region: str = ""
    ) -> pb.CreateLeadResponse:
        request = pb.CreateLeadRequest(lead=lead, request_id=request_id, locale=locale, phone_region=phone_region)
        response: pb.CreateLeadResponse = self.call("CreateLead", request)
        return response

    def get(self, lead_id: str, view: pb.LeadView = pb.LEAD_VIEW_UNSPECIFIED) -> pb.Lead:
        lead: pb.Lead = self.call("GetLead", pb.GetLeadRequest(id=lead_id, view=view)).lead
        return lead

    def reveal(self, lead_id: str, *fields: str) -> pb.Lead:
        """The lead with these fields unmasked."""
        lead: pb.Lead = self.call("GetLead", pb.GetLeadRequest(id=lead_id, reveal=FieldMask(paths=fields))).lead
        return lead

    def by_conversation(self, conversation_id: str) -> pb.GetLeadByConversationResponse:
        request = pb.GetLeadByConversationRequest(conversation_id=conversation_id)
        response: pb.GetLeadByConversationResponse = self.call("GetLeadByConversation", request)
        return response

    def list_leads(self, **request: Any) -> pb.ListLeadsResponse:
        response: pb.ListLeadsResponse = self.call("ListLeads", pb.ListLeadsRequest(**request))
        return response

    def listed_ids(self, **request: Any) -> list[str]:
        return [lead.id for lead in self.list_leads(**request).leads]

    def move(self, lead_id: str, status: pb.LeadStatus, **request: Any) -> pb.Lead:
        wanted = pb.UpdateStatusRequest(id=lead_id, status=status, **request)
        lead: pb.Lead = self.call("UpdateStatus", wanted).lead
        return lead

    def assign(self, lead_id: str, assignee: str, **request: Any) -> pb.Lead:
        lead: pb.Lead = self.call("AssignLead", pb.AssignLeadRequest(id=lead_id, assignee=assignee, **request)).lead
        return lead

    def correct(
        self,
        lead_id: str,
        mask: list[str] | None = None,
        *,
        expected_version: int = 0,
        phone_region: str = "",
        reason: str = "",
        **fields: str,
    ) -> pb.Lead:
        request = pb.UpdateLeadRequest(
            lead=pb.Lead(id=lead_id, **fields),  # type: ignore[arg-type] # texts only
            update_mask=FieldMask(paths=mask) if mask is not None else None,
            expected_version=expected_version,
            phone_region=phone_region,
            reason=reason,
        )
        lead: pb.Lead = self.call("UpdateLead", request).lead
        return lead

    def status_changes(self, lead_id: str) -> list[pb.StatusChange]:
        return list(self.call("ListStatusChanges", pb.ListStatusChangesRequest(lead_id=lead_id)).changes)

    def assignments(self, lead_id: str) -> list[pb.Assignment]:
        return list(self.call("ListAssignments", pb.ListAssignmentsRequest(lead_id=lead_id)).assignments)

    def event_page(self, lead_id: str, **request: Any) -> pb.ListLeadEventsResponse:
        response: pb.ListLeadEventsResponse = self.call(
            "ListLeadEvents", pb.ListLeadEventsRequest(lead_id=lead_id, **request)
        )
        return response

    def events(self, lead_id: str, **request: Any) -> list[pb.LeadEvent]:
        """Those of all pages."""
        page = self.event_page(lead_id, **request)
        found = list(page.events)
        while page.next_page_token:
            page = self.event_page(lead_id, page_token=page.next_page_token, **request)
            found += page.events
        return found

    def resubmission_page(self, lead_id: str, **request: Any) -> pb.ListResubmissionsResponse:
        response: pb.ListResubmissionsResponse = self.call(
            "ListResubmissions", pb.ListResubmissionsRequest(lead_id=lead_id, **request)
        )
        return response

    def resubmissions(self, lead_id: str, view: pb.LeadView = pb.LEAD_VIEW_UNSPECIFIED) -> list[pb.Resubmission]:
        """Those of all pages."""
        page = self.resubmission_page(lead_id, view=view)
        found = list(page.resubmissions)
        while page.next_page_token:
            page = self.resubmission_page(lead_id, view=view, page_token=page.next_page_token)
            found += page.resubmissions
        return found


@dataclass
class Refusal:
    """What a refused call told its caller."""

    reason: str = ""
    text: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    violations: dict[str, str] = field(default_factory=dict)


def refusal_of(error: grpc.RpcError) -> Refusal:
    """What an error tells."""
    failure = failure_of(error)
    assert failure.domain == "leadkeep.v1", error
    return Refusal(failure.reason, failure.text, dict(failure.metadata), dict(failure.violations))


@contextmanager
def refused(code: grpc.StatusCode, reason: str) -> Iterator[Refusal]:
    """Expect the call inside to end with this status and this reason."""
    refusal = Refusal()
    error: grpc.RpcError | None = None
    try:
        yield refusal
    except grpc.RpcError as raised:
        error = raised
    assert error is not None, f"the call was not refused with {reason}"
    read = refusal_of(error)
    assert (error.code(), read.reason) == (code, reason), error
    refusal.__dict__.update(read.__dict__)


def execute(service: RunningService, statement: str, **values: object) -> list[tuple[Any, ...]]:
    """Run SQL beside the service, as somebody with access to its database."""
    with psycopg.connect(service.environment["LEADKEEP_DATABASE_URL"]) as connection:
        cursor = connection.execute(statement.encode(), values)
        return cursor.fetchall() if cursor.description else []
