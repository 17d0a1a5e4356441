"""Builds the validation, the keyring's source, the encryption and the token check from the settings."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import uuid_utils.compat

from service.config import Settings
from service.keys.encryption import EncryptionService
from service.keys.keyring import KeyringSource, keyring_command, keyring_content, keyring_file
from service.lead import REQUIRED_FIELDS
from service.rpc.tokens.jwks import JwksFile, JwksUrl
from service.rpc.tokens.local_key import LOCAL_AUDIENCE, LOCAL_ISSUER, LocalSigningKey
from service.rpc.tokens.verifier import KeySource, TokenRules, TokenVerifier
from service.validation import ValidationService


def validation_of(settings: Settings) -> ValidationService:
    """The validation of what callers enter."""
    return ValidationService(
        default_region=settings.default_region,
        phone_rule=settings.phone_rule,
        nid_rule=settings.nid_rule,
        policies=settings.policies or (),
        required=REQUIRED_FIELDS.difference(settings.optional_fields or ()),
    )


def keyring_source(settings: Settings) -> KeyringSource:
    """The source of the keyring: a file, the settings themselves, or a command."""
    if settings.keyring_content is not None:
        return keyring_content(settings.keyring_content)
    if settings.keyring_command is not None:
        return keyring_command(settings.keyring_command)
    return keyring_file(settings.keyring_path)


def encryption_of(settings: Settings) -> EncryptionService:
    """The encryption with the keyring as it is now. Raises StartRefusedError when the keyring cannot be used."""
    return EncryptionService(keyring_source(settings).load())


def token_verifier(settings: Settings) -> TokenVerifier:
    """The token check: with the issuer's public keys, or with the local signing key when no issuer is set."""
    jwks = settings.auth_jwks
    if jwks is None:
        local_key = LocalSigningKey.load_or_create(settings.signing_key_path)
        return TokenVerifier(local_key, TokenRules(LOCAL_ISSUER, LOCAL_AUDIENCE))
    keys: KeySource = JwksUrl(jwks) if "://" in jwks else JwksFile(Path(jwks))
    rules = TokenRules(
        issuer=settings.auth_issuer or "",
        audience=settings.auth_audience,
        client_ids=frozenset(settings.auth_client_ids or ()),
        scope_claims=settings.auth_scope_claim,
        scopes=settings.auth_scopes,
    )
    return TokenVerifier(keys, rules)


def new_id() -> UUID:
    """A UUIDv7 (RFC 9562): made before the database is asked, and in the order of time."""
    made: UUID = uuid_utils.compat.uuid7()
    return made
