"""Where the keyring comes from: a file, an environment variable, or the output of a command.

Promise: nothing of what is read is ever repeated, in no fault and no log. A keyring can be read again at any time; who
reads it decides whether to use what came.
"""

from __future__ import annotations

import base64
import binascii
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from service.errors import StartRefusedError
from service.keyring import Keyring
from service.secret_file import read_secret_file

COMMAND_SECONDS = 30.0
"""How long the command may take: a cloud's key service answers within seconds, also when it retries."""


class KeyringSource(Protocol):
    """Somewhere a keyring is kept."""

    @property
    def path(self) -> Path | None:
        """The file that can be written; None: the keyring is kept where only the operator can put it."""

    @property
    def name(self) -> str:
        """How to call it in a sentence. Holds no secret."""

    def load(self) -> Keyring:
        """Read it now. Raises StartRefusedError that says what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class KeyringFile:
    """A file of mode 0600."""

    path: Path

    @property
    def name(self) -> str:
        """Its path."""
        return f"the keyring {self.path}"

    def load(self) -> Keyring:
        """Read the file."""
        if not self.path.exists():
            raise StartRefusedError(
                f"there is no keyring at {self.path}. If leads are stored already, restore the keyring they were "
                "sealed with; for a new installation run: leadkeep keys init"
            )
        return _parsed(read_secret_file(self.path), self.name)


@dataclass(frozen=True, slots=True)
class KeyringContent:
    """The content itself, out of an environment variable: JSON, or the same in base64 for where lines hurt."""

    content: str = field(repr=False)

    @property
    def path(self) -> Path | None:
        """None: a process cannot change the environment that it will be started with."""
        return None

    @property
    def name(self) -> str:
        """The variable."""
        return "the keyring of LEADKEEP_KEYRING_CONTENT"

    def load(self) -> Keyring:
        """Read the variable's value, which is the same as long as the process lives."""
        text = self.content.strip()
        if text.startswith("{"):
            return _parsed(text.encode(), self.name)
        try:
            return _parsed(base64.b64decode(text, validate=True), self.name)
        except binascii.Error:
            raise StartRefusedError(f"{self.name} cannot be used: it is neither JSON nor base64") from None


@dataclass(frozen=True, slots=True)
class KeyringCommand:
    """A command that prints it: one that asks a key service, or decrypts a file. It is run without a shell."""

    command: str = field(repr=False)
    timeout: float = COMMAND_SECONDS

    @property
    def path(self) -> Path | None:
        """None: how it is put where the command takes it from is the operator's to know."""
        return None

    @property
    def name(self) -> str:
        """The setting; the command itself may hold a secret."""
        return "the keyring of LEADKEEP_KEYRING_COMMAND"

    def load(self) -> Keyring:
        """Run the command."""
        arguments = shlex.split(self.command)
        try:
            done = subprocess.run(  # noqa: S603 # the operator's own command, as it is set
                arguments, stdin=subprocess.DEVNULL, capture_output=True, timeout=self.timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise StartRefusedError(
                f"{self.name} cannot be had: the command took longer than {self.timeout:g} seconds"
            ) from None
        except OSError as error:
            raise StartRefusedError(
                f"{self.name} cannot be had: {arguments[0]} cannot be run ({error.strerror})"
            ) from None
        if done.returncode != 0:
            # Neither of its outputs is repeated: a program that fails may print what it was to decrypt.
            raise StartRefusedError(
                f"{self.name} cannot be had: the command ended with {done.returncode}; run it by hand to see why"
            )
        return _parsed(done.stdout, self.name)


def _parsed(content: bytes, name: str) -> Keyring:
    try:
        return Keyring.from_json(content)
    except ValueError as error:
        raise StartRefusedError(f"{name} cannot be used: {error}") from None
