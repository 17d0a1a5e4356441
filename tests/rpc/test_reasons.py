"""The reason for a look: in any script over both transports, and of certain words where the operator wants that."""

from __future__ import annotations

import base64
from uuid import uuid4

import grpc
import httpx
import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from service.rpc.unmasking import ReasonRules
from service.validation import ValidationService
from tests.harness.running_service import RunningService
from tests.rpc.calls import execute, refusal_of

BENGALI = "গ্রাহক ফোন করেছেন"


def over_grpc(service: RunningService, lead_id: str, sent: list[tuple[str, str | bytes]], subject: str) -> list[str]:
    """The fields that the call is refused for; none when it is answered."""
    with service.channel() as channel:
        try:
            service.stub(channel).GetLead(
                pb.GetLeadRequest(id=lead_id), metadata=[*service.metadata(subject=subject), *sent], timeout=10
            )
        except grpc.RpcError as error:
            return [f"{field} {text}" for field, text in refusal_of(error).violations.items()]
    return []


def over_http(service: RunningService, lead_id: str, sent: list[tuple[str, str | bytes]], subject: str) -> list[str]:
    headers = [("authorization", f"Bearer {service.token(subject=subject)}"), *sent]
    answer = httpx.get(f"{service.http_url}/api/leads/{lead_id}", headers=headers).json()  # type: ignore[arg-type]
    return [f"{each['field']} {each['description']}" for each in answer.get("violations", ())]


def recorded(service: RunningService, subject: str) -> list[str]:
    rows = execute(service, "SELECT reason FROM access_record WHERE subject = %(subject)s", subject=subject)
    return [reason for (reason,) in rows]


ENCODED = base64.b64encode(BENGALI.encode()).decode()


@pytest.mark.parametrize(
    ("ask", "value"),
    [(over_grpc, BENGALI.encode()), (over_http, ENCODED), (over_http, ENCODED.rstrip("="))],
)
def test_a_binary_reason_is_recorded_in_its_script(
    ask: object, value: str | bytes, service: RunningService, lead_id: str
) -> None:
    subject = str(uuid4())
    assert ask(service, lead_id, [("leadkeep-reason-bin", value)], subject) == []  # type: ignore[operator]
    assert recorded(service, subject) == [BENGALI]


@pytest.mark.parametrize(
    ("ask", "sent", "told"),
    [
        (over_grpc, [("leadkeep-reason", "a"), ("leadkeep-reason-bin", b"a")], "must not be sent together"),
        (over_http, [("leadkeep-reason", "a"), ("leadkeep-reason-bin", "YQ==")], "must not be sent together"),
        (over_grpc, [("leadkeep-reason-bin", b"\xff\xfe")], "must be UTF-8"),
        (over_http, [("leadkeep-reason-bin", "//4=")], "must be UTF-8"),
        (over_http, [("leadkeep-reason-bin", "no base64!")], "must be base64"),
        (over_http, [("leadkeep-reason-bin", "YWJjY")], "must be base64"),
        (over_http, [("leadkeep-reason-bin", "গ্রাহক".encode())], "must be base64"),
        (over_http, [("leadkeep-reason-bin", "YWJj"), ("leadkeep-reason-bin", "YWJj")], "must be base64"),
        (over_grpc, [("leadkeep-reason-bin", b"abc"), ("leadkeep-reason-bin", b"abc")], "must be base64"),
        (over_grpc, [("leadkeep-reason-bin", b"x" * 501)], "is too long"),
        (over_grpc, [("leadkeep-reason-bin", b"a\x00b")], "contains the control character"),
    ],
)
def test_what_cannot_be_read_is_named_and_nothing_is_shown(
    ask: object, sent: object, told: str, service: RunningService, lead_id: str
) -> None:
    subject = str(uuid4())
    (violation,) = ask(service, lead_id, sent, subject)  # type: ignore[operator]
    assert violation.startswith(f"leadkeep-reason-bin {told}")
    assert recorded(service, subject) == []


def test_a_binary_reason_that_is_empty_is_none(service: RunningService, lead_id: str) -> None:
    subject = str(uuid4())
    assert over_grpc(service, lead_id, [("leadkeep-reason-bin", b" ")], subject) == []
    assert recorded(service, subject) == [None]


@pytest.mark.parametrize(
    ("reason", "refused_as"),
    [
        ("callback", None),
        ("callback: customer rang", None),
        ("callback: at 9: no answer", None),
        (None, "REASON_REQUIRED"),
        ("callback:", "REASON_NOT_ACCEPTED"),
        ("callback:rang", "REASON_NOT_ACCEPTED"),
        ("callbacks", "REASON_NOT_ACCEPTED"),
        ("callback customer", "REASON_NOT_ACCEPTED"),
        ("a callback", "REASON_NOT_ACCEPTED"),
        ("Callback", "REASON_NOT_ACCEPTED"),
        ("other", "REASON_NOT_ACCEPTED"),
    ],
)
def test_a_purpose_is_a_word_alone_or_before_a_text(reason: str | None, refused_as: str | None) -> None:
    rules = ReasonRules(ValidationService().text, purposes=("complaint", "callback"))
    fault = rules.fault_of(reason)
    assert (fault.reason if fault else None) == refused_as
    assert fault is None or fault.metadata == {"purposes": "complaint,callback"}


def test_without_purposes_any_reason_is_accepted() -> None:
    rules = ReasonRules(ValidationService().text, required=True)
    assert rules.fault_of("anything") is None
