"""`leadkeep conflicts`: see and decide what met a lead when it came out of the spool."""

from __future__ import annotations

import getpass
import json
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.ids import lead_id_of
from service.cli.refusals import refusals_are_told
from service.config import Settings, load_settings
from service.lead import ConflictResolution

if TYPE_CHECKING:
    from leadkeep.v1 import lead_service_pb2 as pb

    from service.conflict_service import ConflictService
    from service.encryption import EncryptionService
    from service.lead import Lead
    from service.storage.database import Database

conflicts_app = typer.Typer(help="Submissions that met a lead when they came out of the spool.", no_args_is_help=True)


@conflicts_app.command("list")
@refusals_are_told
def list_conflicts(
    every: Annotated[bool, typer.Option("--all", help="Also those that were decided.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what waits for a decision, oldest first, with both sides; sensitive values are masked."""
    settings = load_settings()
    from google.protobuf.json_format import MessageToDict
    from leadkeep.v1 import lead_service_pb2 as pb

    from service.cli.database import with_database
    from service.rpc import wire
    from service.rpc.masking import mask_message

    async def collect(database: Database, encryption: EncryptionService) -> list[pb.Conflict]:
        service = _service(settings, database, encryption)
        found, token = await service.list_conflicts(resolved_too=every)
        while token:
            more, token = await service.list_conflicts(resolved_too=every, page_token=token)
            found += more
        return wire.conflict_messages(found)

    conflicts = with_database(settings, collect)
    for conflict in conflicts:
        mask_message(conflict)
    if as_json:
        shown = [MessageToDict(conflict, preserving_proto_field_name=True) for conflict in conflicts]
        typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    for conflict in conflicts:
        decided = pb.ConflictResolution.Name(conflict.resolution).removeprefix("CONFLICT_RESOLUTION_").lower()
        state = "waits" if not conflict.resolution else f"{decided} by {conflict.resolved_by}"
        typer.echo(f"{conflict.id}  accepted {conflict.accepted_at.ToJsonString()}  {state}")
        typer.echo(f"  submitted: {_side(conflict.submission)}")
        if "erased" in conflict.met_fields:
            typer.echo("  a lead that it shares something with was erased: keep-first drops it, own-lead keeps it")
        for lead in conflict.leads:
            typer.echo(f"  met by {', '.join(conflict.met_fields)}: lead {lead.id}: {_side(lead)}")
    if not conflicts:
        typer.echo("No conflict waits for a decision." if not every else "There was no conflict yet.")


@conflicts_app.command("resolve")
@refusals_are_told
def resolve(
    conflict_id: Annotated[str, typer.Argument(metavar="ID", help="The conflict, see: leadkeep conflicts list.")],
    resolution: Annotated[
        str, typer.Argument(metavar="keep-first|take-new|own-lead", help="What becomes of the submission.")
    ],
    lead: Annotated[str, typer.Option(help="Which lead is kept or takes the values; when it met several.")] = "",
    reason: Annotated[str, typer.Option(help="Why; kept with the conflict. No customer data.")] = "",
) -> None:
    """Decide: keep the first lead as it is, let it take the new values, or make the submission a lead of its own."""
    try:
        wanted = ConflictResolution(resolution.replace("-", "_"))
    except ValueError:
        raise typer.BadParameter("must be keep-first, take-new or own-lead", param_hint="resolution") from None
    number = lead_id_of(conflict_id, "ID")
    chosen = lead_id_of(lead, "--lead") if lead else None
    settings = load_settings()
    from service import factories
    from service.access import ROLES, Caller
    from service.cli.database import with_database

    factories.validation_of(settings).reason(reason, "--reason")
    caller = Caller(f"cli:{getpass.getuser()}", ROLES["admin"])

    async def decide(database: Database, encryption: EncryptionService) -> Lead | None:
        service = _service(settings, database, encryption)
        return await service.resolve_conflict(caller, number, wanted, lead_id=chosen, reason=reason)

    resolved = with_database(settings, decide)
    if resolved is None:
        typer.echo(f"Resolved: {conflict_id} is dropped; a tombstone stays.")
    else:
        typer.echo(f"Resolved: {conflict_id} leads to the lead {resolved.id} now.")


def _service(settings: Settings, database: Database, encryption: EncryptionService) -> ConflictService:
    from service import factories
    from service.conflict_service import ConflictService
    from service.sealing import LeadSealer
    from service.storage.conflicts import ConflictRepository
    from service.storage.repository import LeadRepository

    validation = factories.validation_of(settings)
    leads = LeadRepository(database)
    return ConflictService(
        conflicts=ConflictRepository(database, leads),
        sealer=LeadSealer(
            encryption,
            validation,
            transcript_url=settings.transcript_url,
        ),
        validation=validation,
        page_token_tags=encryption.page_token_tags,
    )


def _side(lead: pb.Lead) -> str:
    return f"{lead.name}, phone {lead.phone}, nid {lead.nid}, {lead.interested_policy}"
