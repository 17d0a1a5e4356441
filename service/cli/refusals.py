"""How a command tells that it cannot do what was asked."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import typer

from service.errors import LeadkeepError, LeadValidationError, StartRefusedError

P = ParamSpec("P")

REFUSED = 1


def refusals_are_told(command: Callable[P, None]) -> Callable[P, None]:
    """The command, which ends with exit code 1 and the reason on standard error when it is refused."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except LeadValidationError as invalid:
            told = "; ".join(f"{violation.field} {violation.description}" for violation in invalid.violations)
        except LeadkeepError as error:
            told = error.text
        except StartRefusedError as refused:
            told = str(refused)
        else:
            return
        typer.echo(f"leadkeep: {told}", err=True)
        raise typer.Exit(REFUSED)

    return run
