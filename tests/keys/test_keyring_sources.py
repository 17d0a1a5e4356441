from __future__ import annotations

import base64
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.errors import StartRefusedError
from service.keys.keyring import Keyring, keyring_command, keyring_content

KEYRING = Keyring.generate(now=datetime(2026, 1, 31, 9, tzinfo=UTC))
SECRET = "hunter2-canary"


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "it's a script.py"
    path.write_text(text)
    return f'{sys.executable} "{path}"'


@pytest.mark.parametrize("as_text", [lambda text: text, lambda text: base64.b64encode(text.encode()).decode()])
def test_a_variable_holds_json_or_its_base64(as_text: object) -> None:
    content = as_text(KEYRING.to_json())  # type: ignore[operator]
    assert keyring_content(content).load().keys == KEYRING.keys


@pytest.mark.parametrize("content", [SECRET, "{" + SECRET, json.dumps({"format": SECRET})])
def test_a_variable_that_holds_none_is_named_without_its_value(content: str) -> None:
    with pytest.raises(StartRefusedError, match="LEADKEEP_KEYRING_CONTENT cannot be used") as refused:
        keyring_content(content).load()
    assert SECRET not in str(refused.value) + repr(keyring_content(content))


def test_a_command_prints_it_and_needs_no_shell(tmp_path: Path) -> None:
    kept = tmp_path / "kept;$(touch x).json"
    kept.write_text(KEYRING.to_json())
    assert keyring_command(f"cat '{kept}'").load().keys == KEYRING.keys


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"print('{SECRET}')", "cannot be used: it is not JSON"),
        (f"import sys; print('{SECRET}'); sys.stderr.write('{SECRET}'); sys.exit(7)", "the command ended with 7"),
        ("import time; time.sleep(60)", "longer than 0.5 seconds"),
    ],
)
def test_a_command_that_fails_is_told_without_its_outputs(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(StartRefusedError, match=told) as refused:
        keyring_command(script(tmp_path, text), timeout=0.5 if "sleep" in text else 30).load()
    assert "LEADKEEP_KEYRING_COMMAND" in str(refused.value)
    assert SECRET not in str(refused.value)


def test_a_program_that_there_is_not_is_named() -> None:
    with pytest.raises(StartRefusedError, match="no-such-program cannot be run"):
        keyring_command(f"no-such-program {SECRET}").load()
