"""Goodput beyond the capacity: `python -m tests.faults.overload [SECONDS]`, 60 seconds of each load by default.

Capacity is what 128 callers who wait for their answers get through nginx. Then calls come once, twice and three times
as often, whoever waits. Good is what is answered within five seconds with a lead. The load generator is bench/load: it
costs 0.1 ms a call, and shares the machine with what it measures.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bench import generator
from bench.contenders import Contender, leadkeep_on_postgres, leadkeep_over_grpc
from bench.load.plan import Result
from bench.operations import Operation
from tests.harness.nginx import Nginx

CALLERS = 128
CAPACITY_SECONDS = 10.0
TIMES = (1, 2, 3)
PATIENCE = 5
"""Seconds."""

LEAST = 0.6
"""Of the capacity, at three times of it."""


def main(seconds: float) -> bool:
    """Whether the goodput stays."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        Path(folder).chmod(0o755)  # nginx's workers are another user
        service, postgres = stack.enter_context(leadkeep_on_postgres(Path(folder) / "service"))
        (Path(folder) / "nginx").mkdir()
        nginx = stack.enter_context(Nginx(Path(folder) / "nginx", service.grpc_address, service.http_address))
        contender = leadkeep_over_grpc(service, postgres, ids=())
        contender.address = nginx.grpc_address
        _run(contender, 2.0)
        goodput = capacity = 0.0
        for times in TIMES:
            # Measured anew, because a machine that others use has another one a minute later.
            capacity = _good(_run(contender, CAPACITY_SECONDS), CAPACITY_SECONDS)
            result = _run(contender, seconds, rate=times * capacity)
            goodput = _good(result, seconds)
            within = sorted(each for each in result.latencies if each <= PATIENCE) or [0.0]
            _print(
                f"{times} x {capacity:.0f}/s: goodput {goodput:.0f}/s, {100 * goodput / capacity:.0f} %, p99 "
                f"{within[len(within) * 99 // 100] * 1000:.0f} ms, {result.failures} without a lead, generator "
                f"{result.generator_seconds / result.seconds:.2f} CPU"
            )
            time.sleep(2)
        return goodput >= LEAST * capacity


def _run(contender: Contender, seconds: float, rate: float | None = None) -> Result:
    load = contender.load(Operation.CREATE, callers=CALLERS, seconds=seconds, rate=rate)
    headers = tuple((name, b"%dS" % PATIENCE if name == b"grpc-timeout" else value) for name, value in load.headers)
    result = generator.run(replace(load, headers=headers))
    contender.starts[Operation.CREATE] = result.next_start
    return result


def _good(result: Result, seconds: float) -> float:
    return sum(each <= PATIENCE for each in result.latencies) / seconds


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(not main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0))
