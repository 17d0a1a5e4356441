"""The search for values that must not be somewhere, in every form in which they may hide there."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path

_EMPTY = re.compile(rb"\0{64,}")
"""Most of PostgreSQL's files is empty, and looking through that takes most of the time."""


def disguises(value: str) -> Iterator[bytes]:
    """The ways in which a value may hide: clear, without its separators, reversed, in base64 or hex."""
    bare = re.sub(r"[^A-Za-z0-9]", "", value)
    for form in {value, value.lower(), value.upper(), bare, value[::-1], bare[::-1], value.lstrip("+")}:
        for raw in {form.encode(), form.encode("utf-16-le")}:
            yield from encodings(raw)


def encodings(raw: bytes) -> Iterator[bytes]:
    """Bytes as they are, in hex, and in base64."""
    yield raw
    yield raw.hex().encode()
    yield raw.hex().upper().encode()
    for offset in range(3):
        # In the middle of something else, base64 has three phases; characters at the edges mix with others.
        for encode in (base64.standard_b64encode, base64.urlsafe_b64encode):
            yield encode(b"\0" * offset + raw).rstrip(b"=")[(offset * 8 + 5) // 6 : -1]


def hidden_in(content: bytes, forms: Mapping[str, Iterable[bytes]]) -> set[str]:
    """The names of what is somewhere in the content."""
    content = _EMPTY.sub(b"\0", content)
    return {name for name, each in forms.items() if any(form in content for form in each)}


def hidden_under(folders: Iterable[Path], forms: Mapping[str, Iterable[bytes]]) -> dict[str, set[str]]:
    """The names of what is somewhere in the files of some folders, by file; names of files are looked at too."""
    kept = {name: _shortest({*each}) for name, each in forms.items()}
    found = {}
    looked_at = dict[bytes, set[str]]()
    for folder in folders:
        for path in sorted(folder.rglob("*")) if folder.is_dir() else [folder]:
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            # Each database of PostgreSQL begins as a copy of another one.
            digest = sha256(content).digest()
            if digest not in looked_at:
                looked_at[digest] = hidden_in(content, kept)
            if hidden := looked_at[digest] | hidden_in(path.name.encode(), kept):
                found[str(path)] = hidden
    return found


def _shortest(forms: Collection[bytes]) -> tuple[bytes, ...]:
    """The forms without those that hold another one: where they are, that one is."""
    return tuple(form for form in forms if not any(other in form for other in forms if other != form))
