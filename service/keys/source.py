"""Sources of the keyring: a file, an environment variable, or the output of a command.

Promise: no error and no log repeats anything of what is read. A keyring can be read again at any time; the caller
decides whether to use it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import shlex
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from service.errors import StartRefusedError
from service.keys.keyring import Keyring
from service.keys.secret_file import read_secret_file

COMMAND_SECONDS = 30.0
"""How long the command may take: a cloud's key service answers within seconds, also when it retries."""


@dataclass(frozen=True, slots=True)
class KeyringSource:
    """A place where a keyring is kept."""

    name: str
    """Its name in a sentence. Holds no secret."""
    read: Callable[[], bytes] = field(repr=False)
    """Reads the keyring's JSON. Raises StartRefusedError."""
    path: Path | None = None
    """The file that can be written; None: the keyring is kept where only the operator can put it."""

    def load(self) -> Keyring:
        """Read the keyring now. Raises StartRefusedError, which names the fault and what to do."""
        try:
            return Keyring.from_json(self.read())
        except ValueError as error:
            raise StartRefusedError(f"{self.name} cannot be used: {error}") from None


def keyring_file(path: Path) -> KeyringSource:
    """The source that is a file of mode 0600."""

    def read() -> bytes:
        if not path.exists():
            raise StartRefusedError(
                f"there is no keyring at {path}. If leads are stored already, restore the keyring they were "
                "sealed with; for a new installation run: leadkeep keys init"
            )
        return read_secret_file(path)

    return KeyringSource(f"the keyring {path}", read, path)


def keyring_content(content: str) -> KeyringSource:
    """The source that is an environment variable: JSON, or base64 of it where a value must be one line."""

    def read() -> bytes:
        text = content.strip()
        if text.startswith("{"):
            return text.encode()
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error:
            raise ValueError("it is neither JSON nor base64") from None

    return KeyringSource("the keyring of LEADKEEP_KEYRING_CONTENT", read)


def keyring_command(command: str, *, timeout: float = COMMAND_SECONDS) -> KeyringSource:
    """The source that is a command, which asks a key service or decrypts a file. It runs without a shell."""
    # The command itself may hold a secret, and so may both of its outputs: a program that fails may print what it was
    # to decrypt.
    name = "the keyring of LEADKEEP_KEYRING_COMMAND"

    def read() -> bytes:
        arguments = shlex.split(command)
        try:
            done = subprocess.run(  # noqa: S603 # the operator's own command, as it is set
                arguments, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise StartRefusedError(
                f"{name} is unavailable: the command took longer than {timeout:g} seconds"
            ) from None
        except OSError as error:
            raise StartRefusedError(f"{name} is unavailable: {arguments[0]} cannot be run ({error.strerror})") from None
        if done.returncode != 0:
            raise StartRefusedError(
                f"{name} is unavailable: the command ended with {done.returncode}; run it by hand to see why"
            )
        return done.stdout

    return KeyringSource(name, read)


async def follow_keyring(
    source: KeyringSource, requested: asyncio.Event, use: Callable[[Keyring], Awaitable[None]]
) -> None:
    """Read the keyring again whenever `requested` is set, and `use` it. One that cannot be used changes nothing."""
    log = structlog.get_logger("leadkeep.keys")
    while True:
        await requested.wait()
        requested.clear()
        try:
            keyring = await asyncio.to_thread(source.load)
            await use(keyring)
        except StartRefusedError as refused:
            log.error("the keyring was not taken, the one before stays in use", what=str(refused))
        except Exception as error:  # noqa: BLE001 # whatever it is, the next request is answered
            log.error("the keyring was not taken, the one before stays in use", error=type(error).__qualname__)
        else:
            log.info("keyring taken", keys=[f"{key.purpose} {key.id} {key.state}" for key in keyring.keys])
