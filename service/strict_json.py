"""Strict JSON reader for documents that somebody else may have written: files, keyrings, manifests."""

from __future__ import annotations

import json
from typing import Any


def parse(document: str | bytes) -> Any:
    """The value of a JSON document. Raises ValueError, whose text holds nothing of the document.

    Also refused: a name that stands twice in one object, of which another reader may take the other value; NaN and
    Infinity, which are no JSON; and nesting beyond what Python reads.
    """
    try:
        return _DECODER.decode(document if isinstance(document, str) else document.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON, or a name stands twice in it") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError
    return made


def _no_constant(_name: str) -> Any:
    raise ValueError


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)
