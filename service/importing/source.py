"""What kind of file is it? Told by its content, not by its name."""

from __future__ import annotations

import codecs
import re
from enum import Enum
from pathlib import Path

from service.importing.rows import ImportRefusedError

_LOOKED_AT = 4096
_DAILY = re.compile(rb'\s*\{\s*"format"\s*:\s*"leadkeep-daily-file"')


class Kind(Enum):
    """The formats that can be imported."""

    DAILY = "daily file"
    JSON = "JSON"
    CSV = "CSV"


def kind_of(path: Path) -> Kind:
    """The kind of a file. Raises ImportRefusedError."""
    if path.exists() and not path.is_file():
        raise ImportRefusedError(f"{path} is no file: it is read more than once, so a pipe will not do")
    try:
        with path.open("rb") as file:
            begin = file.read(_LOOKED_AT)
    except OSError as error:
        raise ImportRefusedError(f"{path} cannot be read: {error.strerror}") from None
    if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in begin:
        raise ImportRefusedError(f"{path} is not UTF-8 text: save it as CSV (UTF-8) or JSON")
    begin = begin.removeprefix(codecs.BOM_UTF8)
    if not begin.strip():
        raise ImportRefusedError(f"{path} is empty")
    if _DAILY.match(begin):
        return Kind.DAILY
    return Kind.JSON if begin.lstrip()[:1] in (b"{", b"[") else Kind.CSV
