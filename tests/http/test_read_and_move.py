from __future__ import annotations

import time

import httpx
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from leadkeep.v1 import lead_service_pb2 as pb

from tests.http.conftest import LEAD_ID, Servicer, lead


async def test_a_lead_is_shown_under_its_path(client: httpx.AsyncClient, servicer: Servicer) -> None:
    servicer.answers["GetLead"] = pb.GetLeadResponse(lead=lead())
    response = await client.get(f"/api/leads/{LEAD_ID}")
    assert response.status_code == 200
    assert response.json()["lead"]["phone"] == "+1234567890"
    assert servicer.requests == [pb.GetLeadRequest(id=LEAD_ID)]


@pytest.mark.parametrize("written", ["masked", "MASKED", "LEAD_VIEW_MASKED"])
async def test_a_view_is_asked_for_in_any_spelling(client: httpx.AsyncClient, servicer: Servicer, written: str) -> None:
    servicer.answers["GetLead"] = pb.GetLeadResponse(lead=lead())
    response = await client.get(f"/api/leads/{LEAD_ID}", params={"view": written})
    assert response.json()["lead"]["masked"] is True
    assert servicer.requests == [pb.GetLeadRequest(id=LEAD_ID, view="LEAD_VIEW_MASKED")]


async def test_the_fields_to_reveal_are_separated_by_commas(client: httpx.AsyncClient, servicer: Servicer) -> None:
    servicer.answers["GetLead"] = pb.GetLeadResponse(lead=lead())
    response = await client.get(f"/api/leads/{LEAD_ID}?reveal=phone,email")
    assert response.json()["lead"]["phone"] == "+1234567890"
    assert response.json()["lead"]["masked_fields"] == ["nid", "address"]
    assert servicer.requests == [pb.GetLeadRequest(id=LEAD_ID, reveal=FieldMask(paths=["phone", "email"]))]


async def test_head_has_no_body(client: httpx.AsyncClient, servicer: Servicer) -> None:
    servicer.answers["GetLead"] = pb.GetLeadResponse(lead=lead())
    response = await client.head(f"/api/leads/{LEAD_ID}")
    assert (response.status_code, response.content) == (200, b"")


async def test_the_full_view_needs_its_scope(client: httpx.AsyncClient) -> None:
    response = await client.get(f"/api/leads/{LEAD_ID}?view=full", headers={"authorization": "Bearer agent"})
    assert response.status_code == 403
    assert response.json()["metadata"] == {"scope": "leads:unmask"}


@pytest.mark.parametrize("path", ["/api/leads", "/api/leads/"])
async def test_every_filter_is_a_parameter(client: httpx.AsyncClient, servicer: Servicer, path: str) -> None:
    after, before = Timestamp(), Timestamp()
    after.FromJsonString("2026-01-31T09:00:00+06:00")
    before.FromJsonString("2026-02-01T00:00:00Z")
    query = (
        "?page_size=7&page_token=t&statuses=new,CONTACTED&statuses=LEAD_STATUS_CONVERTED&assignee=a%20b"
        "&created_after=2026-01-31T09:00:00%2B06:00&createdBefore=2026-02-01T00:00:00Z"
        "&interested_policy=Term+Life&conversation_id=c%2F1&phone=%2B1234567890&nid=123&view=full&source=ads"
        "&updated_after=2026-01-31T09:00:00%2B06:00&updatedBefore=2026-02-01T00:00:00Z&unassigned=true&created_by=bot"
        "&order_by=updated_desc&reference=LK-3CP3-TKJZ"
    )
    response = await client.get(path + query)
    assert response.status_code == 200
    expected = pb.ListLeadsRequest(
        page_size=7,
        page_token="t",
        statuses=["LEAD_STATUS_NEW", "LEAD_STATUS_CONTACTED", "LEAD_STATUS_CONVERTED"],
        created_after=after,
        created_before=before,
        assignee="a b",
        interested_policy="Term Life",
        conversation_id="c/1",
        phone="+1234567890",
        nid="123",
        view="LEAD_VIEW_FULL",
        source="ads",
        updated_after=after,
        updated_before=before,
        unassigned=True,
        created_by="bot",
        order_by="LEAD_ORDER_UPDATED_DESC",
        reference="LK-3CP3-TKJZ",
    )
    assert servicer.requests == [expected]
    # reveal stands in for view.
    every = set(pb.ListLeadsRequest.DESCRIPTOR.fields_by_name)
    assert {field.name for field, _ in expected.ListFields()} == every - {"email", "name_prefix", "reveal"}


@pytest.mark.parametrize(("name", "field"), [("namePrefix", "name_prefix"), ("email", "email")])
async def test_a_customers_value_is_refused_in_a_url(
    client: httpx.AsyncClient, servicer: Servicer, name: str, field: str
) -> None:
    response = await client.get("/api/leads", params={name: "Rahima"})
    assert response.status_code == 400
    assert [violation["field"] for violation in response.json()["violations"]] == [field]
    assert "POST /leadkeep.v1.LeadService/ListLeads" in response.json()["violations"][0]["description"]
    assert "Rahima" not in response.text
    assert servicer.requests == []


@pytest.mark.parametrize(("written", "read"), [("true", True), ("false", False)])
async def test_a_truth_is_written_as_in_json(
    client: httpx.AsyncClient, servicer: Servicer, written: str, read: bool
) -> None:
    await client.get("/api/leads", params={"unassigned": written})
    assert servicer.requests == [pb.ListLeadsRequest(unassigned=read)]


@pytest.mark.parametrize("wrong", ["unassigned=1", "unassigned=TRUE", "order_by=name", "updated_after=today"])
async def test_a_filter_that_cannot_be_read_is_named(client: httpx.AsyncClient, wrong: str) -> None:
    response = await client.get(f"/api/leads?{wrong}")
    assert [violation["field"] for violation in response.json()["violations"]] == [wrong.partition("=")[0]]


@pytest.mark.parametrize("name", ["conversation_id", "conversationId"])
async def test_a_plus_that_was_not_encoded_is_still_read_in_a_conversation(
    client: httpx.AsyncClient, servicer: Servicer, name: str
) -> None:
    await client.get(f"/api/leads?{name}=whatsapp:+8801711223344")
    assert servicer.requests == [pb.ListLeadsRequest(conversation_id="whatsapp:+8801711223344")]


async def test_a_plus_that_was_not_encoded_is_still_read_in_a_time(
    client: httpx.AsyncClient, servicer: Servicer
) -> None:
    await client.get("/api/leads?created_after=2026-01-31T09:00:00+06:00")
    (request,) = servicer.requests
    assert isinstance(request, pb.ListLeadsRequest)
    assert request.created_after.ToJsonString() == "2026-01-31T03:00:00Z"


async def test_an_empty_page_is_an_empty_list(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/leads")).json() == {"leads": [], "next_page_token": ""}


async def test_all_faults_of_a_query_are_named_at_once(client: httpx.AsyncClient, servicer: Servicer) -> None:
    query = "?page_size=ten&statuses=new,lost&created_after=yesterday&view=x&phone=1&phone=2&colour=red"
    response = await client.get("/api/leads" + query)
    assert response.status_code == 400
    assert [violation["field"] for violation in response.json()["violations"]] == [
        "page_size",
        "statuses",
        "created_after",
        "view",
        "phone",
        "colour",
    ]
    assert servicer.requests == []


@pytest.mark.parametrize("query", ["assignee=%ff", "&".join(f"statuses=new{n}" for n in range(101))])
async def test_a_query_that_is_no_query_is_refused(client: httpx.AsyncClient, query: str) -> None:
    response = await client.get(f"/api/leads?{query}")
    assert [violation["field"] for violation in response.json()["violations"]] == ["query"]


@pytest.mark.parametrize("version", [3, "3"])
async def test_a_status_is_moved_on(client: httpx.AsyncClient, servicer: Servicer, version: object) -> None:
    servicer.answers["UpdateStatus"] = pb.UpdateStatusResponse(lead=lead(status="LEAD_STATUS_CONTACTED"))
    body = {"status": "contacted", "reason": "called", "expected_version": version}
    response = await client.post(f"/api/leads/{LEAD_ID}/status", json=body)
    assert response.json()["lead"]["status"] == "LEAD_STATUS_CONTACTED"
    assert servicer.requests == [
        pb.UpdateStatusRequest(id=LEAD_ID, status="LEAD_STATUS_CONTACTED", reason="called", expected_version=3)
    ]


@pytest.mark.parametrize("version", [1.5, True, "three", 2**63, "9" * 19, 10**400])
async def test_a_version_that_is_none_is_refused(client: httpx.AsyncClient, version: object) -> None:
    body = {"status": "contacted", "expected_version": version}
    response = await client.post(f"/api/leads/{LEAD_ID}/status", json=body)
    assert [violation["field"] for violation in response.json()["violations"]] == ["expected_version"]


async def test_the_callers_patience_is_the_calls_deadline(client: httpx.AsyncClient, servicer: Servicer) -> None:
    began = time.monotonic()
    await client.get("/api/leads", headers={"Request-Timeout": "2.5"})
    answered = time.monotonic()
    (call,) = servicer.calls
    assert began + 2.3 < call.deadline < answered + 2.5


@pytest.mark.parametrize("sent", ["0", "0.0", "-1", "soon", "1e3", "1000000", "nan", ""])
async def test_a_patience_that_is_none_is_refused(client: httpx.AsyncClient, sent: str) -> None:
    response = await client.get("/api/leads", headers={"Request-Timeout": sent})
    assert [violation["field"] for violation in response.json()["violations"]] == ["Request-Timeout"]


async def test_a_header_does_not_say_who_the_peer_is(client: httpx.AsyncClient, servicer: Servicer) -> None:
    await client.get("/api/leads", headers={"x-forwarded-for": "192.0.2.1"})
    (call,) = servicer.calls
    assert call.peer.startswith("127.0.0.1:")


@pytest.mark.parametrize(
    ("query", "read"),
    [
        ("+8801712345678", "+8801712345678"),
        ("%2B8801712345678", "+8801712345678"),
        ("(+880)+1712", "(+880) 1712"),
        ("++880+1712", "+880 1712"),
        ("+01712345678", " 01712345678"),
        ("01712+345678", "01712 345678"),
    ],
)
async def test_a_plus_that_arrived_as_a_space_is_read_in_a_phone_number(
    client: httpx.AsyncClient, servicer: Servicer, query: str, read: str
) -> None:
    await client.get(f"/api/leads?phone={query}&assignee=+8")
    (request,) = servicer.requests
    assert isinstance(request, pb.ListLeadsRequest)
    assert (request.phone, request.assignee) == (read, " 8")


async def test_resubmissions_are_paged_under_their_lead(client: httpx.AsyncClient, servicer: Servicer) -> None:
    servicer.answers["ListResubmissions"] = pb.ListResubmissionsResponse(
        resubmissions=[pb.Resubmission(lead=lead())], next_page_token="next"
    )
    response = await client.get(f"/api/leads/{LEAD_ID}/resubmissions?page_size=1&page_token=t&view=masked")
    assert (response.status_code, response.json()["next_page_token"]) == (200, "next")
    assert response.json()["resubmissions"][0]["lead"]["masked"] is True
    expected = pb.ListResubmissionsRequest(lead_id=LEAD_ID, page_size=1, page_token="t", view="LEAD_VIEW_MASKED")
    assert servicer.requests == [expected]
