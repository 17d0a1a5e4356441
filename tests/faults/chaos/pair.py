"""A primary and its synchronous standby, which change places at every failover; the lost one comes back as a copy."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg

from service.storage.postgres.folders import ServerUser, choose_server_user
from service.storage.postgres.process import spawn
from service.storage.schema import OWN_LOGIN
from tests.faults.chaos.history import History, Stored
from tests.faults.chaos.launcher import Launcher
from tests.faults.chaos.postgres import stored_in
from tests.harness.postgres import TestServer
from tests.harness.processes import eventually, send_all

STANDBY = "s1"
SETTINGS = {
    "listen_addresses": "",
    "max_connections": "500",
    "fsync": "off",  # processes are killed here, not machines
    "shared_buffers": "64MB",
}
FOLLOWERS = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
SYNCHRONOUS = f"{FOLLOWERS} AND sync_state = 'sync'"


@dataclass(frozen=True, slots=True)
class Node:
    """One of the two: `folder` holds its data and its socket."""

    folder: Path
    programs: Path

    def url(self, user: str, database: str) -> str:
        """How it is reached."""
        return f"postgresql://{user}@/{database}?host={self.folder}&port=5432"

    def ask(self, sql: str) -> Any:
        """One value, as a superuser."""
        with psycopg.connect(self.url("postgres", "postgres"), autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


class Pair:
    """Both servers and one database. Faults are noted in the history."""

    def __init__(self, folder: Path, history: History, launcher: Launcher) -> None:
        self._history = history
        self._launcher = launcher
        self._pids: dict[Path, int] = {}
        programs, origin, self._database = launcher.run(_origin, folder / "origin")
        self.primary, self._standby = Node(folder / "a", programs), Node(folder / "b", programs)
        launcher.run(_copy, self.primary, origin)
        launcher.run(_end_origin, folder / "origin")
        self._launch(self.primary)
        folders = f"{self.primary.folder},{self._standby.folder}"
        self.serve_url = (
            f"postgresql://{OWN_LOGIN}@/{self._database}?host={folders}&port=5432,5432&target_session_attrs=read-write"
        )

    def replicate(self) -> None:
        """Make the standby anew, and let every commit from now on wait for it."""
        shutil.rmtree(self._standby.folder, ignore_errors=True)
        # Before the primary requires it, so that the copy, once promoted, requires nobody.
        source = self.primary.url("postgres", "postgres") + f"&application_name={STANDBY}"
        self._launcher.run(_copy, self._standby, source, "-R")
        self._launch(self._standby)
        assert eventually(lambda: self.primary.ask(FOLLOWERS) == 1, within=30), "the standby does not follow"
        self.primary.ask(f"ALTER SYSTEM SET synchronous_standby_names = '{STANDBY}'")
        self.primary.ask("SELECT pg_reload_conf()")
        assert eventually(lambda: self.primary.ask(SYNCHRONOUS) == 1, within=30), "the standby is not synchronous"
        # Until this is seen, commits do not wait: each process reads the new setting when it comes to it.
        assert eventually(lambda: self.primary.ask("SHOW synchronous_standby_names") == STANDBY, within=10)

    def lose_primary(self, how: signal.Signals) -> None:
        """SIGKILL or SIGSTOP to all of its processes."""
        send_all(self._pids[self.primary.folder], how)

    def promote(self) -> None:
        """Make the standby the primary; it takes writes when this returns."""
        assert self._standby.ask("SELECT pg_promote(true, 30)"), "the standby was not promoted"
        self.primary, self._standby = self._standby, self.primary

    def bury(self) -> None:
        """End the old primary for good: when it is not dead yet, it is frozen."""
        self._launcher.run(_bury, self._standby, self._pids.pop(self._standby.folder))

    def stored(self) -> Stored:
        """What the primary holds."""
        return stored_in(self.primary.url("postgres", self._database))

    def close(self) -> None:
        """End both."""
        for folder, pid in self._pids.items():
            self._launcher.run(_bury, Node(folder, self.primary.programs), pid)

    def _launch(self, node: Node) -> None:
        self._pids[node.folder] = self._launcher.run(_launch, node)
        assert eventually(lambda: _answers(node), within=30), f"{node.folder.name} does not answer"


def _answers(node: Node) -> bool:
    with suppress(psycopg.OperationalError):
        return bool(node.ask("SELECT 1"))
    return False


_origins: dict[Path, TestServer] = {}
_running: dict[int, subprocess.Popen[bytes]] = {}
"""Of the launcher's process, where the functions below run."""


def _origin(folder: Path) -> tuple[Path, str, str]:
    """A server with a fresh database: its programs, its URL and the database's name."""
    server = _origins[folder] = TestServer(folder)
    database = server.fresh_database()
    name = urlsplit(database.serve_url).path.removeprefix("/")
    return server.postgres.bin_dir, server.postgres.url(user="postgres", database="postgres"), name


def _end_origin(folder: Path) -> None:
    _origins.pop(folder).stop()


def _user(node: Node) -> ServerUser | None:
    return choose_server_user(node.programs) if os.geteuid() == 0 else None


def _copy(node: Node, source: str, *options: str) -> None:
    node.folder.mkdir()
    if user := _user(node):
        os.chown(node.folder, user.uid, user.gid)
    command: list[str | Path] = [node.programs / "pg_basebackup", "-d", source, "-D", node.folder / "data"]
    command += ["--no-sync", "--checkpoint=fast", *options]
    copying = spawn(command, node.folder, user, subprocess.PIPE)
    said = copying.communicate(timeout=60)[0]
    assert copying.returncode == 0, said.decode()


def _launch(node: Node) -> int:
    settings = SETTINGS | {"unix_socket_directories": str(node.folder)}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    with (node.folder / "log").open("ab") as log:
        command: list[str | Path] = [node.programs / "postgres", "-D", node.folder / "data", *options]
        process = spawn(command, node.folder, _user(node), log.fileno())
    _running[process.pid] = process
    return process.pid


def _bury(node: Node, pid: int) -> None:
    process = _running.pop(pid)
    if process.poll() is None:
        send_all(pid, signal.SIGKILL)
    process.wait(20)
