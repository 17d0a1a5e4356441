from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bench.contenders import contender_d
from bench.generator import run
from bench.load.plan import Requests
from bench.operations import Operation


def test_it_counts_what_a_real_grpc_server_answers_and_refuses(tmp_path: Path) -> None:
    with contender_d(tmp_path) as empty:
        load = empty.load(Operation.CREATE, callers=20, calls=300, seconds=20)
        answered = run(load)
        assert len(answered.latencies) >= 300
        assert answered.failures == 0
        assert answered.next_start == len(answered.latencies)
        # What cannot be read as a message is refused with a status and no message.
        refused = run(replace(load, requests=Requests(templates=(b"\xff\xff",)), calls=50))
        assert refused.latencies == []
        assert refused.failures >= 50


def test_an_open_loop_keeps_its_rate(tmp_path: Path) -> None:
    with contender_d(tmp_path) as empty:
        result = run(empty.load(Operation.GET, callers=8, seconds=2.0, rate=40.0))
    assert 40 < len(result.latencies) < 120
    assert result.failures == 0
