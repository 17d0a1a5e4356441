"""`leadkeep files`: the daily files, rendered, compared with the database, and shown."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.refusals import refusals_are_told
from service.config import Settings, load_settings
from service.errors import FieldUnreadableError, StartRefusedError

if TYPE_CHECKING:
    from service.encryption import EncryptionService
    from service.file_storage import FileStorageService
    from service.storage.daily_leads import DailyLeads

files_app = typer.Typer(help="The daily files: one JSON file for each day's leads.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Day = Annotated[datetime | None, typer.Option("--day", formats=["%Y-%m-%d"], help="One day.")]
From = Annotated[datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="The first day.")]
To = Annotated[datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="The last day.")]

SHOWN = (
    *("id", "created_at", "status", "name", "phone", "nid", "email", "address", "interested_policy"),
    *("preferred_contact_time", "notes", "conversation_id", "assignee", "resubmissions"),
)
UNREADABLE = "(cannot be opened)"

LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 10.0
"""How long a running service gets to render what changes while `verify` compares."""

TABLE_LEADS = 1000
"""A table of more leads is not laid out, for that would hold all of them."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the file of a day compares with the database. `state` other than equal and behind is a fault."""

    day: str
    state: str
    leads_in_file: int | None
    leads_in_database: int

    @property
    def well(self) -> bool:
        """Whether a running service needs no help."""
        return self.state in ("equal", "behind")


@files_app.command()
@refusals_are_told
def render(day: Day = None, first: From = None, last: To = None, as_json: AsJson = False) -> None:
    """Render files now, whether the service runs or not: one day, some days, or all that have leads."""
    settings = load_settings()
    with _opened(settings) as (files, leads):
        files.make_folder()
        wanted = _days(day, first, last, lambda: _known_days(files, leads))
        done = []
        for each in wanted:
            made = files.render(each, settles=False)
            done.append({"day": each.isoformat(), "leads": made.lead_count, "bytes": made.size})
            if not as_json:
                typer.echo(f"{each}  {made.lead_count} leads, {made.size} bytes")
    if as_json:
        typer.echo(json.dumps(done, indent=2))
    elif not done:
        typer.echo("There is no day with leads.")


@files_app.command()
@refusals_are_told
def verify(day: Day = None, first: From = None, last: To = None, as_json: AsJson = False) -> None:
    """Compare each day's file with the database, by count and digest; exit code 1 if one is not equal.

    `behind` is the file as it was rendered, with changes that came since and wait for the running service.
    """
    settings = load_settings()
    with _opened(settings) as (files, leads):
        wanted = _days(day, first, last, lambda: _known_days(files, leads))
        found = [_compared_patiently(files, leads, each) for each in wanted]
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in found], indent=2))
    else:
        for each in found:
            in_file = "no file" if each.leads_in_file is None else f"{each.leads_in_file} leads"
            typer.echo(f"{each.day}  {each.state}: {in_file}, {each.leads_in_database} in the database")
    if faulty := sum(not each.well for each in found):
        raise StartRefusedError(f"{faulty} of {len(found)} files are not equal to the database: leadkeep files render")
    if not as_json:
        typer.echo(f"{len(found)} files are equal to the database.")


@files_app.command()
@refusals_are_told
def show(
    day: Annotated[datetime, typer.Option("--day", formats=["%Y-%m-%d"], help="The day.")],
    unmask: Annotated[
        bool, typer.Option("--unmask", help="Show values in clear; needs a token and is recorded.")
    ] = False,
    token_file: Annotated[Path | None, typer.Option(help="File with the token; else LEADKEEP_TOKEN.")] = None,
    reason: Annotated[str, typer.Option(help="Why values are looked at, for the record.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show the leads of a day's file, sensitive fields masked."""
    settings = load_settings()
    from service import app
    from service.encryption import EncryptionService
    from service.file_storage import DailyFileError, read_header, read_lines

    encryption = EncryptionService(app.keyring_source(settings).load())
    path = settings.files_path / f"leads_{day.date().isoformat()}.json"
    with _file_faults_are_told(path):
        header = read_header(path)
    if unmask:
        _record_look(settings, token_file, day.date(), reason)
    try:
        leads = (_shown(encryption, json.loads(line), unmask=unmask) for line in read_lines(path))
        _print(leads, as_json=as_json, few=header.lead_count <= TABLE_LEADS)
    except (DailyFileError, ValueError, KeyError):
        raise StartRefusedError(f"{path} is damaged: leadkeep files render --day {day.date()}") from None


def _record_look(settings: Settings, token_file: Path | None, day: date, reason: str) -> None:
    from service.app import SENSITIVE_FIELDS
    from service.cli.database import with_database
    from service.cli.unmasking import unmasking_caller
    from service.storage.access_records import Access, record_access
    from service.storage.database import Database

    caller = unmasking_caller(settings, token_file)
    why = f"daily file of {day}" + (f": {reason}" if reason else "")
    access = Access(subject=caller.subject, operation="files show", fields=SENSITIVE_FIELDS, reason=why)

    async def record(database: Database, _encryption: EncryptionService) -> None:
        await record_access(database, [access])

    with_database(settings, record)


def _shown(encryption: EncryptionService, lead: dict[str, Any], *, unmask: bool) -> dict[str, Any]:
    from uuid import UUID

    from service.rpc.masking import mask_value
    from service.storage.daily_leads import SENSITIVE_COLUMNS

    shown = {name: lead[name] for name in SHOWN}
    for name in SENSITIVE_COLUMNS:
        if lead[name] is None:
            continue
        try:
            value = encryption.open(UUID(lead["id"]), name, lead[name])
            shown[name] = value if unmask else mask_value(name, value)
        except FieldUnreadableError:
            shown[name] = UNREADABLE
    return shown


def _print(leads: Iterator[dict[str, Any]], *, as_json: bool, few: bool) -> None:
    if as_json:
        separator = "[\n"
        for lead in leads:
            typer.echo(separator + json.dumps(lead, ensure_ascii=False), nl=False)
            separator = ",\n"
        typer.echo("[]" if separator == "[\n" else "\n]")
        return
    rows = ([" ".join(str(value).split()) if value is not None else "" for value in lead.values()] for lead in leads)
    if not (few and sys.stdout.isatty()):
        typer.echo("\t".join(SHOWN))
        for row in rows:
            typer.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*SHOWN, box=None)
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def _compared_patiently(files: FileStorageService, leads: DailyLeads, day: date) -> Comparison:
    patience = time.monotonic() + PATIENCE_SECONDS
    found = _compared(files, leads, day)
    while found.state == "behind" and time.monotonic() < patience:
        time.sleep(LOOK_SECONDS)
        found = _compared(files, leads, day)
    return found


def _compared(files: FileStorageService, leads: DailyLeads, day: date) -> Comparison:
    from service.file_storage import DailyFileError, content_of

    in_database = files.content_in_database(day)
    try:
        in_file = content_of(files.path(day))
    except FileNotFoundError:
        state = "behind" if in_database.lead_count and day in leads.touched() else "missing"
        return Comparison(day.isoformat(), state, None, in_database.lead_count)
    except (DailyFileError, OSError):
        return Comparison(day.isoformat(), "damaged", None, in_database.lead_count)
    state = "equal" if in_file == in_database else "different"
    if state == "different" and day in leads.touched():
        rendered = leads.rendered().get(day)
        state = "behind" if rendered is not None and rendered.digest == in_file.digest else state
    return Comparison(day.isoformat(), state, in_file.lead_count, in_database.lead_count)


def _known_days(files: FileStorageService, leads: DailyLeads) -> list[date]:
    on_disk = files.days_on_disk() if files.folder.exists() else []
    return sorted({*on_disk, *leads.days_with_leads()})


def _days(day: datetime | None, first: datetime | None, last: datetime | None, known: Any) -> list[date]:
    if day is not None:
        if first is not None or last is not None:
            raise typer.BadParameter("goes without --from and --to", param_hint="--day")
        return [day.date()]
    if first is not None and last is not None:
        if first > last:
            raise typer.BadParameter("is later than --to", param_hint="--from")
        return [first.date() + timedelta(days=n) for n in range((last - first).days + 1)]
    lowest = first.date() if first else date.min
    highest = last.date() if last else date.max
    return [each for each in known() if lowest <= each <= highest]


@contextmanager
def _opened(settings: Settings) -> Iterator[tuple[FileStorageService, DailyLeads]]:
    from service.cli.database import confirmed_database_url
    from service.days import Days
    from service.file_storage import FileStorageService
    from service.storage.daily_leads import DailyLeads, DailyLeadsError

    days = Days(settings.files_timezone)
    with confirmed_database_url(settings) as url:
        leads = DailyLeads(url, days)
        try:
            with _file_faults_are_told(settings.files_path):
                yield FileStorageService(settings.files_path, days, leads), leads
        except DailyLeadsError as error:
            raise StartRefusedError(f"{error}: see leadkeep doctor") from None
        finally:
            leads.close()


@contextmanager
def _file_faults_are_told(path: Path) -> Iterator[None]:
    from service.file_storage import DailyFileError

    try:
        yield
    except FileNotFoundError:
        raise StartRefusedError(f"there is no {path}: leadkeep files render makes it") from None
    except OSError as error:
        raise StartRefusedError(f"{path} cannot be used: {error.strerror}") from None
    except DailyFileError as error:
        raise StartRefusedError(f"{path} is not a daily file: {error}") from None
