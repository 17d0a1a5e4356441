"""Rows of a CSV file, one at a time. A row that cannot be read costs only itself.

A record ends with the line on which its quotes are closed (RFC 4180); a quote inside a cell that does not begin with
one is a character like others, such as an inch. If quotes are never closed, or only by those of a row further down,
the first line is reported as faulty, and reading goes on with the second.

Cells that a spreadsheet would take for a formula are made harmless in what we write (OWASP, CSV Injection: a cell that
begins with one of these characters may be executed), and restored when they are imported again.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TextIO

from service.importing.source import (
    NOT_UNICODE,
    REASON_COLUMN,
    ImportRefusedError,
    Row,
    ignored,
    is_unicode,
    recognised,
    require_all,
    resolve,
    text_file,
    value_of,
)
from service.lead import REQUIRED_FIELDS

LONGEST_RECORD = 100_000
"""Characters. The longest lead has 6,000; a quote that is not closed must not swallow the file."""

_SHOWN = 1000  # characters of a record that is too long, for the file of rejects

DANGEROUS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b\u2212")
"""The full-width and small forms and the minus sign too: some spreadsheets read them as the plain ones."""

UNSEEN = " \xa0\xad\u034f\u061c\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff"
"""Blanks and marks without width, of which a program may rid a cell that it reads; as in a pattern."""

_QUOTE = "'"
_GUARDED = re.compile(f"[{UNSEEN}]*[{re.escape(_QUOTE + ''.join(DANGEROUS))}]")
_DIGITS = re.compile(r"'[0-9][0-9 ()./+-]*")
_TEXT_FORMULA = re.compile(r'="((?:[^"]|"")*)" *')
_GUARDS = frozenset("'=")

DELIMITERS = (",", ";", "\t", "|")
_FILLING = " \t\r\n\x1a\xa0\ufeff'\"" + "".join(DELIMITERS)
"""What a row without values consists of. U+001A ends the files of old programs."""
_HINT = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)
"""The first line by which Excel names its delimiter."""

csv.field_size_limit(LONGEST_RECORD)


def neutralised(cell: str) -> str:
    """The cell as it may be opened in a spreadsheet: an apostrophe before what is dangerous, or begins with one."""
    return _QUOTE + cell if _GUARDED.match(cell) else cell


def restored(cell: str) -> str:
    """What `neutralised` was given. A cell that it never changed stays as it is."""
    behind = cell.removeprefix(_QUOTE)
    return behind if neutralised(behind) == cell else cell


def unguarded(cell: str) -> str:
    """A cell without what makes a spreadsheet leave it alone: an apostrophe before digits or a formula, or `="…"`."""
    if cell.startswith(_QUOTE):
        behind = restored(cell)
        return behind if behind != cell or _DIGITS.fullmatch(cell) is None else cell[1:]
    formula = _TEXT_FORMULA.fullmatch(cell)
    return cell if formula is None else formula[1].replace('""', '"')


class CsvFile:
    """A CSV file with a header. Raises ImportRefusedError when it cannot be imported at all.

    `encoding` and `delimiter` are those that the operator insists on; None finds them.
    """

    def __init__(
        self,
        path: Path,
        mapping: Mapping[str, str],
        required: Collection[str] = REQUIRED_FIELDS,
        *,
        encoding: str | None = None,
        delimiter: str | None = None,
    ) -> None:
        self.text = text_file(path, encoding)
        hint = _HINT.fullmatch(next((record.text for record in self._filled(",")), ""))
        self._skipped = hint is not None
        if hint is not None and delimiter is None:
            delimiter = hint[1]
        read = [self._header(each) for each in ((delimiter,) if delimiter else DELIMITERS)]
        if not any(read):
            raise ImportRefusedError(f"{path} is empty")
        # What is known counts, not what is frequent: a question in a header may have more commas than the file columns.
        self.delimiter, self._header_line, self.headers = max(
            filter(None, read), key=lambda each: (recognised(each[2], mapping), len(each[2]))
        )
        if not self.headers:
            raise ImportRefusedError(f"{path}: the quotes of its header are not closed")
        self._reasons = {at for at, header in enumerate(self.headers) if header == REASON_COLUMN}
        self._columns = resolve(self.headers, mapping)
        require_all(required, self._columns, self.headers)
        self.ignored = ignored(self._columns, self.headers)

    def __iter__(self) -> Iterator[Row]:
        for record in self._filled(self.delimiter, columns=len(self.headers)):
            if record.number > self._header_line:
                yield self._row(record)

    def _header(self, delimiter: str) -> tuple[str, int, list[str]] | None:
        """A delimiter, the line of the header, and its cells by this delimiter; None in a file without a header."""
        record = next(islice(self._filled(delimiter), int(self._skipped), None), None)
        if record is None:
            return None
        cells = None if record.unclosed else _cells(record.text, delimiter)
        return delimiter, record.number, [unguarded(cell.strip()) for cell in cells or ()]

    def _row(self, record: _Record) -> Row:
        cells = None if record.unclosed else _cells(record.text, self.delimiter)
        if cells is None:
            return Row(record.number, {}, [record.text.rstrip("\r\n")], "its quotes are not closed, or it is too long")
        cells = [unguarded(cell) if cell[:1] in _GUARDS else cell for cell in cells]
        width = len(self.headers)
        if any(cell.strip() for cell in cells[width:]):
            fault = f"it has {len(cells)} cells, the header has {width}"
            return Row(record.number, {}, self._without_reason(cells), fault)
        # Some programs leave out empty cells at the end, others add some. None is added here: a header may have
        # thousands, and the file of rejects would hold them for each short row.
        cells = cells[:width]
        kept = self._without_reason(cells)
        if self.text.errors != "strict" and not is_unicode(record.text):
            return Row(record.number, {}, kept, NOT_UNICODE)
        fields = {
            field: value_of(field, [cells[at] if at < len(cells) else "" for at in columns])
            for field, columns in self._columns.items()
        }
        return Row(record.number, fields, kept)

    def _without_reason(self, cells: list[str]) -> list[str]:
        """The cells of a row of earlier rejects without the reason, which another one takes the place of."""
        return [cell for at, cell in enumerate(cells) if at not in self._reasons] if self._reasons else cells

    def _filled(self, delimiter: str, *, columns: int = 0) -> Iterator[_Record]:
        """The records in which there is anything but separators."""
        with self.text.open(newline="") as file:
            for record in _records(file, delimiter, columns=columns):
                if record.text.strip(_FILLING):
                    yield record


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
        return cells is not None and len(cells) >= columns and not any(cells[columns:])

    number = 1
    while line := next_line():
        held, size, quotes = [line], len(line), line.count('"')
        if size > LONGEST_RECORD:
            part = line
            while not part.endswith(("\n", "\r")) and (more := next_line()):
                part = more
            yield _Record(number, line[:_SHOWN], unclosed=True)
        elif quotes % 2 == 0 or _strict(line, delimiter, spaced=True) is not None:
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
    """The cells of a record; None when its quotes are not closed."""
    line = text.rstrip("\r\n")
    cells = _strict(line, delimiter, spaced=True)
    if cells is None and '"' in line:
        # Blanks may stand around the quotes of a cell; or a cell begins with a blank and quotes of its own.
        tightened = re.sub(f'" +(?={re.escape(delimiter)}|$)', '"', line)
        cells = _strict(tightened, delimiter, spaced=True) or _strict(line, delimiter, spaced=False)
    return cells


def _strict(line: str, delimiter: str, *, spaced: bool) -> list[str] | None:
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True, skipinitialspace=spaced), None)
    except csv.Error:
        return None
