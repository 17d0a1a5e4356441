"""Encryption of fields: seals and opens them, and computes blind indexes.

Promises: a sealed field opens only with its key, for the lead and the field that it was sealed for; equal values
never have equal tokens; a blind index finds equals without opening anything. What fails to open is an error, never
passed on as it is.

Caveat: blind indexes are deterministic. Whoever holds the index key and the database can test guesses of a phone
number or a national ID; that is why the index root is a key of its own.

Derivation: each key is HKDF-SHA256 (RFC 5869) of a root of the keyring, with no salt and a label that names its use
(`leadkeep/v1/…`). Test vectors and the layout of every byte: tests/vectors/README.md.

A keyring may be exchanged while the service runs: `take`. Each call works with one keyring from its beginning to its
end, in whatever thread.
"""

from __future__ import annotations

import base64
import hmac
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from uuid import UUID

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from service.errors import FieldUnreadableError
from service.keys.keyring import Keyring, KeyState, Purpose, RootKey
from service.lead import is_sealed

LABEL = "leadkeep/v1/"
DERIVED_BYTES = 32
PADDED_BYTES = 128
"""phone and nid are padded to this length, so that a token's length reveals neither the value's length nor which of
the two it holds. It is the longest of both: 32 letters of 4 bytes each in UTF-8."""

PADDED_FIELDS = frozenset({"phone", "nid"})

TEXT_INDEX_BYTES = {"conversation_id": 32, "email": 16}
"""Bytes of the digest in a blind index that is text, by field. Half of an HMAC-SHA256 suffices to find leads by: it
takes some 2^64 addresses until two share one, and every lead is smaller."""

RULES_BYTES = 6
"""Of the digest of a normaliser's identity, by which a few of them are distinguished: 8 characters."""

_HEADER = struct.Struct(">16sBH")  # lead id, length of the field's name, length of the value in bytes


@dataclass(frozen=True, slots=True)
class KeyCanary:
    """Two values that only the keyring which made them can confirm; kept beside the leads."""

    sealed: str
    index: bytes


@dataclass(frozen=True, slots=True)
class IndexScheme:
    """How blind indexes are computed: with which index key, of values under which normaliser's rules."""

    key_id: str
    normaliser: str

    @property
    def text(self) -> str:
        """Its name, with which a blind index that is text begins: `<key id>.<of the rules>.`."""
        return f"{self.key_id}.{_name_of_rules(self.normaliser)}."


@cache
def _name_of_rules(normaliser: str) -> str:
    return base64.urlsafe_b64encode(sha256(normaliser.encode()).digest()[:RULES_BYTES]).decode()


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """Which blind indexes a lead is stored with. Two pairs of columns can hold them; None: that pair stays empty.

    While an index key is rotated both pairs are written, each in its own way. `epoch` numbers the plans of a
    database; it refuses leads of a plan that is no longer accepted.
    """

    epoch: int
    pairs: tuple[IndexScheme | None, IndexScheme | None]

    @property
    def schemes(self) -> tuple[IndexScheme, ...]:
        """The schemes in use, the first pair's first."""
        return tuple(scheme for scheme in self.pairs if scheme is not None)


NOT_CONFIRMED = -1
"""The epoch of a plan that no database has confirmed: none accepts it, the spool does."""


class _IndexKeys:
    """What is derived of one index root."""

    def __init__(self, root: bytes) -> None:
        self.fields = {name: _derive(root, f"index/{name}") for name in PADDED_FIELDS}
        self.page_token = _derive(root, "page-token")
        self.canary = _derive(root, "canary")


class _Keys:
    """Everything that is derived of one keyring. Never changed, only exchanged as a whole."""

    def __init__(self, keyring: Keyring) -> None:
        self.keyring = keyring
        self.primary_id = keyring.primary(Purpose.ENCRYPTION).id
        self.ciphers = {
            key.id: _fernet(_derive(key.secret, f"seal/{key.id}")) for key in keyring.usable(Purpose.ENCRYPTION)
        }
        self.spool_primary_id = keyring.primary(Purpose.SPOOL).id
        self.spool_ciphers = {
            key.id: _fernet(_derive(key.secret, f"spool/{key.id}")) for key in keyring.usable(Purpose.SPOOL)
        }
        # Primary first: what is written anew is written with it, what was written before is found with the others.
        self.spool_index_keys = [_derive(key.secret, "spool-index") for key in _primary_first(keyring, Purpose.SPOOL)]
        self.index_primary_id = keyring.primary(Purpose.INDEX).id
        self.index = {key.id: _IndexKeys(key.secret) for key in _primary_first(keyring, Purpose.INDEX)}
        self.audit_primary_id = keyring.primary(Purpose.AUDIT).id
        # A retired audit key writes nothing any more, and goes on verifying what it has written: records and backups.
        self.audit, self.backup = (
            {key.id: _derive(key.secret, f"{label}/{key.id}") for key in keyring.all_of(Purpose.AUDIT)}
            for label in ("access-record", "backup")
        )
        # A retired index key finds no phone or nid any more, but its digest still shows a repeat of an old request, and
        # finds a conversation or an e-mail that was indexed while it was retired. Newest first behind the primary, so
        # that the last one stays the same however many keys are added.
        index_keys = sorted(
            keyring.all_of(Purpose.INDEX),
            key=lambda key: (key.state is KeyState.PRIMARY, key.created_at),
            reverse=True,
        )
        self.content_keys = [_derive(key.secret, "content-digest") for key in index_keys]
        self.text_index_keys = {
            name: {key.id: _derive(key.secret, f"index/{name}") for key in index_keys} for name in TEXT_INDEX_BYTES
        }


def key_id_of(sealed: str) -> str:
    """The id of the key that a token was sealed with."""
    return sealed.partition(".")[0]


def _primary_first(keyring: Keyring, purpose: Purpose) -> Sequence[RootKey]:
    return sorted(keyring.usable(purpose), key=lambda key: key.state is not KeyState.PRIMARY)


class EncryptionService:
    """Seals, opens and indexes with the keys of one keyring. It does no input or output."""

    def __init__(self, keyring: Keyring) -> None:
        self._keys = _Keys(keyring)
        self.plan: IndexPlan | None = None
        """Which blind indexes the confirmed database wants; None: none is confirmed yet."""

    @property
    def keyring(self) -> Keyring:
        """The keyring in use."""
        return self._keys.keyring

    @property
    def index_primary_id(self) -> str:
        """The index key that new databases begin with, and that `keys reindex` moves an old one to."""
        return self._keys.index_primary_id

    def found_by(self, schemes: Iterable[IndexScheme]) -> list[IndexScheme]:
        """The schemes to look text indexes up with: the rules of these schemes, each with every index key.

        So what is reindexed meanwhile is found all the time.
        """
        normalisers = dict.fromkeys(scheme.normaliser for scheme in schemes)
        return [IndexScheme(key_id, normaliser) for normaliser in normalisers for key_id in self._keys.index]

    @property
    def audit_key_id(self) -> str:
        """The key that new parts of the access record are digested with."""
        return self._keys.audit_primary_id

    def take(self, keyring: Keyring) -> None:
        """Use another keyring from now on."""
        self._keys = _Keys(keyring)

    def seal(self, lead_id: UUID, field: str, value: str) -> str:
        """The stored form `<key id>.<Fernet token>` of one field of one lead.

        The token's own timestamp is readable without a key, so it is always 0.
        """
        name, content = field.encode(), value.encode()
        plaintext = _HEADER.pack(lead_id.bytes, len(name), len(content)) + name + content
        if field in PADDED_FIELDS:
            plaintext += bytes(PADDED_BYTES - len(content)) + bytes(len("phone") - len(name))
        keys = self._keys
        token = keys.ciphers[keys.primary_id].encrypt_at_time(plaintext, 0)
        return f"{keys.primary_id}.{token.decode()}"

    def open(self, lead_id: UUID, field: str, sealed: str) -> str:
        """The value of a sealed field.

        Raises FieldUnreadableError when the token is damaged, was sealed with a key that is not in the keyring, or
        belongs to another lead or another field.
        """
        if field == "conversation_id" and not is_sealed(sealed):
            return sealed
        key_id, _, token = sealed.partition(".")
        cipher = self._keys.ciphers.get(key_id)
        if cipher is None:
            raise FieldUnreadableError([field])
        try:
            plaintext = cipher.decrypt(token.encode())
            sealed_for, name_length, value_length = _HEADER.unpack_from(plaintext)
        except (InvalidToken, struct.error):
            raise FieldUnreadableError([field]) from None
        value_at = _HEADER.size + name_length
        if sealed_for != lead_id.bytes or plaintext[_HEADER.size : value_at] != field.encode():
            raise FieldUnreadableError([field])
        return plaintext[value_at : value_at + value_length].decode()

    def opens_with(self, key_id: str) -> bool:
        """Whether the keyring has this encryption key, in a state in which it opens."""
        return key_id in self._keys.ciphers

    def is_sealed_with_primary(self, sealed: str) -> bool:
        """Whether a token would be sealed with the same key if it were sealed anew."""
        return key_id_of(sealed) == self._keys.primary_id

    def blind_index(self, field: str, value: str, *, key_id: str | None = None) -> bytes:
        """The keyed digest of a normalised phone or nid: 32 bytes, equal for equal values of the same field.

        It is the whole HMAC-SHA256: unique indexes decide duplicates, so a truncated digest that collides would refuse
        a stranger. `key_id` names a usable index key; None: the primary one.
        """
        keys = self._keys
        return _digest(keys.index[key_id or keys.index_primary_id].fields[field], value.encode())

    def text_index(self, field: str, value: str, *, key_id: str) -> str:
        """The blind index `<key id>.<digest>` of a normalised conversation id or e-mail, made with an index key."""
        digest = _digest(self._keys.text_index_keys[field][key_id], value.encode())[: TEXT_INDEX_BYTES[field]]
        return f"{key_id}.{base64.urlsafe_b64encode(digest).decode()}"

    def text_indexes(self, field: str, value: str, *, key_id: str | None = None) -> tuple[str, ...]:
        """The `text_index` with each index key, retired ones too.

        The first one is made with the key `key_id`; None: the primary one.
        """
        first = key_id or self._keys.index_primary_id
        others = (each for each in self._keys.text_index_keys[field] if each != first)
        return tuple(self.text_index(field, value, key_id=each) for each in (first, *others))

    def content_digests(self, values: Iterable[str | None]) -> tuple[bytes, ...]:
        """The keyed digest of a submission's normalised values, in the contract's order; absent differs from empty.

        The first one is made with the primary index key and is the one to keep; the others, made with every other
        index key, retired ones too, newest first, are what an earlier submission of the same values was kept with.
        """
        framed = b"".join(
            b"\x00" if value is None else b"\x01" + struct.pack(">I", len(raw := value.encode())) + raw
            for value in values
        )
        return tuple(_digest(key, framed) for key in self._keys.content_keys)

    def page_token_tags(self, payload: bytes) -> tuple[bytes, ...]:
        """The tags that prove that this service made a page token: one for each index key, the primary's first."""
        return tuple(_digest(keys.page_token, payload) for keys in self._keys.index.values())

    def has_audit_key(self, key_id: str) -> bool:
        """Whether the keyring can make and check digests of the access record with this key."""
        return key_id in self._keys.audit

    def audit_digest(self, key_id: str, payload: bytes) -> bytes:
        """The keyed digest of a part of the access record. The key must be one that `has_audit_key` knows."""
        return _digest(self._keys.audit[key_id], payload)

    def backup_proof(self, key_id: str, payload: bytes) -> bytes | None:
        """The keyed digest of a backup's manifest; None when the keyring does not hold this audit key."""
        key = self._keys.backup.get(key_id)
        return None if key is None else _digest(key, payload)

    def seal_spooled(self, submission_id: UUID, payload: bytes) -> str:
        """Seal a whole submission for the spool, bound to its id, with a key of the spool's own root."""
        keys = self._keys
        token = keys.spool_ciphers[keys.spool_primary_id].encrypt_at_time(submission_id.bytes + payload, 0)
        return f"{keys.spool_primary_id}.{token.decode()}"

    def open_spooled(self, submission_id: UUID, sealed: str) -> bytes:
        """What `seal_spooled` sealed. Raises FieldUnreadableError for damage, another key or another submission."""
        key_id, _, token = sealed.partition(".")
        cipher = self._keys.spool_ciphers.get(key_id)
        if cipher is None:
            raise FieldUnreadableError(["spooled"])
        try:
            payload = cipher.decrypt(token.encode())
        except InvalidToken:
            raise FieldUnreadableError(["spooled"]) from None
        if payload[:16] != submission_id.bytes:
            raise FieldUnreadableError(["spooled"])
        return payload[16:]

    def spool_indexes(self, kind: str, *values: str) -> tuple[bytes, ...]:
        """The keyed digests by which the spool finds a request or a conversation again, the primary key's first."""
        framed = b"".join(struct.pack(">I", len(raw := value.encode())) + raw for value in (kind, *values))
        return tuple(_digest(key, framed) for key in self._keys.spool_index_keys)

    def make_canary(self, index_key_id: str | None = None) -> KeyCanary:
        """A canary of this keyring, to be kept with the data that it protects; of the primary index key if None."""
        keys = self._keys
        return KeyCanary(
            self.seal(_CANARY_ID, "canary", "leadkeep"),
            _canary_index(keys.index[index_key_id or keys.index_primary_id]),
        )

    def confirms(self, canary: KeyCanary) -> bool:
        """Whether this keyring opens the canary and can make the same blind indexes as the one that made it."""
        return self.opens_canary(canary.sealed) and self.index_key_of(canary.index) is not None

    def opens_canary(self, sealed: str) -> bool:
        """Whether this keyring opens a canary's token."""
        try:
            return self.open(_CANARY_ID, "canary", sealed) == "leadkeep"
        except FieldUnreadableError:
            return False

    def index_key_of(self, digest: bytes) -> str | None:
        """Which usable index key made the digest of a canary."""
        for key_id, keys in self._keys.index.items():
            if hmac.compare_digest(digest, _canary_index(keys)):
                return key_id
        return None


def _canary_index(keys: _IndexKeys) -> bytes:
    return _digest(keys.canary, b"leadkeep")


_CANARY_ID = UUID(int=0)


def _derive(root: bytes, label: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=DERIVED_BYTES, salt=None, info=(LABEL + label).encode()).derive(root)


def _fernet(key: bytes) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(key))


def _digest(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")
