"""A TCP proxy in front of an endpoint that can refuse connections for a while, as a service does that is restarted."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Self


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
                for one, other in ((caller, service), (service, caller)):
                    threading.Thread(target=_forward, args=(one, other), daemon=True).start()


def _bound(port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    return made


def _forward(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    _close(other)


def _close(each: socket.socket) -> None:
    # Wakes whoever waits in it, which close() alone does not.
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
