"""Renewals without a pause while many clients connect: gRPC frees a certificate that a new connection may still need.

`python -m tests.faults.tls_renewal_trial 60 [seconds a renewal waits]` prints how many connections were taken and how
many renewals there were. With 0 the process soon ends by a signal: that is grpc's fault which RENEWAL_SECONDS avoids.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import cast

from google.protobuf.message import Message

from service.rpc import server
from service.rpc.call import SERVICE, Call, Handler
from service.rpc.tls_files import LoadedTls, TlsFiles
from tests.harness.certificates import Authority, Certificate

CONNECTING = """
import socket, ssl, sys, time
port, ends = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
context = ssl.create_default_context(cafile=sys.argv[3])
context.set_alpn_protocols(["h2"])
taken = refused = 0
while time.monotonic() < ends:
    # Many at once: their handshakes begin while another one renews.
    for plain in [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(20)]:
        try:
            context.wrap_socket(plain, server_hostname="localhost").close()
            taken += 1
        except OSError:
            refused += 1
print(taken, "connections taken,", refused, "refused")
"""


class Restless:
    """Files that have changed at every second look or so."""

    client_authority = None

    def __init__(self, certificates: list[Certificate]) -> None:
        self._loaded = [TlsFiles(files.certificate, files.key, None).current for files in certificates]
        self._given, self.renewals = 0, 0

    @property
    def current(self) -> LoadedTls:
        """The certificate in use."""
        if random.random() < 0.3:
            self._given, self.renewals = 1 - self._given, self.renewals + 1
        return self._loaded[self._given]


async def _nothing(_call: Call, request: Message) -> Message:
    return request


async def trial(folder: Path, seconds: float) -> int:
    """Renew for so many seconds; returns how often."""
    authority = Authority(folder, "authority")
    restless = Restless([authority.issue("first"), authority.issue("second")])
    methods: dict[str, Handler] = dict.fromkeys((method.name for method in SERVICE.methods), _nothing)
    endpoint = server.GrpcServer(methods, address="127.0.0.1:0", tls=cast(TlsFiles, restless))
    await endpoint.start()
    command = [sys.executable, "-c", CONNECTING, str(endpoint.port), str(seconds), str(authority.path)]
    clients = [await asyncio.create_subprocess_exec(*command) for _ in range(3)]
    await asyncio.gather(*(client.wait() for client in clients))
    await endpoint.stop(0)
    return restless.renewals


if __name__ == "__main__":
    if len(sys.argv) > 2:
        server.RENEWAL_SECONDS = float(sys.argv[2])
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        renewals = asyncio.run(trial(Path(temporary), float(sys.argv[1])))
    print(f"{renewals} renewals in {time.monotonic() - began:.0f} s")
