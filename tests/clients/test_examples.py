"""examples/ and docs/clients.md agree with clients/policy and with each other. tests/interop runs them."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest

from tests.harness.policy import CHANNEL

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SUFFIXES = {"python": ".py", "go": ".go", "typescript": ".ts", "java": ".java"}
CLIENTS_MD = (ROOT / "docs/clients.md").read_text()


def sources(language: str) -> str:
    """What is written in an example, without indentation."""
    found = (EXAMPLES / language).rglob(f"*{SUFFIXES[language]}")
    written = [path for path in sorted(found) if not {"gen", "node_modules", "target", ".venv"} & set(path.parts)]
    return "\n".join(line.strip() for path in written for line in path.read_text().splitlines())


def seconds(text: str) -> float:
    return float(text.removesuffix("ms")) / 1000 if text.endswith("ms") else float(text.removesuffix("s"))


def test_go_has_the_settings_of_the_policy() -> None:
    units = {"Millisecond": 0.001, "Second": 1}
    written = {
        name: float(number) * units[unit]
        for name, number, unit in re.findall(r"(\w+): +(\d+) \* time\.(\w+)", sources("go"))
    }
    connect, keepalive = CHANNEL["go"]["grpc.ConnectParams"], CHANNEL["go"]["keepalive.ClientParameters"]
    assert written == {
        "BaseDelay": seconds(connect["Backoff"]["BaseDelay"]),
        "MaxDelay": seconds(connect["Backoff"]["MaxDelay"]),
        "MinConnectTimeout": seconds(connect["MinConnectTimeout"]),
        "Time": seconds(keepalive["Time"]),
        "Timeout": seconds(keepalive["Timeout"]),
    }
    factors = {name: float(number) for name, number in re.findall(r"(Multiplier|Jitter): ([\d.]+)", sources("go"))}
    assert factors == {name: connect["Backoff"][name] for name in ("Multiplier", "Jitter")}


def test_java_has_the_settings_of_the_policy() -> None:
    written = re.findall(r"\.(keepAlive\w+)\((\w+)(?:, TimeUnit\.SECONDS)?\)", sources("java"))
    assert {name: value if value == "true" else float(value) for name, value in written} == {
        "keepAliveTime": seconds(CHANNEL["java"]["keepAliveTime"]),
        "keepAliveTimeout": seconds(CHANNEL["java"]["keepAliveTimeout"]),
        "keepAliveWithoutCalls": "true",
    }


def blocks() -> list[tuple[str, str]]:
    """The code of the guide, but for the loop over pages, which test_guide.py runs."""
    return re.findall(r"^```(python|go|typescript|java)\n((?!request = ).*?)^```", CLIENTS_MD, re.DOTALL | re.MULTILINE)


def test_code_of_every_language_is_shown() -> None:
    assert {language for language, _ in blocks()} == set(SUFFIXES)


@pytest.mark.parametrize(("language", "block"), blocks())
def test_code_in_the_guide_is_an_examples(language: str, block: str) -> None:
    assert "\n".join(line.strip() for line in dedent(block).strip().splitlines()) in sources(language)


def test_no_lock_names_a_registry() -> None:
    locks = [EXAMPLES / "python/requirements.txt", EXAMPLES / "typescript/package-lock.json", EXAMPLES / "go/go.sum"]
    assert not [path.name for path in locks if "://" in re.sub(r'"url": "[^"]*"', "", path.read_text())]
