"""A service whose log or standard output cannot be written, or that was started without standard streams.

Its calls are answered as ever, and it stops as ever.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.harness.faults import value_of
from tests.harness.ports import free_port
from tests.harness.postgres import TestDatabase
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService

CALLS = 30


@contextmanager
def a_pipe(*, read: bool) -> Iterator[int]:
    """Where a smallest pipe is written: its reader has ended, or does not `read`, or rather lives and sleeps."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    if not read:
        os.close(read_end)
    yield write_end
    os.close(write_end)
    if read:
        os.close(read_end)


@contextmanager
def serving(database: TestDatabase, folder: Path, redirections: str) -> Iterator[RunningService]:
    """A service that the shell starts with its streams redirected; {asleep} and {ended} are pipes that nobody reads."""
    with ExitStack() as ending:
        asleep, ended = (ending.enter_context(a_pipe(read=lives)) for lives in (True, False))
        service = RunningService(folder / "leadkeep", database_url=database.serve_url)
        service.grpc_address, service.http_address = (f"127.0.0.1:{free_port()}" for _ in range(2))
        service.http_scheme = "http"
        service.environment |= {
            "LEADKEEP_GRPC_ADDRESS": service.grpc_address,
            "LEADKEEP_HTTP_ADDRESS": service.http_address,
        }
        command = f"exec {sys.executable} -m service serve {redirections.format(asleep=asleep, ended=ended)}"
        with service.log_path.open("wb") as log:
            service.process = subprocess.Popen(
                ["bash", "-c", command],
                env=service.environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(asleep, ended),
            )
        try:
            yield service
        finally:
            # Shown beside a failure.
            print(f"it had ended with {service.process.poll()}: {service.log()[-2000:]}")  # noqa: T201
            if service.process.poll() is None:
                service.kill()


@pytest.mark.parametrize(
    "redirections",
    [
        "2>/dev/full",
        ">/dev/full",
        "2>&{ended}",
        ">&{ended}",
        "2>&{asleep}",
        "<&-",
        ">&-",
        "2>&-",
        "<&- >&- 2>&-",
    ],
)
def test_streams_that_take_nothing_cost_no_call_and_no_clean_stop(
    database: TestDatabase, tmp_path: Path, redirections: str
) -> None:
    with serving(database, tmp_path, redirections) as service:

        def is_well() -> bool:
            with suppress(httpx.HTTPError):
                return service.is_well
            return False

        assert eventually(is_well, within=120), service.log()
        states = {service.create(request_id=str(number)).state for number in range(CALLS)}
        assert states == {1}
        assert value_of(database.admin_url, "SELECT count(*) FROM lead") == CALLS
        assert is_well()
        if redirections.startswith("2>") and redirections != "2>&-":
            assert service.metric("leadkeep_log_lines_lost") > 0
        assert service.process is not None
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(30) == 0, service.log()
        assert value_of(database.admin_url, "SELECT string_agg(state, '') FROM replica") == "stopped"
