"""What the commands share: options, output as text or JSON, interrupts, exit codes."""

from __future__ import annotations

import asyncio
import codecs
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, date, datetime, timedelta, tzinfo
from pathlib import Path
from typing import IO, Annotated, Any, NoReturn

import typer

from service.errors import StartRefusedError
from service.foreign_text import printable
from service.scopes import UNMASK_SCOPES

FAULT_FOUND = 3
NOT_ALL_IMPORTED = 4
SOME_UNREADABLE = 5
MANY_SHARING_ONE = 6
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

SHOW_SECONDS = 0.5
"""How often a progress line is written: seldom enough to be read, and to cost nothing."""

LONGEST = timedelta(days=3650)
"""Ten years: a longer duration is a typing error."""

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def duration(text: str | timedelta) -> timedelta:
    """Read `30s`, `15m`, `1h` or `7d`; the parser of an option. Raises typer.BadParameter."""
    if isinstance(text, timedelta):  # a default
        return text
    match = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", text.strip())
    if not match:
        raise typer.BadParameter("write a number and a unit: 30s, 15m, 1h, 7d")
    length = timedelta(**{_UNITS[match[2]]: int(match[1])})
    if length > LONGEST:
        raise typer.BadParameter("must not be longer than 3650d")
    return length


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would happen, and change nothing.")]
FirstDay = Annotated[datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="The first day.")]
LastDay = Annotated[datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="The last day.")]
Unmask = Annotated[bool, typer.Option("--unmask", help="Values in clear; needs a token and is recorded.")]
TokenFile = Annotated[Path | None, typer.Option(help="File with the token; default: LEADKEEP_TOKEN.")]
Reveal = Annotated[
    str, typer.Option("--reveal", metavar="FIELDS", help="Only these in clear, as phone,email; recorded like --unmask.")
]
Output = Annotated[Path | None, typer.Option(help="A new file, mode 0600; default: standard output.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]
ReasonToLook = Annotated[str, typer.Option("--reason", help="Why values are shown, for the access record.")]


def customers_option(meaning: str) -> Any:
    """An option for a customer's value, `-` for a line of standard input: other users of the machine read arguments."""
    return typer.Option(parser=_customers_value, metavar="TEXT", help=f"{meaning}; - reads it from standard input.")


def _customers_value(text: str) -> str:
    if text != "-":
        return text
    try:
        line = sys.stdin.readline().strip()
    except UnicodeDecodeError:
        raise typer.BadParameter("standard input is not UTF-8 text") from None
    if not line:  # an empty filter is none: everybody would match
        raise typer.BadParameter("standard input holds no line for it")
    return line


def moment(text: str, option: str, zone: tzinfo = UTC, *, end: bool = False) -> datetime | None:
    """Read an option that is a moment, or a day: its start, or its `end`. None when it is not given.

    What names no offset is in `zone`. Raises typer.BadParameter.
    """
    if not text:
        return None
    try:
        if len(text) <= len("2026-01-31"):  # 20260131 is a day, too
            day = date.fromisoformat(text) + timedelta(days=int(end))
            given = datetime(day.year, day.month, day.day, tzinfo=zone)
        else:
            given = datetime.fromisoformat(text)
        return (given if given.tzinfo is not None else given.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):
        wanted = "must be a day or a moment, as 2026-01-31 or 2026-01-31T09:00:00Z"
        raise typer.BadParameter(wanted, param_hint=option) from None


def fields_to_show(*, unmask: bool, reveal: str) -> tuple[str, ...]:
    """The sensitive fields to show in clear: those of --reveal, or all. Raises typer.BadParameter."""
    if not reveal:
        return tuple(UNMASK_SCOPES) if unmask else ()
    fields = tuple(dict.fromkeys(reveal.split(",")))
    if unmask:
        raise typer.BadParameter("is not needed: --unmask shows every field", param_hint="--reveal")
    if not UNMASK_SCOPES.keys() >= set(fields):
        raise typer.BadParameter(f"may name only: {', '.join(UNMASK_SCOPES)}", param_hint="--reveal")
    return fields


def require_order(first: datetime | None, last: datetime | None) -> None:
    """Raise typer.BadParameter when --from is later than --to."""
    if first is not None and last is not None and first > last:
        raise typer.BadParameter("is later than --to", param_hint="--from")


def echo(line: str, *, err: bool = False) -> None:
    """Print a line of text. What is in it can neither command the terminal nor forge another line.

    Tabs stay, which separate columns: `cell` is for what stands in one.
    """
    _put(printable(line, kept="\t"), err=err)


_AS_IN_JSON = "leadkeep.json"
"""Name of the error handler that escapes what an encoding lacks, so that JSON stays JSON."""


def _escaped(lacking: UnicodeError) -> tuple[str, int]:
    assert isinstance(lacking, UnicodeEncodeError)  # noqa: S101 # nothing is decoded with it
    return json.dumps(lacking.object[lacking.start : lacking.end])[1:-1], lacking.end


codecs.register_error(_AS_IN_JSON, _escaped)


def _put(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print text. Raises StartRefusedError where that cannot be written, as on a full disk."""
    try:
        typer.echo(text, err=err, nl=nl)
    except BrokenPipeError:
        raise
    except UnicodeEncodeError:
        encoding = (sys.stderr if err else sys.stdout).encoding
        _put(text.encode(encoding, _AS_IN_JSON).decode(encoding), err=err, nl=nl)
    except OSError as error:
        raise StartRefusedError(f"the output cannot be written: {error.strerror}") from None


def cell(value: object) -> str:
    """A value as it stands in a column."""
    return "" if value is None else " ".join(printable(str(value), kept="\n\t").split())


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a table of values, in columns."""
    return padded([[cell(value) for value in row] for row in rows])


def padded(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a table in columns as wide as the terminal shows its cells, which are printed as they are."""
    from rich.cells import cell_len  # loading it takes longer than most commands

    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = (value + " " * (width - cell_len(value)) for value, width in zip(row, widths, strict=True))
        yield "  ".join(padded).rstrip()


def print_json(value: object) -> None:
    """Print a value as JSON."""
    _put(_json(value, indent=2))


def _json(value: object, indent: int | None = None) -> str:
    """JSON whose text is readable in every script; what moves a terminal's cursor is escaped, beyond ASCII too."""
    return printable(json.dumps(value, indent=indent, ensure_ascii=False, default=_plain), kept="\n")


def _plain(value: object) -> str:
    """What JSON has no form for: a time or day as ISO 8601, bytes in hexadecimal, anything else as it is written."""
    if isinstance(value, date):
        return value.isoformat()
    return value.hex() if isinstance(value, bytes) else str(value)


def report(value: object, lines: Iterable[str], *, as_json: bool, sound: bool = True) -> None:
    """Print a value as JSON, or else as lines of text. Unless what was checked is `sound`, end with FAULT_FOUND."""
    if as_json:
        print_json(value)
    else:
        for line in lines:
            echo(line)
    if not sound:
        raise typer.Exit(FAULT_FOUND)


@contextmanager
def printed_rows(*, as_json: bool) -> Iterator[Callable[[object], None]]:
    """Print rows by calls of the function: lines of text, or the items of a JSON array."""
    if not as_json:
        yield lambda line: echo(str(line))
        return
    with json_array(lambda text: _put(text, nl=False)) as add:
        yield lambda item: add(_json(item))


@contextmanager
def json_array(write: Callable[[str], object]) -> Iterator[Callable[[str], None]]:
    """Write a JSON array of items that are JSON already: each is written by a call of the function."""
    separator = "[\n"

    def add(item: str) -> None:
        nonlocal separator
        write(separator + item)
        separator = ",\n"

    yield add
    write("[]\n" if separator == "[\n" else "\n]\n")


def check_output(output: Path | None, *, force: bool) -> None:
    """Raise StartRefusedError unless the file can be new, or may be replaced."""
    if output is not None and output.exists() and not force:
        raise StartRefusedError(f"{output} is there already: name another file, or replace it with --force")
    if output is not None and not output.parent.is_dir():
        raise StartRefusedError(f"{output} cannot be written: {output.parent} is no folder")


@contextmanager
def output_file(output: Path | None) -> Iterator[IO[str]]:
    """Standard output, or a file that appears whole or not at all."""
    if output is None or str(output) == "-":
        file = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", newline="")
        try:
            yield file
            file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise StartRefusedError(f"standard output cannot be written: {error.strerror}") from None
        finally:
            with suppress(OSError):
                file.detach()
        return
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            os.fchmod(descriptor, 0o600)
            yield file
            file.flush()
            os.fsync(descriptor)
        temporary.replace(output)
    except OSError as error:
        raise StartRefusedError(f"{output} cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


class ProgressLine(AbstractContextManager["ProgressLine"]):
    """How far a long command is: a line on a terminal that is written over, and silence in a pipe.

    As a context manager it is taken away at the end.
    """

    def __init__(self) -> None:
        self._shown_at = 0.0
        self._terminal = sys.stderr.isatty()

    def show(self, done: str) -> None:
        """Write it anew, unless it was just written."""
        now = time.monotonic()
        if self._terminal and now - self._shown_at > SHOW_SECONDS:
            self._shown_at = now
            typer.echo(f"\r\033[K{printable(done)} ", err=True, nl=False)

    def end(self) -> None:
        """Take it away."""
        if self._terminal and self._shown_at:
            typer.echo("\r\033[K", err=True, nl=False)

    def __exit__(self, *_error: object) -> None:
        self.end()


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """SIGTERM is like Ctrl-C: the block is left by KeyboardInterrupt, cleans up, and the command ends with 130.

    Yields a check to call before the result is kept: Python ignores a KeyboardInterrupt that falls into a finaliser.
    """
    arrived = False

    def interrupt(_number: int, _frame: object) -> None:
        nonlocal arrived
        arrived = True
        raise KeyboardInterrupt

    def check() -> None:
        if arrived:
            raise KeyboardInterrupt

    before = [(number, signal.signal(number, interrupt)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield check
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def stop_requested() -> asyncio.Event:
    """An event that SIGINT and SIGTERM set, for a command that stops between two steps."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    return stopped


def end_interrupted() -> NoReturn:
    """End a command that can be continued."""
    echo("leadkeep: interrupted; what was done stays done: run the same command again to go on", err=True)
    raise typer.Exit(INTERRUPTED)
