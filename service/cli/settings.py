"""`leadkeep config` and `leadkeep token`, which need the settings only."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Annotated, cast

import typer

from service.cli.command import AsJson, cell, duration, print_json
from service.config import Settings, load_settings, variable
from service.config_values import without_secrets
from service.errors import StartRefusedError
from service.scopes import ROLES, is_subject

PIPE_COLUMNS = 240
"""Wide enough for a setting to stand in one line, so that grep finds all of it."""


def config(as_json: AsJson = False) -> None:
    """Print every setting with value, default and meaning; secrets hidden."""
    rows = rows_of(load_settings())
    if as_json:
        print_json(rows)
        return
    # Imported here: rich takes 100 ms, which `token` should not pay.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    table = Table("variable", "value", "from", "default", "meaning", box=None)
    table.columns[0].no_wrap = True
    for row in rows:
        # Text: a value is no markup.
        table.add_row(*(Text(cell(row[key])) for key in ("name", "value", "source", "default", "meaning")))
    console.print(table)


def token(
    role: Annotated[
        str,
        typer.Option(help="chatbot (create, read its own), agent (read, update, show phone, email) or admin (all)."),
    ],
    subject: Annotated[str, typer.Option(help="Who acts with it; default: the role's name.")] = "",
    ttl: Annotated[
        timedelta,
        typer.Option(parser=duration, metavar="TIME", show_default="1h", help="How long it lives: 30s, 15m, 1h, 7d."),
    ] = timedelta(hours=1),
) -> None:
    """Print a token, signed with this service's own key."""
    # Imported here: it loads cryptography, which `config` should not pay for.
    from service.rpc.tokens.local_key import LocalSigningKey

    if role not in ROLES:
        raise typer.BadParameter(f"must be one of: {', '.join(ROLES)}", param_hint="--role")
    if subject and not is_subject(subject):
        raise typer.BadParameter("must be 1 to 200 visible characters", param_hint="--subject")
    settings = load_settings()
    if settings.auth_jwks is not None:
        raise StartRefusedError("tokens come from the issuer of LEADKEEP_AUTH_JWKS; the local signing key is not used")
    key = LocalSigningKey.load_or_create(settings.signing_key_path)
    typer.echo(key.issue(subject or role, ROLES[role], ttl, now=time.time()))


def rows_of(settings: Settings) -> list[dict[str, str]]:
    """Every setting as an operator sees it, secrets hidden, with the source of its value."""
    effective = {
        "keyring": settings.keyring_path,
        "spool_dir": settings.spool_path,
        "files_dir": settings.files_path,
        "admin_database_url": settings.migration_url,
    }
    return [
        {
            "name": variable(name),
            "value": _shown(name, effective.get(name, getattr(settings, name))),
            "default": _default_shown(name),
            "meaning": field.description or "",
            "source": settings.source_of(name),
        }
        for name, field in Settings.model_fields.items()
    ]


def _default_shown(name: str) -> str:
    return str(cast(dict[str, object], Settings.model_fields[name].json_schema_extra)["shown"])


def _shown(name: str, value: object) -> str:
    if value is None:
        default = _default_shown(name)
        return default if default.startswith("unset") else "unset"
    if name in ("keyring_content", "keyring_command"):
        return "***"  # secret as a whole; of the others only a URL's credentials are
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return f"{value:g}"
    return without_secrets("; ".join(value) if isinstance(value, tuple) else str(value))
