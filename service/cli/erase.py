"""`leadkeep erase`: forget a person; and the list of who was forgotten, to be kept beside the backups."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from service.access import Scope
from service.cli.command import AsJson, print_json, printed_rows, refusals_are_told
from service.config import Settings, load_settings
from service.errors import StartRefusedError

if TYPE_CHECKING:
    from service.encryption import EncryptionService
    from service.storage.database import Database
    from service.storage.erasures import Erasures, Tombstone

AT_ONCE = 100
"""Tombstones a transaction: each may keep the writers of leads waiting for about a millisecond."""


@refusals_are_told
def erase(
    lead_id: Annotated[UUID | None, typer.Argument(metavar="[ID]", help="The lead, or an id that leads to it.")] = None,
    reason: Annotated[str, typer.Option(help="Why; kept with the tombstone. No customer data.")] = "",
    listed: Annotated[bool, typer.Option("--list", help="List the tombstones, oldest first.")] = False,
    source: Annotated[
        Path | None, typer.Option("--from", help="Erase again what a file names that --list --json has written.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Erase a lead and all that belongs to it; only a tombstone stays. Cannot be undone. Repeating is harmless."""
    if sum((lead_id is not None, listed, source is not None)) != 1:
        raise typer.BadParameter("give one of: an ID, --list, --from FILE", param_hint="ID")
    settings = load_settings()
    if lead_id is not None:
        _erase(settings, lead_id, reason, as_json=as_json)
    elif source is not None:
        _erase_again(settings, _read(source), as_json=as_json)
    else:
        _list(settings, as_json=as_json)


def _erase(settings: Settings, lead_id: UUID, reason: str, *, as_json: bool) -> None:
    from leadkeep.v1 import lead_service_pb2 as pb

    from service.cli.client import connected

    with connected(settings, Scope.ERASE) as call:
        kept = call("EraseLead", pb.EraseLeadRequest(id=str(lead_id), reason=reason)).kept_ids
    if as_json:
        print_json({"id": str(lead_id), "erased": True, "kept_ids": list(kept)})
        return
    typer.echo(f"Erased: {lead_id}. A tombstone stays; the daily file of its day follows.")
    for each in kept:
        typer.echo(f"Kept: {each}, which shares only a phone or an NID. Decide: leadkeep conflicts resolve {each}")


def _list(settings: Settings, *, as_json: bool) -> None:
    from service.cli.database import with_database

    async def work(database: Database, encryption: EncryptionService) -> None:
        erasures, after = _erasures(settings, database, encryption), None
        with printed_rows(as_json=as_json) as show:
            while page := await erasures.page(after):
                after = page[-1]
                for each in page:
                    show(_as_json(each) if as_json else _as_line(each))
        if after is None and not as_json:
            typer.echo("Nothing was erased yet.")

    with_database(settings, work)


def _erase_again(settings: Settings, tombstones: Sequence[Tombstone], *, as_json: bool) -> None:
    from service.cli.database import with_database

    async def work(database: Database, encryption: EncryptionService) -> None:
        erasures = _erasures(settings, database, encryption)
        for start in range(0, len(tombstones), AT_ONCE):
            await erasures.erase_again(tombstones[start : start + AT_ONCE])

    with_database(settings, work)
    if as_json:
        print_json({"tombstones": len(tombstones)})
    else:
        typer.echo(f"{len(tombstones)} tombstones are in place; what had come back of their leads was erased.")


def _erasures(settings: Settings, database: Database, encryption: EncryptionService) -> Erasures:
    from service import factories
    from service.sealing import LeadSealer
    from service.storage.erasures import Erasures

    sealer = LeadSealer(encryption, factories.validation_of(settings), transcript_url=None)
    return Erasures(database, sealer.resealed_and_reindexed)


def _as_line(tombstone: Tombstone) -> str:
    unseen = "" if tombstone.created_at else "(no such lead was seen here)"
    columns = (str(tombstone.id), tombstone.erased_at.isoformat(), tombstone.erased_by, tombstone.reason, unseen)
    return "  ".join(filter(None, columns))


def _as_json(tombstone: Tombstone) -> dict[str, Any]:
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
    from service.storage.erasures import Tombstone

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
