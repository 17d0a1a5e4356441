"""What commands print of others' text can neither command the terminal nor forge a line."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from service.cli import command
from service.foreign_text import printable

COMMANDS = Path(command.__file__).parent
HOSTILE = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0x202E, 0x2066, 0xDC9B]))


def test_nothing_that_moves_a_cursor_is_printable() -> None:
    shown = printable(f"a{HOSTILE}b")
    assert shown.isascii()
    assert shown.isprintable()


@pytest.mark.parametrize("text", ["", "রহিমা", "é\U0001f600", "a b", "\u200d\u200e"])
def test_text_of_every_script_stays(text: str) -> None:
    assert printable(text) == text


def test_a_line_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    command.report({}, [f"a{HOSTILE}b"], as_json=False)
    with command.printed_rows(as_json=False) as show:
        show(f"a{HOSTILE}b")
    printed = capsys.readouterr().out
    assert printed.count("\n") == 2
    assert printed.replace("\n", "").replace("\t", "").isprintable()


def test_a_cell_stays_one_cell() -> None:
    assert command.cell(f"a{HOSTILE}b").isprintable()
    assert command.cell(None) == ""


def test_json_is_escaped_and_reads_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    command.print_json({"a": HOSTILE})
    with command.printed_rows(as_json=True) as show:
        show({"a": HOSTILE})
    printed = capsys.readouterr().out
    assert printed.replace("\n", "").isprintable()
    assert json.loads(printed[: printed.index("}") + 1]) == {"a": HOSTILE}


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_what_an_encoding_lacks_is_escaped_as_in_json(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Zoë রহিমা \U0001f600"
    written = io.BytesIO()
    with io.TextIOWrapper(written, encoding, write_through=True) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        command.echo(text)
        command.print_json(text)
        line, document = written.getvalue().decode(encoding).splitlines()
        monkeypatch.undo()
    assert json.loads(document) == text
    assert json.loads(f'"{line}"') == text


def test_no_command_prints_past_it() -> None:
    own = {
        "command.py": 3,  # these functions, and the line of progress
        "main.py": 1,  # errors, printable but for their line ends
        "serve.py": 1,  # the welcome
        "settings.py": 1,  # a token
    }
    found = {path.name: path.read_text().count("typer.echo") for path in COMMANDS.glob("*.py")}
    assert {name: count for name, count in found.items() if count} == own
