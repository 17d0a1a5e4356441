"""Search for what persons entered, in files that must not show it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.faults.chaos.history import MARKERS, NAME_MARKER, Content


def clear_values(files: Sequence[Path], persons: Iterable[int], *, names: bool = True) -> list[str]:
    """Where a phone, national ID, address, e-mail address, note, conversation id or name of these persons can be read.

    Without `names` these may stand there: they are kept in clear, by design.
    """
    words = re.compile("|".join(MARKERS + (NAME_MARKER,) * names).encode(), re.IGNORECASE)
    # Eleven digits: the end of a phone number, with or without its country code, and of a national ID.
    leads = (Content(number, number).lead() for number in persons)
    numbers = {value[-11:].encode() for lead in leads for value in (lead.phone, lead.nid)}
    found = []
    for path in files:
        content = path.read_bytes()
        found += [f"{match[0].decode()} stands in {path.name}" for match in words.finditer(content)]
        found += [f"a number stands in {path.name}" for digits in _elevens(content) if digits in numbers]
    return found


def _elevens(content: bytes) -> Iterator[bytes]:
    for run in re.finditer(rb"\d{11,}", content):
        yield from (run[0][at : at + 11] for at in range(len(run[0]) - 10))
