"""Threads for calls that block and cannot be ended, which the end of the process does not wait for.

A look-up of a host name ends when the resolver gives up, after half a minute or more; Python waits for the threads of
its own executors at the end. Nothing that must be finished may run here.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Thread
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DaemonThreads(ThreadPoolExecutor):
    """A thread for each call. An event loop takes no other executors than descendants of this base class."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a call in a thread of its own."""
        future = Future[T]()
        Thread(target=_run, args=(future, partial(fn, *args, **kwargs)), daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for nobody."""


def _run(future: Future[T], call: Callable[[], T]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 # reported to whoever waits
            future.set_exception(error)
