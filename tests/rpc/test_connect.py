"""Connect and gRPC-Web pass the chain of the gRPC endpoint: the same mask, the same access record."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from google.protobuf import message_factory
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from leadkeep.v1 import lead_service_pb2 as pb

from service.http.protocols import enveloped
from service.rpc.call import SERVICE
from service.scopes import Scope
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client
from tests.rpc.showing import RPCS, SHOWING, clear_values, requests_for

WAYS: dict[str, Callable[[Message], bytes]] = {
    "application/proto": lambda message: message.SerializeToString(),
    "application/json": lambda message: MessageToJson(message).encode(),
    "application/grpc-web+proto": lambda message: enveloped(message.SerializeToString()),
    "application/grpc-web+json": lambda message: enveloped(MessageToJson(message).encode()),
}
MASKED = {scope for scope in Scope if not scope.startswith(Scope.UNMASK)}


def post(service: RunningService, token: str, way: str, rpc: str, request: Message) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}", "content-type": way, "connect-protocol-version": "1"}
    url = f"{service.http_url}/{SERVICE.full_name}/{rpc}"
    return httpx.post(url, content=WAYS[way](request), headers=headers, timeout=30)


def everything(response: httpx.Response) -> str:
    return f"{response.headers}{response.content.decode(errors='replace')}"


@pytest.mark.parametrize("way", WAYS)
def test_who_may_not_unmask_gets_no_clear_value_of_any_rpc(
    service: RunningService, person: pb.Lead, lead_id: str, way: str
) -> None:
    token = service.token(subject="masked", scopes=MASKED)
    for rpc in SHOWING:
        # What a conflict holds is shown by one answer only; another test asks for it.
        request = requests_for(rpc, lead_id, person) if rpc != "ResolveConflict" else pb.ResolveConflictRequest()
        clear = clear_values(request.lead if isinstance(request, pb.CreateLeadRequest) else person)
        answer = everything(post(service, token, way, rpc, request))
        assert [value for value in clear if value in answer] == [], rpc


@pytest.mark.parametrize("way", WAYS)
def test_what_an_rpc_shows_is_on_record(
    service: RunningService, admin: Client, person: pb.Lead, lead_id: str, way: str
) -> None:
    for rpc in set(SHOWING) - {"ResolveConflict"}:
        subject = f"looker at {rpc} by {way}"
        request = requests_for(rpc, lead_id, person)
        clear = clear_values(request.lead if isinstance(request, pb.CreateLeadRequest) else person)
        answer = everything(post(service, service.token(subject=subject), way, rpc, request))
        assert [value for value in clear if value not in answer] == [], rpc
        entries = admin.call("ListAccesses", pb.ListAccessesRequest(subject=subject)).accesses
        assert {entry.operation for entry in entries} == {rpc}
        assert all({"phone", "nid", "email", "address", "notes"} <= {*entry.fields} for entry in entries)


@pytest.mark.parametrize("rpc", RPCS)
def test_an_rpc_answers_the_same_in_binary_as_over_grpc(
    service: RunningService, connect: Callable[..., Client], rpc: str
) -> None:
    kind = message_factory.GetMessageClass(SERVICE.methods_by_name[rpc].input_type)
    answer = post(service, service.token(scopes=set()), "application/proto", rpc, kind())
    assert (answer.status_code, answer.json()["code"]) == (403, "permission_denied")
