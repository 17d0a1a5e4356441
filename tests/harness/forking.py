"""Processes of the service forked from one that has imported it: a new interpreter would import for seconds each time.

`python -m tests.harness.forking` waits at a socket, its standard input. It never imports anything for a test or runs
anything itself, so a fork of it is what a new interpreter is after its imports.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

REPO = Path(__file__).parents[2]
LONGEST_REQUEST = 200_000
NUMBER = struct.Struct("i")


class ForkedProcess:
    """A process that runs a module, with the part of `subprocess.Popen` that tests use."""

    def __init__(self, pid: int, end: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._end = end

    def poll(self) -> int | None:
        """Its exit code, as soon as it has ended."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(timeout=0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._end], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self.returncode = _read(self._end)
            os.close(self._end)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def fork(
    module: str, arguments: Sequence[str], *, environment: Mapping[str, str], folder: Path, out: int, err: int
) -> ForkedProcess:
    """Start `python -m module arguments` in this folder; standard input is empty."""
    request = json.dumps([module, arguments, dict(environment), str(folder)]).encode()
    assert len(request) < LONGEST_REQUEST
    end, their_end = os.pipe()
    try:
        socket.send_fds(_origin(), [request], [out, err, their_end])
    finally:
        os.close(their_end)
    return ForkedProcess(_read(end), end)


@cache
def _origin() -> socket.socket:
    """Our end of the socket of this process's origin of forks, which ends when it is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LONGEST_REQUEST)
    with theirs:
        # Nobody waits for it: it ends with this process.
        subprocess.Popen([sys.executable, "-m", __name__], cwd=REPO, stdin=theirs.fileno(), stdout=subprocess.DEVNULL)
    return ours


def _serve() -> tuple[str, list[str]]:
    """Fork whenever asked; returns, in each fork, the module to run and its arguments."""
    # As the entry point does before it imports anything.
    os.environ |= {"GRPC_ENABLE_FORK_SUPPORT": "0", "GRPC_VERBOSITY": "ERROR", "PYDANTIC_DISABLE_PLUGINS": "1"}
    import service

    for found in pkgutil.walk_packages(service.__path__, "service."):
        if not found.name.endswith((".__main__", ".env")) and ".versions." not in found.name:
            importlib.import_module(found.name)
    gc.freeze()  # a fork that collects would copy all that was imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for a fork
    with socket.socket(fileno=0) as asked:
        while True:
            request, streams, *_ = socket.recv_fds(asked, LONGEST_REQUEST, 3)
            if not request:
                os._exit(0)
            if os.fork() == 0:
                break
            for stream in streams:
                os.close(stream)
    out, err, end = streams
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _wait_for_a_fork(out, err, end)
    module, arguments, environment, folder = json.loads(request)
    os.dup2(out, 1)
    os.dup2(err, 2)
    for copied in streams:
        os.close(copied)
    assert os.open(os.devnull, os.O_RDONLY) == 0, "standard input takes the place of the socket"
    os.environ.clear()
    os.environ |= environment
    time.tzset()
    os.chdir(folder)
    return module, arguments


def _wait_for_a_fork(out: int, err: int, end: int) -> None:
    """Returns in the fork; its parent writes its process id and, when it has ended, its exit code."""
    pid = os.fork()
    if pid == 0:
        return
    os.close(out)
    os.close(err)
    os.write(end, NUMBER.pack(pid))
    _, status = os.waitpid(pid, 0)
    with suppress(BrokenPipeError):  # a run of tests that was ended does not ask any more
        os.write(end, NUMBER.pack(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _read(end: int) -> int:
    (number,) = NUMBER.unpack(os.read(end, NUMBER.size))
    return int(number)


if __name__ == "__main__":
    module, sys.argv[1:] = _serve()
    runpy.run_module(module, run_name="__main__", alter_sys=True)
