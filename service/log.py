"""Logging of the process: one JSON object a line on standard error, without any value of a customer's field.

Our own lines hold names, ids and numbers. Lines of libraries are reduced to their template and the type of their
exception: what a library puts into a message may come from a request or a row.

A log that cannot be written costs lines, and no call: on a full disk, when its reader has ended, and when its reader
does not read. How many were lost stands in the next line that can be written.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import threading
from datetime import UTC, datetime
from functools import lru_cache
from typing import TextIO, cast

import structlog
import structlog.typing
from pydantic_core import PydanticSerializationError, to_json


def _as_json(event: structlog.typing.EventDict, **_: object) -> str:
    """By pydantic-core: every call writes a line, and the standard library takes 4 µs more (docs/performance.md)."""
    try:
        return to_json(event, fallback=repr).decode()
    except PydanticSerializationError:
        # The name of a file need not be UTF-8.
        return json.dumps(event, default=repr)


_PROCESSORS: tuple[structlog.typing.Processor, ...] = (
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.JSONRenderer(serializer=_as_json),
)


STALLED_SECONDS = 0.5
"""How long a reader that does not read is waited for, once; after that lines are lost until it reads again."""


class LogStream:
    """A stream of lines that never fails and never blocks for long: a line that cannot be written is lost."""

    def __init__(self, stream: TextIO) -> None:
        self.lost = 0
        """Lines that could not be written since the start."""
        self._noted = 0
        """Those of them that a line in the log reports."""
        self._is_torn = False
        """Whether the last line was written in part."""
        self._stalled = False
        self._stream = stream
        self._lock = threading.Lock()
        self._file: int | None = None
        try:
            self._file = stream.fileno()
        except OSError:  # it is no file
            return
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLOUT)

    def write(self, line: str) -> None:
        """Write a whole line, its end included."""
        with self._lock:
            lost = self.lost
            if lost > self._noted:
                line = _lost_line(lost - self._noted) + line
            try:
                self._put(line)
            except (OSError, ValueError):  # ValueError: it is closed
                self.lost += 1
            else:
                self._noted = lost

    def flush(self) -> None:
        """Do nothing: nothing is kept back."""

    def _put(self, line: str) -> None:
        if self._file is None:
            self._stream.write(line)
            return
        left = memoryview((("\n" if self._is_torn else "") + line).encode(errors="backslashreplace"))
        while left:
            self._await_room()
            # No more than a pipe that takes anything takes at once.
            left = left[os.write(self._file, left[: select.PIPE_BUF]) :]
            self._is_torn = bool(left)

    def _await_room(self) -> None:
        """Raise TimeoutError when the reader does not read. Errors of the file are left to the write."""
        if self._poll.poll(0 if self._stalled else STALLED_SECONDS * 1000):
            self._stalled = False
            return
        self._stalled = True
        raise TimeoutError


def _lost_line(lines: int) -> str:
    line = {"event": "log lines were lost", "lines": lines, "level": "error"}
    return json.dumps(line | {"timestamp": datetime.now(UTC).isoformat()}) + "\n"


_stream_of = lru_cache(maxsize=1)(LogStream)


def log_stream() -> LogStream:
    """The log of this process: its standard error."""
    return _stream_of(sys.stderr)


def _log_file() -> TextIO:
    return cast("TextIO", log_stream())  # loggers write and flush it, and no more


def configure_logging(level: str) -> None:
    """Set logging up for the whole process; `level` is debug, info, warning or error."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=list(_PROCESSORS),
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(_log_file()),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(log_stream())
    handler.setFormatter(_TemplateFormatter())
    # Libraries log from "warning" on, whatever our own level: at "debug" some print what they send.
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[handler], force=True)
    # backoff prints the exception's text; every retry is logged by us.
    logging.getLogger("backoff").disabled = True


def log_whatever_the_level(event: str, **values: object) -> None:
    """Write a log line at any level setting: it is evidence."""
    structlog.wrap_logger(
        structlog.WriteLogger(_log_file()), processors=_PROCESSORS, wrapper_class=structlog.stdlib.BoundLogger
    ).info(event, **values)


class _TemplateFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "event": "library",
            "logger": record.name,
            "template": str(record.msg) if record.args else "",
            "at": f"{record.module}:{record.lineno}",
            "error": record.exc_info[0].__qualname__ if record.exc_info and record.exc_info[0] else None,
            "level": record.levelname.lower(),
            "timestamp": datetime.now(UTC).isoformat(),
        }
        return json.dumps(line)
