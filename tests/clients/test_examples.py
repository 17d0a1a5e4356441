"""examples/ and docs/clients.md agree with clients/policy and with each other. tests/interop runs them."""

from __future__ import annotations

import re
from pathlib import Path

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
    [interval] = re.findall(r"dns\.SetMinResolutionInterval\((\d+) \* time\.Second\)", sources("go"))
    assert float(interval) == seconds(CHANNEL["go"]["dns.SetMinResolutionInterval"])
    factors = {name: float(number) for name, number in re.findall(r"(Multiplier|Jitter): ([\d.]+)", sources("go"))}
    assert factors == {name: connect["Backoff"][name] for name in ("Multiplier", "Jitter")}


def test_java_has_the_settings_of_the_policy() -> None:
    written = re.findall(r"\.(keepAlive\w+)\((\w+)(?:, TimeUnit\.SECONDS)?\)", sources("java"))
    assert {name: value if value == "true" else float(value) for name, value in written} == {
        "keepAliveTime": seconds(CHANNEL["java"]["keepAliveTime"]),
        "keepAliveTimeout": seconds(CHANNEL["java"]["keepAliveTimeout"]),
        "keepAliveWithoutCalls": "true",
    }
    kept = re.findall(r'(System|Security)\.setProperty\("networkaddress\.cache\.ttl", "(\d+)"\)', sources("java"))
    number = CHANNEL["java"]["networkaddress.cache.ttl"].removesuffix("s")
    assert kept == [("System", number), ("Security", number)]


def test_code_of_the_guide_is_in_the_examples() -> None:
    """What decides by the reason, in the column of each language."""
    [row] = re.findall(r"^\| decide by the reason \|(.+)\|$", CLIENTS_MD, re.MULTILINE)
    for language, cell in zip(SUFFIXES, row.split(" | "), strict=True):
        for code in re.findall("`(.+?)`", cell):
            assert code.rpartition(".")[2] in sources(language), (language, code)


def test_no_lock_names_a_registry() -> None:
    locks = [EXAMPLES / "python/requirements.txt", EXAMPLES / "typescript/package-lock.json", EXAMPLES / "go/go.sum"]
    assert not [path.name for path in locks if "://" in re.sub(r'"url": "[^"]*"', "", path.read_text())]
