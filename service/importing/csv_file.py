"""Rows of a CSV file, one at a time. A row that cannot be read costs only itself.

A record ends with the line on which its quotes are closed (RFC 4180); a quote inside a cell that does not begin with
one is a character like others, such as an inch. If quotes are never closed, or only by those of a row further down,
that is told of the first line, and reading goes on with the second.

Cells that a spreadsheet would take for a formula are made harmless in what we write (OWASP, CSV Injection: a cell that
begins with one of these characters may be executed), and made whole again when they come back.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

from service.importing.columns import ignored, require_all, resolve
from service.importing.source import NOT_UNICODE, ImportRefusedError, Row, is_unicode

DELIMITERS = (",", ";", "\t")
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

    def __init__(self, path: Path, mapping: Mapping[str, str]) -> None:
        self._path = path
        with self._opened() as file:
            first = next((record for record in _Records(file) if record.text.strip()), None)
        if first is None:
            raise ImportRefusedError(f"{path} is empty")
        header, self._header_line = first.text, first.number
        self.delimiter = max(DELIMITERS, key=header.count)
        cells = _cells(header, self.delimiter)
        if cells is None:
            raise ImportRefusedError(f"{path}: the quotes of its header are not closed")
        self.headers = [cell.strip() for cell in cells]
        self._fields = resolve(self.headers, mapping)
        require_all(self._fields, self.headers)
        self.ignored = ignored(self._fields, self.headers)

    def __iter__(self) -> Iterator[Row]:
        with self._opened() as file:
            for record in _Records(file, self.delimiter, columns=len(self.headers)):
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


class _Record:
    __slots__ = ("number", "text", "unclosed")

    def __init__(self, number: int, text: str, *, unclosed: bool = False) -> None:
        self.number = number
        self.text = text
        self.unclosed = unclosed


class _Records:
    """The records of a file, each with the number of its first line.

    A line that has as many cells as there are `columns` is a record of its own, even if quotes before it are open.
    """

    def __init__(self, file: TextIO, delimiter: str = ",", *, columns: int = 0) -> None:
        self._file = file
        self._delimiter = delimiter
        self._columns = columns
        # A cell in quotes that are closed, or the rest of the line behind a quote that is not.
        self._quoted = re.compile(rf'(?:^|(?<={re.escape(delimiter)}))"(?:[^"]|"")*("|$)')
        self._pushed_back: deque[str] = deque()
        self._number = 0

    def __iter__(self) -> Iterator[_Record]:
        return self

    def __next__(self) -> _Record:
        line = self._line()
        if not line:
            raise StopIteration
        self._number += 1
        number = self._number
        if len(line) > LONGEST_RECORD:
            part = line
            while not part.endswith(("\n", "\r")) and (more := self._line()):
                part = more
            return _Record(number, line[:_SHOWN], unclosed=True)
        quotes = line.count('"')
        if quotes % 2 == 0 or not self._is_open(line):
            return _Record(number, line)
        held, size = [line], len(line)
        while quotes % 2 and size <= LONGEST_RECORD and (more := self._line()):
            held.append(more)
            size += len(more)
            quotes += more.count('"')
        if quotes % 2 or size > LONGEST_RECORD or self._swallows_rows(held):
            self._pushed_back.extendleft(reversed(held[1:]))
            return _Record(number, held[0], unclosed=True)
        self._number += len(held) - 1
        return _Record(number, "".join(held))

    def _is_open(self, line: str) -> bool:
        """Whether the line ends within quotes."""
        return any(not cell[1] for cell in self._quoted.finditer(line))

    def _swallows_rows(self, held: list[str]) -> bool:
        """Whether joined lines are no row, and one of them alone would be one."""
        if self._is_row("".join(held)):
            return False
        return any(self._is_row(line) for line in held[1:])

    def _is_row(self, text: str) -> bool:
        cells = _cells(text, self._delimiter)
        return cells is not None and len(cells) == self._columns

    def _line(self) -> str:
        return self._pushed_back.popleft() if self._pushed_back else self._file.readline(LONGEST_RECORD + 1)


def _cells(text: str, delimiter: str) -> list[str] | None:
    try:
        return next(csv.reader([text.rstrip("\r\n")], delimiter=delimiter, strict=True), None)
    except csv.Error:
        return None
