"""A reader of a daily file (`python -m tests.harness.file_reader PATH`), which opens it every 10 ms with a JSON parser.

It reads until standard input ends, and then prints what it saw: how often, what did not parse, and for each version of
the file its snapshot's time and when each lead was first in it.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

EVERY_SECONDS = 0.01


def main(path: Path) -> None:
    stopped = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        stopped.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    reads, failures = 0, []
    snapshots: list[float] = []
    seen: dict[str, tuple[float, int]] = {}
    while not stopped.is_set():
        began = time.time()
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            stopped.wait(EVERY_SECONDS)
            continue
        reads += 1
        try:
            document = json.loads(content)
        except ValueError:
            failures.append(len(content))
            continue
        snapshot_at = datetime.fromisoformat(document["snapshot_at"]).timestamp()
        if not snapshots or snapshots[-1] != snapshot_at:
            snapshots.append(snapshot_at)
            if document["lead_count"] != len(document["leads"]):
                failures.append(-1)
            for lead in document["leads"]:
                seen.setdefault(lead["id"], (began, len(snapshots) - 1))
        stopped.wait(max(0.0, began + EVERY_SECONDS - time.time()))
    print(json.dumps({"reads": reads, "failures": failures, "snapshots": snapshots, "seen": seen}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
