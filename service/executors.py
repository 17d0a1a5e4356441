"""Executors: threads that the end of the process does not wait for, and worker processes of a long command.

Such a command reads, works and stores batch by batch; what is stored next is worked on meanwhile.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

MOST_WORKERS = 4
"""Processes of a pool, at most; else as many as there are cores."""

BATCHES_AHEAD = 4
"""Batches that are worked on while one is stored: two for each of two processes."""

P = ParamSpec("P")
T = TypeVar("T")
Batch = TypeVar("Batch")


class DaemonThreads(ThreadPoolExecutor):
    """A thread for each call, for calls that block and cannot be ended. Nothing that must be finished may run here.

    A look-up of a host name ends when the resolver gives up, after half a minute or more; Python waits for the threads
    of its own executors at the end. An event loop takes no other executors than descendants of this base class.
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a call in a thread of its own."""
        future = Future[T]()
        threading.Thread(target=_run, args=(future, partial(fn, *args, **kwargs)), daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for nobody."""


def _run(future: Future[T], call: Callable[[], T]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 # reported to whoever waits
            future.set_exception(error)


class WorkerPool(ProcessPoolExecutor):
    """Pool of processes that are spawned, not forked (the parent has threads); each first calls `begin(*given)`.

    They leave Ctrl-C to their parent. SIGINT is blocked while they start, so that it cannot end them before they
    ignore it.
    """

    def __init__(self, begin: Callable[..., None], *given: Any) -> None:
        super().__init__(
            max_workers=max(1, min(MOST_WORKERS, os.cpu_count() or 1)),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(begin, *given),
        )

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Start missing processes, and give one of them the work."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(begin: Callable[..., None], *given: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A worker whose parent was killed would wait for work for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    begin(*given)


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


async def worked_ahead(
    batches: AsyncIterator[Batch], begin: Callable[[Batch], Future[T]]
) -> AsyncIterator[tuple[Batch, T]]:
    """Each batch with the result of the work that `begin` starts on it, in their order, some of them ahead."""
    at_work: deque[tuple[Batch, Future[T]]] = deque()
    async for batch in batches:
        at_work.append((batch, begin(batch)))
        if len(at_work) > BATCHES_AHEAD:
            first, working = at_work.popleft()
            yield first, await asyncio.wrap_future(working)
    for batch, working in at_work:
        yield batch, await asyncio.wrap_future(working)
