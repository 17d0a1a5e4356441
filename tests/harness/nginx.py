"""The load balancer of deploy/nginx.conf, in front of one service."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

from tests.harness.ports import free_port

CONFIGURATION = Path(__file__, "../../../deploy/nginx.conf").resolve()
INSTALLED = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")


class Nginx:
    """nginx with the shipped configuration, on free ports."""

    def __init__(
        self,
        folder: Path,
        grpc_address: str,
        http_address: str,
        *,
        calls: int = 384,
        origin: str = "",
        html: bool = False,
    ) -> None:
        """`calls`: how many callers may have in flight together; `origin`: the one that is listed; `html`: where no
        replica answers it answers with its own page, as others do."""
        self._folder = folder
        self.grpc_address, self.http_address = (f"127.0.0.1:{free_port()}" for _ in range(2))
        text = CONFIGURATION.read_text()
        # One replica in place of two.
        text = re.sub(r"\n *server 127\.0\.0\.1:(50052|8082) .*", "", text)
        for shipped, here in (
            ("server 127.0.0.1:50051", f"server {grpc_address}"),
            ("server 127.0.0.1:8081", f"server {http_address}"),
            ("listen 127.0.0.1:50050", f"listen {self.grpc_address}"),
            ("listen 127.0.0.1:8080", f"listen {self.http_address}"),
            ("limit_conn calls 384;", f"limit_conn calls {calls};"),
            ('# "https://sales.example" $http_origin;', f'"{origin}" $http_origin;' if origin else ""),
            ("error_page 502 504 = @away;", "" if html else "error_page 502 504 = @away;"),
        ):
            assert shipped in text
            text = text.replace(shipped, here)
        self._path = folder / "nginx.conf"
        self._path.write_text(text)

    def __enter__(self) -> Self:
        assert INSTALLED is not None
        mine = f"daemon off; pid {self._folder}/nginx.pid; error_log {self._folder}/nginx.log info;"
        self._process = subprocess.Popen(
            [INSTALLED, "-p", str(self._folder), "-c", str(self._path), "-g", mine],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        host, _, port = self.http_address.rpartition(":")
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex((host, int(port))) == 0:
                    return self
            assert self._process.poll() is None, (self._folder / "nginx.log").read_text()
            time.sleep(0.02)
        raise AssertionError("nginx does not listen")

    @property
    def refused(self) -> int:
        """How many calls and requests had no place so far."""
        return (self._folder / "nginx.log").read_text().count("limiting connections by zone")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
