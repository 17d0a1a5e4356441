"""`python -m tests.faults.chaos [--short] [--seed N] [--only SCENARIO]`: run the scenarios.

The whole long form writes its report into docs/. Exits 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

# Every fork and reconnection would be a line, if this were set later.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from tests.faults.chaos.report import page
from tests.faults.chaos.scenarios import LONG, SHORT
from tests.faults.chaos.stage import Result
from tests.harness.disks import NoMountError

DOCS = Path(__file__).parents[3] / "docs"


def main() -> int:
    """The exit code."""
    options = _options()
    seed: int = options.seed
    began, at = time.monotonic(), datetime.now(UTC)
    scenarios = SHORT if options.short else LONG
    chosen: list[str] = options.only or list(scenarios)
    _tell(f"seed {seed}")
    results: list[Result] = []
    for name in chosen:
        _tell(f"{name}:")
        try:
            result = scenarios[name](seed, lambda text: _tell(f"  {text}"))
        except NoMountError:
            _tell("  skipped: nothing may be mounted here")
            continue
        results.append(result)
        for what, value in result.counts.items():
            _tell(f"    {what}: {value}")
        for violation in result.violations:
            _tell(f"    BROKEN: {violation}")
    minutes = (time.monotonic() - began) / 60
    if not options.short and not options.only:
        (DOCS / "faults.md").write_text(page(results, seed=seed, at=at, minutes=minutes, cores=os.cpu_count() or 1))
        (DOCS / "faults.svg").write_text("".join(result.plot for result in results))
    broken = sum(len(result.violations) for result in results)
    _tell(f"{broken or 'no'} broken promises after {minutes:.1f} minutes, seed {seed}")
    return 1 if broken else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos")
    parser.add_argument("--short", action="store_true", help="a minute and a half instead of twenty")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="that of a run to repeat")
    parser.add_argument("--only", action="append", choices=list(LONG), help="this scenario; may be repeated")
    return parser.parse_args()


def _tell(text: str) -> None:
    print(text, flush=True)  # noqa: T201 # this is a command


if __name__ == "__main__":
    sys.exit(main())
