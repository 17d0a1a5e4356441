"""The threat model names the tests that hold its claims: they exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
CLAIMS = (TESTS.parent / "docs" / "security.md").read_text(encoding="utf-8")
FILES = sorted(set(re.findall(r"`(?:tests/)?((?:\w+/)*test_\w+\.py)", CLAIMS)))
NAMES = sorted(set(re.findall(r"`[^`]*?(test_\w+)`", CLAIMS)))


def test_claims_are_named() -> None:
    assert len(FILES) > 10
    assert len(NAMES) > 25


@pytest.mark.parametrize("file", FILES)
def test_a_named_file_exists(file: str) -> None:
    assert (TESTS / file).is_file()


def test_the_named_tests_exist() -> None:
    defined = {name for path in TESTS.rglob("test_*.py") for name in re.findall(r"def (test_\w+)\(", path.read_text())}
    assert set(NAMES) - defined == set()
