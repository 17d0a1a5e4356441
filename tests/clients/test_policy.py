"""clients/policy: what the service decides, as data for clients in any language."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from google.rpc import code_pb2

from clients.policy.generate import GENERATED, reasons
from service.errors import Reason
from service.rpc.call import SERVICE
from service.rpc.server import OPTIONS
from service.rpc.status import REASONS
from tests.harness.policy import CHANNEL, RETRY_POLICY

ROOT = Path(__file__).parents[2]

METHODS: list[dict[str, Any]] = json.loads(RETRY_POLICY)["methodConfig"]


def test_the_reasons_are_those_of_the_service() -> None:
    assert GENERATED.read_text() == reasons(), "run `make generate`"


def test_every_reason_is_there_with_what_a_program_decides_by() -> None:
    rows = {row["reason"]: row for row in json.loads(GENERATED.read_text())["reasons"]}
    assert rows.keys() == set(get_args(Reason))
    assert rows["STORAGE_UNAVAILABLE"] == {
        "reason": "STORAGE_UNAVAILABLE",
        "code": "UNAVAILABLE",
        "http": 503,
        "repeat": True,
        "metadata": [],
    }


def documented() -> Iterator[tuple[str, str, str]]:
    """Reason, status and advice of each row of the table of errors in docs/clients.md."""
    table = (ROOT / "docs/clients.md").read_text().partition("## Errors")[2].partition("### ")[0]
    for reasons_, status, advice in re.findall(r"^\| ([A-Z_, ]+) \| ([A-Z_]+) \| (.+) \|$", table, re.M):
        for reason in reasons_.split(", "):
            yield reason, status, advice


def test_the_documented_errors_are_those_of_the_service() -> None:
    rows = {reason: status for reason, status, _ in documented()}
    assert rows == {reason: code_pb2.Code.Name(rule.code) for reason, rule in REASONS.items()}


def test_the_documented_errors_name_their_metadata() -> None:
    for reason, _, advice in documented():
        missing = [name for name in REASONS[reason].metadata if f"`{name}`" not in advice]  # type: ignore[index] # compared above
        assert not missing, reason


def test_the_contract_names_every_reason() -> None:
    source = (ROOT / "protos/leadkeep/v1/lead_service.proto").read_text()
    comments = set(re.findall(r"[A-Z]+(?:_[A-Z]+)+", " ".join(re.findall(r"//(.*)", source))))
    assert set(REASONS) - comments <= {"INTERNAL"}, "one word: it is looked for below"
    assert re.search(r"// +INTERNAL +INTERNAL \(", source)


def test_every_method_waits_for_a_connection_and_is_repeated() -> None:
    names = [name for config in METHODS for name in config["name"]]
    assert {name["service"] for name in names} == {SERVICE.full_name}
    assert {name["method"] for name in names if "method" in name} <= {method.name for method in SERVICE.methods}
    assert {"service": SERVICE.full_name} in names, "every other method"
    assert [config["waitForReady"] for config in METHODS] == [True] * len(METHODS)
    assert all({"UNAVAILABLE", "UNKNOWN"} <= {*config["retryPolicy"]["retryableStatusCodes"]} for config in METHODS)


def test_a_status_that_says_that_nobody_answered_is_none_of_the_service() -> None:
    assert code_pb2.UNKNOWN not in {rule.code for rule in REASONS.values()}


@pytest.mark.parametrize("language", CHANNEL)
def test_keepalive_keeps_to_what_the_server_permits(language: str) -> None:
    permitted = dict(OPTIONS)["grpc.http2.min_ping_interval_without_data_ms"] / 1000
    settings = CHANNEL[language]
    match language:
        case "go":
            seconds = float(settings["keepalive.ClientParameters"]["Time"].removesuffix("s"))
        case "java":
            seconds = float(settings["keepAliveTime"].removesuffix("s"))
        case _:
            seconds = settings["grpc.keepalive_time_ms"] / 1000
    # A ping that comes early by a moment counts as one too many.
    assert seconds >= permitted * 1.2
