"""The table of commands names functions that exist, with the line of help that they have themselves."""

from __future__ import annotations

from importlib import import_module
from inspect import getdoc

import pytest

from service.cli.main import COMMANDS

COMMAND_OF = {
    f"{name} {member}".strip(): entry
    for name, (line, target) in COMMANDS.items()
    for member, entry in (target.items() if isinstance(target, dict) else [("", (line, target))])
}


@pytest.mark.parametrize("command", COMMAND_OF)
def test_the_line_of_help_begins_the_help_of_the_command(command: str) -> None:
    line, target = COMMAND_OF[command]
    module, _, function = target.partition(":")
    described = getdoc(getattr(import_module(f"service.cli.{module}"), function))
    assert " ".join((described or "").split()).startswith(line)
