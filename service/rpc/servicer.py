"""LeadService of the contract: each method reads its request, asks the use case, and writes the answer.

Servicers raise; the chain turns what they raise into a status. Answers are unmasked here: the chain records and masks
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from uuid import UUID

from leadkeep.v1 import lead_service_pb2 as pb

from service.lead import SENSITIVE_FIELDS, LeadEventType
from service.rpc import wire
from service.rpc.call import Call
from service.scopes import Caller
from service.storage.access.record import AccessRecords
from service.use_cases.conflict_service import ConflictService
from service.use_cases.lead_service import LeadService
from service.use_cases.page_token import Tags, read_page
from service.use_cases.person_service import ErasureService, PersonService
from service.use_cases.summary_service import SummaryService


@dataclass(frozen=True, slots=True)
class LeadServicer:
    """The contract's methods by name, behind the chain of both endpoints."""

    leads: LeadService
    conflicts: ConflictService
    accesses: AccessRecords
    erasures: ErasureService
    summaries: SummaryService
    persons: PersonService
    page_token_tags: Tags

    async def CreateLead(self, call: Call, request: pb.CreateLeadRequest) -> pb.CreateLeadResponse:  # noqa: N802
        """Make a new lead durable."""
        created = await self.leads.create_lead(
            _caller(call),
            wire.customer_fields(request.lead),
            request_id=request.request_id,
            locale=request.locale,
            phone_region=request.phone_region,
        )
        lead = wire.lead_message(created.lead)
        return pb.CreateLeadResponse(
            id=lead.id,
            message="Lead created successfully",
            state=pb.SAVE_STATE_DELAYED if created.delayed else pb.SAVE_STATE_SAVED,
            confirmation=wire.confirmation_message(created.confirmation),
            lead=lead,
            ignored_fields=created.ignored,
            is_repeat=created.is_repeat,
        )

    async def ValidateLead(self, _call: Call, request: pb.ValidateLeadRequest) -> pb.ValidateLeadResponse:  # noqa: N802
        """Check fields of a new lead."""
        violations, ignored = self.leads.validate_lead(
            wire.customer_fields(request.lead), locale=request.locale, phone_region=request.phone_region
        )
        return pb.ValidateLeadResponse(violations=wire.violation_messages(violations), ignored_fields=ignored)

    async def GetLead(self, call: Call, request: pb.GetLeadRequest) -> pb.GetLeadResponse:  # noqa: N802
        """Show one lead."""
        lead = await self.leads.get_lead(_caller(call), wire.lead_id_of(request.id, "id"), hidden=call.hidden)
        return pb.GetLeadResponse(lead=wire.lead_message(lead))

    async def UpdateStatus(self, call: Call, request: pb.UpdateStatusRequest) -> pb.UpdateStatusResponse:  # noqa: N802
        """Change the status of a lead."""
        lead = await self.leads.update_status(
            _caller(call),
            wire.lead_id_of(request.id, "id"),
            wire.status_of(request.status, "status"),
            reason=request.reason,
            expected_version=wire.expected_version_of(request.expected_version),
            hidden=call.hidden,
        )
        return pb.UpdateStatusResponse(lead=wire.lead_message(lead))

    async def UpdateLead(self, call: Call, request: pb.UpdateLeadRequest) -> pb.UpdateLeadResponse:  # noqa: N802
        """Correct customer fields."""
        fields = wire.corrected_fields(request)
        sensitive = tuple(name for name in fields if name in SENSITIVE_FIELDS)
        # All or none: the history would show which fields of a correction had another value.
        compares = set(call.comparable).issuperset(sensitive)

        def compared(lead_id: UUID | None) -> None:
            call.compared = (lead_id, sensitive) if lead_id and sensitive else None

        lead = await self.leads.correct_lead(
            _caller(call),
            wire.lead_id_of(request.lead.id, "lead.id"),
            fields,
            reason=request.reason,
            phone_region=request.phone_region,
            expected_version=wire.expected_version_of(request.expected_version),
            compared=compared if compares else None,
        )
        return pb.UpdateLeadResponse(lead=wire.lead_message(lead))

    async def GetLeadByConversation(  # noqa: N802
        self, call: Call, request: pb.GetLeadByConversationRequest
    ) -> pb.GetLeadByConversationResponse:
        """Show the newest lead of a conversation."""
        lead, others = await self.leads.get_lead_by_conversation(
            _caller(call), request.conversation_id, hidden=call.hidden
        )
        return pb.GetLeadByConversationResponse(
            lead=wire.lead_message(lead), other_lead_ids=[str(other) for other in others]
        )

    async def ListLeads(self, call: Call, request: pb.ListLeadsRequest) -> pb.ListLeadsResponse:  # noqa: N802
        """Show a page of leads."""
        leads, next_page_token = await self.leads.list_leads(
            _caller(call),
            wire.filters_of(request),
            order=wire.order_of(request.order_by, "order_by"),
            page_size=request.page_size,
            page_token=request.page_token,
            hidden=call.hidden,
        )
        return pb.ListLeadsResponse(leads=[wire.lead_message(lead) for lead in leads], next_page_token=next_page_token)

    async def SummarizeLeads(self, call: Call, request: pb.SummarizeLeadsRequest) -> pb.SummarizeLeadsResponse:  # noqa: N802
        """Count leads by a group."""
        group = wire.group_of(request.group_by, "group_by")
        summary = await self.summaries.summarize(
            _caller(call),
            group,
            created_after=wire.moment_of(request, "created_after"),
            created_before=wire.moment_of(request, "created_before"),
            time_zone=request.time_zone,
        )
        return wire.summary_message(summary, group)

    async def ListStatusChanges(  # noqa: N802
        self, call: Call, request: pb.ListStatusChangesRequest
    ) -> pb.ListStatusChangesResponse:
        """Show a lead's status history."""
        lead_id = wire.lead_id_of(request.lead_id, "lead_id")
        changes = await self.leads.events_of_type(_caller(call), lead_id, LeadEventType.STATUS_CHANGED)
        return pb.ListStatusChangesResponse(changes=wire.status_change_messages(changes))

    async def ListAssignments(  # noqa: N802
        self, call: Call, request: pb.ListAssignmentsRequest
    ) -> pb.ListAssignmentsResponse:
        """Show a lead's assignment history."""
        lead_id = wire.lead_id_of(request.lead_id, "lead_id")
        changes = await self.leads.events_of_type(_caller(call), lead_id, LeadEventType.ASSIGNED)
        return pb.ListAssignmentsResponse(assignments=wire.assignment_messages(changes))

    async def ListLeadEvents(  # noqa: N802
        self, call: Call, request: pb.ListLeadEventsRequest
    ) -> pb.ListLeadEventsResponse:
        """Show a page of a lead's history."""
        events, next_page_token = await self.leads.events(
            _caller(call),
            wire.lead_id_of(request.lead_id, "lead_id"),
            page_size=request.page_size,
            page_token=request.page_token,
            newest_first=request.newest_first,
            include_accesses=request.include_accesses,
        )
        return pb.ListLeadEventsResponse(events=wire.event_messages(events), next_page_token=next_page_token)

    async def ListResubmissions(  # noqa: N802
        self, call: Call, request: pb.ListResubmissionsRequest
    ) -> pb.ListResubmissionsResponse:
        """Show a page of the refused duplicates of a lead."""
        lead_id, phone, kept, next_page_token = await self.leads.resubmissions(
            _caller(call),
            wire.lead_id_of(request.lead_id, "lead_id"),
            page_size=request.page_size,
            page_token=request.page_token,
            hidden=call.hidden,
        )
        call.shown_lead_id, call.phones = str(lead_id), (phone or "",)
        return pb.ListResubmissionsResponse(
            resubmissions=wire.resubmission_messages(kept), next_page_token=next_page_token
        )

    async def AssignLead(self, call: Call, request: pb.AssignLeadRequest) -> pb.AssignLeadResponse:  # noqa: N802
        """Assign a lead."""
        lead = await self.leads.assign_lead(
            _caller(call),
            wire.lead_id_of(request.id, "id"),
            request.assignee,
            reason=request.reason,
            expected_version=wire.expected_version_of(request.expected_version),
            hidden=call.hidden,
        )
        return pb.AssignLeadResponse(lead=wire.lead_message(lead))

    async def EraseLead(self, call: Call, request: pb.EraseLeadRequest) -> pb.EraseLeadResponse:  # noqa: N802
        """Erase the person of a lead."""
        kept = await self.erasures.erase_lead(_caller(call), wire.lead_id_of(request.id, "id"), reason=request.reason)
        return pb.EraseLeadResponse(kept_ids=[str(each) for each in kept])

    async def FindPerson(self, call: Call, request: pb.FindPersonRequest) -> pb.FindPersonResponse:  # noqa: N802
        """Show a page of what carries an identifier."""
        found, next_page_token, unanswered = await self.persons.find(
            wire.identifiers_of(request), page_token=request.page_token, hidden=call.hidden
        )
        call.found = tuple(each.match.id for each in found)
        return pb.FindPersonResponse(
            matches=wire.match_messages(found), next_page_token=next_page_token, unanswered_replicas=unanswered
        )

    async def ExportPerson(self, call: Call, request: pb.ExportPersonRequest) -> pb.ExportPersonResponse:  # noqa: N802
        """Show a page of everything about chosen matches."""
        caller = _caller(call)
        page = await self.persons.export(caller, wire.refs_of(request.refs), page_token=request.page_token)
        response = pb.ExportPersonResponse(
            records=[wire.record_message(part) for part in page.parts],
            next_page_token=page.next_page_token,
            exported_by=caller.subject,
            not_found=wire.ref_messages(page.not_found),
            unanswered_replicas=page.unanswered,
        )
        response.exported_at.GetCurrentTime()
        return response

    async def ErasePerson(self, call: Call, request: pb.ErasePersonRequest) -> pb.ErasePersonResponse:  # noqa: N802
        """Erase chosen matches."""
        done = await self.persons.erase(_caller(call), wire.refs_of(request.refs), reason=request.reason)
        return pb.ErasePersonResponse(
            erased=wire.ref_messages(done.erased),
            unanswered_replicas=done.unanswered,
            not_found=wire.ref_messages(done.not_found),
            kept_ids=[str(each) for each in done.kept],
        )

    async def ListConflicts(self, call: Call, request: pb.ListConflictsRequest) -> pb.ListConflictsResponse:  # noqa: N802
        """Show a page of conflicts."""
        conflicts, next_page_token = await self.conflicts.list_conflicts(
            page_size=request.page_size,
            page_token=request.page_token,
            resolved_too=request.include_resolved,
            hidden=call.hidden,
        )
        return pb.ListConflictsResponse(conflicts=wire.conflict_messages(conflicts), next_page_token=next_page_token)

    async def ResolveConflict(  # noqa: N802
        self, call: Call, request: pb.ResolveConflictRequest
    ) -> pb.ResolveConflictResponse:
        """Resolve the conflict of a submission with a lead."""
        lead = await self.conflicts.resolve_conflict(
            _caller(call),
            wire.lead_id_of(request.id, "id"),
            wire.resolution_of(request.resolution, "resolution"),
            lead_id=wire.lead_id_of(request.lead_id, "lead_id") if request.lead_id else None,
            reason=request.reason,
            hidden=call.hidden,
        )
        return pb.ResolveConflictResponse(lead=wire.lead_message(lead) if lead is not None else None)

    async def ListAccesses(self, _call: Call, request: pb.ListAccessesRequest) -> pb.ListAccessesResponse:  # noqa: N802
        """Show a page of the access record."""
        wanted = wire.access_filter(request)

        accesses, next_page_token = await read_page(
            partial(self.accesses.find, wanted),
            lambda access: (access.recorded_at, access.id),
            int,
            size=request.page_size,
            token=request.page_token,
            list_identity=f"accesses/{wanted!r}",
            tags=self.page_token_tags,
        )
        return pb.ListAccessesResponse(accesses=wire.access_messages(accesses), next_page_token=next_page_token)


def _caller(call: Call) -> Caller:
    if call.caller is None:
        raise AssertionError("a servicer was reached without authentication")
    return call.caller
