"""Who may see values in clear on the command line: whoever holds a token with the scope for it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from service import app
from service.access import Caller, Scope
from service.config import Settings
from service.errors import StartRefusedError
from service.secret_file import read_secret_file

TOKEN_VARIABLE = "LEADKEEP_TOKEN"  # noqa: S105 # the variable's name


def unmasking_caller(settings: Settings, token_file: Path | None) -> Caller:
    """The caller that the token of `token_file`, else of LEADKEEP_TOKEN, names, who may see values in clear.

    The token is never an argument: those can be read by every user of the machine. Raises StartRefusedError without
    a token or the scope, and the token errors of errors.py.
    """
    if token_file is not None:
        token = read_secret_file(token_file).decode("ascii", errors="replace").strip()
    else:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        raise StartRefusedError(
            f"--unmask needs a token with the scope {Scope.UNMASK}: set {TOKEN_VARIABLE}, or name a file that holds it "
            "with --token-file (leadkeep token --role admin prints one)"
        )
    caller = asyncio.run(app.token_verifier(settings).verify(token))
    if not caller.may(Scope.UNMASK):
        raise StartRefusedError(f"this token lacks the scope {Scope.UNMASK}, which --unmask needs")
    return caller
