"""Text that others wrote, as it may be printed in a line of a terminal, a table or an error."""

from __future__ import annotations

import re

_MOVES = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, of which a terminal makes commands and lines; what reorders a line; what no encoding has."""


def printable(text: str, *, kept: str = "") -> str:
    """The text in one line that shows what it holds: control characters are escaped as in JSON, but those `kept`."""
    return _MOVES.sub(lambda found: found[0] if found[0] in kept else f"\\u{ord(found[0]):04x}", text)
