"""A port for a program that cannot choose one by itself and report it."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from pathlib import Path

FIRST = 10_000
RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """A port of this machine at which nobody listens.

    It lies below those that the system gives to whoever asks for any port, so that it is still free when it is used,
    and while the program restarts. Where there are none below, it is one of those.
    """
    with suppress(OSError, ValueError):
        own = int(RANGE.read_text().split()[0])
        for port in random.SystemRandom().sample(range(FIRST, own), 100):
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) != 0:
                    return port
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
