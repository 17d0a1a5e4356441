"""Logging of the process: one JSON object a line on standard error, without any value of a customer's field.

Our own lines hold names, ids and numbers. Lines of libraries are reduced to their template and the type of their
exception: what a library puts into a message may come from a request or a row.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

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


def configure_logging(level: str) -> None:
    """Set logging up for the whole process; `level` is debug, info, warning or error."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=list(_PROCESSORS),
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_TemplateFormatter())
    # Libraries log from "warning" on, whatever our own level: at "debug" some print what they send.
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[handler], force=True)
    # backoff prints the exception's text; every retry is logged by us.
    logging.getLogger("backoff").disabled = True


def log_whatever_the_level(event: str, **values: object) -> None:
    """Write a log line at any level setting: it is evidence."""
    structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr), processors=_PROCESSORS, wrapper_class=structlog.stdlib.BoundLogger
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
