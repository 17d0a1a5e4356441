"""What a service holds at a moment, seen from outside: memory, threads and handles from /proc, tasks and calls from its
own metrics, connections from PostgreSQL."""

from __future__ import annotations

import re
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg
from prometheus_client.parser import text_string_to_metric_families

from service.storage.schema import OWN_LOGIN
from tests.harness.processes import family

_MEMORY = re.compile(r"^(Rss|Anonymous): +(\d+) kB$", re.MULTILINE)
_SHOWN = ("leadkeep_tasks", "leadkeep_calls_in_flight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look. Memory in MB; threads, handles and sockets are those of the service and its children together."""

    at: float
    """Seconds since the load began."""
    resident: float
    anonymous: float
    """Of it what belongs to no file: heap and stacks."""
    children: float
    """Resident memory of its children: the process that renders the daily files."""
    tasks: float
    in_flight: float
    threads: float
    handles: float
    sockets: float
    connections: float
    """What PostgreSQL has open for the service."""
    calls: Mapping[tuple[str, str], float]
    """Calls so far, by rpc and code."""


def sample(pid: int, *, http_url: str, admin_url: str, at: float) -> Sample:
    """Look at a running service."""
    # First, for the look at the metrics is itself a connection with a task.
    links = [link for each in family(pid) for link in _handles(each)]
    resident, anonymous = memory(pid)
    _, *children = family(pid)
    counted, calls = _metrics(http_url)
    return Sample(
        at=at,
        resident=resident,
        anonymous=anonymous,
        children=sum(memory(child)[0] for child in children),
        tasks=counted["leadkeep_tasks"],
        in_flight=counted["leadkeep_calls_in_flight"],
        threads=sum(len(list(Path(f"/proc/{each}/task").iterdir())) for each in (pid, *children)),
        handles=len(links),
        sockets=sum(link.startswith("socket:") for link in links),
        connections=_connections(admin_url),
        calls=calls,
    )


def memory(pid: int) -> tuple[float, float]:
    """Resident and anonymous MB. Exact, where /proc/PID/status may be some hundred kB behind for each thread."""
    found = {name: int(kilobytes) / 1000 for name, kilobytes in _MEMORY.findall(_rollup(pid))}
    return found["Rss"], found["Anonymous"]


def _rollup(pid: int) -> str:
    return Path(f"/proc/{pid}/smaps_rollup").read_text()


def _handles(pid: int) -> list[str]:
    """What the open handles of a process lead to."""
    found = []
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(handle.readlink()))
        except FileNotFoundError:
            continue  # closed meanwhile
    return found


def _metrics(http_url: str) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
    counted: dict[str, float] = {}
    calls: defaultdict[tuple[str, str], float] = defaultdict(float)
    with urllib.request.urlopen(f"{http_url}/metrics", timeout=30) as response:
        text = response.read().decode()
    for metric in text_string_to_metric_families(text):
        for each in metric.samples:
            if each.name in _SHOWN:
                counted[each.name] = each.value
            elif each.name == "leadkeep_calls_total":
                calls[each.labels["rpc"], each.labels["code"]] += each.value
    return counted, calls


def _connections(admin_url: str) -> int:
    with psycopg.connect(admin_url) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s"
        ((count,),) = connection.execute(query, [OWN_LOGIN]).fetchall()
    return int(count)
