"""A real PgBouncer in front of a test's PostgreSQL, as Debian packages it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from service.storage.database.session import SETTINGS, shown
from service.storage.postgres.folders import ServerUser, choose_server_user
from service.storage.postgres.process import spawn
from service.storage.schema import OWN_LOGIN
from tests.harness.ports import free_port
from tests.harness.processes import eventually

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")


ODD = {
    "synchronous_commit": "'off'",
    "client_min_messages": "'error'",
    "lock_timeout": "'0'",
    "idle_in_transaction_session_timeout": "'0'",
    "client_encoding": "'LATIN1'",
    "DateStyle": "'SQL', 'DMY'",
    "IntervalStyle": "'iso_8601'",
    "TimeZone": "'Asia/Dhaka'",
    "bytea_output": "'escape'",
    "standard_conforming_strings": "'off'",
    "default_transaction_isolation": "'serializable'",
    "row_security": "'on'",
    "search_path": "'elsewhere'",
}
"""A value of each setting, as ALTER ROLE takes it, with which the code would fail or break a promise."""


class PgBouncer:
    """PgBouncer on a port of this machine; `url` leads through it to `database`.

    `drops` are the startup parameters that it takes and drops, as ignore_startup_parameters has them.
    """

    def __init__(self, folder: Path, serve_url: str, mode: str, *, drops: Sequence[str] = ()) -> None:
        assert PROGRAM is not None
        self._folder, self._mode, self._drops = folder, mode, drops
        self._user: ServerUser | None = None
        if os.geteuid() == 0:  # it refuses to run as root
            self._user = choose_server_user(folder)
            os.chown(folder, self._user.uid, self._user.gid)
        self._port = free_port()
        (folder / "users.txt").write_text(f'"{OWN_LOGIN}" ""\n"postgres" ""\n')
        self._write(serve_url)
        with (folder / "pgbouncer.log").open("ab") as log:
            command: list[str | Path] = [PROGRAM, folder / "pgbouncer.ini"]
            self._process: subprocess.Popen[bytes] = spawn(command, folder, self._user, log.fileno())
        assert eventually(self._listens, within=20), self.log()

    @property
    def url(self) -> str:
        """As the role of `serve`."""
        return f"postgresql://{OWN_LOGIN}@127.0.0.1:{self._port}/leads"

    @property
    def admin_url(self) -> str:
        """As a superuser, through the pooler too."""
        return self.url.replace(OWN_LOGIN, "postgres")

    def lead_to(self, serve_url: str) -> None:
        """Let the same name lead to another database from the next transaction on."""
        self._write(serve_url)
        self.console("RELOAD")

    def reconnect(self) -> None:
        """Let it open new server connections, which get the role's settings of now."""
        self.console("RECONNECT")

    def console(self, command: str) -> None:
        """Run a command of PgBouncer's own console."""
        url = f"{self.admin_url.rpartition('/')[0]}/pgbouncer"
        with psycopg.ClientCursor(psycopg.connect(url, autocommit=True)) as cursor:
            cursor.execute(command.encode())
            cursor.connection.close()

    def log(self) -> str:
        """What it has written."""
        return (self._folder / "pgbouncer.log").read_text()

    def stop(self) -> None:
        """End it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait(20)

    def _write(self, serve_url: str) -> None:
        parts = urlsplit(serve_url)
        name, query = parts.path.removeprefix("/"), parse_qs(parts.query)
        (self._folder / "pgbouncer.ini").write_text(
            f"""[databases]
leads = host={query["host"][0]} port={query["port"][0]} dbname={name}
* = host={query["host"][0]} port={query["port"][0]}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self._port}
unix_socket_dir =
auth_type = trust
auth_file = {self._folder}/users.txt
admin_users = postgres
pool_mode = {self._mode}
default_pool_size = 60
max_client_conn = 500
server_login_retry = 1
ignore_startup_parameters = {",".join(self._drops)}
"""
        )

    def _listens(self) -> bool:
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", self._port)) == 0


@contextmanager
def pooler(serve_url: str, mode: str, *, drops: Sequence[str] = ()) -> Iterator[PgBouncer]:
    """A PgBouncer that ends with the block. The test is skipped where it is not installed."""
    if PROGRAM is None:
        pytest.skip("pgbouncer is not installed (Debian: apt-get install pgbouncer)")
    # Not one of pytest's folders, which are closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="lk-pooler-"))
    folder.chmod(0o711)
    try:
        made = PgBouncer(folder, serve_url, mode, drops=drops)
        yield made
        made.stop()
    finally:
        shutil.rmtree(folder)


def set_role(admin_url: str, **changed: str) -> None:
    """Give the role of `serve` the settings of a session, as deploy/postgres-init.sh does, some of them changed."""
    reset_role(admin_url, **{name: changed.get(name, shown(name)) for name in SETTINGS})


def reset_role(admin_url: str, *, role: str = OWN_LOGIN, **chosen: str) -> None:
    """Take the settings from a role again, and give it those that are chosen."""
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute(f"ALTER ROLE {role} RESET ALL".encode())
        for name, value in chosen.items():
            connection.execute(f"ALTER ROLE {role} SET {name} = {value}".encode())
