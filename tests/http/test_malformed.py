from __future__ import annotations

import logging
import random

import pytest

from service.http.endpoint import HttpEndpoint
from tests.faults.malformed_http import CANARY, send_all


async def test_hundreds_of_malformed_requests_meet_no_fault_and_get_no_value_back(
    endpoint: HttpEndpoint, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    statuses, faults = await send_all(endpoint.port, "admin", 400, random.Random(22))
    assert faults == []
    assert set(statuses) - {"200", "204", "none"}, "nothing was refused"
    assert CANARY not in caplog.text + capsys.readouterr().out
