"""Runs the load generator as a process of its own."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

from bench.load.plan import Load, Result

_ROOT = Path(__file__).parents[1]


def run(load: Load) -> Result:
    """One run. Raises CalledProcessError when the generator itself failed."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.load"],
        input=pickle.dumps(load),
        stdout=subprocess.PIPE,
        cwd=_ROOT,
        check=True,
        timeout=load.seconds + 120,
    )
    result = pickle.loads(done.stdout)
    assert isinstance(result, Result)
    return result
