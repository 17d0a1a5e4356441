"""The commands of `leadkeep`.

Exit codes: 0 done; 1 refused or failed, with the reason on standard error; 2 wrong usage; 3 `doctor`, `audit verify` or
`keys verify`
found a fault; 4 rows of a file could not be imported; 5 fields could not be opened by an export; 130 interrupted, and
may be repeated.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

import typer

from service.access import ROLES, is_subject
from service.cli.audit import audit_app
from service.cli.backup import backup, restore
from service.cli.command import FAULT_FOUND, AsJson, duration, print_json, refusals_are_told
from service.cli.conflicts import conflicts_app
from service.cli.erase import erase
from service.cli.exports import export
from service.cli.files import files_app
from service.cli.imports import import_files
from service.cli.keys import keys_app
from service.cli.retention import retention
from service.cli.spool import spool_app
from service.config import load_settings
from service.errors import StartRefusedError

PIPE_COLUMNS = 240
"""Wide enough for a setting to stand in one line, so that grep finds all of it."""

app = typer.Typer(
    help="Leadkeep keeps the leads that chatbots collect. Settings are LEADKEEP_… variables; see `leadkeep config`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # with it, help and usage errors would load rich, which takes longer than all the rest
)
app.add_typer(keys_app, name="keys")
app.add_typer(spool_app, name="spool")
app.add_typer(conflicts_app, name="conflicts")
app.add_typer(files_app, name="files")
app.add_typer(audit_app, name="audit")
app.command("import")(import_files)
app.command()(export)
app.command()(backup)
app.command()(restore)
app.command()(erase)
app.command()(retention)


def main() -> None:
    """Run the command line."""
    app()


@app.command()
@refusals_are_told
def serve() -> None:
    """Run the service until it is stopped (Ctrl-C, SIGTERM)."""
    settings = load_settings()
    # Imported here: the service costs most of a second, which `token` and `config` should not pay.
    from service import app as application
    from service.cli.welcome import welcome
    from service.log import configure_logging

    # A crash must not write the memory, which holds keys and values in clear, to the disk. Child processes inherit it.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    configure_logging(settings.log_level)
    first = settings.auth_jwks is None and not settings.signing_key_path.exists()

    def on_ready(grpc_port: int, http_port: int) -> None:
        typer.echo(welcome(settings, grpc_port, http_port, first=first, now=time.time()))
        sys.stdout.flush()

    application.serve(settings, on_ready=on_ready)


@app.command()
@refusals_are_told
def token(
    role: Annotated[str, typer.Option(help="chatbot (create, read its own), agent (read, update) or admin (all).")],
    subject: Annotated[str, typer.Option(help="Who acts with it; default: the role's name.")] = "",
    ttl: Annotated[
        timedelta,
        typer.Option(parser=duration, metavar="TIME", show_default="1h", help="How long it is good: 30s, 15m, 1h, 7d."),
    ] = timedelta(hours=1),
) -> None:
    """Print a token, signed with this service's own key."""
    from service.rpc.local_key import LocalSigningKey

    if role not in ROLES:
        raise typer.BadParameter(f"must be one of: {', '.join(ROLES)}", param_hint="--role")
    if subject and not is_subject(subject):
        raise typer.BadParameter("must be 1 to 200 visible characters", param_hint="--subject")
    settings = load_settings()
    if settings.auth_jwks is not None:
        raise StartRefusedError("tokens come from the issuer of LEADKEEP_AUTH_JWKS; the local signing key is not used")
    key = LocalSigningKey.load_or_create(settings.signing_key_path)
    typer.echo(key.issue(subject or role, ROLES[role], ttl, now=time.time()))


@app.command()
@refusals_are_told
def config(as_json: AsJson = False) -> None:
    """Print every setting with value, default and meaning; secrets hidden."""
    rows = load_settings().rows()
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    from rich.console import Console  # costs 100 ms, which serve should not pay
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    table = Table("variable", "value", "from", "default", "meaning", box=None)
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(row.name, row.value, row.source, row.default, row.meaning)
    console.print(table)


@app.command()
@refusals_are_told
def migrate() -> None:
    """Bring the database's schema to this release; needs a role with DDL rights. Safe to repeat."""
    settings = load_settings()
    from service.storage.schema import REVISION
    from service.storage.schema import migrate as run_migrations

    if settings.migration_url is None:
        raise StartRefusedError(
            "the embedded database is migrated when the service starts; set LEADKEEP_DATABASE_URL for another one"
        )
    before = run_migrations(settings.migration_url)
    if before == REVISION:
        typer.echo(f"The schema is up to date ({REVISION}).")
    else:
        typer.echo(f"The schema is at {REVISION} now (before: {before or 'none'}).")


@app.command()
@refusals_are_told
def doctor(as_json: AsJson = False) -> None:
    """Is everything well? Checks settings, database, schema, rights, keys and spool; exit code 3 if not."""
    settings = load_settings()
    from service.cli.diagnosis import diagnose

    findings = diagnose(settings)
    healthy = all(finding.ok for finding in findings)
    if as_json:
        print_json({"healthy": healthy, "checks": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            typer.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.check}: {finding.detail}")
    if not healthy:
        raise typer.Exit(FAULT_FOUND)
