"""`python -m service` is `leadkeep`."""

import gc
import os
import signal

OBJECTS_A_COLLECTION = 5_000
"""New objects between two garbage collections, in place of 700, which imports, and two dozen calls in flight, make all
the time."""


def main() -> None:
    """Run the command line. Until a command is at work, Ctrl-C ends it without a word: there is nothing to undo."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Before grpc is loaded: every child process of ours is another program at once, which needs no grpc that survives a
    # fork, and grpc would write lines about it into the log.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    # None is used, and to look for one reads the metadata of every installed package.
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "1"
    gc.set_threshold(OBJECTS_A_COLLECTION, *gc.get_threshold()[1:])
    from service.cli.main import app

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app()
    finally:
        # Else the interpreter would visit all that was ever loaded once more before it ends.
        gc.freeze()


if __name__ == "__main__":
    main()
