"""How an operator writes a length of time: `30s`, `15m`, `1h`, `7d`."""

from __future__ import annotations

import re
from datetime import timedelta

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_LONGEST = timedelta(days=3650)
"""Ten years: longer is a typing error."""


def duration(text: str) -> timedelta:
    """Read a length of time. Raises ValueError that says how to write one."""
    match = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", text.strip())
    if not match:
        raise ValueError("write a number and a unit: 30s, 15m, 1h, 7d")
    length = timedelta(**{_UNITS[match[2]]: int(match[1])})
    if length > _LONGEST:
        raise ValueError("must not be longer than 3650d")
    return length
