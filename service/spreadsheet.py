"""Cells that a spreadsheet would take for a formula are made harmless, and made whole again when they come back.

Source: OWASP, CSV Injection: a cell that begins with one of these characters may be executed, so it is prefixed with an
apostrophe. A cell that begins with an apostrophe gets another one, so that `restored` undoes it exactly.
"""

from __future__ import annotations

DANGEROUS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""The full-width forms too: some spreadsheets read them as the plain ones."""

_QUOTE = "'"


def neutralised(cell: str) -> str:
    """The cell as it may be opened in a spreadsheet."""
    begins = cell.lstrip(" ")
    return _QUOTE + cell if begins.startswith((*DANGEROUS, _QUOTE)) else cell


def restored(cell: str) -> str:
    """What `neutralised` was given. A cell that it never changed stays as it is."""
    if not cell.startswith(_QUOTE):
        return cell
    behind = cell[1:]
    return behind if behind.lstrip(" ").startswith((*DANGEROUS, _QUOTE)) else cell
