"""What is measured, and the bytes that ask for it: once as gRPC messages, once as HTTP requests."""

from __future__ import annotations

from enum import StrEnum

from leadkeep.v1 import lead_service_pb2 as pb

from bench.load.plan import PLACE, Requests
from bench.samples import CREATE_AGAIN, CREATE_AGAIN_JSON, CREATE_LEAD, CREATE_LEAD_JSON

PAGE = 100


class Operation(StrEnum):
    """The measured operations."""

    CREATE = "CreateLead"
    GET = "GetLead masked"
    GET_FULL = "GetLead unmasked"
    BY_CONVERSATION = "GetLeadByConversation"
    MOVE = "UpdateStatus"
    CORRECT = "UpdateLead"
    LIST = f"ListLeads of {PAGE}"
    DUPLICATE = "duplicate refused"


METHODS = {
    Operation.CREATE: "CreateLead",
    Operation.GET: "GetLead",
    Operation.GET_FULL: "GetLead",
    Operation.BY_CONVERSATION: "GetLeadByConversation",
    Operation.MOVE: "UpdateStatus",
    Operation.CORRECT: "UpdateLead",
    Operation.LIST: "ListLeads",
    Operation.DUPLICATE: "CreateLead",
}

_ID_PLACE = "#" * 36
_STEPS = (pb.LEAD_STATUS_CONTACTED, pb.LEAD_STATUS_CONVERTED, pb.LEAD_STATUS_NOT_INTERESTED)
"""Each round through the leads takes the next step, so that every call changes something."""
_ADDRESSES = ("1 Lake Road, Dhaka", "2 Mill Lane, Dhaka")


BY_HTTP = tuple(operation for operation in Operation if operation is not Operation.CORRECT)
"""The operations that the JSON endpoint has a path for."""


def known_numbers(count: int) -> tuple[bytes, ...]:
    """The numbers of the leads that are there before anything is measured."""
    return tuple(b"%010d" % number for number in range(count))


def grpc_requests(operation: Operation, *, ids: tuple[bytes, ...], numbers: tuple[bytes, ...]) -> Requests:
    """The messages of an operation, on leads with these ids and numbers."""
    match operation:
        case Operation.CREATE:
            return Requests(templates=(CREATE_LEAD,))
        case Operation.DUPLICATE:
            return Requests(templates=(CREATE_AGAIN,), values=numbers)
        case Operation.GET | Operation.GET_FULL:
            view = pb.LEAD_VIEW_MASKED if operation is Operation.GET else pb.LEAD_VIEW_FULL
            message = pb.GetLeadRequest(id=_ID_PLACE, view=view).SerializeToString()
            return Requests(templates=(message,), values=ids, place=_ID_PLACE.encode())
        case Operation.BY_CONVERSATION:
            asked = pb.GetLeadByConversationRequest(
                conversation_id=f"chat-{PLACE.decode()}", view=pb.LEAD_VIEW_MASKED
            ).SerializeToString()
            return Requests(templates=(asked,), values=numbers)
        case Operation.MOVE:
            steps = tuple(pb.UpdateStatusRequest(id=_ID_PLACE, status=s).SerializeToString() for s in _STEPS)
            return Requests(templates=steps, values=ids, place=_ID_PLACE.encode())
        case Operation.CORRECT:
            corrected = (pb.Lead(id=_ID_PLACE, address=address) for address in _ADDRESSES)
            messages = tuple(pb.UpdateLeadRequest(lead=lead).SerializeToString() for lead in corrected)
            return Requests(templates=messages, values=ids, place=_ID_PLACE.encode())
        case Operation.LIST:
            page = pb.ListLeadsRequest(page_size=PAGE, view=pb.LEAD_VIEW_MASKED).SerializeToString()
            return Requests(templates=(page,), values=(b"",))


def http_requests(
    operation: Operation, *, ids: tuple[bytes, ...], numbers: tuple[bytes, ...], headers: str, ours: bool
) -> Requests:
    """The requests of an operation. `ours` tells our JSON endpoint from the peer, where the two differ in words."""
    place = PLACE.decode()

    def get(path: str) -> bytes:
        return f"GET {path} HTTP/1.1\r\n{headers}\r\n".encode()

    def post(path: str, body: bytes) -> bytes:
        extra = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        return f"POST {path} HTTP/1.1\r\n{headers}{extra}\r\n".encode() + body

    match operation:
        case Operation.CREATE | Operation.DUPLICATE:
            again = operation is Operation.DUPLICATE
            create = post("/api/leads/", CREATE_AGAIN_JSON if again else CREATE_LEAD_JSON)
            return Requests(templates=(create,), values=numbers if again else None)
        case Operation.GET | Operation.GET_FULL:
            full = operation is Operation.GET_FULL
            view = ("view=LEAD_VIEW_FULL" if full else "view=LEAD_VIEW_MASKED") if ours else f"unmask={full}"
            return Requests(templates=(get(f"/api/leads/{place}?{view}"),), values=ids)
        case Operation.BY_CONVERSATION:
            view = "?view=LEAD_VIEW_MASKED" if ours else ""
            return Requests(templates=(get(f"/api/conversations/chat-{place}/lead{view}"),), values=numbers)
        case Operation.MOVE:
            names = ("contacted", "converted", "not_interested")
            bodies = (b'{"status": "%s"}' % _status_word(name, ours=ours) for name in names)
            return Requests(templates=tuple(post(f"/api/leads/{place}/status", body) for body in bodies), values=ids)
        case Operation.CORRECT:
            raise AssertionError("UpdateLead is no path of the JSON endpoint")
        case Operation.LIST:
            query = f"page_size={PAGE}&view=LEAD_VIEW_MASKED" if ours else f"limit={PAGE}"
            return Requests(templates=(get(f"/api/leads{'' if ours else '/'}?{query}"),), values=(b"",))


def _status_word(name: str, *, ours: bool) -> bytes:
    return (f"LEAD_STATUS_{name.upper()}" if ours else name).encode()
