"""The command line `leadkeep`: its commands by name.

Exit codes: 0 done; 1 refused or failed, with the reason on standard error; 2 wrong usage; 3 `doctor`, `audit verify` or
`keys verify` found a fault; 4 rows of a file could not be imported; 5 fields could not be opened by an export; 130
interrupted, and may be repeated.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command_from_info
from typer.models import CommandInfo

from service.errors import LeadkeepError, LeadValidationError, StartRefusedError

REFUSED = 1

COMMANDS: dict[str, tuple[str, str | dict[str, tuple[str, str]]]] = {
    "serve": ("Run the service until it is stopped (Ctrl-C, SIGTERM).", "serve:serve"),
    "token": ("Print a token, signed with this service's own key.", "settings:token"),
    "config": ("Print every setting with value, default and meaning; secrets hidden.", "settings:config"),
    "doctor": (
        "Check settings, database, schema, rights, keys and spool; exit code 3 if something is wrong.",
        "checks:doctor",
    ),
    "stats": (
        "Count the leads of a span of at most 400 days, by status, policy, source, assignee or day.",
        "leads:stats",
    ),
    "import": ("Import leads: daily files as they were, foreign files by their headers.", "imports:import_files"),
    "export": ("Write leads as JSON or CSV, sensitive fields masked.", "exports:export"),
    "erase": ("Erase a lead and all that belongs to it; only a tombstone stays.", "erase:erase"),
    "retention": (
        "Erase leads that are older than a policy: LEADKEEP_RETENTION, or --status and --older-than.",
        "erase:retention",
    ),
    "migrate": ("Migrate the database's schema to this release; needs a role with DDL rights.", "database:migrate"),
    "backup": ("Back the database up into a new folder.", "backup:backup"),
    "restore": ("Restore a backup into an empty database.", "backup:restore"),
    "keys": (
        "The keyring, without which no sealed field opens.",
        {
            "init": ("Make a keyring with fresh keys.", "keys:init"),
            "status": (
                "Show every key with its state and what is sealed with it, where a rotation stands, and what replicas "
                "have.",
                "keys:status",
            ),
            "add": ("Add a fresh key, which opens and does not seal yet (active).", "keys:add"),
            "promote": (
                "Make a key the one that seals (primary), once every running replica can open with it; the previous "
                "one stays active.",
                "keys:promote",
            ),
            "reseal": (
                "Seal everything in the database with the primary encryption key, and index what is not indexed yet.",
                "keys:reseal",
            ),
            "reindex": (
                "Compute the blind indexes anew: with a new primary index key, or after the rules for phone and NID "
                "changed.",
                "keys:reindex",
            ),
            "retire": (
                "Take a key out of use; refused while anything needs it: rows, conflicts, spools, daily files.",
                "keys:retire",
            ),
            "verify": (
                "Open everything that is stored and compare every blind index; exit code 3 if something is wrong.",
                "keys:verify",
            ),
        },
    ),
    "spool": (
        "Leads that wait on this machine's disk for the database.",
        {
            "status": ("How much waits, since when, and whether that is an alarm.", "spool:status"),
            "list": ("List what waits, oldest first: ids and times, no customer's value.", "spool:list_entries"),
            "drain": ("Store what waits in the database.", "spool:drain"),
        },
    ),
    "leads": (
        "Leads, as the running service shows them.",
        {
            "list": ("List leads, sensitive values masked; all filters that are given must match.", "leads:list_leads"),
            "history": ("Show everything that happened to a lead, oldest first.", "leads:show_history"),
        },
    ),
    "person": (
        "Find, export and erase what is kept of a person.",
        {
            "find": (
                "List what carries a phone, a national ID or an e-mail address, masked. The search is recorded.",
                "person:find",
            ),
            "export": (
                "Write everything about what is chosen as one JSON document, values in clear. Each look is recorded.",
                "person:export",
            ),
            "erase": (
                "Erase what is chosen; only tombstones stay. Cannot be undone. Safe to repeat.",
                "person:erase",
            ),
        },
    ),
    "conflicts": (
        "Spooled submissions that matched a lead when they were drained.",
        {
            "list": (
                "List what waits for a decision, oldest first, with both sides; sensitive values are masked.",
                "leads:list_conflicts",
            ),
            "resolve": (
                "Decide: keep the first lead as it is, let it take the new values, or make the submission a lead of "
                "its own.",
                "leads:resolve_conflict",
            ),
        },
    ),
    "files": (
        "The daily files: one JSON file for each day's leads.",
        {
            "render": (
                "Render files now, whether the service runs or not: one day, some days, or all that have leads.",
                "files:render",
            ),
            "verify": (
                "Compare each day's file with the database, by count and digest; exit code 1 if one is not equal.",
                "files:verify",
            ),
            "show": ("Show the leads of a day's file, sensitive fields masked.", "files:show"),
        },
    ),
    "audit": (
        "The record of who was shown which leads unmasked.",
        {
            "list": ("List looks at values in clear, newest first.", "leads:list_accesses"),
            "verify": ("Find entries that were changed, added or removed.", "checks:verify_record"),
        },
    ),
}
"""Each command's line of help, and the function in service.cli that runs it; or the commands of a group."""


class LazyCommand(TyperCommand):
    """A command whose module is imported when it is chosen: all modules together take two seconds to load."""

    def __init__(self, name: str, help_line: str, target: str) -> None:
        super().__init__(name, help=help_line, rich_markup_mode=None)
        self._target = target

    def make_context(self, *arguments: Any, **extra: Any) -> Any:
        """Begin the command itself, with the options of its function."""
        module, _, function = self._target.partition(":")
        info = CommandInfo(self.name, callback=getattr(import_module(f"service.cli.{module}"), function))
        command = get_command_from_info(info, pretty_exceptions_short=True, rich_markup_mode=None)
        return command.make_context(*arguments, **extra)


class Commands(TyperGroup):
    """All commands. One that is refused ends with exit code 1 and the reason on standard error."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, (help_line, target) in COMMANDS.items():
            if isinstance(target, str):
                self.add_command(LazyCommand(name, help_line, target))
                continue
            members = [LazyCommand(member, *entry) for member, entry in target.items()]
            self.add_command(
                TyperGroup(name=name, help=help_line, commands=members, no_args_is_help=True, rich_markup_mode=None)
            )

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was chosen."""
        try:
            return super().invoke(ctx)
        except LeadValidationError as invalid:
            why = "; ".join(f"{violation.field} {violation.description}" for violation in invalid.violations)
        except (LeadkeepError, StartRefusedError) as refused:
            why = str(refused)
        except UnicodeEncodeError:
            # Bytes of an argument that are no UTF-8 are halves of surrogate pairs in it, which no request can hold.
            why = "an argument or standard input is not UTF-8 text"
        from service.foreign_text import printable  # loads json, which --help should not pay for

        # Line ends stay: several faults stand below each other.
        typer.echo("leadkeep: " + printable(why, kept="\n"), err=True)
        raise typer.Exit(REFUSED)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # with it, help and usage errors would load rich, which takes longer than all the rest
)


@app.callback()
def leadkeep() -> None:
    """Leadkeep keeps the leads that chatbots collect. Settings are LEADKEEP_… variables; see `leadkeep config`."""
