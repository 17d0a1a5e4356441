"""A `.env` file, which may name a command to run: only root and this user decide what is in it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from dotenv import dotenv_values


def read_env_file(path: Path) -> Mapping[str, str | None]:
    """The variables of a file, none when there is no file. Raises ValueError, which names what to do.

    The folder is not looked at: what another user puts there belongs to that user, and so does a link.
    """
    try:
        with path.open(encoding="utf-8") as file:
            links = [link.lstat().st_uid for link in _links_of(path)]
            found = os.fstat(file.fileno())
            if {found.st_uid, *links} - {0, os.geteuid()}:
                fault = "belongs to another user than root and you, who could have any command run; make it your own"
            elif stat.S_IMODE(found.st_mode) & 0o022:
                fault = "may be written by others, who could have any command run; run: chmod go-w .env"
            else:
                # Without interpolation: a password with ${…} in it is that password.
                return dotenv_values(stream=file, interpolate=False)
    except (FileNotFoundError, IsADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError):
        fault = "cannot be read as UTF-8 text; correct or remove it"
    raise ValueError(fault)


def _links_of(path: Path) -> Iterator[Path]:
    while path.is_symlink():
        yield path
        path = path.parent / path.readlink()
