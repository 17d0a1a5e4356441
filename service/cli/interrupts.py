"""A command that was told to end undoes what it has begun, whoever told it so."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM is like Ctrl-C: the block is left by KeyboardInterrupt, cleans up, and the command ends with 130."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
