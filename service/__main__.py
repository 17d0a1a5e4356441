"""`python -m service` is `leadkeep`."""

import gc
import os
import signal
import sys

OBJECTS_A_COLLECTION = 5_000
"""New objects between two garbage collections. Python's 700 are reached all the time by imports, and by two dozen calls
in flight."""


def main() -> None:
    """Run the command line. Until a command runs, Ctrl-C ends the process silently: there is nothing to undo."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _open_missing_streams()
    # Before grpc is loaded: every child process of ours starts another program at once, so that grpc need not survive a
    # fork, and grpc would write lines about forks into the log.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    # Before grpc is loaded, too: by itself it logs what a peer sends as the reason of a GOAWAY, lines and all.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # We use no plugin, and a search for one reads the metadata of every installed package.
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "1"
    gc.set_threshold(OBJECTS_A_COLLECTION, *gc.get_threshold()[1:])
    from service.cli.main import app

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app()
    finally:
        # Otherwise the interpreter would visit every loaded object once more before it ends.
        gc.freeze()


def _open_missing_streams() -> None:
    """Open /dev/null in place of standard streams that this process was started without (`<&-`, `2>&-`).

    Else the next socket or file gets their numbers: children take it for theirs, and libuv ends the process.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 # open as long as the process
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


if __name__ == "__main__":
    main()
