"""Connect and gRPC-Web on the wire: what a request may look like, and what the answers are."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import time
from typing import Any

import httpx
from google.protobuf import message_factory
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from leadkeep.v1 import lead_service_pb2 as pb

from service.errors import LeadNotFoundError, LeadValidationError, QueueFullError, Violation
from service.http.protocols import TRAILERS, enveloped
from service.rpc.call import SERVICE
from tests.http.conftest import LEAD_ID, STORY, FixedReadiness, Servicer, created, lead, submission

GET_LEAD = "/leadkeep.v1.LeadService/GetLead"
CREATE_LEAD = "/leadkeep.v1.LeadService/CreateLead"
LONGEST = 256 * 1024
CANARY = "8801712345678"
ASKED = pb.GetLeadRequest(id=LEAD_ID)
RPCS = [method.name for method in SERVICE.methods]
PROTO = {"content-type": "application/proto"}
JSON = {"content-type": "application/json"}
WEB = {"content-type": "application/grpc-web+proto"}
WEB_TYPES = [
    "application/grpc-web", "application/grpc-web+proto", "application/grpc-web+json", "application/grpc-web-text",
    "application/grpc-web-text+proto",
]  # fmt: skip


def web_answer(response: httpx.Response) -> tuple[list[bytes], dict[str, str]]:
    """The messages and the trailers of an answer in gRPC-Web."""
    body, messages = response.content, list[bytes]()
    if "text" in response.headers["content-type"]:
        body = base64.b64decode(body)
    while body:
        flags, length = struct.unpack_from(">BI", body)
        payload, body = body[5 : 5 + length], body[5 + length :]
        if flags == TRAILERS:
            assert not body, "something stands behind the trailers"
            return messages, dict(line.split(": ", 1) for line in payload.decode().splitlines())
        messages.append(payload)
    raise AssertionError("there were no trailers")


def web_body(content_type: str, message: Message) -> bytes:
    is_json = content_type.endswith("json")
    body = enveloped(json.dumps({"id": LEAD_ID}).encode() if is_json else message.SerializeToString())
    return base64.b64encode(body) if "text" in content_type else body


def details(response: httpx.Response) -> dict[str, Message]:
    """The details of an error in Connect, by type."""
    found: dict[str, Message] = {}
    for detail in response.json()["details"]:
        message = getattr(error_details_pb2, detail["type"].removeprefix("google.rpc."))()
        message.ParseFromString(base64.b64decode(detail["value"] + "=="))
        found[detail["type"].removeprefix("google.rpc.")] = message
    return found


class TestConnect:
    async def test_every_rpc_is_called_in_binary_and_in_json(
        self, client: httpx.AsyncClient, servicer: Servicer
    ) -> None:
        for rpc in RPCS:
            for headers, body in ((PROTO, b""), (JSON, b"{}")):
                response = await client.post(f"/leadkeep.v1.LeadService/{rpc}", content=body, headers=headers)
                assert (response.status_code, response.headers["content-type"]) == (200, headers["content-type"])
            kind = message_factory.GetMessageClass(SERVICE.methods_by_name[rpc].input_type)
            assert servicer.requests[-2:] == [kind(), kind()]
            assert {call.rpc for call in servicer.calls[-2:]} == {rpc}

    async def test_an_answer_in_binary_is_the_message(self, client: httpx.AsyncClient, servicer: Servicer) -> None:
        servicer.answers["CreateLead"] = created()
        sent = submission(**STORY)
        sent.MergeFrom(pb.CreateLeadRequest(request_id="r-1", locale="es"))
        response = await client.post(CREATE_LEAD, content=sent.SerializeToString(), headers=PROTO)
        assert pb.CreateLeadResponse.FromString(response.content).id == LEAD_ID
        assert servicer.requests == [sent]

    async def test_json_is_read_and_written_as_the_routes_do(
        self, client: httpx.AsyncClient, servicer: Servicer
    ) -> None:
        servicer.answers["CreateLead"] = created()
        sent = {"lead": STORY | {"status": "whatever", "id": 7}, "request_id": "r-1", "phoneRegion": "BD"}
        answer = (await client.post(CREATE_LEAD, json=sent)).json()
        assert answer["is_repeat"] is False
        assert answer["lead"]["version"] == "1"
        wanted = submission(**STORY)
        wanted.MergeFrom(pb.CreateLeadRequest(request_id="r-1", phone_region="BD"))
        assert servicer.requests == [wanted]

    async def test_lists_field_masks_times_and_truths_are_read_from_json(
        self, client: httpx.AsyncClient, servicer: Servicer
    ) -> None:
        for rpc, sent in (
            ("ListLeads", {"statuses": ["new", "LEAD_STATUS_CONTACTED"], "created_after": "2026-01-31T09:00:00Z"}),
            ("ListConflicts", {"includeResolved": True, "page_size": 2}),
            ("UpdateLead", {"lead": {"id": LEAD_ID, "name": "Ada"}, "update_mask": "name,preferredContactTime"}),
        ):
            response = await client.post(f"/leadkeep.v1.LeadService/{rpc}", json=sent)
            assert response.status_code == 200, response.text
        listed, conflicts, updated = servicer.requests
        assert listed.statuses == [pb.LEAD_STATUS_NEW, pb.LEAD_STATUS_CONTACTED]  # type: ignore[attr-defined]
        assert listed.created_after.seconds == 1769850000  # type: ignore[attr-defined]
        assert conflicts == pb.ListConflictsRequest(include_resolved=True, page_size=2)
        assert updated.update_mask.paths == ["name", "preferred_contact_time"]  # type: ignore[attr-defined]

    async def test_an_optional_field_that_cannot_be_read_costs_no_lead(
        self, client: httpx.AsyncClient, servicer: Servicer
    ) -> None:
        sent = {"lead": {**STORY, "email": ["a", "b"]}}
        assert (await client.post(CREATE_LEAD, json=sent)).status_code == 200
        assert (await client.post(CREATE_LEAD, json={"lead": {**STORY, "name": ["a"]}})).status_code == 400
        assert len(servicer.requests) == 1

    async def test_json_that_is_none_of_the_request_is_refused_without_an_echo(
        self, client: httpx.AsyncClient, servicer: Servicer
    ) -> None:
        cases: list[tuple[dict[str, Any], list[str]]] = [
            ({"colour": 1}, ["colour"]),
            ({"lead": {"colour": 1}}, ["lead.colour"]),
            ({"lead": CANARY}, ["lead"]),
            ({"lead": [CANARY]}, ["lead"]),
            ({"lead": {CANARY: 1}}, ["body"]),
            ({"lead": {"phone": 8801712345678}}, ["lead.phone"]),
            ({"statuses": "new"}, ["statuses"]),
            ({"statuses": ["new", CANARY]}, ["statuses"]),
            ({"created_after": CANARY}, ["created_after"]),
            ({"include_resolved": CANARY}, ["include_resolved"]),
            ({"update_mask": [CANARY]}, ["update_mask"]),
        ]
        for sent, fields in cases:
            owners = [method for method in SERVICE.methods if set(sent) <= set(method.input_type.fields_by_name)]
            rpc = owners[0].name if owners else "GetLead"
            response = await client.post(f"/leadkeep.v1.LeadService/{rpc}", json=sent)
            assert (response.status_code, response.json()["code"]) == (400, "invalid_argument")
            violations = details(response)["BadRequest"].field_violations  # type: ignore[attr-defined]
            assert [each.field for each in violations] == fields
            assert CANARY not in response.text
            assert servicer.calls == []

    async def test_an_error_has_code_message_details_and_trailers(
        self, client: httpx.AsyncClient, servicer: Servicer
    ) -> None:
        servicer.answers["GetLead"] = LeadNotFoundError()
        response = await client.post(GET_LEAD, content=b"", headers=PROTO | {"x-request-id": "r-1"})
        assert (response.status_code, response.headers["content-type"]) == (404, "application/json")
        assert response.json()["code"] == "not_found"
        assert response.json()["message"]
        assert details(response)["ErrorInfo"].reason == "LEAD_NOT_FOUND"  # type: ignore[attr-defined]
        assert response.headers["trailer-x-request-id"] == "r-1"
        assert response.headers["trailer-leadkeep-retries"] == "0"
        assert all("=" not in detail["value"] and "debug" not in detail for detail in response.json()["details"])

    async def test_a_success_has_trailers(self, client: httpx.AsyncClient) -> None:
        response = await client.post(GET_LEAD, content=b"", headers=PROTO | {"x-request-id": "r-1"})
        assert response.headers["trailer-x-request-id"] == "r-1"
        assert response.headers["cache-control"] == "no-store"

    async def test_when_to_try_again_is_a_detail_a_trailer_and_a_header(
        self, client: httpx.AsyncClient, servicer: Servicer
    ) -> None:
        servicer.answers["GetLead"] = QueueFullError(retry_after=1.5)
        response = await client.post(GET_LEAD, content=b"", headers=PROTO)
        assert (response.status_code, response.json()["code"]) == (429, "resource_exhausted")
        assert details(response)["RetryInfo"].retry_delay.ToMilliseconds() == 1500  # type: ignore[attr-defined]
        assert response.headers["trailer-grpc-retry-pushback-ms"] == "1500"
        assert response.headers["retry-after"] == "2"

    async def test_pushback_forbids_a_retry_that_would_begin_after_the_deadline(
        self, client: httpx.AsyncClient, servicer: Servicer
    ) -> None:
        servicer.answers["GetLead"] = QueueFullError(retry_after=30)
        response = await client.post(GET_LEAD, content=b"", headers=PROTO | {"connect-timeout-ms": "9000"})
        assert response.headers["trailer-grpc-retry-pushback-ms"] == "-1"

    async def test_a_damaged_message_is_refused(self, client: httpx.AsyncClient, servicer: Servicer) -> None:
        for body in [b"\xff", b"\x0a\x02\xff\xfe", b"\x0a\x7f"]:
            response = await client.post(GET_LEAD, content=body, headers=PROTO)
            assert (response.status_code, response.json()["code"]) == (400, "invalid_argument")
            assert servicer.calls == []

    async def test_another_version_of_the_protocol_is_refused(self, client: httpx.AsyncClient) -> None:
        for version, status in (("1", 200), ("2", 400), ("", 400)):
            response = await client.post(GET_LEAD, content=b"", headers=PROTO | {"connect-protocol-version": version})
            assert response.status_code == status

    async def test_what_is_no_timeout_is_refused(self, client: httpx.AsyncClient, servicer: Servicer) -> None:
        for sent in ["", "x", "-1", "1.5", "1e3", "10000000000", "1 1", "0x1"]:
            response = await client.post(GET_LEAD, content=b"", headers=PROTO | {"connect-timeout-ms": sent})
            assert (response.status_code, response.json()["code"]) == (400, "invalid_argument")
            assert servicer.calls == []

    async def test_a_timeout_of_zero_is_over(self, client: httpx.AsyncClient) -> None:
        response = await client.post(GET_LEAD, content=b"", headers=PROTO | {"connect-timeout-ms": "0"})
        assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")


class TestGrpcWeb:
    async def test_an_answer_is_the_message_and_trailers(self, client: httpx.AsyncClient, servicer: Servicer) -> None:
        for content_type in WEB_TYPES:
            servicer.answers["GetLead"] = answer = pb.GetLeadResponse(lead=lead())
            headers = {"content-type": content_type, "x-request-id": "r-1"}
            response = await client.post(GET_LEAD, content=web_body(content_type, ASKED), headers=headers)
            (message,), trailers = web_answer(response)
            assert response.headers["content-type"].startswith(content_type)
            if content_type.endswith("json"):
                assert json.loads(message)["lead"]["id"] == LEAD_ID
            else:
                assert pb.GetLeadResponse.FromString(message) == answer
            assert trailers == {"grpc-status": "0", "x-request-id": "r-1", "leadkeep-retries": "0"}
            assert servicer.requests[-1] == ASKED

    async def test_an_error_is_a_status_with_details(self, client: httpx.AsyncClient, servicer: Servicer) -> None:
        for content_type in WEB_TYPES:
            servicer.answers["GetLead"] = LeadValidationError([Violation("id", "ungültig")])
            headers = {"content-type": content_type}
            response = await client.post(GET_LEAD, content=web_body(content_type, ASKED), headers=headers)
            messages, trailers = web_answer(response)
            assert (response.status_code, messages, trailers["grpc-status"]) == (200, [], "3")
            status = status_pb2.Status.FromString(base64.b64decode(trailers["grpc-status-details-bin"] + "=="))
            assert (status.code, len(status.details)) == (3, 2)
            assert trailers["grpc-message"].isascii()
            assert "x-request-id" in trailers

    async def test_when_to_try_again_is_a_trailer(self, client: httpx.AsyncClient, servicer: Servicer) -> None:
        servicer.answers["GetLead"] = QueueFullError(retry_after=1.5)
        response = await client.post(GET_LEAD, content=enveloped(b""), headers=WEB)
        assert web_answer(response)[1]["grpc-retry-pushback-ms"] == "1500"

    async def test_an_envelope_that_is_none_of_a_unary_call_is_refused(
        self, client: httpx.AsyncClient, servicer: Servicer
    ) -> None:
        for body in [
            *(b"\0", b"\0\0\0\0", b"\0\0\0\0\1", b"\0\xff\xff\xff\xff"),
            *(enveloped(b"", 0x80), enveloped(b"", 2), enveloped(b"", 1), enveloped(b"\xff")),
        ]:
            response = await client.post(GET_LEAD, content=body, headers=WEB)
            assert (response.status_code, web_answer(response)[1]["grpc-status"]) == (200, "3")
            assert servicer.calls == []

    async def test_no_message_and_two_are_unimplemented(self, client: httpx.AsyncClient, servicer: Servicer) -> None:
        for body in [b"", enveloped(b"") * 2, enveloped(b"") + b"\0"]:
            response = await client.post(GET_LEAD, content=body, headers=WEB)
            assert (response.status_code, web_answer(response)[1]["grpc-status"]) == (200, "12")
            assert servicer.calls == []

    async def test_text_that_is_no_base64_is_refused(self, client: httpx.AsyncClient, servicer: Servicer) -> None:
        for body in [b"A", b"AAAAAAA=A", b"AAAA\nAAA=", b"\xff\xff\xff\xff"]:
            response = await client.post(GET_LEAD, content=body, headers={"content-type": "application/grpc-web-text"})
            assert web_answer(response)[1]["grpc-status"] == "3"
            assert servicer.calls == []

    async def test_a_timeout_is_kept_or_refused(self, client: httpx.AsyncClient) -> None:
        for sent, status in [
            ("9H", "0"),
            ("9M", "0"),
            ("20S", "0"),
            ("20000m", "0"),
            ("20000000u", "0"),
            ("99999999H", "0"),
            ("0S", "4"),
            ("1n", "4"),
            *((sent, "3") for sent in ("", "S", "1", "1s", "-1S", "1.5S", "123456789S", "1 S", "1SS")),
        ]:
            response = await client.post(GET_LEAD, content=enveloped(b""), headers=WEB | {"grpc-timeout": sent})
            assert web_answer(response)[1]["grpc-status"] == status


class TestBoth:
    async def test_the_callers_time_is_the_calls_deadline(self, client: httpx.AsyncClient, servicer: Servicer) -> None:
        for headers, body in (
            (PROTO | {"connect-timeout-ms": "60000"}, b""),
            (WEB | {"grpc-timeout": "1M"}, enveloped(b"")),
        ):
            await client.post(GET_LEAD, content=body, headers=headers)
        for call in servicer.calls:
            assert 40 < call.deadline - time.monotonic() < 60

    async def test_a_stranger_gets_no_word_about_the_request(self, client: httpx.AsyncClient) -> None:
        del client.headers["authorization"]
        for body in [b"\xff", b"{", enveloped(b"\xff")]:
            for headers in [PROTO, JSON, WEB]:
                response = await client.post(GET_LEAD, content=body, headers=headers)
                if headers is WEB:
                    assert web_answer(response)[1]["grpc-status"] == "16"
                else:
                    assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")
                    assert response.headers["www-authenticate"].startswith("Bearer ")

    async def test_a_scope_is_required(self, client: httpx.AsyncClient, servicer: Servicer) -> None:
        path = "/leadkeep.v1.LeadService/EraseLead"
        client.headers["authorization"] = "Bearer chatbot"
        assert (await client.post(path, content=b"", headers=PROTO)).json()["code"] == "permission_denied"
        assert web_answer(await client.post(path, content=enveloped(b""), headers=WEB))[1]["grpc-status"] == "7"
        assert servicer.calls == []

    async def test_gzip_is_taken(self, client: httpx.AsyncClient, servicer: Servicer) -> None:
        for size in [0, 1, 100, LONGEST - 10]:
            asked = pb.GetLeadRequest(id="x" * size)
            zipped = gzip.compress(asked.SerializeToString())
            await client.post(GET_LEAD, content=zipped, headers=PROTO | {"content-encoding": "gzip"})
            await client.post(GET_LEAD, content=enveloped(zipped, 1), headers=WEB | {"grpc-encoding": "gzip"})
            assert servicer.requests[-2:] == [asked, asked]

    async def test_an_empty_message_is_not_decompressed(self, client: httpx.AsyncClient, servicer: Servicer) -> None:
        response = await client.post(GET_LEAD, content=b"", headers=PROTO | {"content-encoding": "gzip"})
        assert response.status_code == 200
        response = await client.post(GET_LEAD, content=enveloped(b"", 1), headers=WEB | {"grpc-encoding": "gzip"})
        assert web_answer(response)[1]["grpc-status"] == "0"
        assert servicer.requests == [pb.GetLeadRequest(), pb.GetLeadRequest()]

    async def test_what_is_no_gzip_is_refused(self, client: httpx.AsyncClient, servicer: Servicer) -> None:
        for body in [
            b"\x1f\x8b",
            gzip.compress(b"")[:-1],
            gzip.compress(b"") * 2,
            gzip.compress(b"") + b"x",
            b"plain",
        ]:
            response = await client.post(GET_LEAD, content=body, headers=PROTO | {"content-encoding": "gzip"})
            assert (response.status_code, response.json()["code"]) == (400, "invalid_argument")
            response = await client.post(GET_LEAD, content=enveloped(body, 1), headers=WEB | {"grpc-encoding": "gzip"})
            assert web_answer(response)[1]["grpc-status"] == "3"
            assert servicer.calls == []

    async def test_what_becomes_too_much_is_refused_as_what_is(
        self, client: httpx.AsyncClient, servicer: Servicer
    ) -> None:
        for size in (LONGEST + 1, 10_000_000):
            body = gzip.compress(bytes(size))
            response = await client.post(GET_LEAD, content=body, headers=PROTO | {"content-encoding": "gzip"})
            assert (response.status_code, response.json()["code"]) == (429, "resource_exhausted")
            response = await client.post(GET_LEAD, content=enveloped(body, 1), headers=WEB | {"grpc-encoding": "gzip"})
            assert web_answer(response)[1]["grpc-status"] == "8"
            assert servicer.calls == []

    async def test_another_compression_is_unimplemented_and_gzip_is_named(
        self, client: httpx.AsyncClient, servicer: Servicer
    ) -> None:
        for coding in ["br", "deflate", "gzip, gzip", "zstd", "x"]:
            response = await client.post(GET_LEAD, content=b"", headers=PROTO | {"content-encoding": coding})
            assert (response.status_code, response.json()["code"]) == (501, "unimplemented")
            assert response.headers["accept-encoding"] == "gzip"
            response = await client.post(GET_LEAD, content=enveloped(b"", 1), headers=WEB | {"grpc-encoding": coding})
            trailers = web_answer(response)[1]
            assert (trailers["grpc-status"], trailers["grpc-accept-encoding"]) == ("12", "gzip")
            assert servicer.calls == []

    async def test_the_longest_message_is_taken_and_a_longer_one_is_refused(
        self, client: httpx.AsyncClient, servicer: Servicer
    ) -> None:
        for extra, code in ((0, "0"), (1, "8")):
            asked = pb.GetLeadRequest(id="x" * (LONGEST - 4 + extra)).SerializeToString()
            assert len(asked) == LONGEST + extra
            response = await client.post(GET_LEAD, content=asked, headers=PROTO)
            assert response.status_code == (200 if code == "0" else 429)
            for content_type in ("application/grpc-web", "application/grpc-web-text"):
                body = web_body(content_type, pb.GetLeadRequest.FromString(asked))
                response = await client.post(GET_LEAD, content=body, headers={"content-type": content_type})
                assert web_answer(response)[1]["grpc-status"] == code
        assert len(servicer.calls) == 3

    async def test_another_content_type_is_refused_with_those_that_are_taken(
        self, client: httpx.AsyncClient, servicer: Servicer
    ) -> None:
        for content_type in [
            *("", "text/plain", "application/grpc", "application/connect+proto", "application/protobuf", "proto"),
            *(
                "application/json; charset=latin-1",
                "application/grpc-web+json; charset=utf-16",
                "application/x-www-form-urlencoded",
                "multipart/form-data",
            ),
        ]:
            response = await client.post(GET_LEAD, content=b"", headers={"content-type": content_type})
            assert response.status_code == 415
            assert "application/proto, application/json" in response.headers["accept-post"]
            assert servicer.calls == []

    async def test_a_content_type_may_have_parameters(self, client: httpx.AsyncClient) -> None:
        for content_type in [
            *(
                "application/json; charset=utf-8",
                'Application/JSON;charset="UTF-8"',
                "application/grpc-web+json; charset=utf8",
            ),
            *(
                "application/proto; charset=utf-8",
                'application/proto; messagetype="a.json"',
                "application/grpc-web; a=b",
            ),
        ]:
            body = b"{}" if content_type.lower().startswith("application/json") else b""
            if "web" in content_type:
                body = enveloped(b"{}" if "json" in content_type else b"")
            response = await client.post(GET_LEAD, content=body, headers={"content-type": content_type})
            assert response.status_code == 200, content_type

    async def test_only_post_is_answered(self, client: httpx.AsyncClient, servicer: Servicer) -> None:
        for method in ["GET", "PUT", "DELETE", "PATCH", "HEAD"]:
            response = await client.request(method, f"{GET_LEAD}?encoding=json&message=%7B%7D&connect=v1")
            assert (response.status_code, response.headers["allow"]) == (405, "POST, OPTIONS")
            assert servicer.calls == []

    async def test_what_is_no_unary_rpc_is_not_there(self, client: httpx.AsyncClient) -> None:
        for path in [
            "/leadkeep.v1.LeadService/Nothing",
            "/leadkeep.v1.leadservice/GetLead",
            "/LeadService/GetLead",
            "/leadkeep.v1.LeadService",
            "/grpc.health.v1.Health/Watch",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ]:
            assert (await client.post(path, content=b"", headers=PROTO)).status_code == 404

    async def test_health_is_asked_without_a_token(self, client: httpx.AsyncClient, readiness: FixedReadiness) -> None:
        del client.headers["authorization"]
        path = "/grpc.health.v1.Health/Check"
        assert (await client.post(path, json={"service": "leadkeep.v1.LeadService"})).json() == {"status": "SERVING"}
        readiness.ready = False
        response = await client.post(path, content=enveloped(b""), headers=WEB)
        (message,), _ = web_answer(response)
        answer = health_pb2.HealthCheckResponse.FromString(message)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        response = await client.post(path, json={"service": "another"})
        assert (response.status_code, response.json()["code"]) == (404, "not_found")
