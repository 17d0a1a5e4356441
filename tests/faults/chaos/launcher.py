"""A process without grpc, in which PostgreSQL's programs are started.

They are started by a fork, to change the user, and a fork of a process in which grpc's threads are at work can crash.
What is started in this process ends with it.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType
from typing import TypeVar, cast

T = TypeVar("T")


class Launcher:
    """Runs functions of modules, one after the other, in the main thread of its process; their state stays there."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pipe.close()
        self._process.join()

    def run(self, work: Callable[..., T], *arguments: object) -> T:
        """What it returns or raises over there."""
        self._pipe.send((work, arguments))
        answer = self._pipe.recv()
        if isinstance(answer, BaseException):
            raise answer
        return cast("T", answer)


def _work(pipe: Connection) -> None:
    while True:
        try:
            work, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = work(*arguments)
        except Exception as error:  # noqa: BLE001 # raised again where the work was asked for
            error.add_note(traceback.format_exc())
            answer = error
        pipe.send(answer)
