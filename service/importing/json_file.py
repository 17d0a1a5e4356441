"""Objects of a JSON file, one at a time: an array, an object with a list of leads, or one object a line.

What is not JSON costs only itself: reading goes on where the next line, or the next place of a list, begins an object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from service.importing.source import (
    NOT_UNICODE,
    Columns,
    ImportRefusedError,
    Row,
    field_of,
    ignored,
    is_unicode,
    plain,
    resolve,
    text_file,
    value_of,
)
from service.lead import IDENTIFIERS, REQUIRED_FIELDS
from service.validation.text import UNREADABLE, ValueRefusedError, text_of

LONGEST_OBJECT = 200_000
"""Characters. The longest lead has 6,000, and escapes make six of one."""

DEEPEST = 20
"""Levels of nesting. A lead has one; what is deeper is refused before it is read to its end, or a file of opening
brackets would cost the square of its length."""

NO_JSON = "it is not JSON, or too long"
REPEATS = "a name stands twice in it"
NO_FIELD = "none of its names is a field: name them with --map; if it holds leads, import these alone, as a list"

MOST_UNREADABLE = 1000
"""Parts that are not JSON, beyond as many that are: then the file is no JSON, and the rest of it is not read."""

_CHUNK = 65_536
_SHOWN = 1000  # characters of what is not JSON, for the file of rejects
_FILLING = " \t\r\n,"
_LISTS = frozenset({"leads", "data", "items", "records", "results", "rows", "contacts", "customers"})

# Each of these takes time in proportion to the text, whatever that is: what was read once (a string that is not closed,
# a run of blanks) is never begun again at its next character. Hence the possessive repeats.
_PIECE = re.compile(r'"(?:[^"\\]|\\.)*+"?|[-+.\w]+|[][{}:,]')
_OBJECTS = re.compile(r"\s*+[{\]]")
_ANOTHER = re.compile(rf'"(?:{"|".join(_LISTS)})"\s*:\s*\[\s*\{{|\}}\s*\{{', re.IGNORECASE)
"""Leads behind the end of a list: in another list, or in an object of their own."""
_NEXT = re.compile(r"(?:(?<![ \t\r\n])[ \t\r]*+\n|\}\s*+,)[ \t\r\n]*+(?=\{)")
_BRACKETS = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*+"?|[][{}]')


_Part = tuple[dict[str, Any], str | None]
"""An object of the file, or in its place what a file of rejects shows, and why it is no lead."""


class _Repeating(dict[str, Any]):
    """An object in which a name stands twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    return made if len(made) == len(pairs) else _Repeating(made)


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


class JsonFile:
    """A JSON file of objects. Raises ImportRefusedError when it cannot be imported at all."""

    def __init__(
        self,
        path: Path,
        mapping: Mapping[str, str],
        required: Collection[str] = REQUIRED_FIELDS,
        *,
        encoding: str | None = None,
    ) -> None:
        self.text = text_file(path, encoding)
        self._mapping = mapping
        self._phones = [plain(name) for name, field in mapping.items() if field == "phone"]
        self._never_left_out = {*required, *IDENTIFIERS}
        self._resolved: dict[tuple[str, ...], Columns] = {}
        self.ignored: list[str] = []
        first = next((value for value, fault in self._values() if fault in (None, REPEATS)), None)
        if first is not None:
            self._columns_of(tuple(first))
        elif next(self._values(), None) is not None:
            raise ImportRefusedError(f"{path} has no object that could be a lead")

    def __iter__(self) -> Iterator[Row]:
        for number, (value, fault) in enumerate(self._values(), start=1):
            yield Row(number, {}, value, fault) if fault is not None else self._row(number, value)

    def _row(self, number: int, value: dict[str, Any]) -> Row:
        try:
            columns = self._columns_of(tuple(value))
        except ImportRefusedError as refused:
            return Row(number, {}, value, str(refused))
        if not columns:
            return Row(number, {}, value, NO_FIELD)
        given = list(value.values())
        row: dict[str, str] = {}
        for field, places in columns.items():
            try:
                parts = [text_of(field, given[place]) for place in places if given[place] is not None]
            except ValueRefusedError as refused:
                if field in self._never_left_out:
                    return Row(number, {}, value, f"{field} {refused.description}")
                parts = [UNREADABLE]
            if parts:
                row[field] = value_of(field, parts)
        return Row(number, row, value) if all(map(is_unicode, row.values())) else Row(number, {}, value, NOT_UNICODE)

    def _columns_of(self, keys: tuple[str, ...]) -> Columns:
        columns = self._resolved.get(keys)
        if columns is None:
            columns = resolve(keys, self._mapping, partly=True)
            if len(self._resolved) < 1000:  # objects with ever new keys must not fill the memory
                self._resolved[keys] = columns
                self.ignored = list(dict.fromkeys([*self.ignored, *ignored(columns, keys)]))[:100]
        return columns

    def _values(self) -> Iterator[_Part]:
        readable = 0
        with self.text.open() as file:
            for part in _parts(file, self._phones):
                yield part
                readable += -1 if part[1] == NO_JSON else 1
                if readable < -MOST_UNREADABLE:
                    yield {"text": ""}, "most of the file is not JSON: the rest of it was not read"
                    return


def _begin_of_list(text: str, phones: Collection[str]) -> int | None:
    """Where the leads begin in an object that wraps them, at any depth; None when the first object is a lead.

    Before the list there may be a description of it: values, objects, other lists. An empty list is that of the leads
    if no other is.
    """
    if not text.lstrip(_FILLING).startswith("{"):
        return None
    opened: list[tuple[str, set[str | None]]] = []  # each bracket, and the fields that stand in it
    before = here = key = ""
    empty: int | None = None
    around_empty: list[set[str | None]] = []
    for match in _PIECE.finditer(text):
        before, here = here, match[0]
        in_objects = not any(bracket == "[" for bracket, _ in opened)
        if here == ":" and opened:
            key = plain(before.strip('"'))
            opened[-1][1].add("phone" if key in phones else field_of(key))
        elif here in "[{":
            is_list = here == "[" and before == ":" and key in _LISTS
            first = _OBJECTS.match(text, match.end()) if is_list and in_objects else None
            if first is not None and not any("phone" in fields for _, fields in opened):
                if first[0].endswith("{"):
                    return match.end()
                if empty is None:
                    empty, around_empty = match.end(), [fields for _, fields in opened]
            opened.append((here, set()))
            if len(opened) > DEEPEST:
                return None
        elif here in "]}":
            opened.pop()
            if not opened:
                break
    # An empty list before the phone of a lead belongs to that lead.
    return None if any("phone" in fields for fields in around_empty) else empty


def _is_too_deep(text: str, at: int) -> bool:
    """Whether the value that begins here is nested too deeply, as far as it can be seen."""
    if text[at] not in "[{":
        return False
    depth = 0
    for token in _BRACKETS.finditer(text, at):
        depth += token[0] in "[{"
        depth -= token[0] in "]}"
        if depth > DEEPEST:
            return True
        if depth <= 0:
            return False
    return False


def _parts(file: TextIO, phones: Collection[str] = ()) -> Iterator[_Part]:
    """The parts of a file. `phones`: the names, in the form of `plain`, that --map has for a lead's phone."""
    text, ended = file.read(LONGEST_OBJECT), False
    begin = _begin_of_list(text, phones)
    in_array = begin is not None or text.lstrip(_FILLING).startswith("[")
    at = begin or (text.index("[") + 1 if in_array else 0)

    def read_on(*, kept: int) -> None:
        """Read another chunk, and drop everything before `kept`."""
        nonlocal text, at, ended
        more = file.read(_CHUNK)
        text, at, ended = text[kept:] + more, 0, not more

    while True:
        while at < len(text) and text[at] in _FILLING:
            at += 1
        if at >= len(text) - LONGEST_OBJECT // 8 and not ended:
            read_on(kept=at)
        elif at >= len(text):
            if in_array:
                yield {"text": ""}, "the file ends before its list does: it was cut off"
            return
        elif in_array and text[at] == "]":
            if begin is not None:
                if _ANOTHER.search(text[at:] + file.read(_CHUNK)) is not None:
                    yield {"text": ""}, "more follows, which was not read: import it as a file of its own"
                return
            at, in_array = at + 1, False
        else:
            deep = _is_too_deep(text, at)
            try:
                if deep:
                    raise ValueError  # noqa: TRY301 # like what is not JSON, but longer will not make it good
                value, at = _DECODER.raw_decode(text, at)
            except ValueError:
                if not ended and not deep and len(text) - at < LONGEST_OBJECT:
                    read_on(kept=at)
                    continue
                unreadable = text[at : at + _SHOWN]
                # What follows is looked for in what was read, and if need be in all the rest.
                while (following := _NEXT.search(text, at)) is None and not ended:
                    read_on(kept=max(0, len(text) - _SHOWN))
                end = len(text) if following is None else following.end()
                in_array = in_array and following is not None
                yield {"text": unreadable[: end - at].strip(_FILLING)}, NO_JSON
                at = end
            else:
                yield _part(value)


def _part(value: Any) -> _Part:
    if isinstance(value, _Repeating):
        return value, REPEATS
    return (value, None) if isinstance(value, dict) else ({"value": value}, "it is not an object")
