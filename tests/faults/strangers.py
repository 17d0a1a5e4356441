"""What strangers cost: `python -m tests.faults.strangers [SECONDS] [KIND…]`, 60 seconds of each kind by default.

The service has 512 MB. Strangers hold what they can (tests/harness/strangers.py), first from an address of their own,
then through the same nginx as the honest caller. Meanwhile an honest caller creates leads over gRPC and HTTP, on
connections that it has and on new ones, and a probe asks for /healthz at LEADKEEP_OPS_ADDRESS. Both are compared with
the same without strangers.
"""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
from google.protobuf.json_format import MessageToDict
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import lead_service_pb2_grpc

from tests.harness.leads import somebody
from tests.harness.nginx import Nginx
from tests.harness.policy import RETRY_POLICY
from tests.harness.postgres import TestServer, own_postgres
from tests.harness.processes import family, resident_megabytes
from tests.harness.running_service import RunningService
from tests.harness.strangers import kinds

MEMORY = 512 * 1024 * 1024
CGROUPS = Path("/sys/fs/cgroup/memory")
OWN_CONNECTIONS = ("grpc.use_local_subchannel_pool", 1)


@dataclass
class Seen:
    """What the honest caller and the probe saw."""

    milliseconds: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    probes: Counter[str] = field(default_factory=Counter)
    megabytes: float = 0.0

    @property
    def p99(self) -> float:
        """Milliseconds that 99 of 100 calls of the honest caller take at most."""
        return sorted(self.milliseconds)[math.ceil(len(self.milliseconds) * 0.99) - 1]


@dataclass(frozen=True)
class Target:
    """Where callers call, and the service behind it."""

    service: RunningService
    grpc: str
    http: str
    probe_seconds: float = 2.0

    async def watch(self, seconds: float) -> Seen:
        """Call honestly for so long, and see what comes back."""
        seen = Seen()
        metadata = self.service.metadata("chatbot")
        options = [("grpc.service_config", RETRY_POLICY), ("grpc.enable_retries", 1), OWN_CONNECTIONS]
        async with grpc.aio.insecure_channel(self.grpc, options=options) as channel:
            stub = lead_service_pb2_grpc.LeadServiceStub(channel)

            async def on_the_same() -> None:
                await stub.CreateLead(pb.CreateLeadRequest(lead=somebody()), metadata=metadata, timeout=15)

            async def on_a_new_one() -> None:
                async with grpc.aio.insecure_channel(self.grpc, options=options) as another:
                    called = lead_service_pb2_grpc.LeadServiceStub(another)
                    await called.CreateLead(pb.CreateLeadRequest(lead=somebody()), metadata=metadata, timeout=15)

            async def at_http() -> None:
                headers = dict(metadata)
                lead = MessageToDict(somebody(), preserving_proto_field_name=True)
                async with httpx.AsyncClient(timeout=15) as client:
                    answer = await client.post(f"http://{self.http}/api/leads", json=lead, headers=headers)
                answer.raise_for_status()

            async with asyncio.TaskGroup() as callers:
                callers.create_task(_every(0.05, seconds, _timed(seen, on_the_same)))
                callers.create_task(_every(0.5, seconds, _timed(seen, on_a_new_one)))
                callers.create_task(_every(0.25, seconds, _timed(seen, at_http)))
                callers.create_task(_every(0.2, seconds, lambda: self._probe(seen)))
        return seen

    async def _probe(self, seen: Seen) -> None:
        assert self.service.process is not None
        with suppress(FileNotFoundError, ProcessLookupError):
            used = sum(resident_megabytes(pid) for pid in family(self.service.process.pid)[:1])
            seen.megabytes = max(seen.megabytes, used)
        try:
            async with httpx.AsyncClient(timeout=self.probe_seconds) as client:
                answer = await client.get(f"{self.service.ops_url}/healthz")
            seen.probes[str(answer.status_code)] += 1
        except httpx.HTTPError as error:
            seen.probes[type(error).__name__] += 1


def _timed(seen: Seen, call: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    async def timed() -> None:
        began = time.monotonic()
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            seen.failures[error.code().name] += 1
        except httpx.HTTPError as error:
            seen.failures[type(error).__name__] += 1
        seen.milliseconds.append((time.monotonic() - began) * 1000)

    return timed


async def _every(wait: float, seconds: float, call: Callable[[], Awaitable[None]]) -> None:
    """Begin it so often, whether the one before has ended or not."""
    end = time.monotonic() + seconds
    async with asyncio.TaskGroup() as calls:
        while time.monotonic() < end:
            calls.create_task(call())  # type: ignore[arg-type] # each is a coroutine
            await asyncio.sleep(wait)


@asynccontextmanager
async def strangers(kind: str, target: Target, seconds: float) -> AsyncIterator[list[str]]:
    """Strangers of a kind, in a process of their own; what they print is there at the end."""
    printed: list[str] = []
    token = target.service.token("chatbot")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.harness.strangers", kind, target.grpc, target.http, str(seconds), token),
        stdout=subprocess.PIPE,
    )
    try:
        yield printed
        out, _ = await process.communicate()
        printed.append(out.decode().strip())
    finally:
        if process.returncode is None:
            process.kill()


@contextmanager
def memory_limit(limit: int) -> Iterator[bool]:
    """Hold the processes that are started inside to so much memory; gives False where that is not possible."""
    folder = CGROUPS / f"leadkeep-{os.getpid()}"
    # A process that moves leaves its memory where it was charged, so this one can go in and out again.
    (own,) = [line for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line] or [""]
    try:
        folder.mkdir(exist_ok=True)
        (folder / "memory.limit_in_bytes").write_text(str(limit))
        (folder / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        (CGROUPS / own.rpartition(":")[2].lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))


async def trial(kind: str, target: Target, seconds: float) -> bool:
    """One kind against one target; prints a row, and returns whether the promises were kept."""
    alone = await target.watch(max(5.0, seconds / 2))
    async with strangers(kind, target, seconds + 2) as printed:
        await asyncio.sleep(2)
        seen = await target.watch(seconds)
    assert target.service.process is not None
    lives = target.service.process.poll() is None
    kept = lives and set(seen.probes) == {"200"} and not seen.failures and seen.p99 <= 3 * alone.p99
    _print(
        f"{'kept' if kept else 'BROKEN':7}{kind:24}{printed[0] if printed else '':40}"
        f"p99 {alone.p99:.0f} -> {seen.p99:.0f} ms, {len(seen.milliseconds)} calls, failed "
        f"{dict(seen.failures) or 0}, "
        f"healthz {dict(alone.probes)} -> {dict(seen.probes)}, {seen.megabytes:.0f} MB{'' if lives else ', DEAD'}"
    )
    return kept


def one_kind(kind: str, server: TestServer, folder: Path, seconds: float, *, through_nginx: bool) -> bool:
    """A service of its own besieged by one kind; returns whether the promises were kept."""
    database = server.fresh_database()
    service = RunningService(
        folder / f"{kind}-{through_nginx}".replace(" ", "-"),
        database_url=database.serve_url,
        settings={"LEADKEEP_OPS_ADDRESS": "127.0.0.1:0", "LEADKEEP_LOG_LEVEL": "warning"},
    )
    with memory_limit(MEMORY) as limited:
        service.start(forked=False)
    if not limited:
        _print("memory cannot be limited here: it is measured alone")
    try:
        target = Target(service, service.grpc_address, service.http_address)
        with ExitStack() as stack:
            if through_nginx:
                nginx = stack.enter_context(Nginx(folder, service.grpc_address, service.http_address))
                target = Target(service, nginx.grpc_address, nginx.http_address)
            return asyncio.run(trial(kind, target, seconds))
    finally:
        service.stop()
        server.drop(database)


def main(seconds: float, chosen: Sequence[str]) -> bool:
    """Every kind, directly and through nginx."""
    kept = True
    with own_postgres() as server, tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # nginx's workers are another user
        for through_nginx in (False, True):
            _print(f"{'through one nginx' if through_nginx else 'from 127.0.0.2'}, {seconds:g} s each:")
            for kind in chosen:
                kept &= one_kind(kind, server, Path(folder), seconds, through_nginx=through_nginx)
    return kept


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    chosen = [kind for kind in kinds() if kind in sys.argv[2:] or not sys.argv[2:]]
    sys.exit(not main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0, chosen))
