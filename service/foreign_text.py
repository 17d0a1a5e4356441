"""Text that others wrote: strict JSON reader for requests, files, keyrings, manifests; printable form of any text."""

from __future__ import annotations

import json
import re
from typing import Any


class _RefusedError(ValueError):
    """JSON that readers understand differently, or that is none."""


def parse_json(document: str | bytes) -> Any:
    """The value of a JSON document. Raises ValueError, whose text ("it …") holds nothing of the document.

    Also refused: a name that stands twice in one object, of which another reader may take the other value; NaN and
    Infinity, which are no JSON; and nesting beyond what Python reads. A byte order mark is passed over (RFC 8259 allows
    that), because some programs write one.
    """
    try:
        return _DECODER.decode(document if isinstance(document, str) else document.decode("utf-8-sig"))
    except _RefusedError as refused:
        fault = str(refused)
    except RecursionError:
        fault = "it is nested too deeply"
    except ValueError:
        # Not UTF-8, not JSON, or a number of thousands of digits.
        fault = "it is not JSON in UTF-8 (RFC 8259)"
    raise ValueError(fault)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _RefusedError("it has a name twice in one object")
    return made


def _no_constant(_name: str) -> Any:
    raise _RefusedError("it holds NaN or Infinity, which JSON does not have")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)

_MOVES = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, of which a terminal makes commands and lines; what reorders a line; what no encoding has."""


def printable(text: str, *, kept: str = "") -> str:
    """The text in one line that shows what it holds: control characters are escaped as in JSON, but those `kept`."""
    return _MOVES.sub(lambda found: found[0] if found[0] in kept else f"\\u{ord(found[0]):04x}", text)
