"""A plan on standard input, its result on standard output: see plan.py."""

from __future__ import annotations

import asyncio
import gc
import pickle
import sys

from bench.load.runner import Run

if __name__ == "__main__":
    load = pickle.load(sys.stdin.buffer)
    gc.disable()  # a pause of ours would be taken for one of the server's
    pickle.dump(asyncio.run(Run(load).result()), sys.stdout.buffer)
