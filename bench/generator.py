"""Runs the load generator as a process of its own."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

from bench.load.plan import Load, Result

_ROOT = Path(__file__).parents[1]
_COMMAND = (sys.executable, "-m", "bench.load")


def run(load: Load) -> Result:
    """One run. Raises CalledProcessError when the generator itself failed."""
    done = subprocess.run(
        _COMMAND,
        input=pickle.dumps(load),
        stdout=subprocess.PIPE,
        cwd=_ROOT,
        check=True,
        timeout=load.seconds + 120,
    )
    result = pickle.loads(done.stdout)
    assert isinstance(result, Result)
    return result


def start(load: Load) -> subprocess.Popen[bytes]:
    """Begin a run that is not waited for: whoever starts it kills it, and never hears its result."""
    process = subprocess.Popen(_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=_ROOT)
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write(pickle.dumps(load))
    return process
