"""The keyring: independent root secrets by purpose, each with an id and a state; and the sources of it.

The file is JSON of mode 0600:

    {"format": "leadkeep-keyring", "version": 1,
     "keys": [{"purpose": "encryption", "id": "e7f3k9qx", "state": "primary",
               "created_at": "2026-01-31T09:00:00+00:00", "secret": "<32 random bytes, base64url>"}, …]}

Without it no sealed field can ever be opened again: an operator keeps a copy apart from the database's backups.

A keyring is never changed in place: each change makes another keyring, which is checked like one that is read. It comes
from a file, an environment variable or the output of a command, and can be read again at any time; the caller decides
whether to use it.

Promise: no error and no log repeats anything of what is read.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
import secrets
import shlex
import subprocess
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import structlog

from service.errors import StartRefusedError
from service.foreign_text import parse_json
from service.keys.secret_file import create_secret_file, read_secret_file

FORMAT = "leadkeep-keyring"
VERSION = 1
SECRET_BYTES = 32
"""Length of every root: 256 bits, as much as HMAC-SHA256 and HKDF-SHA256 can use."""

KEY_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
"""A key's id stands before the dot of every sealed token, so it holds no dot and nothing that needs escaping."""

COMMAND_SECONDS = 30.0
"""How long the command may take: a cloud's key service answers within seconds, also when it retries."""


class Purpose(StrEnum):
    """Purpose of a root secret. Roots are independent: one that leaks reveals nothing about the others."""

    ENCRYPTION = "encryption"
    INDEX = "index"
    SPOOL = "spool"
    AUDIT = "audit"


class KeyState(StrEnum):
    """State of a key: PRIMARY seals and opens (one per purpose), ACTIVE only opens, RETIRED does neither.

    A retired key stays in the ring until an operator takes its entry out: an audit key still verifies what it signed,
    an index key still recognises the repeat of an old request, and a mistake can be undone.
    """

    PRIMARY = "primary"
    ACTIVE = "active"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class RootKey:
    """One root secret. Its representation never shows the secret."""

    purpose: Purpose
    id: str
    state: KeyState
    created_at: datetime
    secret: bytes = field(repr=False)


class Keyring:
    """The roots of every purpose. Raises ValueError when they cannot be a keyring."""

    def __init__(self, keys: Iterable[RootKey]) -> None:
        self.keys = tuple(keys)
        ids = [key.id for key in self.keys]
        if len(ids) != len(set(ids)):
            raise ValueError("two keys have the same id")
        for purpose in Purpose:
            primaries = [k for k in self.keys if k.purpose is purpose and k.state is KeyState.PRIMARY]
            if len(primaries) != 1:
                raise ValueError(f"there must be exactly one primary key for {purpose}, there are {len(primaries)}")

    def primary(self, purpose: Purpose) -> RootKey:
        """The key that seals."""
        return next(k for k in self.keys if k.purpose is purpose and k.state is KeyState.PRIMARY)

    def usable(self, purpose: Purpose) -> tuple[RootKey, ...]:
        """The keys that open."""
        return tuple(k for k in self.keys if k.purpose is purpose and k.state is not KeyState.RETIRED)

    def all_of(self, purpose: Purpose) -> tuple[RootKey, ...]:
        """The keys of a purpose in whatever state, also those that neither seal nor open any more."""
        return tuple(k for k in self.keys if k.purpose is purpose)

    def find(self, key_id: str) -> RootKey | None:
        """The key with this id, whatever its state."""
        return next((key for key in self.keys if key.id == key_id), None)

    def with_new_key(self, purpose: Purpose, *, now: datetime) -> tuple[Keyring, RootKey]:
        """This keyring and one fresh active key."""
        made = _fresh_key(purpose, KeyState.ACTIVE, now)
        return Keyring((*self.keys, made)), made

    def with_primary(self, key_id: str) -> Keyring:
        """This keyring with a usable key as the primary one of its purpose; the former one stays active."""
        wanted = self.find(key_id)
        if wanted is None:
            raise ValueError("there is no such key")
        return Keyring(
            replace(key, state=KeyState.PRIMARY if key.id == key_id else KeyState.ACTIVE)
            if key.purpose is wanted.purpose and key.state is not KeyState.RETIRED
            else key
            for key in self.keys
        )

    def with_retired(self, key_id: str) -> Keyring:
        """This keyring with an active key retired."""
        return Keyring(replace(key, state=KeyState.RETIRED) if key.id == key_id else key for key in self.keys)

    @classmethod
    def generate(cls, *, now: datetime) -> Keyring:
        """A new keyring with one fresh primary key for each purpose."""
        return cls(_fresh_key(purpose, KeyState.PRIMARY, now) for purpose in Purpose)

    def to_json(self) -> str:
        """The file's content."""
        keys = [
            {
                "purpose": key.purpose.value,
                "id": key.id,
                "state": key.state.value,
                "created_at": key.created_at.isoformat(),
                "secret": base64.urlsafe_b64encode(key.secret).decode(),
            }
            for key in self.keys
        ]
        return json.dumps({"format": FORMAT, "version": VERSION, "keys": keys}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Keyring:
        """Read a keyring file's content. Raises ValueError, whose text never holds a secret."""
        document = parse_json(text)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        if document.get("version") != VERSION:
            raise ValueError(f"its version is not {VERSION}, the one this release reads")
        entries = document.get("keys")
        if not isinstance(entries, list):
            raise ValueError("it has no list of keys")
        return cls(_root_key(number, entry) for number, entry in enumerate(entries, start=1))


def _fresh_key(purpose: Purpose, state: KeyState, now: datetime) -> RootKey:
    return RootKey(
        purpose=purpose,
        # The purpose's initial shows which keys are of one kind; 8 hex digits make each unique.
        id=purpose.value[0] + secrets.token_hex(4),
        state=state,
        created_at=now,
        secret=secrets.token_bytes(SECRET_BYTES),
    )


def _root_key(number: int, entry: Any) -> RootKey:
    if not isinstance(entry, dict):
        raise ValueError(f"key {number} is not an object")
    try:
        key_id = entry["id"]
        if not isinstance(key_id, str) or not KEY_ID.fullmatch(key_id):
            raise ValueError(f"key {number} has no usable id (lower-case letters, digits, dashes)")
        secret = _secret(number, entry["secret"])
        created_at = _moment(number, entry["created_at"])
        if entry["purpose"] not in tuple(Purpose) or entry["state"] not in tuple(KeyState):
            raise ValueError(f"key {number} has a purpose or a state that this release does not know")
        return RootKey(Purpose(entry["purpose"]), key_id, KeyState(entry["state"]), created_at, secret)
    except KeyError as missing:
        raise ValueError(f"key {number} has no {missing.args[0]}") from None


# A secret may stand in the wrong line, so nothing of what is read is repeated, by the library's errors neither.


def _secret(number: int, text: Any) -> bytes:
    try:
        secret = base64.b64decode(text, altchars=b"-_", validate=True)
    except (TypeError, ValueError):
        raise ValueError(f"key {number} has a secret that is not base64url") from None
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"key {number} does not hold {SECRET_BYTES} bytes")
    return secret


def _moment(number: int, text: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise ValueError(f"key {number} has a created_at that is no time") from None
    if moment.tzinfo is None:
        raise ValueError(f"key {number} was created at a time without an offset")
    return moment


def create_keyring(path: Path, *, now: datetime) -> bool:
    """Make a keyring file with fresh keys; False when there is one already, which stays untouched."""
    return create_secret_file(path, Keyring.generate(now=now).to_json().encode())


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
