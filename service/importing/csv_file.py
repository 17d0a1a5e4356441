"""Rows of a CSV file, one at a time. A row that cannot be read costs only itself.

A record ends with the line on which its quotes are closed (RFC 4180); a quote inside a cell that does not begin with
one is a character like others, such as an inch. If quotes are never closed, or only by those of a row further down,
the first line is reported as faulty, and reading goes on with the second.

Cells that a spreadsheet would take for a formula are made harmless in what we write (OWASP, CSV Injection: a cell that
begins with one of these characters may be executed), and restored when they are imported again.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TextIO

from service.importing.columns import ignored, require_all, resolve
from service.importing.source import NOT_UNICODE, ImportRefusedError, Row, is_unicode
from service.lead import REQUIRED_FIELDS

LONGEST_RECORD = 100_000
"""Characters. The longest lead has 6,000; a quote that is not closed must not swallow the file."""

_SHOWN = 1000  # characters of a record that is too long, for the file of rejects

DANGEROUS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""The full-width forms too: some spreadsheets read them as the plain ones."""

_QUOTE = "'"

csv.field_size_limit(LONGEST_RECORD)


def neutralised(cell: str) -> str:
    """The cell as it may be opened in a spreadsheet: an apostrophe before what is dangerous, or begins with one."""
    begins = cell.lstrip(" ")
    return _QUOTE + cell if begins.startswith((*DANGEROUS, _QUOTE)) else cell


def restored(cell: str) -> str:
    """What `neutralised` was given. A cell that it never changed stays as it is."""
    behind = cell.removeprefix(_QUOTE)
    return behind if neutralised(behind) == cell else cell


class CsvFile:
    """A CSV file with a header. Raises ImportRefusedError when it cannot be imported at all."""

    def __init__(self, path: Path, mapping: Mapping[str, str], required: Collection[str] = REQUIRED_FIELDS) -> None:
        self._path = path
        with self._opened() as file:
            header = next((record for record in _records(file) if record.text.strip()), None)
        if header is None:
            raise ImportRefusedError(f"{path} is empty")
        self._header_line = header.number
        self.delimiter = max((",", ";", "\t"), key=header.text.count)
        cells = _cells(header.text, self.delimiter)
        if cells is None:
            raise ImportRefusedError(f"{path}: the quotes of its header are not closed")
        self.headers = [restored(cell.strip()) for cell in cells]
        self._fields = resolve(self.headers, mapping)
        require_all(required, self._fields, self.headers)
        self.ignored = ignored(self._fields, self.headers)

    def __iter__(self) -> Iterator[Row]:
        with self._opened() as file:
            for record in _records(file, self.delimiter, columns=len(self.headers)):
                if record.number > self._header_line and record.text.strip():
                    yield self._row(record)

    def _row(self, record: _Record) -> Row:
        cells = None if record.unclosed else _cells(record.text, self.delimiter)
        if cells is None:
            return Row(record.number, {}, [record.text.rstrip("\r\n")], "its quotes are not closed, or it is too long")
        if len(cells) != len(self.headers):
            fault = f"it has {len(cells)} cells, the header has {len(self.headers)}"
            return Row(record.number, {}, cells, fault)
        if not is_unicode(record.text):
            return Row(record.number, {}, cells, NOT_UNICODE)
        pairs = zip(self._fields, cells, strict=True)
        return Row(record.number, {field: restored(cell) for field, cell in pairs if field is not None}, cells)

    def _opened(self) -> TextIO:
        return self._path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


class _Record(NamedTuple):
    """One record of a file, with the number of its first line."""

    number: int
    text: str
    unclosed: bool = False


def _records(file: TextIO, delimiter: str = ",", *, columns: int = 0) -> Iterator[_Record]:
    """The records of a file.

    A line that has as many cells as there are `columns` is a record of its own, even if quotes before it are open.
    """
    pushed_back: deque[str] = deque()

    def next_line() -> str:
        return pushed_back.popleft() if pushed_back else file.readline(LONGEST_RECORD + 1)

    def is_row(text: str) -> bool:
        cells = _cells(text, delimiter)
        return cells is not None and len(cells) == columns

    number = 1
    while line := next_line():
        held, size, quotes = [line], len(line), line.count('"')
        if size > LONGEST_RECORD:
            part = line
            while not part.endswith(("\n", "\r")) and (more := next_line()):
                part = more
            yield _Record(number, line[:_SHOWN], unclosed=True)
        elif quotes % 2 == 0 or _cells(line, delimiter) is not None:
            yield _Record(number, line)
        else:
            while quotes % 2 and size <= LONGEST_RECORD and (more := next_line()):
                held.append(more)
                size += len(more)
                quotes += more.count('"')
            joined = "".join(held)
            # Joined lines that are no row, one of which alone would be one, have swallowed it.
            swallows = not is_row(joined) and (_cells(joined, delimiter) is None or any(map(is_row, held[1:])))
            if quotes % 2 or size > LONGEST_RECORD or swallows:
                pushed_back.extendleft(reversed(held[1:]))
                held = held[:1]
                yield _Record(number, line, unclosed=True)
            else:
                yield _Record(number, joined)
        number += len(held)


def _cells(text: str, delimiter: str) -> list[str] | None:
    try:
        return next(csv.reader([text.rstrip("\r\n")], delimiter=delimiter, strict=True), None)
    except csv.Error:
        return None
