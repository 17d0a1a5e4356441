"""A TCP proxy in front of an endpoint that can refuse connections for a while, as a service does that is restarted, and
cut answers in their midst."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Self

SHORTEST_ANSWER = 150
LOST = 10
"""Bytes of an answer to a CreateLead over gRPC, and of the status at its end."""


class RefusingProxy:
    """Forwards connections to an address; between `refuse` and `accept` there is nobody at its port."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        # Bound and never listening, it keeps the port for the time in which nobody listens there.
        self._placeholder = _bound(0)
        self.port: int = self._placeholder.getsockname()[1]
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []
        self.answers_to_cut = 0
        """How many further answers lose their last bytes, and their connections with them."""

    @property
    def address(self) -> str:
        """Where callers connect."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.accept()
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()
        self._placeholder.close()

    def accept(self) -> None:
        """Listen."""
        self._listener = _bound(self.port)
        self._listener.listen(64)
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

    def refuse(self) -> None:
        """Close every connection, and refuse new ones."""
        if self._listener is not None:
            _close(self._listener)
            self._listener = None
        for each in self._open:
            _close(each)
        self._open.clear()

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Refuse connections meanwhile."""
        self.refuse()
        try:
            yield
        finally:
            self.accept()

    def _serve(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = listener.accept()
                service = socket.create_connection(self._target)
                self._open += (caller, service)
                threading.Thread(target=_forward, args=(caller, service), daemon=True).start()
                threading.Thread(target=_forward, args=(service, caller, self._cut), daemon=True).start()

    def _cut(self, data: bytes) -> bytes:
        """What reaches the caller of something that the service sent."""
        # What is shorter is no answer: settings, pings.
        if self.answers_to_cut == 0 or len(data) < SHORTEST_ANSWER:
            return data
        self.answers_to_cut -= 1
        return data[:-LOST]


def _bound(port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    return made


def _forward(one: socket.socket, other: socket.socket, cut: Callable[[bytes], bytes] = bytes) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(65536):
            arriving = cut(data)
            other.sendall(arriving)
            if len(arriving) < len(data):
                break
    _close(other)


def _close(each: socket.socket) -> None:
    # Wakes whoever waits in it, which close() alone does not.
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
