"""Values in clear on the command line: who may see them, and the record of it before they are shown."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer
from google.protobuf.message import Message

from service import factories
from service.access import Scope
from service.cli.client import TOKEN_VARIABLE, given_token
from service.config import Settings
from service.errors import ReasonRequiredError, ScopeMissingError, StartRefusedError
from service.replica import access_writing
from service.rpc.unmasking import accesses_to
from service.storage.access_records import AccessRecords
from service.storage.access_writer import AccessWriter
from service.storage.database import Database
from service.supervisor import Supervisor

LAST_WORDS_SECONDS = 5.0
"""How long the end of a command waits for the record: the transaction that is under way, and the end of the chain."""

Recorded = Callable[[Sequence[Message]], None]


@dataclass(frozen=True, slots=True)
class Look:
    """Who takes values out in clear, and why, as it is recorded."""

    subject: str
    reason: str


def look_of(settings: Settings, token_file: Path | None, what: str, reason: str) -> Look:
    """The look at `what` by the caller whom the given token names, for this reason.

    Raises StartRefusedError without a token or its scope, and the errors of tokens and reasons as in errors.py.
    """
    token = given_token(token_file)
    if not token:
        raise StartRefusedError(
            f"--unmask needs a token with the scope {Scope.UNMASK}: set {TOKEN_VARIABLE}, or name a file that holds it "
            "with --token-file (leadkeep token --role admin prints one)"
        )
    caller = asyncio.run(factories.token_verifier(settings).verify(token))
    if not caller.may(Scope.UNMASK):
        raise ScopeMissingError(Scope.UNMASK)
    checked = factories.validation_of(settings).reason(reason, "--reason")
    if checked is None and settings.reason_required:
        raise ReasonRequiredError
    return Look(caller.subject, f"{what}: {checked}" if checked else what)


@contextmanager
def recording(settings: Settings, url: str, look: Look, *, operation: str, leads: int) -> Iterator[Recorded]:
    """A function that commits that messages are shown; they may be shown when it has returned.

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
                    message, subject=look.subject, operation=operation, reason=look.reason, request_id=request_id
                )
            ]
            if accesses:
                await writer.record(accesses)

        # Without a writer nothing would be recorded, and each wait for an entry would last for its whole time.
        supervisor = Supervisor(on_death=writer.finish)

        async def start() -> None:
            supervisor.start([access_writing(writer)])
            await writer.require_room(look.subject, leads)

        async def stop() -> None:
            await supervisor.stop(LAST_WORDS_SECONDS)
            await database.close()

        try:
            runner.run(start())
            yield lambda messages: runner.run(record(messages))
        finally:
            runner.run(stop())
