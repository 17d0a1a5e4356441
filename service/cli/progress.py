"""How far a long command is: a line on a terminal that is written over, and silence in a pipe."""

from __future__ import annotations

import sys
import time

import typer

SHOW_SECONDS = 0.5
"""Seldom enough to be read, and to cost nothing."""


class ProgressLine:
    """The line, on standard error."""

    def __init__(self) -> None:
        self._shown_at = 0.0
        self._terminal = sys.stderr.isatty()

    def show(self, done: str) -> None:
        """Write it anew, unless it was just written."""
        now = time.monotonic()
        if self._terminal and now - self._shown_at > SHOW_SECONDS:
            self._shown_at = now
            typer.echo(f"\r\033[K{done} ", err=True, nl=False)

    def end(self) -> None:
        """Take it away."""
        if self._terminal and self._shown_at:
            typer.echo("\r\033[K", err=True, nl=False)
