"""How a field is sealed, opened and indexed.

Promises: a sealed field opens only with its key, for the lead and the field that it was sealed for; equal values
never have equal tokens; a blind index finds equals without opening anything. What fails to open is an error, never
passed on as it is.

Caveat: blind indexes are deterministic. Whoever holds the index key and the database can test guesses of a phone
number or a national ID; that is why the index root is a key of its own.

Derivation: each key is HKDF-SHA256 (RFC 5869) of a root of the keyring, with no salt and a label that names its use
(`leadkeep/v1/…`). Test vectors: tests/vectors/encryption.json.
"""

from __future__ import annotations

import base64
import hmac
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from service.errors import FieldUnreadableError
from service.keyring import Keyring, Purpose

LABEL = "leadkeep/v1/"
DERIVED_BYTES = 32
INDEX_BYTES = 32
"""Blind indexes keep the whole HMAC-SHA256: unique indexes decide duplicates, so a truncated digest that collides
would refuse a stranger."""

PADDED_BYTES = 128
"""phone and nid are padded to this length, so that a token's length tells neither how long the value is nor which of
the two it holds. It is the longest of both: 32 letters of 4 bytes each in UTF-8."""

PADDED_FIELDS = frozenset({"phone", "nid"})

_HEADER = struct.Struct(">16sBH")  # lead id, length of the field's name, length of the value in bytes


@dataclass(frozen=True, slots=True)
class KeyCanary:
    """Two values that only the keyring which made them can confirm; kept beside the leads."""

    sealed: str
    index: bytes


class EncryptionService:
    """Seals, opens and indexes with the keys of one keyring. It does no input or output."""

    def __init__(self, keyring: Keyring) -> None:
        self._primary_id = keyring.primary(Purpose.ENCRYPTION).id
        self._fernets = {
            key.id: Fernet(base64.urlsafe_b64encode(_derive(key.secret, f"seal/{key.id}")))
            for key in keyring.usable(Purpose.ENCRYPTION)
        }
        spool = keyring.primary(Purpose.SPOOL)
        self._spool_primary_id = spool.id
        self._spool_fernets = {
            key.id: Fernet(base64.urlsafe_b64encode(_derive(key.secret, f"spool/{key.id}")))
            for key in keyring.usable(Purpose.SPOOL)
        }
        self._spool_index_key = _derive(spool.secret, "spool-index")
        index_root = keyring.primary(Purpose.INDEX).secret
        self._index_keys = {name: _derive(index_root, f"index/{name}") for name in PADDED_FIELDS}
        self._content_key = _derive(index_root, "content-digest")
        self._page_token_key = _derive(index_root, "page-token")
        self._canary_key = _derive(index_root, "canary")
        self.audit_key_id = keyring.primary(Purpose.AUDIT).id
        self._audit_keys = {
            key.id: _derive(key.secret, f"access-record/{key.id}") for key in keyring.usable(Purpose.AUDIT)
        }

    def seal(self, lead_id: UUID, field: str, value: str) -> str:
        """The stored form `<key id>.<Fernet token>` of one field of one lead.

        The token's own timestamp is readable without a key, so it is always 0.
        """
        name, content = field.encode(), value.encode()
        plaintext = _HEADER.pack(lead_id.bytes, len(name), len(content)) + name + content
        if field in PADDED_FIELDS:
            plaintext += bytes(PADDED_BYTES - len(content)) + bytes(len("phone") - len(name))
        token = self._fernets[self._primary_id].encrypt_at_time(plaintext, 0)
        return f"{self._primary_id}.{token.decode()}"

    def open(self, lead_id: UUID, field: str, sealed: str) -> str:
        """The value of a sealed field.

        Raises FieldUnreadableError when the token is damaged, was sealed with a key that is not in the keyring, or
        belongs to another lead or another field.
        """
        key_id, _, token = sealed.partition(".")
        fernet = self._fernets.get(key_id)
        if fernet is None:
            raise FieldUnreadableError([field])
        try:
            plaintext = fernet.decrypt(token.encode())
            sealed_for, name_length, value_length = _HEADER.unpack_from(plaintext)
        except (InvalidToken, struct.error):
            raise FieldUnreadableError([field]) from None
        value_at = _HEADER.size + name_length
        if sealed_for != lead_id.bytes or plaintext[_HEADER.size : value_at] != field.encode():
            raise FieldUnreadableError([field])
        return plaintext[value_at : value_at + value_length].decode()

    def opens_with(self, key_id: str) -> bool:
        """Whether the keyring has this encryption key, in a state in which it opens."""
        return key_id in self._fernets

    def blind_index(self, field: str, value: str) -> bytes:
        """The keyed digest of a normalised phone or nid: 32 bytes, equal for equal values of the same field."""
        return hmac.digest(self._index_keys[field], value.encode(), "sha256")

    def content_digest(self, values: Iterable[str | None]) -> bytes:
        """The keyed digest of a submission's normalised values, in the contract's order; absent differs from empty."""
        framed = b"".join(
            b"\x00" if value is None else b"\x01" + struct.pack(">I", len(raw := value.encode())) + raw
            for value in values
        )
        return hmac.digest(self._content_key, framed, "sha256")

    def sign_page_token(self, payload: bytes) -> bytes:
        """The tag that proves that this service made a page token."""
        return hmac.digest(self._page_token_key, payload, "sha256")

    def has_audit_key(self, key_id: str) -> bool:
        """Whether the keyring can make and check digests of the access record with this key."""
        return key_id in self._audit_keys

    def audit_digest(self, key_id: str, payload: bytes) -> bytes:
        """The keyed digest of a part of the access record. The key must be one that `has_audit_key` knows."""
        return hmac.digest(self._audit_keys[key_id], payload, "sha256")

    def seal_spooled(self, submission_id: UUID, payload: bytes) -> str:
        """Seal a whole submission for the spool, bound to its id, with a key of the spool's own root."""
        token = self._spool_fernets[self._spool_primary_id].encrypt_at_time(submission_id.bytes + payload, 0)
        return f"{self._spool_primary_id}.{token.decode()}"

    def open_spooled(self, submission_id: UUID, sealed: str) -> bytes:
        """What `seal_spooled` sealed. Raises FieldUnreadableError for damage, another key or another submission."""
        key_id, _, token = sealed.partition(".")
        fernet = self._spool_fernets.get(key_id)
        if fernet is None:
            raise FieldUnreadableError(["spooled"])
        try:
            payload = fernet.decrypt(token.encode())
        except InvalidToken:
            raise FieldUnreadableError(["spooled"]) from None
        if payload[:16] != submission_id.bytes:
            raise FieldUnreadableError(["spooled"])
        return payload[16:]

    def spool_index(self, kind: str, *values: str) -> bytes:
        """The keyed digest by which the spool finds a request or a conversation again."""
        framed = b"".join(struct.pack(">I", len(raw := value.encode())) + raw for value in (kind, *values))
        return hmac.digest(self._spool_index_key, framed, "sha256")

    def make_canary(self) -> KeyCanary:
        """A canary of this keyring, to be kept with the data that it protects."""
        return KeyCanary(self.seal(_CANARY_ID, "canary", "leadkeep"), self._canary_index())

    def confirms(self, canary: KeyCanary) -> bool:
        """Whether this keyring opens the canary and makes the same blind indexes as the one that made it."""
        try:
            opened = self.open(_CANARY_ID, "canary", canary.sealed)
        except FieldUnreadableError:
            return False
        return opened == "leadkeep" and hmac.compare_digest(canary.index, self._canary_index())

    def _canary_index(self) -> bytes:
        return hmac.digest(self._canary_key, b"leadkeep", "sha256")


_CANARY_ID = UUID(int=0)


def _derive(root: bytes, label: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=DERIVED_BYTES, salt=None, info=(LABEL + label).encode()).derive(root)
