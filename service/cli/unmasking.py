"""Values in clear on the command line: who may see them, and the record of it before they are shown."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from google.protobuf.message import Message

from service import factories
from service.access import Caller, Scope
from service.config import Settings
from service.errors import ReasonRequiredError, StartRefusedError
from service.replica import access_writing
from service.rpc.unmasking import accesses_to
from service.secret_file import read_secret_file
from service.storage.access_records import AccessRecords
from service.storage.access_writer import AccessWriter
from service.storage.database import Database
from service.supervisor import Supervisor

LAST_WORDS_SECONDS = 5.0
"""How long the end of a command waits for the record: the transaction that is under way, and the end of the chain."""

TOKEN_VARIABLE = "LEADKEEP_TOKEN"  # noqa: S105 # the variable's name

Recorded = Callable[[Sequence[Message]], None]


def unmasking_caller(settings: Settings, token_file: Path | None) -> Caller:
    """The caller that the token of `token_file`, else of LEADKEEP_TOKEN, names, who may see values in clear.

    The token is never an argument: those can be read by every user of the machine. Raises StartRefusedError without
    a token or the scope, and the token errors of errors.py.
    """
    if token_file is not None:
        token = read_secret_file(token_file).decode("ascii", errors="replace").strip()
    else:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        raise StartRefusedError(
            f"--unmask needs a token with the scope {Scope.UNMASK}: set {TOKEN_VARIABLE}, or name a file that holds it "
            "with --token-file (leadkeep token --role admin prints one)"
        )
    caller = asyncio.run(factories.token_verifier(settings).verify(token))
    if not caller.may(Scope.UNMASK):
        raise StartRefusedError(f"this token lacks the scope {Scope.UNMASK}, which --unmask needs")
    return caller


def reason_to_look(settings: Settings, reason: str) -> str | None:
    """Why values are looked at, checked as at the doors. Raises LeadValidationError, ReasonRequiredError."""
    checked = factories.validation_of(settings).reason(reason, "--reason")
    if checked is None and settings.reason_required:
        raise ReasonRequiredError
    return checked


@contextmanager
def recording(
    settings: Settings, url: str, caller: Caller, *, operation: str, reason: str | None, leads: int
) -> Iterator[Recorded]:
    """A function that commits that messages are shown to the caller; they may be shown when it has returned.

    The command writes a chain of its own. `leads` says how many will be shown: raises UnmaskLimitError at once when
    that is beyond the limit. The function raises it too, and StorageUnavailableError.
    """
    request_id = str(factories.new_id())
    with asyncio.Runner() as runner:
        database = Database(url)
        writer = AccessWriter(
            database,
            AccessRecords(database, factories.encryption_of(settings)),
            writer=f"{operation}@{socket.gethostname()}",
            new_id=factories.new_id,
            limit=settings.unmask_limit,
            on_refusal=lambda cause: typer.echo(f"leadkeep: the record cannot be written (SQLSTATE {cause})", err=True),
        )

        async def record(messages: Sequence[Message]) -> None:
            accesses = [
                access
                for message in messages
                for access in accesses_to(
                    message, subject=caller.subject, operation=operation, reason=reason, request_id=request_id
                )
            ]
            if accesses:
                await writer.record(accesses)

        # Without a writer nothing would be recorded, and each wait for an entry would last for its whole time.
        supervisor = Supervisor(on_death=writer.finish)

        async def start() -> None:
            supervisor.start([access_writing(writer)])
            await writer.require_room(caller.subject, leads)

        async def stop() -> None:
            await supervisor.stop(LAST_WORDS_SECONDS)
            await database.close()

        try:
            runner.run(start())
            yield lambda messages: runner.run(record(messages))
        finally:
            runner.run(stop())
