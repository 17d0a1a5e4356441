"""A program in another language that makes calls for a test, on the client of its example."""

from __future__ import annotations

import itertools
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

from tests.harness.leads import somebody
from tests.interop.build import Language, environment


@dataclass(frozen=True)
class Answer:
    """How a call ended, and how many seconds it took."""

    code: str
    reason: str
    """Empty when the service did not answer."""
    lead_id: str
    seconds: float


class Client:
    """A running driver. Safe for use by many threads."""

    def __init__(self, language: Language, *options: str) -> None:
        self._numbers = itertools.count(1)
        self._waiting: dict[str, Future[Answer]] = {}
        self._began: dict[str, float] = {}
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            (*language.run_driver, *options),
            cwd=language.folder,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def create(self) -> Future[Answer]:
        """Begin to save a lead of a new person."""
        lead = somebody()
        return self._ask(f"create {lead.phone} {lead.nid}")

    def read(self, lead_id: str) -> Future[Answer]:
        """Begin to read a lead, masked."""
        return self._ask(f"read {lead_id}")

    def close(self) -> None:
        """End it, when its calls have ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(timeout=60) == 0
        self._reader.join()

    def _ask(self, words: str) -> Future[Answer]:
        assert self._process.stdin is not None
        answer: Future[Answer] = Future()
        with self._lock:
            number = str(next(self._numbers))
            self._waiting[number] = answer
            self._began[number] = time.monotonic()
            self._process.stdin.write(f"{number} {words}\n")
            self._process.stdin.flush()
        return answer

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            number, code, reason, lead_id = line.rstrip("\n").split(" ")
            seconds = time.monotonic() - self._began[number]
            self._waiting.pop(number).set_result(Answer(code, reason.strip("-"), lead_id.strip("-"), seconds))
        for answer in [*self._waiting.values()]:
            answer.set_exception(AssertionError("the driver ended"))


@contextmanager
def running(language: Language, options: Sequence[str]) -> Iterator[Client]:
    """A client that has made its first call, so that its code is loaded and its connection is open."""
    client = Client(language, *options)
    try:
        first = client.create().result(timeout=60)
        assert first.code == "OK", first
        yield client
    finally:
        client.close()
