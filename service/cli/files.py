"""`leadkeep files`: the daily files, rendered, compared with the database, and shown."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from leadkeep.v1 import lead_service_pb2 as pb
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service import factories
from service.cli.command import (
    SOME_UNREADABLE,
    AsJson,
    FirstDay,
    LastDay,
    ReasonToLook,
    Reveal,
    TokenFile,
    Unmask,
    cell,
    echo,
    printed_rows,
    report,
    require_order,
)
from service.cli.database import confirmed_database_url
from service.cli.exports import Release, look_of, releasing
from service.config import load_settings
from service.errors import FieldUnreadableError, StartRefusedError
from service.files.daily_file import DailyFileError, FileStorageService, content_of, read_header, read_lines
from service.foreign_text import parse_json
from service.keys.encryption import EncryptionService
from service.lead import CUSTOMER_FIELDS, SENSITIVE_FIELDS
from service.storage.daily.daily_leads import DailyLeads, DailyLeadsError, Days

Day = Annotated[datetime | None, typer.Option("--day", formats=["%Y-%m-%d"], help="One day.")]

SHOWN = (
    *("id", "created_at", "status"),
    *CUSTOMER_FIELDS,
    *("assignee", "resubmissions"),
)
UNREADABLE = "(cannot be opened)"

LONGEST_SPAN = timedelta(days=3660)
"""Between two named days every day gets a file, also one without leads: a longer span is a typing error."""

LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 10.0
"""How long a running service gets to render what changes while `verify` compares."""

LEADS_AHEAD = 500
"""Leads that are held in memory until their accesses are committed, in one transaction."""

TABLE_LEADS = 1000
"""A table of more leads is not laid out, for that would hold all of them."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the file of a day compares with the database. A `state` other than equal and behind is a fault."""

    day: date
    state: str
    leads_in_file: int | None
    leads_in_database: int


def render(day: Day = None, first: FirstDay = None, last: LastDay = None, as_json: AsJson = False) -> None:
    """Render files now, whether the service runs or not: one day, some days, or all that have leads."""
    done = []
    with _opened(day, first, last) as (files, _, days):
        files.make_folder()
        for each in days:
            made = files.render(each, settles=False)
            done.append({"day": each, "leads": made.lead_count, "bytes": made.size})
            if not as_json:
                echo(f"{each}  {made.lead_count} leads, {made.size} bytes")
    report(done, [] if done else ["There is no day with leads."], as_json=as_json)


def verify(day: Day = None, first: FirstDay = None, last: LastDay = None, as_json: AsJson = False) -> None:
    """Compare each day's file with the database, by count and digest; exit code 1 if one is not equal.

    `behind` is the file as it was rendered, with changes that came since and wait for the running service.
    """
    with _opened(day, first, last) as (files, leads, days):
        found = [_compared_patiently(files, leads, each) for each in days]
    faulty = sum(each.state not in ("equal", "behind") for each in found)
    lines = [
        f"{each.day}  {each.state}: {'no file' if each.leads_in_file is None else f'{each.leads_in_file} leads'}, "
        f"{each.leads_in_database} in the database"
        for each in found
    ]
    if not faulty:
        lines.append(f"{len(found)} files are equal to the database.")
    report([asdict(each) for each in found], lines, as_json=as_json)
    if faulty:
        raise StartRefusedError(f"{faulty} of {len(found)} files are not equal to the database: leadkeep files render")


def show(
    day: Annotated[datetime, typer.Option("--day", formats=["%Y-%m-%d"], help="The day.")],
    unmask: Unmask = False,
    reveal: Reveal = "",
    token_file: TokenFile = None,
    reason: ReasonToLook = "",
    as_json: AsJson = False,
) -> None:
    """Show the leads of a day's file, sensitive fields masked. Exit code 5 if a field could not be opened."""
    settings = load_settings()
    encryption = factories.encryption_of(settings)
    path = settings.files_path / f"leads_{day.date().isoformat()}.json"
    with _file_faults_as_refusals(path):
        count = read_header(path).lead_count
    try:
        look = look_of(settings, token_file, f"daily file of {day.date()}", reason, unmask=unmask, reveal=reveal)
        with (
            # Masked leads are shown also while the database is unavailable.
            confirmed_database_url(settings) if look else nullcontext("") as url,
            releasing(settings, url, look, operation="files show", leads=count) as release,
        ):
            leads = _leads_to_show(encryption, read_lines(path), release)
            # Taken before anything is printed: what cannot be recorded leaves no half of a table.
            first = list(islice(leads, 1))
            unreadable = _print(chain(first, leads), as_json=as_json, few=count <= TABLE_LEADS)
    except (DailyFileError, ValueError, KeyError):
        raise StartRefusedError(f"{path} is damaged: leadkeep files render --day {day.date()}") from None
    if unreadable:
        echo(
            f"leadkeep: {unreadable} leads have fields that cannot be opened: damaged, or sealed with a key that "
            "this keyring lacks (LEADKEEP_KEYRING)",
            err=True,
        )
        raise typer.Exit(SOME_UNREADABLE)


def _leads_to_show(encryption: EncryptionService, lines: Iterator[bytes], release: Release) -> Iterator[dict[str, Any]]:
    while some := [parse_json(line) for line in islice(lines, LEADS_AHEAD)]:
        opened = [_opened_lead(encryption, lead) for lead in some]
        release(opened)
        for lead, message in zip(some, opened, strict=True):
            sensitive = {name: getattr(message, name) for name in SENSITIVE_FIELDS if lead[name] is not None}
            shown = {name: lead[name] for name in SHOWN} | sensitive
            yield shown | dict.fromkeys(message.unreadable_fields, UNREADABLE)


def _opened_lead(encryption: EncryptionService, lead: Any) -> pb.Lead:
    """The sensitive fields of a lead; those that cannot be opened are in `unreadable_fields`. Raises ValueError."""
    if not isinstance(lead, dict):
        raise ValueError("it is not a lead")
    lead_id = str(lead["id"])
    # Of a lead that was changed, a conversation id may hold the phone that it had before.
    message = pb.Lead(id=lead_id, version=int(str(lead["version"])))
    for name in SENSITIVE_FIELDS:
        if lead[name] is not None:
            try:
                setattr(message, name, encryption.open(UUID(lead_id), name, str(lead[name])))
            except FieldUnreadableError:
                message.unreadable_fields.append(name)
    return message


def _print(leads: Iterator[dict[str, Any]], *, as_json: bool, few: bool) -> int:
    """Print leads; how many have fields that cannot be opened."""
    unreadable = 0
    with _table() if few and not as_json and sys.stdout.isatty() else printed_rows(as_json=as_json) as show:
        if not as_json:
            show("\t".join(SHOWN))
        for lead in leads:
            unreadable += UNREADABLE in lead.values()
            show(lead if as_json else "\t".join(map(cell, lead.values())))
    return unreadable


@contextmanager
def _table() -> Iterator[Callable[[object], None]]:
    """Print rows as a table: the first one names its columns."""
    rows: list[list[str]] = []
    yield lambda row: rows.append(str(row).split("\t"))
    table = Table(*rows[0], box=None)
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    Console().print(table)


def _compared_patiently(files: FileStorageService, leads: DailyLeads, day: date) -> Comparison:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while (found := _compared(files, leads, day)).state == "behind" and time.monotonic() < give_up:
        time.sleep(LOOK_SECONDS)
    return found


def _compared(files: FileStorageService, leads: DailyLeads, day: date) -> Comparison:
    in_database, in_file = files.content_in_database(day), None
    try:
        in_file = content_of(files.path(day))
        state = "equal" if in_file == in_database else "different"
    except FileNotFoundError:
        state = "missing"
    except (DailyFileError, OSError):
        state = "damaged"
    if state in ("missing", "different") and day in leads.touched():
        rendered = leads.rendered().get(day)
        is_as_rendered = in_file and rendered is not None and rendered.digest == in_file.digest
        if is_as_rendered or (state == "missing" and in_database.lead_count):
            state = "behind"
    return Comparison(day, state, in_file.lead_count if in_file else None, in_database.lead_count)


def _require_span(day: datetime | None, first: datetime | None, last: datetime | None) -> None:
    """Raise typer.BadParameter unless these options name days that `_days` can list."""
    if day is not None and (first is not None or last is not None):
        raise typer.BadParameter("goes without --from and --to", param_hint="--day")
    require_order(first, last)
    if first is not None and last is not None and last - first > LONGEST_SPAN:
        raise typer.BadParameter(
            f"are more than {LONGEST_SPAN.days} days; leave one of them out for all days with leads",
            param_hint="--from and --to",
        )


@contextmanager
def _opened(
    day: datetime | None, first: datetime | None, last: datetime | None
) -> Iterator[tuple[FileStorageService, DailyLeads, list[date]]]:
    """The files, the leads, and the days that the options choose; without two ends, those with leads or a file."""
    _require_span(day, first, last)
    settings = load_settings()
    zone = Days(settings.files_timezone)
    with confirmed_database_url(settings) as url, closing(DailyLeads(url, zone)) as leads:
        files = FileStorageService(settings.files_path, zone, leads)
        try:
            with _file_faults_as_refusals(files.folder):
                yield files, leads, _days(day, first, last, files, leads)
        except DailyLeadsError as error:
            raise StartRefusedError(f"{error}: see leadkeep doctor") from None


def _days(
    day: datetime | None, first: datetime | None, last: datetime | None, files: FileStorageService, leads: DailyLeads
) -> list[date]:
    if day is not None:
        return [day.date()]
    if first is not None and last is not None:
        return [first.date() + timedelta(days=n) for n in range((last - first).days + 1)]
    lowest, highest = first.date() if first else date.min, last.date() if last else date.max
    on_disk = files.days_on_disk() if files.folder.exists() else []
    return sorted(each for each in {*on_disk, *leads.days_with_leads()} if lowest <= each <= highest)


@contextmanager
def _file_faults_as_refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise StartRefusedError(f"there is no {path}: leadkeep files render makes it") from None
    except OSError as error:
        raise StartRefusedError(f"{path} cannot be used: {error.strerror}") from None
    except DailyFileError as error:
        raise StartRefusedError(f"{path} is not a daily file: {error}") from None
