"""Real synchronous standbys of a test's own PostgreSQL, which can be taken away, brought back and promoted."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from service.storage.postgres.folders import ServerUser, choose_server_user
from service.storage.postgres.process import spawn
from tests.harness.postgres import SETTINGS, TestServer
from tests.harness.processes import eventually

NAME = "s1"


class ReplicatedServer(TestServer):
    """A primary whose commits wait for its standbys, once `require_standby` was called."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "data")
        self.standby = Standby(folder / "standby", self, NAME)
        self.second = Standby(folder / "second", self, "s2")

    def require_standby(self, names: str = NAME) -> None:
        """Let every commit from now on wait for `synchronous_standby_names`."""
        self.ask(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        self.ask("SELECT pg_reload_conf()")
        # Until this is seen, commits do not wait: walwriter and checkpointer spread the new setting.
        assert eventually(lambda: self.ask("SHOW synchronous_standby_names") == names, within=30)

    def url_of_all(self, url: str) -> str:
        """The URL of a database of this server, with the standbys as further hosts of it."""
        hosts = ",".join([*conninfo_to_dict(url)["host"].split(","), *(str(each.folder) for each in self.standbys)])  # type: ignore[union-attr]
        own = urlsplit(url)
        return f"postgresql://{own.username}@{own.path}?host={hosts}&target_session_attrs=read-write"

    @property
    def standbys(self) -> list[Standby]:
        """The standbys that were attached once."""
        return [each for each in (self.standby, self.second) if each.folder.exists()]

    def release_commits(self) -> None:
        """Let no commit wait for a standby, those under way included."""
        self.ask("ALTER SYSTEM RESET synchronous_standby_names")
        self.ask("SELECT pg_reload_conf()")

    def ask(self, sql: str, *parameters: object, database: str = "postgres") -> Any:
        """One value, asked as a superuser on the primary."""
        return _ask(self.postgres.url(user="postgres", database=database), sql, *parameters)

    def waiting(self) -> list[int]:
        """The backends whose commit waits for the standby."""
        found: list[int] = self.ask(
            "SELECT coalesce(array_agg(pid ORDER BY pid), '{}') FROM pg_stat_activity"
            " WHERE wait_event = 'SyncRep' AND application_name = 'leadkeep'"
        )
        return found

    def stop(self) -> None:
        """Shut all down."""
        for standby in self.standbys:
            standby.detach()
        self.release_commits()
        super().stop()


class Standby:
    """A copy of the primary that follows it while it is attached."""

    def __init__(self, folder: Path, primary: ReplicatedServer, name: str) -> None:
        self.folder = folder
        self._name = name
        self._primary = primary
        self._process: subprocess.Popen[bytes] | None = None
        self._user: ServerUser | None = None

    def url(self, *, user: str, database: str) -> str:
        """How to reach it, and it alone."""
        return f"postgresql://{user}@/{database}?host={self.folder}&port=5432"

    @property
    def _url(self) -> str:
        return self.url(user="postgres", database="postgres")

    def attach(self) -> None:
        """Follow the primary; when this returns the standby counts as synchronous."""
        if not (self.folder / "data").exists():
            self._copy()
        options = {
            "unix_socket_directories": str(self.folder),
            "listen_addresses": "",
            "max_connections": SETTINGS["max_connections"],
        }
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "standby.log").open("ab") as log:
            command: list[str | Path] = [self._program("postgres"), "-D", self.folder / "data", *settings]
            self._process = spawn(command, self.folder, self._user, log.fileno())
        query = "SELECT count(*) FROM pg_stat_replication WHERE application_name = %s AND state = 'streaming'"
        assert eventually(lambda: self._primary.ask(query, self._name) == 1, within=20), self._log()

    def detach(self) -> None:
        """Follow no more; what the primary writes from now on is missing here."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(20)
            self._process = None
        query = "SELECT count(*) FROM pg_stat_replication WHERE application_name = %s"
        assert eventually(lambda: self._primary.ask(query, self._name) == 0, within=20)

    def promote(self) -> None:
        """Make it a primary of its own; it takes writes, on a new timeline, when this returns."""
        assert _ask(self._url, "SELECT pg_promote(true, 30)")

    @property
    def pid(self) -> int:
        """Its process id while it is attached."""
        assert self._process is not None
        return self._process.pid

    def ask(self, sql: str, *parameters: object, database: str) -> Any:
        """One value, asked on the standby, which has only what was replicated."""
        return _ask(self.url(user="postgres", database=database), sql, *parameters)

    def holds(self) -> bool:
        """Whether the standby has replayed all that the primary has written."""
        written = self._primary.ask("SELECT pg_current_wal_flush_lsn()::text")
        answer = _ask(self._url, "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", written)
        return bool(answer)

    def _copy(self) -> None:
        self.folder.mkdir()
        if os.geteuid() == 0:
            self._user = choose_server_user(self._primary.postgres.bin_dir)
            os.chown(self.folder, self._user.uid, self._user.gid)
        source = self._primary.postgres.url(user="postgres", database="postgres") + f"&application_name={self._name}"
        command: list[str | Path] = [self._program("pg_basebackup"), "-d", source, "-D", self.folder / "data"]
        command += ["-R", "--no-sync", "--checkpoint=fast"]
        copying = spawn(command, self.folder, self._user, subprocess.PIPE)
        said = copying.communicate(timeout=60)[0]
        assert copying.returncode == 0, said.decode()

    def _program(self, name: str) -> Path:
        return self._primary.postgres.bin_dir / name

    def _log(self) -> str:
        return (self.folder / "standby.log").read_text(errors="replace")[-2000:]


def _ask(url: str, sql: str, *parameters: object) -> Any:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql.encode(), parameters or None)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None
