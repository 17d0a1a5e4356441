"""Every rpc by plain JSON, sent by curl: the examples of the OpenAPI document work, and the answers are as it says."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from jsonschema import Draft202012Validator
from leadkeep.v1 import lead_service_pb2 as pb

from service.http.endpoint import DOCUMENT
from tests.harness.running_service import RunningService
from tests.rpc.showing import CONFLICT_WITH, RPCS, requests_for

SERVED: dict[str, Any] = json.loads(DOCUMENT.read_text())
PATHS = [path for path in SERVED["paths"] if "LeadService/" in path or "Health/" in path]
EXAMPLE_ID = "01989f6e-7c1a-7d3e-9b52-0a1b2c3d4e5f"

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")


def curl(service: RunningService, path: str, body: object) -> tuple[int, Any]:
    """The status and the answer of a call."""
    headers = ("-H", f"authorization: Bearer {service.token()}", "-H", "content-type: application/json")
    command = ("curl", "-sS", "--max-time", "60", "-w", "\n%{http_code}", *headers, "-d", "@-", service.http_url + path)
    done = subprocess.run(command, input=json.dumps(body), capture_output=True, text=True, timeout=90, check=True)
    answer, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(answer)


def fits(path: str, status: int, answer: object) -> None:
    """An answer is as the document says."""
    described = SERVED["paths"][path]["post"]["responses"][str(status)]
    if "$ref" in described:
        described = SERVED["components"]["responses"][described["$ref"].rpartition("/")[2]]
    (content,) = described["content"].values()
    Draft202012Validator({**SERVED, **content["schema"]}).validate(answer)


def example(path: str, lead_id: str) -> Any:
    content = SERVED["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    shown_id = CONFLICT_WITH[lead_id] if path.endswith("/ResolveConflict") else lead_id
    return json.loads(json.dumps(content["example"]).replace(EXAMPLE_ID, shown_id))


@pytest.mark.parametrize("path", [path for path in PATHS if "Erase" not in path])
def test_an_example_is_answered_as_described(service: RunningService, lead_id: str, path: str) -> None:
    status, answer = curl(service, path, example(path, lead_id))
    fits(path, status, answer)
    # No conversation has the example's id.
    assert (status, answer.get("code")) in ((200, None), (404, "not_found"))[: 2 if "Conversation" in path else 1]


@pytest.mark.parametrize("rpc", RPCS)
def test_an_answer_that_shows_most_is_as_described(
    service: RunningService, person: pb.Lead, lead_id: str, rpc: str
) -> None:
    request = requests_for(rpc, lead_id, person)
    path = f"/leadkeep.v1.LeadService/{rpc}"
    status, answer = curl(service, path, MessageToDict(request, preserving_proto_field_name=True))
    fits(path, status, answer)
    assert status == (404 if rpc == "EraseLead" else 200), answer


@pytest.mark.parametrize("path", PATHS)
def test_an_error_is_as_described(service: RunningService, path: str) -> None:
    status, answer = curl(service, path, {"no_such_field": 1})
    fits(path, status, answer)
    assert status == 400
