"""`leadkeep erase`: forget a person; and the list of who was forgotten, to be kept beside the backups."""

from __future__ import annotations

import getpass
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from service.cli.ids import lead_id_of
from service.cli.refusals import refusals_are_told
from service.config import Settings, load_settings
from service.errors import StartRefusedError

if TYPE_CHECKING:
    from service.encryption import EncryptionService
    from service.storage.database import Database
    from service.storage.erasing import Person, Refreshed
    from service.storage.erasures import Erasures
    from service.storage.spooled_person import Spooled
    from service.storage.tombstones import Tombstone

AT_ONCE = 100
"""Tombstones a transaction: each may keep the writers of leads waiting for about a millisecond."""


@refusals_are_told
def erase(
    lead_id: Annotated[str, typer.Argument(metavar="[ID]", help="The lead, or an id that leads to it.")] = "",
    reason: Annotated[str, typer.Option(help="Why; kept with the tombstone. No customer data.")] = "",
    listed: Annotated[bool, typer.Option("--list", help="List the tombstones, oldest first.")] = False,
    source: Annotated[
        Path | None, typer.Option("--from", help="Erase again what a file names that --list --json has written.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Erase a lead and all that belongs to it; only a tombstone stays. Cannot be undone. Repeating is harmless."""
    if sum((bool(lead_id), listed, source is not None)) != 1:
        raise typer.BadParameter("give one of: an ID, --list, --from FILE", param_hint="ID")
    wanted = lead_id_of(lead_id, "ID") if lead_id else None
    settings = load_settings()
    if wanted is not None:
        _erase(settings, wanted, reason, as_json=as_json)
    elif source is not None:
        _erase_again(settings, _read(source), as_json=as_json)
    else:
        _list(settings, as_json=as_json)


class _OperatorsView:
    """The spool of this machine, whoever owns it."""

    def __init__(self, folder: Path, encryption: EncryptionService) -> None:
        self._folder = folder
        self._encryption = encryption
        self.found = 0

    @property
    def empty(self) -> bool:
        from service.storage.spool_rows import FILE_NAME

        return not (self._folder / FILE_NAME).exists()

    async def of_person(self, lead_id: UUID, person: Person, refreshed: Refreshed) -> Spooled:
        from service.storage.spool import submission_of
        from service.storage.spool_rows import as_operator
        from service.storage.spooled_person import spooled_of

        with as_operator(self._folder, "ro") as connection:
            spooled = spooled_of(
                connection,
                lead_id,
                person,
                self._encryption,
                opened=lambda row: refreshed(submission_of(row, self._encryption)),
            )
        self.found = len(spooled.own)
        return spooled

    async def remove(self, ids: Sequence[UUID]) -> None:
        """Left to the drain, which finds the tombstones and the conflicts."""


def _erase(settings: Settings, lead_id: UUID, reason: str, *, as_json: bool) -> None:
    from service import factories
    from service.access import ROLES, Caller
    from service.cli.database import with_database
    from service.erasure_service import ErasureService
    from service.storage.memory import RequestMemory

    validation = factories.validation_of(settings)
    validation.reason(reason, "--reason")

    async def work(database: Database, encryption: EncryptionService) -> tuple[Sequence[UUID], int]:
        spool = _OperatorsView(settings.spool_path, encryption)
        erasures, refreshed = _erasures(settings, database, encryption)
        service = ErasureService(
            erasures=erasures,
            spool=spool,
            memory=RequestMemory(),
            validation=validation,
            refreshed=refreshed,
        )
        caller = Caller(f"cli:{getpass.getuser()}", ROLES["admin"])
        return await service.erase_lead(caller, lead_id, reason=reason), spool.found

    kept, found = with_database(settings, work)
    if as_json:
        told = {"id": str(lead_id), "erased": True, "in_spool": found, "kept_ids": [str(each) for each in kept]}
        typer.echo(json.dumps(told))
        return
    typer.echo(f"Erased: {lead_id}. A tombstone stays; the daily file of its day follows while a service runs.")
    if found:
        typer.echo(f"{found} copies in the spool are dropped when it is drained: leadkeep spool drain")
    for each in kept:
        typer.echo(f"Kept: {each}, which shares only a phone or an NID. Decide: leadkeep conflicts resolve {each}")


def _erasures(settings: Settings, database: Database, encryption: EncryptionService) -> tuple[Erasures, Refreshed]:
    from service import factories
    from service.sealing import LeadSealer
    from service.storage.erasures import Erasures
    from service.storage.repository import LeadRepository

    sealer = LeadSealer(encryption, factories.validation_of(settings), transcript_url=None)
    leads = LeadRepository(database)
    return Erasures(database, leads, sealer.refreshed), sealer.refreshed


def _list(settings: Settings, *, as_json: bool) -> None:
    from service.cli.database import with_database
    from service.storage.tombstones import Tombstones

    async def work(database: Database, _encryption: EncryptionService) -> None:
        tombstones, after, separator = Tombstones(database), None, "[\n"
        while page := await tombstones.page(after):
            after = page[-1]
            for each in page:
                if as_json:
                    typer.echo(separator + json.dumps(_shown(each), ensure_ascii=False), nl=False)
                    separator = ",\n"
                else:
                    unseen = "" if each.created_at else "(no such lead was seen here)"
                    told = (str(each.id), each.erased_at.isoformat(), each.erased_by, each.reason or "", unseen)
                    typer.echo("  ".join(filter(None, told)))
        if as_json:
            typer.echo("[]" if after is None else "\n]")
        elif after is None:
            typer.echo("Nothing was erased yet.")

    with_database(settings, work)


def _erase_again(settings: Settings, tombstones: Sequence[Tombstone], *, as_json: bool) -> None:
    from service.cli.database import with_database

    async def work(database: Database, encryption: EncryptionService) -> None:
        erasures, _ = _erasures(settings, database, encryption)
        for start in range(0, len(tombstones), AT_ONCE):
            await erasures.erase_again(tombstones[start : start + AT_ONCE])

    with_database(settings, work)
    if as_json:
        typer.echo(json.dumps({"tombstones": len(tombstones)}))
    else:
        typer.echo(f"{len(tombstones)} tombstones are in place; what had come back of their leads was erased.")


def _shown(tombstone: Tombstone) -> dict[str, Any]:
    return {
        "id": str(tombstone.id),
        "lead_id": str(tombstone.lead_id),
        "created_at": tombstone.created_at.isoformat() if tombstone.created_at else None,
        "erased_at": tombstone.erased_at.isoformat(),
        "erased_by": tombstone.erased_by,
        "reason": tombstone.reason,
        "request_digest": tombstone.request_digest.hex() if tombstone.request_digest else None,
    }


def _read(path: Path) -> list[Tombstone]:
    from service.storage.tombstones import Tombstone

    try:
        return [
            Tombstone(
                id=UUID(told["id"]),
                lead_id=UUID(told["lead_id"]),
                created_at=datetime.fromisoformat(told["created_at"]) if told["created_at"] else None,
                erased_at=datetime.fromisoformat(told["erased_at"]),
                erased_by=str(told["erased_by"]),
                reason=told["reason"],
                request_digest=bytes.fromhex(told["request_digest"]) if told["request_digest"] else None,
            )
            for told in json.loads(path.read_bytes())
        ]
    except OSError as error:
        raise StartRefusedError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise StartRefusedError(
            f"{path} is not a list of tombstones: leadkeep erase --list --json writes one"
        ) from None
