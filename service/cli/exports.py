"""`leadkeep export`: leads for people and other programs, masked unless a token says otherwise."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from service.cli.command import (
    SOME_UNREADABLE,
    FirstDay,
    LastDay,
    ProgressLine,
    ReasonToLook,
    TokenFile,
    Unmask,
    interruptible,
    json_array,
    refusals_are_told,
    require_order,
)
from service.config import Settings, load_settings
from service.errors import StartRefusedError

if TYPE_CHECKING:
    from leadkeep.v1 import lead_service_pb2 as pb

    from service.cli.unmasking import Look, Recorded

FORMATS = ("json", "csv")
BYTE_ORDER_MARK = "\ufeff"
"""Before CSV: without it Excel takes UTF-8 for something else, and every name beyond ASCII is spoilt."""


@refusals_are_told
def export(
    file_format: Annotated[str, typer.Option("--format", help="json or csv.")],
    first: FirstDay = None,
    last: LastDay = None,
    unmask: Unmask = False,
    token_file: TokenFile = None,
    reason: ReasonToLook = "",
    output: Annotated[Path | None, typer.Option(help="A new file, mode 0600; else standard output.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write leads as JSON or CSV, sensitive fields masked. Exit code 5 if a field could not be opened."""
    if file_format not in FORMATS:
        raise typer.BadParameter(f"must be one of: {', '.join(FORMATS)}", param_hint="--format")
    require_order(first, last)
    settings = load_settings()
    if output is not None and output.exists() and not force:
        raise StartRefusedError(f"{output} is there already: name another file, or replace it with --force")
    if output is not None and not output.parent.is_dir():
        raise StartRefusedError(f"{output} cannot be written: {output.parent} is no folder")
    from service.cli.database import confirmed_database_url
    from service.storage.failures import StorageFaultError

    look = _look(settings, token_file, first, last, reason) if unmask else None
    start, end = _bounds(settings.files_timezone, first, last)
    try:
        with (
            interruptible() as check_interrupted,
            confirmed_database_url(settings) as url,
            _recording(settings, url, look, start, end) as recorded,
            _opened(output) as file,
        ):
            unreadable = _write(settings, url, file, file_format, start, end, recorded)
            check_interrupted()
    except StorageFaultError as fault:
        raise StartRefusedError(f"the export failed, and nothing of it is left: {fault}") from None
    except BrokenPipeError:
        # Whoever read has seen enough, as in `leadkeep export | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if unreadable:
        typer.echo(f"leadkeep: {unreadable} leads have fields that cannot be opened: see unreadable_fields", err=True)
        raise typer.Exit(SOME_UNREADABLE)


def _look(
    settings: Settings, token_file: Path | None, first: datetime | None, last: datetime | None, reason: str
) -> Look:
    from service.cli.unmasking import look_of

    span = f"{first.date() if first else 'the first day'} to {last.date() if last else 'the last day'}"
    return look_of(settings, token_file, f"export of {span}", reason)


@contextmanager
def _recording(
    settings: Settings, url: str, look: Look | None, start: datetime, end: datetime
) -> Iterator[Recorded | None]:
    """What commits that leads are shown in clear; None for a masked export, which needs no record."""
    if look is None:
        yield None
        return
    from service.cli.unmasking import recording
    from service.storage.lead_queries import count_leads

    with recording(settings, url, look, operation="export", leads=count_leads(url, start, end)) as recorded:
        yield recorded


def _write(
    settings: Settings,
    url: str,
    file: IO[str],
    file_format: str,
    start: datetime,
    end: datetime,
    recorded: Recorded | None,
) -> int:
    """Write every lead, in clear if that can be recorded; how many have fields that cannot be opened."""
    from service.factories import encryption_of, validation_of
    from service.rpc.masking import mask_message
    from service.rpc.wire import lead_message
    from service.sealing import LeadSealer
    from service.storage.lead_queries import ROWS_AHEAD, exported_leads

    sealer = LeadSealer(
        encryption_of(settings),
        validation_of(settings),
        transcript_url=settings.transcript_url,
    )

    def to_write() -> Iterator[pb.Lead]:
        leads = exported_leads(url, start, end)
        while some := list(islice(leads, ROWS_AHEAD)):
            messages = [lead_message(sealer.open(sealed, flag_unreadable=True)) for sealed in some]
            if recorded is not None:
                recorded(messages)
            else:
                for message in messages:
                    mask_message(message)
            yield from messages

    messages = to_write()
    # Taken before anything is written: what cannot be recorded leaves nothing, not even a line of headers.
    first = list(islice(messages, 1))
    progress, unreadable = ProgressLine(), 0
    with (_json_writer if file_format == "json" else _csv_writer)(file) as write:
        for number, message in enumerate(chain(first, messages), start=1):
            unreadable += bool(message.unreadable_fields)
            write(message)
            progress.show(f"{number} leads")
    progress.end()
    return unreadable


def _bounds(zone: str, first: datetime | None, last: datetime | None) -> tuple[datetime, datetime]:
    from service.storage.daily_leads import Days

    days = Days(zone)
    # Who writes 9999-12-31 means no end; beyond these days the calendar ends in one time zone or another.
    earliest, latest = date(1, 1, 2), date(9999, 12, 29)
    start = max(earliest, first.date()) if first else earliest
    end = min(latest, last.date()) if last else latest
    return days.bounds(min(start, latest))[0], days.bounds(max(end, earliest))[1]


_Write = Callable[["pb.Lead"], object]


@contextmanager
def _json_writer(file: IO[str]) -> Iterator[_Write]:
    from service.http.json_codec import to_json

    with json_array(file.write) as add:
        yield lambda lead: add(to_json(lead).decode())


@contextmanager
def _csv_writer(file: IO[str]) -> Iterator[_Write]:
    from google.protobuf.json_format import MessageToDict
    from leadkeep.v1 import lead_service_pb2 as pb

    from service.importing.csv_file import neutralised

    columns = [field.name for field in pb.Lead.DESCRIPTOR.fields]
    # CRLF, as RFC 4180 has it. Every cell in quotes: a spreadsheet that takes `;` for a separator too must not find a
    # cell, and a formula in it, within one of ours.
    writer = csv.writer(file, quoting=csv.QUOTE_ALL)
    file.write(BYTE_ORDER_MARK)
    writer.writerow(columns)

    def cell(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, list):
            return ";".join(value)
        return neutralised(str(value))

    def write(lead: pb.Lead) -> None:
        shown = MessageToDict(lead, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        writer.writerow([cell(shown.get(name, "")) for name in columns])

    yield write


@contextmanager
def _opened(output: Path | None) -> Iterator[IO[str]]:
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
            with contextlib.suppress(OSError):
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
