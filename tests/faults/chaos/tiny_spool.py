"""A spool on a disk of one megabyte: when it is full, callers are told so, and nothing acknowledged is lost."""

from __future__ import annotations

import os
import signal

from tests.faults.chaos.history import Call
from tests.faults.chaos.stage import Result, Tell, figures, stage
from tests.harness.disks import tiny_disk
from tests.harness.postgres import folder_for_postgres

LEADS = 600
"""Several times what a megabyte holds."""

AGAIN = 100


def tiny_spool(seed: int, tell: Tell = lambda _: None) -> Result:
    """Fill it without PostgreSQL, kill the service, fill it again, and see everything arrive. Raises NoMountError."""
    with (
        folder_for_postgres() as folder,
        tiny_disk(folder / "disk") as disk,
        stage(seed, tell, settings={"LEADKEEP_SPOOL_DIR": str(disk)}) as played,
    ):
        with played.postgres.away(signal.SIGINT):
            first = played.callers.submit_once(range(LEADS))
            taken = sum(call.acknowledged for call in first)
            room = os.statvfs(disk)
            tell(f"{taken} of {LEADS} leads taken")
            played.service.kill_and_start()
            again = played.callers.submit_once(range(LEADS, LEADS + AGAIN))
        broken = [] if 0 < taken < LEADS else [f"{taken} of {LEADS} leads were acknowledged"]
        broken += [f"{call.request_id}: {call.code} {call.reason}" for call in (*first, *again) if not _honest(call)]
        broken += played.service.undrained(within=20)
        if not broken:
            # Those who were told UNAVAILABLE come again.
            played.callers.submit(range(LEADS + AGAIN))
            broken = played.verdict()
        stored = played.postgres.stored()
    counts = {
        "acknowledged before it was full": f"{taken} of {LEADS}",
        "bytes left on the disk then": room.f_bavail * room.f_frsize,
        "acknowledged after a kill, with a full disk": f"{sum(call.acknowledged for call in again)} of {AGAIN}",
        **figures(played.history, stored),
    }
    done = "a spool on a 1 MB disk filled without PostgreSQL; kill -9; more leads; PostgreSQL back"
    return Result("tiny spool", done, counts, broken)


def _honest(call: Call) -> bool:
    return call.acknowledged or (call.code, call.reason) == ("UNAVAILABLE", "STORAGE_UNAVAILABLE")
