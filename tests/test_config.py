from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from service.cli.settings import rows_of
from service.config import ConfigurationError, Settings, load_settings
from service.config_values import Address, without_secrets
from service.errors import StartRefusedError
from service.scopes import Scope

SECRET = "hunter2-canary"


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in os.environ:
        if name.upper().startswith("LEADKEEP_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tls(working_folder: Path) -> dict[str, str]:
    for name in ("cert.pem", "key.pem"):
        (working_folder / name).write_text("PEM")
    return {"TLS_CERT": "cert.pem", "TLS_KEY": "key.pem"}


def load(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(f"LEADKEEP_{name}", value)
    return load_settings()


def faults(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigurationError) as refused:
        load(monkeypatch, variables)
    return list(refused.value.faults)


def row(settings: Settings, name: str) -> dict[str, str]:
    return next(row for row in rows_of(settings) if row["name"] == f"LEADKEEP_{name}")


def test_without_any_setting_the_defaults_hold(working_folder: Path) -> None:
    settings = load_settings()

    assert settings.embedded
    assert settings.data_dir == working_folder / ".leadkeep"
    assert settings.keyring_path == working_folder / ".leadkeep" / "keyring.json"
    assert settings.signing_key_path == working_folder / ".leadkeep" / "signing-key.pem"
    assert settings.migration_url is None
    assert str(settings.grpc_address) == "127.0.0.1:50051"
    assert str(settings.http_address) == "127.0.0.1:8080"
    assert (settings.phone_rule, settings.nid_rule, settings.default_region) == ("e164", "any", None)
    assert (settings.max_concurrent_calls, settings.log_level, settings.shutdown_grace) == (512, "info", 10)
    assert settings.shutdown_delay is None


def test_the_environment_wins_over_the_file(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (working_folder / ".env").write_text("LEADKEEP_LOG_LEVEL=error\nLEADKEEP_DEFAULT_REGION=BD\nOTHER=1\n")

    settings = load(monkeypatch, {"LOG_LEVEL": "debug"})

    assert (settings.log_level, settings.default_region) == ("debug", "BD")


@pytest.mark.parametrize("blank", ["", "  "])
def test_an_empty_value_is_unset(blank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, {"DATABASE_URL": blank, "LOG_LEVEL": blank, "POLICIES": blank, "DATA_DIR": blank})

    assert settings.embedded
    assert (settings.log_level, settings.policies) == ("info", None)


def test_an_empty_variable_leaves_the_file_its_word(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (working_folder / ".env").write_text("LEADKEEP_LOG_LEVEL=error\n")

    assert load(monkeypatch, {"LOG_LEVEL": ""}).log_level == "error"


@pytest.mark.parametrize("quote", ["", "'", '"'])
@pytest.mark.parametrize("value", ["pa$$w0rd${X}y", "${HOME}", "$HOME", "${X:-other}", "a$", "$(id)", "a#b", "a=b"])
def test_a_value_of_the_file_is_kept_as_it_stands(
    working_folder: Path, monkeypatch: pytest.MonkeyPatch, value: str, quote: str
) -> None:
    monkeypatch.setenv("X", "taken from elsewhere")
    (working_folder / ".env").write_text(f"X=taken from the file\nLEADKEEP_POLICIES={quote}{value}{quote}\n")

    assert load_settings().policies == (value,)


def test_a_file_that_is_not_utf_8_is_a_fault(working_folder: Path) -> None:
    (working_folder / ".env").write_bytes(b"LEADKEEP_LOG_LEVEL=\xff")

    with pytest.raises(ConfigurationError, match="cannot be read as UTF-8"):
        load_settings()


def test_wrong_settings_refuse_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartRefusedError):
        load(monkeypatch, {"LOG_LEVEL": "loud"})


def test_every_fault_is_named_at_once_one_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load(
            monkeypatch,
            {"LOG_LEVEL": "loud", "TLS_KEY": "absent", "HTTP_ADDRESS": "0.0.0.0:80", "AUTH_ISSUER": "me"},
        )

    lines = str(refused.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == [
        "LEADKEEP_TLS_KEY",
        "LEADKEEP_HTTP_ADDRESS",
        "LEADKEEP_AUTH_ISSUER",
        "LEADKEEP_LOG_LEVEL",
    ]


@pytest.mark.parametrize(
    ("variables", "named", "told"),
    [
        ({"DATABASE_URL": "mysql://h/db"}, "DATABASE_URL", "write postgresql://"),
        ({"DATABASE_URL": "postgresql+psycopg://h/db"}, "DATABASE_URL", "write postgresql://"),
        ({"DATABASE_URL": "postgresql://"}, "DATABASE_URL", "write postgresql://"),
        ({"DATABASE_URL": "postgresql://h/a b"}, "DATABASE_URL", "write postgresql://"),
        ({"DATABASE_URL": "postgresql://u:p@h:99999/db"}, "DATABASE_URL", "write postgresql://"),
        ({"DATABASE_URL": "postgresql://u:p%@h/db"}, "DATABASE_URL", "%40 for @"),
        ({"DATABASE_URL": "postgresql://h/db?sslmode=on"}, "DATABASE_URL", "parameters and ports that libpq knows"),
        ({"ADMIN_DATABASE_URL": "postgresql://h/db"}, "ADMIN_DATABASE_URL", "only beside LEADKEEP_DATABASE_URL"),
        ({"TLS_CERT": "absent.pem"}, "TLS_CERT", "no file"),
        ({"TLS_CLIENT_CA": "here"}, "TLS_CLIENT_CA", "only beside"),
        ({"TLS_CERT": "here"}, "TLS_KEY", "go together"),
        ({"TLS_KEY": "here"}, "TLS_KEY", "go together"),
        ({"ALLOW_PLAINTEXT": "maybe"}, "ALLOW_PLAINTEXT", "write 1 or 0"),
        ({"GRPC_ADDRESS": "0.0.0.0:50051"}, "GRPC_ADDRESS", "without TLS"),
        ({"HTTP_ADDRESS": "[::]:8080"}, "HTTP_ADDRESS", "without TLS"),
        ({"HTTP_ADDRESS": "leadkeep.example:8080"}, "HTTP_ADDRESS", "without TLS"),
        ({"HTTP_ADDRESS": "127.0.0.1:50051"}, "HTTP_ADDRESS", "another port"),
        *(
            ({"ALLOWED_ORIGINS": f"https://a.example {wrong}"}, "ALLOWED_ORIGINS", "as browsers send them")
            for wrong in ("null", "*", "a.example", "https://a.example/", "https://A.example", "https://*.example")
        ),
        *(
            ({"ALLOWED_ORIGINS": wrong}, "ALLOWED_ORIGINS", "as browsers send them")
            for wrong in ("https://a.example:443", "http://a.example:80", "https://u@a.example", "file://")
        ),
        ({"AUTH_JWKS": "absent.json", "AUTH_ISSUER": "i", "AUTH_AUDIENCE": "a"}, "AUTH_JWKS", "no file"),
        ({"AUTH_JWKS": "ftp://h/k", "AUTH_ISSUER": "i", "AUTH_AUDIENCE": "a"}, "AUTH_JWKS", "https://"),
        ({"AUTH_JWKS": "ftp://127.0.0.1/", "AUTH_ISSUER": "i", "AUTH_AUDIENCE": "a"}, "AUTH_JWKS", "https://"),
        ({"AUTH_JWKS": "file:///etc/passwd", "AUTH_ISSUER": "i", "AUTH_AUDIENCE": "a"}, "AUTH_JWKS", "https://"),
        ({"AUTH_JWKS": "https://", "AUTH_ISSUER": "i", "AUTH_AUDIENCE": "a"}, "AUTH_JWKS", "https://"),
        ({"AUTH_JWKS": "http://h/k", "AUTH_ISSUER": "i", "AUTH_AUDIENCE": "a"}, "AUTH_JWKS", "https://"),
        ({"AUTH_JWKS": "http://10.0.0.1/", "AUTH_ISSUER": "i", "AUTH_AUDIENCE": "a"}, "AUTH_JWKS", "https://"),
        ({"AUTH_JWKS": "here", "AUTH_AUDIENCE": "a"}, "AUTH_ISSUER", "missing beside LEADKEEP_AUTH_JWKS"),
        ({"AUTH_JWKS": "here", "AUTH_ISSUER": "i"}, "AUTH_AUDIENCE", "missing beside LEADKEEP_AUTH_JWKS"),
        ({"AUTH_ISSUER": "i"}, "AUTH_ISSUER", "only beside LEADKEEP_AUTH_JWKS"),
        ({"AUTH_AUDIENCE": "a"}, "AUTH_AUDIENCE", "only beside LEADKEEP_AUTH_JWKS"),
        ({"AUTH_CLIENT_IDS": "a"}, "AUTH_CLIENT_IDS", "only beside LEADKEEP_AUTH_JWKS"),
        ({"OPTIONAL_FIELDS": "nid, phone"}, "OPTIONAL_FIELDS", "one or several of nid, address, interested_policy"),
        ({"OPTIONAL_FIELDS": ","}, "OPTIONAL_FIELDS", "names nothing"),
        ({"PURPOSES": "callback: audit:"}, "PURPOSES", "holds a colon"),
        ({"PURPOSES": ","}, "PURPOSES", "names nothing"),
        ({"AUTH_SCOPE_MAP": "Read=leads:read"}, "AUTH_SCOPE_MAP", "only beside LEADKEEP_AUTH_JWKS"),
        ({"AUTH_SCOPE_MAP": "Read=leads:reed"}, "AUTH_SCOPE_MAP", "leads:read-own"),
        ({"AUTH_SCOPE_MAP": "Read"}, "AUTH_SCOPE_MAP", "not a list of words"),
        ({"AUTH_SCOPE_MAP": "Read=leads:read; Read=leads:erase"}, "AUTH_SCOPE_MAP", "each once"),
        ({"AUTH_SCOPE_MAP": ";"}, "AUTH_SCOPE_MAP", "not a list of words"),
        ({"AUTH_SCOPE_CLAIM": ","}, "AUTH_SCOPE_CLAIM", "names nothing"),
        ({"DEFAULT_REGION": "XX"}, "DEFAULT_REGION", "two letters"),
        ({"PHONE_RULE": "strict"}, "PHONE_RULE", "e164, valid"),
        ({"NID_RULE": "IN"}, "NID_RULE", "any, BD"),
        ({"POLICIES": ";\n;"}, "POLICIES", "list of names"),
        ({"POLICIES": "a" * 201}, "POLICIES", "up to 200"),
        ({"RETENTION": "lost=90d"}, "RETENTION", "list of statuses"),
        ({"RETENTION": "new=90"}, "RETENTION", "list of statuses"),
        ({"RETENTION": "new=90d; new=80d"}, "RETENTION", "each once"),
        ({"RETENTION": ";"}, "RETENTION", "list of statuses"),
        ({"TRANSCRIPT_URL": "https://h/conversation_id"}, "TRANSCRIPT_URL", "{conversation_id}"),
        ({"TRANSCRIPT_URL": "javascript:{conversation_id}"}, "TRANSCRIPT_URL", "{conversation_id}"),
        ({"CONFIRMATION_DIR": "absent"}, "CONFIRMATION_DIR", "no folder"),
        ({"DATA_DIR": "here"}, "DATA_DIR", "write the path of a folder"),
        ({"KEYRING": "~nobody-of-this-name/k"}, "KEYRING", "in full"),
        ({"MAX_CONCURRENT_CALLS": "0"}, "MAX_CONCURRENT_CALLS", "between 1 and"),
        ({"MAX_CONCURRENT_CALLS": "1.5"}, "MAX_CONCURRENT_CALLS", "whole number"),
        ({"SHUTDOWN_GRACE": "nan"}, "SHUTDOWN_GRACE", "between 0 and"),
        ({"SHUTDOWN_GRACE": "10s"}, "SHUTDOWN_GRACE", "between 0 and"),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL", "debug, info, warning, error"),
    ],
)
def test_a_wrong_value_is_named_with_what_to_write(
    working_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    named: str,
    told: str,
) -> None:
    (working_folder / "here").write_text("content")

    [fault] = faults(monkeypatch, variables)

    assert fault.startswith(f"LEADKEEP_{named}: ")
    assert told in fault


@pytest.mark.parametrize("name", sorted(field.upper() for field in Settings.model_fields))
def test_a_fault_never_repeats_the_value(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {name: f"::{SECRET}:/\0".replace("\0", "") if name != "DEFAULT_LOCALE" else SECRET, "LOG_LEVEL": SECRET}

    assert not any(SECRET in fault for fault in faults(monkeypatch, wrong))


@pytest.mark.parametrize(
    "url",
    [
        "postgres://h/db",
        "postgresql:///db?host=/run/postgresql",
        "postgresql://u:p@h1:5432,h2:5432/db?target_session_attrs=read-write",
    ],
)
def test_a_postgresql_url_is_accepted_as_it_is(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, {"DATABASE_URL": url})

    assert not settings.embedded
    assert (settings.database_url, settings.migration_url) == (url, url)


def test_the_password_of_a_url_that_cannot_be_read_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in (f"postgresql://u:{SECRET}@h:port/db", f"postgresql://u:{SECRET}%@h/db", f"postgresql://h:{SECRET}/db"):
        assert not any(SECRET in fault for fault in faults(monkeypatch, {"DATABASE_URL": url}))


def test_migrations_may_use_a_role_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch, {"DATABASE_URL": "postgresql://serve@h/db", "ADMIN_DATABASE_URL": "postgresql://own@h/db"}
    )

    assert settings.migration_url == "postgresql://own@h/db"


def test_plaintext_beyond_loopback_can_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, {"GRPC_ADDRESS": "0.0.0.0:50051", "ALLOW_PLAINTEXT": "1"})

    assert settings.grpc_address == Address("0.0.0.0", 50051)


def test_tls_needs_no_leave_to_be_reachable(tls: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, {"GRPC_ADDRESS": "0.0.0.0:50051", **tls})

    assert settings.tls_key == Path.cwd() / "key.pem"


def test_origins_of_pages_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, {"ALLOWED_ORIGINS": "https://sales.example http://crm_web:3000, http://[::1]:8443"})

    assert settings.allowed_origins == ("https://sales.example", "http://crm_web:3000", "http://[::1]:8443")


def test_keys_over_http_can_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    issuer = {"AUTH_JWKS": "http://issuer/keys", "AUTH_ISSUER": "i", "AUTH_AUDIENCE": "a"}

    assert load(monkeypatch, {**issuer, "ALLOW_PLAINTEXT": "1"}).auth_jwks == "http://issuer/keys"


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:9000/keys", "http://localhost:1/", "http://[::1]:1/", "https://issuer.example/jwks"],
)
def test_keys_over_https_or_of_this_machine_are_accepted(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    issuer = {"AUTH_JWKS": url, "AUTH_ISSUER": "i", "AUTH_AUDIENCE": "a"}

    assert load(monkeypatch, issuer).auth_jwks == url


def test_a_keys_file_is_found_from_anywhere(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (working_folder / "jwks.json").write_text("{}")

    settings = load(monkeypatch, {"AUTH_JWKS": "jwks.json", "AUTH_ISSUER": "i", "AUTH_AUDIENCE": "a"})

    assert settings.auth_jwks == str(working_folder / "jwks.json")


def test_policies_are_separated_by_semicolon_or_line(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, {"POLICIES": "Term Life, 20 years; Whole Life\nPension;;Pension"})

    assert settings.policies == ("Term Life, 20 years", "Whole Life", "Pension")


def test_purposes_are_words_as_a_reason_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, {"PURPOSES": "callback, re\u0301clamation;callback"}).purposes == (
        "callback",
        "r\u00e9clamation",
    )


def test_words_are_read_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, {"NID_RULE": "bd", "LOG_LEVEL": "INFO", "DEFAULT_REGION": "bd"})

    assert (settings.nid_rule, settings.log_level, settings.default_region) == ("BD", "info", "BD")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("[::1]:50051", "::1", 50051),
        ("Lead-Keep.example:65535", "lead-keep.example", 65535),
        ("localhost:1", "localhost", 1),
    ],
)
def test_an_address_is_host_and_port(text: str, host: str, port: int) -> None:
    assert Address.parse(text) == Address(host, port)


def test_an_ipv6_address_is_written_in_brackets() -> None:
    assert str(Address("::1", 50051)) == "[::1]:50051"


@pytest.mark.parametrize(
    "text",
    [
        "50051",
        ":50051",
        "localhost",
        "localhost:",
        "localhost:65536",
        "localhost:-1",
        "localhost:٨٠",
        "::1:50051",
        "[::1]",
        "[localhost]:1",
        "[127.0.0.1]:1",
        "127.1:1",
        "0177.0.0.1:1",
        "-a:1",
        "a b:1",
        "unix:/run/leadkeep",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write"):
        Address.parse(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_is_known(host: str) -> None:
    assert Address(host, 1).is_loopback


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("0.0.0.0:1", "127.0.0.1:1"),
        ("[::]:1", "10.0.0.1:1"),
        ("localhost:1", "127.0.0.1:1"),
        ("a.example:1", "A.example:1"),
    ],
)
def test_two_endpoints_cannot_listen_on_one_port(one: str, other: str) -> None:
    assert Address.parse(one).clashes_with(Address.parse(other))


@pytest.mark.parametrize(
    ("one", "other"), [("127.0.0.1:1", "127.0.0.1:2"), ("127.0.0.1:0", "127.0.0.1:0"), ("10.0.0.1:1", "10.0.0.2:1")]
)
def test_different_addresses_do_not_clash(one: str, other: str) -> None:
    assert not Address.parse(one).clashes_with(Address.parse(other))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:PW@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:P@W/?:x@h1,h2/db", "postgresql://u:***@h1,h2/db"),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("postgresql://h:5432/db", "postgresql://h:5432/db"),
        ("postgresql://h/db?password=PW&sslmode=require", "postgresql://h/db?password=***&sslmode=require"),
        ("postgresql://h/db?p%61ssword=PW", "postgresql://h/db?p%61ssword=***"),
        ("postgresql://h/db?password=P@W", "postgresql://h/db?password=***"),
        ("postgresql://h/db?sslpassword=PW&PASSWORD=PW", "postgresql://h/db?sslpassword=***&PASSWORD=***"),
        ("https://h/keys?api_key=PW", "https://h/keys?api_key=***"),
        ("/a/path", "/a/path"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


def test_no_row_shows_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"postgresql://u:{SECRET}@h/db?sslpassword={SECRET}"

    settings = load(monkeypatch, {"DATABASE_URL": url, "ADMIN_DATABASE_URL": url})

    assert SECRET not in repr(rows_of(settings))
    assert row(settings, "DATABASE_URL")["value"] == "postgresql://u:***@h/db?sslpassword=***"


def test_the_settings_print_without_database_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SECRET not in repr(load(monkeypatch, {"DATABASE_URL": f"postgresql://u:{SECRET}@h/db"}))


def test_every_setting_has_a_row_with_default_and_meaning() -> None:
    rows = rows_of(load_settings())

    assert [row["name"] for row in rows] == [f"LEADKEEP_{name.upper()}" for name in Settings.model_fields]
    assert all(row["value"] and row["default"] and row["meaning"] for row in rows)


def test_the_operators_page_has_every_setting_and_no_other() -> None:
    page = (Path(__file__).parents[1] / "docs/operations.md").read_text(encoding="utf-8")
    table = page.partition("\n## Settings\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| LEADKEEP_")]

    named = {name for cell in cells for name in re.findall(r"LEADKEEP_\w+", cell)}
    assert named == {row["name"] for row in rows_of(load_settings())}


def test_a_row_says_where_its_value_comes_from(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (working_folder / ".env").write_text("LEADKEEP_LOG_LEVEL=error\nLEADKEEP_NID_RULE=BD\n")

    settings = load(monkeypatch, {"LOG_LEVEL": "debug"})

    assert [row(settings, name)["source"] for name in ("LOG_LEVEL", "NID_RULE", "POLICIES")] == [
        "environment",
        "file",
        "default",
    ]


def test_a_row_shows_a_value_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, {"ALLOW_PLAINTEXT": "yes", "POLICIES": "A\nB", "SHUTDOWN_GRACE": "2.5"})

    shown = [row(settings, name)["value"] for name in ("ALLOW_PLAINTEXT", "POLICIES", "SHUTDOWN_GRACE")]
    assert shown == ["1", "A; B", "2.5"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("LEADKEEP_DATABSE_URL", "DATABASE_URL"),
        ("LEADKEEP_LOGLEVEL", "LOG_LEVEL"),
        ("LEADKEEP_AUTH_JWKS_URL", "AUTH_JWKS"),
    ],
)
def test_a_misspelt_variable_is_a_fault(name: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, SECRET)

    with pytest.raises(ConfigurationError) as refused:
        load_settings()

    assert refused.value.faults == (f"{name}: there is no such setting; write LEADKEEP_{meant}",)


def test_a_misspelt_variable_in_the_file_is_a_fault(working_folder: Path) -> None:
    (working_folder / ".env").write_text("LEADKEEP_LOGLEVEL=debug")

    with pytest.raises(ConfigurationError, match="write LEADKEEP_LOG_LEVEL"):
        load_settings()


@pytest.mark.parametrize(
    "name",
    [
        "SERVICE_HOST",
        "PORT",
        "PORT_50051_TCP",
        "SERVICE_PORT_GRPC",
        "FILES_PASSWORD",
        "SPOOL_PORT",
        "SERVE_PASSWORD",
        "ADMIN_PASSWORD",
    ],
)
def test_variables_of_others_are_let_be(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, {name: "x"}).embedded


def test_an_issuers_words_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = tmp_path / "jwks.json"
    keys.write_text("{}")
    issuer = {"AUTH_JWKS": str(keys), "AUTH_ISSUER": "i", "AUTH_CLIENT_IDS": "bot, dashboard"}
    words = "https://api.example/leads?x=1 = leads:read; Sales=leads:read  leads:update leads:unmask:phone"
    settings = load(monkeypatch, issuer | {"AUTH_SCOPE_CLAIM": "scp roles", "AUTH_SCOPE_MAP": words})
    assert settings.auth_client_ids == ("bot", "dashboard")
    assert settings.auth_scope_claim == ("scp", "roles")
    assert settings.auth_scopes == {
        "https://api.example/leads?x=1": {Scope.READ},
        "Sales": {Scope.READ, Scope.UPDATE, Scope.UNMASK_PHONE},
    }


# Whose .env is obeyed

NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


def env_file(folder: Path, *, mode: int = 0o600, owner: int | None = None, name: str = ".env") -> Path:
    path = folder / name
    path.write_text("LEADKEEP_LOG_LEVEL=error\n")
    path.chmod(mode)
    if owner is not None:
        os.chown(path, owner, owner)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o400])
def test_a_file_that_only_its_owner_may_write_is_obeyed(mode: int, working_folder: Path) -> None:
    env_file(working_folder, mode=mode)
    assert load_settings().log_level == "error"


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o777])
def test_a_file_that_others_may_write_is_refused(mode: int, working_folder: Path) -> None:
    env_file(working_folder, mode=mode)
    with pytest.raises(ConfigurationError, match=r"\.env: may be written by others.*chmod go-w"):
        load_settings()


@as_root
def test_a_file_of_another_user_is_refused(working_folder: Path) -> None:
    env_file(working_folder, owner=NOBODY)
    with pytest.raises(ConfigurationError, match="belongs to another user"):
        load_settings()


@as_root
@pytest.mark.parametrize("whose", ["link", "second link", "target"])
def test_a_link_is_as_good_as_its_owner_and_its_target(whose: str, working_folder: Path, tmp_path: Path) -> None:
    target = env_file(tmp_path, name="elsewhere", owner=NOBODY if whose == "target" else None)
    (tmp_path / "second").symlink_to(target)
    (working_folder / ".env").symlink_to(tmp_path / "second")
    if whose != "target":
        link = working_folder / ".env" if whose == "link" else tmp_path / "second"
        os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(ConfigurationError, match="belongs to another user"):
        load_settings()


def test_a_link_of_ones_own_is_obeyed(working_folder: Path, tmp_path: Path) -> None:
    (working_folder / ".env").symlink_to(env_file(tmp_path, name="elsewhere"))
    assert load_settings().log_level == "error"


def test_a_pipe_of_that_name_is_refused_and_not_waited_for(working_folder: Path) -> None:
    os.mkfifo(working_folder / ".env")
    with pytest.raises(ConfigurationError, match="cannot be read as UTF-8"):
        load_settings()


def test_a_folder_of_that_name_is_no_settings(working_folder: Path) -> None:
    (working_folder / ".env").mkdir()
    assert load_settings().log_level == "info"
