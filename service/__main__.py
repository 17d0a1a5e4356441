"""`python -m service` is `leadkeep`."""

import os
import signal


def main() -> None:
    """Run the command line. Until a command is at work, Ctrl-C ends it without a word: there is nothing to undo."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Before grpc is loaded: every child process of ours is another program at once, which needs no grpc that survives a
    # fork, and grpc would write lines about it into the log.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    from service.cli.main import main as run  # takes half a second, for whatever command it is

    signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
