"""What most scenarios play on: callers, one service, one PostgreSQL behind a proxy, and the history of it all."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.storage.postgres.folders import find_binaries
from tests.faults.chaos.background import Background
from tests.faults.chaos.callers import Callers
from tests.faults.chaos.checker import refused_later, share_of, violations
from tests.faults.chaos.clear_values import clear_values
from tests.faults.chaos.evidence import evidence
from tests.faults.chaos.history import Call, History, Stored
from tests.faults.chaos.launcher import Launcher
from tests.faults.chaos.postgres import FaultyPostgres
from tests.faults.chaos.service import KilledService
from tests.harness.faults import value_of
from tests.harness.postgres import folder_for_postgres
from tests.harness.processes import eventually

SUBJECT = "chatbot-7"

Tell = Callable[[str], None]
"""Hears in words how a scenario goes."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a scenario found."""

    name: str
    done: str
    """What was done, in a few words."""
    counts: Mapping[str, object]
    violations: Sequence[str]
    plot: str = ""
    """An SVG, of the scenario that draws one."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything is started."""

    seed: int
    folder: Path
    history: History
    postgres: FaultyPostgres
    service: KilledService
    callers: Callers
    tell: Tell

    def verdict(self) -> list[str]:
        """Wait until the spool is empty, and name every broken promise."""
        return self.service.undrained() + judge(self.history, self.postgres.stored(), self.tell)

    def left_in_clear(self) -> list[str]:
        """Where a sensitive value can be read in a dump, the daily files, the spool or the log."""
        url, running = self.postgres.admin_url, self.service.running
        if not eventually(lambda: value_of(url, "SELECT count(*) FROM lead_touch") == 0, within=60):
            return ["the daily files do not follow"]
        dump = self.folder / "dump.sql"
        command: list[str | Path] = [find_binaries().bin_dir / "pg_dump", "--dbname", url, "--file", dump]
        subprocess.run(command, capture_output=True, check=True)
        kept = [dump, *(running.data_dir / "files").glob("leads_*.json")]
        spooled = [path for path in self.service.spool_folder.rglob("*") if path.is_file()]
        persons = {number for call in self.history.calls if (of := call.content) for number in (of.phone, of.nid)}
        broken = clear_values([*kept, *spooled, running.log_path], persons, names=False)
        # The same search finds names, which are kept in clear in the database and in the daily files.
        unsearched = [path for path in kept if not clear_values([path], [])]
        return broken + [f"the search finds no name in {path.name}" for path in unsearched]


@contextmanager
def stage(seed: int, tell: Tell = lambda _: None, *, settings: Mapping[str, str] | None = None) -> Iterator[Stage]:
    """Start everything, and end it in the right order."""
    history = History(SUBJECT)
    with ExitStack() as ending:
        folder = ending.enter_context(folder_for_postgres())
        background = ending.enter_context(Background())
        launcher = ending.enter_context(Launcher())
        postgres = FaultyPostgres(folder, history, background, launcher)
        ending.callback(postgres.close)
        service = KilledService(folder, postgres.serve_url, history, settings=settings)
        service.start()
        ending.callback(service.stop)
        callers = Callers(background, service.address, service.token(), history, seed)
        ending.callback(callers.close)
        yield Stage(seed, folder, history, postgres, service, callers, tell)


def _refused(call: Call) -> bool:
    return call.rpc == "CreateLead" and call.code == "UNAVAILABLE" and call.by_server


def judge(history: History, stored: Stored, tell: Tell) -> list[str]:
    """Every broken promise, in words; `tell` hears the evidence."""
    broken = violations(history, stored)
    for line in evidence(history, broken):
        tell(line)
    return [str(violation) for violation in broken]


def figures(history: History, stored: Stored) -> dict[str, object]:
    """What every report of a load names."""
    share = share_of(history)
    acknowledged = {call.id for call in history.acknowledged()}
    delayed = {call.id for call in history.acknowledged() if call.state == "DELAYED"}
    return {
        "calls": len(history.calls),
        "ids acknowledged": len(acknowledged),
        "DELAYED at first": len(delayed),
        "CreateLeads refused as UNAVAILABLE by the service": sum(map(_refused, history.calls)),
        "repeats refused without PostgreSQL, after a kill": sum(excused for _, excused in refused_later(history)),
        "leads stored": len(stored.leads),
        "conflicts": len(stored.conflicts),
        "aliases": len(stored.aliases),
        "with a status of the service": f"{share.value:.3%}",
        "under way while the service was down, or hung up": share.excused,
    }
