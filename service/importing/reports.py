"""Reports of an import, written row by row: the result of each row (FILE.results.csv), and the rejected rows.

The file of rejects holds the rows as they came, with the reason in the first column; corrected, it can be imported
again. It is made to be opened in a spreadsheet, so its cells are neutralised like those of an export. Both may be read
by their owner only (mode 0600): a reject holds values in clear.
"""

from __future__ import annotations

import codecs
import csv
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from service.errors import StartRefusedError
from service.importing.csv_file import neutralised
from service.importing.source import REASON_COLUMN, ImportRefusedError, Row


class Result(StrEnum):
    """Result of one row of an import."""

    SAVED = "saved"
    SAVED_BEFORE = "saved before"
    DUPLICATE = "duplicate"
    OLDER_HERE = "older here"
    """The database has this lead in an earlier version than the file; it stays as it is."""
    ERASED = "erased"
    """The lead was erased, and is not brought back."""
    INVALID = "invalid"
    FAILED = "failed"
    """The database refused it for a reason that no value of the row can mend."""


MANY_SHARING = 5
"""Rows of one file that match one lead by its phone or nid alone. A family may share a phone; more of them share a
placeholder or somebody else's number, and only one of them is a lead."""

_COUNTED_LEADS = 10_000
"""Leads whose matches are counted at a time, so that memory does not grow with the file."""


@dataclass(frozen=True, slots=True)
class RowResult:
    """The result of one row. `detail` says why, without any value of the row.

    `sharing`: the leads that it matches by phone or nid alone.
    """

    number: int
    result: Result
    lead_id: str = ""
    detail: str = ""
    sharing: tuple[str, ...] = ()


class Report:
    """The results of one file. `headers` None: rejects are written as JSON lines, else as CSV with these headers.

    Rejects are UTF-8; with `mark` they begin with a byte order mark, which counts before an `--encoding` of the source.
    """

    def __init__(
        self,
        results: Path,
        rejects: Path | None,
        *,
        headers: list[str] | None = None,
        delimiter: str = ",",
        mark: bool = False,
    ) -> None:
        self._rejects_path = rejects
        self._mark = "\ufeff" if mark else ""
        self._headers = headers
        self._delimiter = delimiter
        self._rejects: IO[str] | None = None
        self.counts: Counter[Result] = Counter()
        self._sharing: Counter[str] = Counter()
        self._results = _created(results, b"row,result,")
        self._writer = csv.writer(self._results, lineterminator="\n")
        self._writer.writerow(("row", "result", "lead_id", "detail"))

    @property
    def rows(self) -> int:
        """How many rows were reported."""
        return self.counts.total()

    @property
    def shared_by_many(self) -> dict[str, int]:
        """The leads that many rows match by phone or nid alone, with how many do at least; the ten most matched."""
        return {lead: rows for lead, rows in self._sharing.most_common(10) if rows >= MANY_SHARING}

    def add(self, done: RowResult, row: Row | None = None) -> None:
        """Note the result of a row; `row` is kept among the rejects when it is invalid. Raises StartRefusedError."""
        with self._writing():
            self.counts[done.result] += 1
            self._count_sharing(done.sharing)
            self._writer.writerow((done.number, done.result.value, done.lead_id, done.detail))
            if done.result is Result.INVALID and row is not None and self._rejects_path is not None:
                self._reject(self._rejects_path, done.detail, row)

    def close(self) -> None:
        """Finish both files. Raises StartRefusedError."""
        with self._writing(), self._results, self._rejects or nullcontext():
            pass

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StartRefusedError(
                f"the report of {self.rows} rows cannot be written ({error.strerror}); what was imported stays: make "
                "room, and run the same command again for a whole report"
            ) from None

    def _count_sharing(self, leads: tuple[str, ...]) -> None:
        """Count the matches of each lead; when there are too many leads, one match of each is forgotten.

        So a lead that stands out stays, and its count lacks at most one in _COUNTED_LEADS of the rows (Misra, Gries).
        """
        self._sharing.update(leads)
        if len(self._sharing) > _COUNTED_LEADS:
            self._sharing = Counter({lead: rows - 1 for lead, rows in self._sharing.items() if rows > 1})

    def _reject(self, path: Path, reason: str, row: Row) -> None:
        if self._rejects is None:
            begins = '{"' if self._headers is None else '"'
            self._rejects = _created(path, (begins + REASON_COLUMN).encode(), self._mark)
            if self._headers is not None:
                columns = [header for header in self._headers if header != REASON_COLUMN]
                self._write_cells(self._rejects, REASON_COLUMN, columns)
        if self._headers is not None:
            self._write_cells(self._rejects, reason, list(row.original))
            return
        original: Any = row.original if isinstance(row.original, dict) else {"cells": row.original}
        kept = {REASON_COLUMN: reason} | {k: v for k, v in original.items() if k != REASON_COLUMN}
        self._rejects.write(json.dumps(kept) + "\n")

    def _write_cells(self, file: IO[str], reason: str, cells: list[str]) -> None:
        """Write the cells of a row, or of the header, behind `reason`.

        Every cell is in quotes: a spreadsheet that takes another separator finds no cell within one of ours.
        """
        row = [neutralised(cell) for cell in (reason, *cells)]
        csv.writer(file, delimiter=self._delimiter, quoting=csv.QUOTE_ALL).writerow(row)


def _created(path: Path, begins: bytes, mark: str = "") -> IO[str]:
    """A fresh file, in the place of an earlier report at most. Raises ImportRefusedError.

    The earlier one is unlinked, not overwritten: another import of the same file may be writing to it now.
    """
    try:
        if path.is_file():
            with path.open("rb") as earlier:
                text = earlier.read(len(begins) + len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
                if text and not text.startswith(begins):
                    raise ImportRefusedError(
                        f"{path} is there already and is no report of an import: name another file"
                    )
            path.unlink(missing_ok=True)
        elif path.exists():
            raise ImportRefusedError(f"{path} is no file: name one for the report")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.fchmod(descriptor, 0o600)
    except OSError as error:
        raise ImportRefusedError(f"{path} cannot be written: {error.strerror}") from None
    # Bytes that were no UTF-8 go back as they came.
    file = os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="")
    file.write(mark)
    return file
