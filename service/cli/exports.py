"""`leadkeep export`; and the release of leads that a command shows: masked, or in clear and on record."""

from __future__ import annotations

import asyncio
import csv
import os
import socket
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from itertools import chain, islice
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import typer
from google.protobuf.json_format import MessageToDict
from leadkeep.v1 import lead_service_pb2 as pb

from service import factories
from service.cli.client import TOKEN_VARIABLE, given_token
from service.cli.command import (
    SOME_UNREADABLE,
    FirstDay,
    Force,
    LastDay,
    Output,
    ProgressLine,
    ReasonToLook,
    Reveal,
    TokenFile,
    Unmask,
    check_output,
    echo,
    fields_to_show,
    interruptible,
    json_array,
    output_file,
    require_order,
)
from service.cli.database import confirmed_database_url
from service.config import Settings, load_settings
from service.errors import StartRefusedError
from service.http.json_codec import to_json
from service.importing.csv_file import neutralised
from service.lead_sealer import LeadSealer
from service.replica import access_writing
from service.rpc.masking import mask_former_phones, mask_message, with_former_phones
from service.rpc.unmasking import EVERYTHING, ReasonRules, accesses_to, shown_to
from service.rpc.wire import lead_message
from service.scopes import Scope
from service.storage.access.record import AccessRecords
from service.storage.access.writer import AccessWriter
from service.storage.daily.daily_leads import Days
from service.storage.database.database import Database
from service.storage.database.failures import StorageFaultError
from service.storage.leads.import_export import ROWS_AHEAD, count_leads, exported_leads
from service.supervisor import Supervisor

BYTE_ORDER_MARK = "\ufeff"
"""Before CSV: without it Excel takes UTF-8 for something else, and every name beyond ASCII is spoilt."""

CHAIN_END_SECONDS = 5.0
"""How long the end of a command waits for the record: the transaction in flight, and the end of the chain."""

Release = Callable[[Sequence[pb.Lead]], None]
"""Masks leads, or commits that they are shown in clear; they may be shown when it has returned."""


@dataclass(frozen=True, slots=True)
class Look:
    """A look at values in clear: its subject and its reason, as they are recorded, and the fields."""

    subject: str
    reason: str
    fields: frozenset[str]


def export(
    file_format: Annotated[Literal["json", "csv"], typer.Option("--format", help="How leads are written.")],
    first: FirstDay = None,
    last: LastDay = None,
    unmask: Unmask = False,
    reveal: Reveal = "",
    token_file: TokenFile = None,
    reason: ReasonToLook = "",
    output: Output = None,
    force: Force = False,
) -> None:
    """Write leads as JSON or CSV, sensitive fields masked. Exit code 5 if a field could not be opened."""
    require_order(first, last)
    settings = load_settings()
    check_output(output, force=force)
    span = f"{first.date() if first else 'the first day'} to {last.date() if last else 'the last day'}"
    look = look_of(settings, token_file, f"export of {span}", reason, unmask=unmask, reveal=reveal)
    start, end = _bounds(settings.files_timezone, first, last)
    try:
        with interruptible() as check_interrupted, confirmed_database_url(settings) as url:
            count = count_leads(url, start, end) if look else 0
            released = releasing(settings, url, look, operation="export", leads=count)
            with released as release, output_file(output) as file:
                unreadable = _write(file, file_format, _leads(settings, url, start, end, release))
                check_interrupted()
    except StorageFaultError as fault:
        raise StartRefusedError(f"the export failed, and nothing of it is left: {fault}") from None
    except BrokenPipeError:
        # The reader has closed the pipe, as in `leadkeep export | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if unreadable:
        echo(f"leadkeep: {unreadable} leads have fields that cannot be opened: see unreadable_fields", err=True)
        raise typer.Exit(SOME_UNREADABLE)


def look_of(
    settings: Settings, token_file: Path | None, what: str, reason: str, *, unmask: bool, reveal: str
) -> Look | None:
    """The look at `what` by the caller whom the given token names, for this reason; None: everything is masked.

    Raises typer.BadParameter for --reveal, StartRefusedError without a token, and the errors of tokens, scopes and
    reasons as in errors.py.
    """
    fields = fields_to_show(unmask=unmask, reveal=reveal)
    if not fields:
        return None
    token = given_token(token_file)
    if not token:
        raise StartRefusedError(
            f"showing values needs a token with the scope {Scope.UNMASK}: set {TOKEN_VARIABLE}, or name a file that "
            "holds it with --token-file (leadkeep token --role admin prints one)"
        )
    caller = asyncio.run(factories.token_verifier(settings).verify(token))
    shown = shown_to(caller, pb.LEAD_VIEW_FULL) if unmask else shown_to(caller, pb.LEAD_VIEW_UNSPECIFIED, fields)
    rules = ReasonRules(factories.validation_of(settings).text, settings.reason_required, settings.purposes or ())
    checked = rules.check("reason", reason, "--reason")
    if (fault := rules.fault_of(checked)) is not None:
        raise fault
    return Look(caller.subject, f"{what}: {checked}" if checked else what, shown)


@contextmanager
def releasing(settings: Settings, url: str, look: Look | None, *, operation: str, leads: int) -> Iterator[Release]:
    """Release leads masked, or for a look in clear, each batch when the access record of it is committed.

    The command writes a chain of its own. `leads` is how many will be shown: raises UnmaskLimitError at once when that
    is beyond the limit. The function raises it too, and StorageUnavailableError.
    """
    if look is None:
        yield _mask
        return
    request_id = str(factories.new_id())
    with asyncio.Runner() as runner:
        database = Database(url)
        writer = AccessWriter(
            database,
            AccessRecords(database, factories.encryption_of(settings)),
            writer=f"{operation}@{socket.gethostname()}",
            new_id=factories.new_id,
            limit=settings.unmask_limit,
            on_refusal=lambda cause: echo(f"leadkeep: the record cannot be written (SQLSTATE {cause})", err=True),
        )

        def release(batch: Sequence[pb.Lead]) -> None:
            by = {"subject": look.subject, "operation": operation, "reason": look.reason, "request_id": request_id}
            if accesses := [access for lead in batch for access in accesses_to(lead, look.fields, **by)]:
                runner.run(writer.record(accesses))
            if look.fields != EVERYTHING:
                _mask(batch, look.fields)

        # Without a writer nothing would be recorded, and each wait for an entry would last for its whole time.
        supervisor = Supervisor(on_death=writer.finish)

        async def start() -> None:
            supervisor.start([access_writing(writer)])
            await writer.require_room(look.subject, leads)

        async def stop() -> None:
            await supervisor.stop(CHAIN_END_SECONDS)
            await database.close()

        try:
            runner.run(start())
            yield release
        finally:
            runner.run(stop())


def _mask(batch: Sequence[pb.Lead], shown: Collection[str] = ()) -> None:
    for lead in batch:
        mask_message(lead, shown=shown)
        if "phone" not in shown:
            mask_former_phones(lead, with_former_phones(lead))


def _leads(settings: Settings, url: str, start: datetime, end: datetime, release: Release) -> Iterator[pb.Lead]:
    encryption, validation = factories.encryption_of(settings), factories.validation_of(settings)
    sealer = LeadSealer(encryption, validation, transcript_url=settings.transcript_url)
    stored = exported_leads(url, start, end)
    while batch := [lead_message(sealer.open(sealed, flag_unreadable=True)) for sealed in islice(stored, ROWS_AHEAD)]:
        release(batch)
        yield from batch


def _write(file: IO[str], file_format: str, leads: Iterator[pb.Lead]) -> int:
    """Write leads; returns how many have fields that cannot be opened."""
    # Taken before anything is written: what cannot be recorded leaves nothing, not even a line of headers.
    first = list(islice(leads, 1))
    unreadable = 0
    with ProgressLine() as progress, (_json_writer if file_format == "json" else _csv_writer)(file) as write:
        for number, lead in enumerate(chain(first, leads), start=1):
            unreadable += bool(lead.unreadable_fields)
            write(lead)
            progress.show(f"{number} leads")
    return unreadable


def _bounds(zone: str, first: datetime | None, last: datetime | None) -> tuple[datetime, datetime]:
    days = Days(zone)
    # 9999-12-31 means no end; beyond these days the calendar ends in one time zone or another.
    earliest, latest = date(1, 1, 2), date(9999, 12, 29)
    start = max(earliest, first.date()) if first else earliest
    end = min(latest, last.date()) if last else latest
    return days.bounds(min(start, latest))[0], days.bounds(max(end, earliest))[1]


_Write = Callable[[pb.Lead], object]


@contextmanager
def _json_writer(file: IO[str]) -> Iterator[_Write]:
    with json_array(file.write) as add:
        yield lambda lead: add(to_json(lead).decode())


@contextmanager
def _csv_writer(file: IO[str]) -> Iterator[_Write]:
    columns = [field.name for field in pb.Lead.DESCRIPTOR.fields]
    # CRLF, as RFC 4180 has it. Every cell in quotes: a spreadsheet that takes `;` for a separator too must not find a
    # cell, and a formula in it, within one of ours.
    writer = csv.writer(file, quoting=csv.QUOTE_ALL)
    file.write(BYTE_ORDER_MARK)
    writer.writerow(columns)

    def write(lead: pb.Lead) -> None:
        shown = MessageToDict(lead, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        writer.writerow([_cell(shown.get(name, "")) for name in columns])

    yield write


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ";".join(value)
    return neutralised(str(value))
