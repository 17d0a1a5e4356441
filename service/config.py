"""The settings, with default and meaning: reads them from the environment and checks them.

Settings are environment variables named LEADKEEP_*, and the same names in a `.env` file of the working folder; the
environment wins, and an empty value is unset. Wrong settings stop the start with every fault named at once. No
fault repeats a value: any variable may hold a password or key by mistake.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from service import config_values as values
from service.config_values import Address
from service.errors import StartRefusedError
from service.lead import LeadStatus
from service.scopes import Scope

_PREFIX = "LEADKEEP_"

Source = Literal["environment", "file", "default"]


class ConfigurationError(StartRefusedError):
    """Settings are wrong; the text has one line for each fault, and no value."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n  ".join(("these settings are wrong:", *self.faults)))


def _read_by(reader: Callable[[str], object]) -> BeforeValidator:
    # What is no text is a default that needs no reading.
    return BeforeValidator(lambda value: reader(value) if isinstance(value, str) else value)


def _setting(default: object, meaning: str, *, shown: str | None = None, secret: bool = False) -> Any:
    """Declare a setting. `shown` words a default that another setting decides; `secret` keeps it out of repr."""
    if shown is None:
        shown = "unset" if default is None else str(default)
    return Field(default, description=meaning, json_schema_extra={"shown": shown}, repr=not secret)


_Folder = Annotated[Path, _read_by(values.folder)]
_Words = Annotated[tuple[str, ...], _read_by(values.words())]
_File = Annotated[Path, _read_by(values.readable_file)]
_Url = Annotated[str, _read_by(values.database_url)]
_Address = Annotated[Address, _read_by(Address.parse)]


_NEEDED = {
    "admin_database_url": "database_url",
    "tls_client_ca": "tls_cert",
    "tls_client_cert": "tls_cert",
    "auth_issuer": "auth_jwks",
    "auth_audience": "auth_jwks",
    "auth_client_ids": "auth_jwks",
    "auth_scope_map": "auth_jwks",
}
"""Settings that need another one, by name: the one they need."""


class Settings(BaseModel):
    """Every setting, read and checked. A check between two settings belongs to the later one of them."""

    model_config = ConfigDict(frozen=True, validate_default=True, hide_input_in_errors=True)

    data_dir: Annotated[Path, _read_by(values.folder_to_be)] = _setting(
        ".leadkeep",
        "keyring, local signing key and embedded PostgreSQL (as root that lies in /var/lib/leadkeep); mode 0700",
    )
    database_url: _Url | None = _setting(
        None,
        "postgresql://…, several hosts allowed (target_session_attrs=read-write)",
        shown="unset: the embedded PostgreSQL",
        secret=True,
    )
    admin_database_url: _Url | None = _setting(
        None,
        "for migrate, backup and restore: the role with DDL rights; serve never needs it",
        shown="the same as LEADKEEP_DATABASE_URL",
        secret=True,
    )
    tls_cert: _File | None = _setting(None, "TLS for both endpoints: the certificate chain, PEM")
    tls_key: _File | None = _setting(None, "TLS for both endpoints: the certificate's key, PEM")
    tls_client_ca: _File | None = _setting(None, "with it, client certificates of this CA are required")
    tls_client_cert: _File | None = _setting(
        None,
        "client certificate of operators' commands: certificate and key in one file, PEM",
        shown="the service's own certificate",
    )
    allow_plaintext: Annotated[bool, _read_by(values.switch)] = _setting(
        False, "1 allows addresses beyond loopback without TLS, where the network itself is trusted", shown="0"
    )
    grpc_address: _Address = _setting("127.0.0.1:50051", "where the gRPC endpoint listens")
    http_address: _Address = _setting("127.0.0.1:8080", "where the JSON endpoint listens")
    ops_address: _Address | None = _setting(
        None,
        "an additional address for /healthz, /readyz and /metrics, which callers cannot fill",
        shown="unset: only LEADKEEP_HTTP_ADDRESS has them",
    )
    allowed_origins: Annotated[tuple[str, ...], _read_by(values.origins)] | None = _setting(
        None,
        "origins of web pages that may call LEADKEEP_HTTP_ADDRESS (CORS), such as https://sales.example",
        shown="unset: none but its own",
    )
    max_connections: Annotated[int, _read_by(values.number(int, 64, 100_000))] = _setting(
        1000, "open connections at each endpoint; beyond it those that never had a token accepted are closed first"
    )
    max_connections_per_peer: Annotated[int, _read_by(values.number(int, 1, 100_000))] = _setting(
        800, "the same, of one address; a proxy is one address"
    )
    keyring: Annotated[Path | None, _read_by(values.absolute)] = _setting(
        None,
        "the keyring, file mode 0600; made on first start only when embedded",
        shown="<data>/keyring.json",
    )
    keyring_content: str | None = _setting(
        None,
        "the keyring itself, as JSON or as the base64 of it, instead of a file",
        secret=True,
    )
    keyring_command: Annotated[str, _read_by(values.command)] | None = _setting(
        None,
        "a command that prints the keyring, instead of a file; run without a shell, such as age -d -i KEY FILE",
        secret=True,
    )
    spool_dir: Annotated[Path | None, _read_by(values.absolute)] = _setting(
        None,
        "where leads wait while the database is unavailable; on a lasting disk, one folder for each service",
        shown="<data>/spool",
    )
    spool_limit_mb: Annotated[int, _read_by(values.number(int, 1, 1_000_000))] = _setting(
        1024, "megabytes that may wait in the spool; beyond it leads are refused with UNAVAILABLE"
    )
    spool_alarm_age: Annotated[float, _read_by(values.number(float, 1, 31_536_000))] = _setting(
        3600, "seconds in the spool after which a lead makes the service degraded"
    )
    files_dir: Annotated[Path | None, _read_by(values.absolute)] = _setting(
        None, "folder of the daily files; one for all replicas, or one for each", shown="<data>/files"
    )
    files_timezone: Annotated[str, _read_by(values.time_zone)] = _setting(
        "UTC", "a day of the daily files is a day of this time zone, such as Asia/Dhaka"
    )
    auth_jwks: str | None = _setting(
        None, "file or URL of the issuer's public keys", shown="unset: the local signing key", secret=True
    )
    auth_issuer: str | None = _setting(None, "the issuer that a token must name; with LEADKEEP_AUTH_JWKS")
    auth_client_ids: _Words | None = _setting(
        None, "for issuers whose access tokens have no aud: the client_id of each client whose tokens are accepted"
    )
    auth_audience: str | None = _setting(
        None, "the audience that a token must name; with LEADKEEP_AUTH_JWKS, or else LEADKEEP_AUTH_CLIENT_IDS"
    )
    auth_scope_claim: _Words = _setting(
        ("scope",), "the claim that holds the scopes, such as scp, roles or permissions; or several", shown="scope"
    )
    auth_scope_map: Annotated[tuple[str, ...], _read_by(values.scope_map)] | None = _setting(
        None,
        "your issuer's words for scopes, such as Leads.Read=leads:read; Leads.Sales=leads:read leads:update",
        shown="unset: the scopes' own names",
    )
    default_region: Annotated[str, _read_by(values.region)] | None = _setting(
        None, "region for phone numbers without +, such as BD; unset: such numbers are refused with a hint"
    )
    phone_rule: Annotated[Literal["e164", "valid"], _read_by(values.one_of("e164", "valid"))] = _setting(
        "e164", "e164 or valid: only numbers that the numbering plan of their country has"
    )
    nid_rule: Annotated[Literal["any", "BD"], _read_by(values.one_of("any", "BD"))] = _setting(
        "any", "any or BD: 10, 13 or 17 digits"
    )
    policies: Annotated[tuple[str, ...], _read_by(values.policies)] | None = _setting(
        None, "the policies on offer, separated by ; or one a line", shown="unset: any policy is accepted"
    )
    optional_fields: Annotated[tuple[str, ...], _read_by(values.optional_fields)] | None = _setting(
        None,
        "what a lead need not have: nid, address, interested_policy, or several, separated by commas",
        shown="unset: nothing",
    )
    transcript_url: Annotated[str, _read_by(values.transcript_url)] | None = _setting(
        None, "e.g. https://chat.example/conversations/{conversation_id}, fills transcript_uri"
    )
    retention: Annotated[tuple[str, ...], _read_by(values.retention)] | None = _setting(
        None,
        "what `leadkeep retention` erases: statuses and days without a change, such as not_interested=90d; new=730d",
        shown="unset: nothing",
    )
    repeat_window: Annotated[float, _read_by(values.number(float, 0, 31_536_000))] = _setting(
        86_400,
        "seconds within which a subject that sends the same again without request_id gets the same lead; 0: never",
    )
    confirmation_dir: _Folder | None = _setting(None, "folder with your own texts for customers, e.g. fr.toml")
    default_locale: str = _setting("en", "the language when the requested one does not exist")
    default_deadline: Annotated[float, _read_by(values.number(float, 1, 30))] = _setting(
        10, "seconds within which a caller is answered who sets no deadline"
    )
    max_concurrent_calls: Annotated[int, _read_by(values.number(int, 1, 100_000))] = _setting(
        512, "calls in flight at once; more are refused with QUEUE_FULL"
    )
    require_standby: Annotated[bool, _read_by(values.switch)] = _setting(
        False, "1: new leads wait in the spool while the database's commits wait for no standby", shown="0"
    )
    reason_required: Annotated[bool, _read_by(values.switch)] = _setting(
        False, "1: unmasked answers require a reason (leadkeep-reason, --reason)", shown="0"
    )
    purposes: Annotated[tuple[str, ...], _read_by(values.purposes)] | None = _setting(
        None,
        "words, such as callback complaint: values are shown unmasked only for one of them, alone or as in WORD: text",
        shown="unset: any reason",
    )
    unmask_limit: Annotated[int, _read_by(values.number(int, 1, 1_000_000))] | None = _setting(
        None, "how many leads a subject may be shown unmasked within an hour", shown="unset: no limit"
    )
    duplicate_limit: Annotated[int, _read_by(values.number(int, 1, 1_000_000))] | None = _setting(
        None, "how many duplicates a subject may find within an hour", shown="unset: no limit"
    )
    log_level: Annotated[str, _read_by(values.one_of("debug", "info", "warning", "error"))] = _setting(
        "info", "debug, info, warning or error"
    )
    shutdown_grace: Annotated[float, _read_by(values.number(float, 0, 3600))] = _setting(
        10, "seconds for calls in flight and background tasks after the delay"
    )

    shutdown_delay: Annotated[float, _read_by(values.number(float, 0, 3600))] | None = _setting(
        None, "seconds after SIGTERM in which calls are still taken", shown="unset: 2, and 0 at a terminal"
    )

    _sources: dict[str, Source] = PrivateAttr(default_factory=dict)

    @property
    def embedded(self) -> bool:
        """Whether the service runs its own PostgreSQL."""
        return self.database_url is None

    @property
    def keyring_path(self) -> Path:
        """Where the keyring is."""
        return self.keyring or self.data_dir / "keyring.json"

    @property
    def spool_path(self) -> Path:
        """The folder of the spool."""
        return self.spool_dir or self.data_dir / "spool"

    @property
    def spool_bytes(self) -> int:
        """How much may wait in the spool."""
        return self.spool_limit_mb * 1_000_000

    @property
    def files_path(self) -> Path:
        """The folder of the daily files."""
        return self.files_dir or self.data_dir / "files"

    @property
    def retention_policy(self) -> dict[LeadStatus, timedelta]:
        """How long leads of a status are kept after their last change; others for ever."""
        rules = (rule.partition("=") for rule in self.retention or ())
        return {LeadStatus(status): timedelta(days=int(days.removesuffix("d"))) for status, _, days in rules}

    @property
    def auth_scopes(self) -> dict[str, frozenset[Scope]]:
        """What each of the issuer's own words allows."""
        pairs = (entry.rpartition("=") for entry in self.auth_scope_map or ())
        return {word: frozenset(map(Scope, scopes.split())) for word, _, scopes in pairs}

    @property
    def signing_key_path(self) -> Path:
        """Where the local signing key for tokens is, which is used unless an issuer is set."""
        return self.data_dir / "signing-key.pem"

    @property
    def migration_url(self) -> str | None:
        """The database as the role with DDL rights sees it; None when embedded."""
        return self.admin_database_url or self.database_url

    def source_of(self, field: str) -> Source:
        """Where the value of a setting comes from."""
        return self._sources.get(field, "default")

    @field_validator("keyring_content", "keyring_command")
    @classmethod
    def _one_keyring(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value and (info.data.get("keyring") or info.data.get("keyring_content")):
            raise ValueError("there is one keyring; set one of LEADKEEP_KEYRING, _KEYRING_CONTENT, _KEYRING_COMMAND")
        return value

    @field_validator(*_NEEDED)
    @classmethod
    def _needs_another_setting(cls, value: object, info: ValidationInfo) -> object:
        needed = _NEEDED[info.field_name or ""]
        if value and info.data.get(needed, value) is None:
            raise ValueError(f"only beside {variable(needed)}; set that, or remove this one")
        return value

    @field_validator("tls_key")
    @classmethod
    def _certificate_and_key_go_together(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if "tls_cert" in info.data and (info.data["tls_cert"] is None) != (value is None):
            raise ValueError("certificate and key go together; set LEADKEEP_TLS_CERT and this one, or neither")
        return value

    @field_validator("grpc_address", "http_address", "ops_address")
    @classmethod
    def _no_plaintext_beyond_loopback(cls, value: Address | None, info: ValidationInfo) -> Address | None:
        protected = info.data.get("tls_cert", value) or info.data.get("allow_plaintext", True)
        if value is not None and not protected and not value.is_loopback:
            raise ValueError(
                "reachable beyond this machine without TLS; set LEADKEEP_TLS_CERT and LEADKEEP_TLS_KEY, "
                "or LEADKEEP_ALLOW_PLAINTEXT=1 where the network itself is trusted"
            )
        return value

    @field_validator("http_address", "ops_address")
    @classmethod
    def _each_endpoint_has_its_port(cls, value: Address | None, info: ValidationInfo) -> Address | None:
        for other in ("grpc_address", "http_address"):
            if value is not None and other in info.data and value.clashes_with(info.data[other]):
                raise ValueError(f"{variable(other)} listens there already; write another port")
        return value

    @field_validator("auth_jwks")
    @classmethod
    def _keys_are_fetched_securely(cls, value: str | None, info: ValidationInfo) -> str | None:
        allowed = info.data.get("allow_plaintext", True)
        return value and values.jwks(value, plaintext_allowed=allowed)

    @field_validator("auth_issuer", "auth_audience")
    @classmethod
    def _keys_need_issuer_and_audience(cls, value: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("auth_jwks") and not (value or info.data.get("auth_client_ids")):
            raise ValueError("missing beside LEADKEEP_AUTH_JWKS; write what the issuer's tokens name")
        return value


def load_settings(env_file: Path = Path(".env")) -> Settings:
    """Read the settings, or raise ConfigurationError with every fault."""
    try:
        in_file = values.read_env_file(env_file)
    except ValueError as fault:
        raise ConfigurationError([f"{env_file}: {fault}"]) from None
    variables: tuple[tuple[Source, Mapping[str, str | None]], ...] = (("file", in_file), ("environment", os.environ))
    given = {
        name.upper(): (value.strip(), source)
        for source, values_by_name in variables
        for name, value in values_by_name.items()
        if value and value.strip()
    }
    found = {field: given[name] for field in Settings.model_fields if (name := variable(field)) in given}
    faults = list(_misspelt(given))
    try:
        settings = Settings.model_validate({field: value for field, (value, _) in found.items()})
    except ValidationError as invalid:
        faults += [
            f"{variable(str(error['loc'][0]))}: {error['msg'].removeprefix('Value error, ')}"
            for error in invalid.errors(include_url=False, include_input=False)
        ]
    if faults:
        raise ConfigurationError(faults)
    # Filled once, here; a public field would be a setting.
    settings._sources.update((field, source) for field, (_, source) in found.items())  # noqa: SLF001
    return settings


def _misspelt(names: Iterable[str]) -> Iterator[str]:
    """Name each LEADKEEP_ variable that is none but nearly one: unnoticed, its setting would keep the default.

    Only near misses: Kubernetes sets LEADKEEP_SERVICE_HOST and the like for a service called leadkeep.
    """
    known = [variable(name).removeprefix(_PREFIX) for name in Settings.model_fields]
    for name in sorted(names):
        rest = name.removeprefix(_PREFIX)
        if name.startswith(_PREFIX) and rest not in known:
            # 0.8: DATABSE_URL and AUTH_JWKS_URL are caught; names of other things score below 0.75.
            for near in difflib.get_close_matches(rest, known, n=1, cutoff=0.8):
                yield f"{name}: there is no such setting; write {_PREFIX}{near}"


def variable(field: str) -> str:
    """The name of a setting's environment variable."""
    return _PREFIX + field.upper()
