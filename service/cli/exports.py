"""`leadkeep export`: leads for people and other programs, masked unless a token says otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from service.cli.imports import INTERRUPTED
from service.cli.refusals import refusals_are_told
from service.config import Settings, load_settings
from service.errors import StartRefusedError

if TYPE_CHECKING:
    from leadkeep.v1 import lead_service_pb2 as pb

    from service.storage.access_records import Access

SOME_UNREADABLE = 5
FORMATS = ("json", "csv")
BYTE_ORDER_MARK = "\ufeff"
"""Before CSV: without it Excel takes UTF-8 for something else, and every name beyond ASCII is spoilt."""

PROGRESS_SECONDS = 0.5


@refusals_are_told
def export(
    file_format: Annotated[str, typer.Option("--format", help="json or csv.")],
    first: Annotated[datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="The first day.")] = None,
    last: Annotated[datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="The last day.")] = None,
    unmask: Annotated[bool, typer.Option("--unmask", help="Values in clear; needs a token and is recorded.")] = False,
    token_file: Annotated[Path | None, typer.Option(help="File with the token; else LEADKEEP_TOKEN.")] = None,
    reason: Annotated[str, typer.Option(help="Why values are taken out in clear, for the record.")] = "",
    output: Annotated[Path | None, typer.Option(help="A new file, mode 0600; else standard output.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write leads as JSON or CSV, sensitive fields masked. Exit code 5 if a field could not be opened."""
    if file_format not in FORMATS:
        raise typer.BadParameter(f"must be one of: {', '.join(FORMATS)}", param_hint="--format")
    if first is not None and last is not None and first > last:
        raise typer.BadParameter("is later than --to", param_hint="--from")
    settings = load_settings()
    if output is not None and output.exists() and not force:
        raise StartRefusedError(f"{output} is there already: name another file, or replace it with --force")
    from service.cli.database import confirmed_database_url
    from service.storage.failures import StorageFaultError

    recorded = _access(settings, token_file, first, last, reason) if unmask else None
    try:
        with confirmed_database_url(settings) as url:
            if recorded is not None:
                asyncio.run(_record(url, recorded))
            with _opened(output) as file:
                unreadable = _write(settings, url, file, file_format, first, last, unmask=unmask)
    except StorageFaultError as fault:
        raise StartRefusedError(f"the export failed, and nothing of it is left: {fault}") from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # Whoever read has seen enough, as in `leadkeep export | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if unreadable:
        typer.echo(f"leadkeep: {unreadable} leads have fields that cannot be opened: see unreadable_fields", err=True)
        raise typer.Exit(SOME_UNREADABLE)


def _access(
    settings: Settings, token_file: Path | None, first: datetime | None, last: datetime | None, reason: str
) -> Access:
    from service.app import SENSITIVE_FIELDS
    from service.cli.unmasking import unmasking_caller
    from service.storage.access_records import Access

    caller = unmasking_caller(settings, token_file)
    span = f"{first.date() if first else 'the first day'} to {last.date() if last else 'the last day'}"
    why = f"export of {span}" + (f": {reason}" if reason else "")
    return Access(subject=caller.subject, operation="export", fields=SENSITIVE_FIELDS, reason=why)


async def _record(url: str, access: Access) -> None:
    """Commit the record before the first value is written."""
    from service.storage.access_records import record_access
    from service.storage.database import Database

    database = Database(url)
    try:
        await record_access(database, [access])
    finally:
        await database.close()


def _write(
    settings: Settings,
    url: str,
    file: IO[str],
    file_format: str,
    first: datetime | None,
    last: datetime | None,
    *,
    unmask: bool,
) -> int:
    """Write every lead; how many have fields that cannot be opened."""
    from service.app import SENSITIVE_FIELDS, keyring_source, validation_of
    from service.encryption import EncryptionService
    from service.rpc.masking import mask_message
    from service.rpc.wire import lead_message
    from service.sealing import LeadSealer
    from service.storage.lead_export import exported_leads

    sealer = LeadSealer(
        EncryptionService(keyring_source(settings).load()),
        validation_of(settings),
        sensitive_fields=SENSITIVE_FIELDS,
        transcript_url=settings.transcript_url,
    )
    start, end = _bounds(settings.files_timezone, first, last)
    write, finish = (_json_writer if file_format == "json" else _csv_writer)(file)
    progress, unreadable = _Progress(), 0
    leads = exported_leads(url, start, end, sensitive_fields=SENSITIVE_FIELDS)
    for number, sealed in enumerate(leads, start=1):
        message = lead_message(sealer.open(sealed, flag_unreadable=True))
        unreadable += bool(message.unreadable_fields)
        if not unmask:
            mask_message(message)
        write(message)
        progress.tell(number)
    finish()
    progress.end()
    return unreadable


def _bounds(zone: str, first: datetime | None, last: datetime | None) -> tuple[datetime, datetime]:
    from service.days import Days

    days = Days(zone)
    start = days.bounds(first.date())[0] if first else datetime(1, 1, 2, tzinfo=UTC)
    end = days.bounds(last.date())[1] if last else datetime(9999, 12, 30, tzinfo=UTC)
    return start, end


_Writer = tuple[Callable[["pb.Lead"], None], Callable[[], None]]


def _json_writer(file: IO[str]) -> _Writer:
    from service.http.json_codec import to_json

    separator = "[\n"

    def write(lead: pb.Lead) -> None:
        nonlocal separator
        file.write(separator + to_json(lead).decode())
        separator = ",\n"

    def finish() -> None:
        file.write("[]\n" if separator == "[\n" else "\n]\n")

    return write, finish


def _csv_writer(file: IO[str]) -> _Writer:
    from google.protobuf.json_format import MessageToDict
    from leadkeep.v1 import lead_service_pb2 as pb

    from service.spreadsheet import neutralised

    columns = [field.name for field in pb.Lead.DESCRIPTOR.fields]
    writer = csv.writer(file)  # CRLF, as RFC 4180 has it
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

    return write, lambda: None


@contextmanager
def _opened(output: Path | None) -> Iterator[IO[str]]:
    """Standard output, or a file that appears whole or not at all."""
    if output is None or str(output) == "-":
        file = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", newline="")
        try:
            yield file
            file.flush()
        finally:
            with contextlib.suppress(BrokenPipeError):
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


class _Progress:
    """A line on a terminal; silence in a pipe."""

    def __init__(self) -> None:
        self._shown_at = 0.0
        self._terminal = sys.stderr.isatty()

    def tell(self, leads: int) -> None:
        if self._terminal and (now := time.monotonic()) - self._shown_at > PROGRESS_SECONDS:
            self._shown_at = now
            typer.echo(f"\r{leads} leads ", err=True, nl=False)

    def end(self) -> None:
        if self._terminal and self._shown_at:
            typer.echo("\r\033[K", err=True, nl=False)
