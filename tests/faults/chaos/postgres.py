"""A real PostgreSQL that is killed, frozen and restarted, always reached through the proxy."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg

from service.storage.postgres.folders import SOCKET_NAME
from service.storage.schema import OWN_LOGIN
from tests.faults.chaos.background import Background
from tests.faults.chaos.history import History, Row, Stored
from tests.faults.chaos.launcher import Launcher
from tests.faults.chaos.proxy import Mode, PostgresProxy
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.processes import frozen


class FaultyPostgres:
    """A server of its own with one fresh database. Every fault is noted in the history."""

    def __init__(self, folder: Path, history: History, background: Background, launcher: Launcher) -> None:
        self._history = history
        self._background = background
        self._launcher = launcher
        self._folder = folder / "data"
        database = launcher.run(_make, self._folder)
        self.admin_url = database.admin_url
        self.direct_url = database.serve_url
        """As the service's role, past the proxy."""
        parts = urlsplit(database.admin_url)
        self.proxy = PostgresProxy(Path(parse_qs(parts.query)["host"][0]) / SOCKET_NAME)
        background.run(self.proxy.start())
        self.serve_url = f"postgresql://{OWN_LOGIN}@127.0.0.1:{self.proxy.port}{parts.path}"

    @property
    def pid(self) -> int:
        """The postmaster's."""
        found = self._launcher.run(_pid, self._folder)
        assert found is not None, "PostgreSQL does not run"
        return found

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: a fast shutdown. SIGQUIT: an immediate one, as if it had crashed. SIGKILL: the postmaster alone."""
        self._launcher.run(_stop, self._folder, how)

    def start(self) -> None:
        """Bring it back; it recovers what it must."""
        self._launcher.run(_start, self._folder)

    @contextmanager
    def away(self, how: signal.Signals) -> Iterator[None]:
        """Stopped for a while."""
        with self._history.window("PostgreSQL down"):
            self.stop(how)
            try:
                yield
            finally:
                self.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stopped in its tracks, all of its processes, for a while."""
        with self._history.window("PostgreSQL frozen"), frozen(self.pid):
            yield

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Behind a network that swallows everything, for a while; what was sent meanwhile never arrives."""
        with self._history.window("network silent"):
            self._background.run(self.proxy.set_mode(Mode.SILENT))
            try:
                yield
            finally:
                self._background.run(self.proxy.set_mode(Mode.FORWARD))

    def kill_backend(self) -> None:
        """kill -9 of one backend of the service; PostgreSQL then restarts all of its processes by itself."""
        with self._history.window("PostgreSQL backend killed"):
            if backends := self._backends():
                os.kill(backends[0], signal.SIGKILL)
            self._wait_until_it_answers()

    def connections(self) -> int:
        """How many the service has open."""
        with psycopg.connect(self.admin_url) as connection:
            query = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s"
            row = connection.execute(query, [OWN_LOGIN]).fetchone()
        assert row is not None
        return int(row[0])

    def stored(self) -> Stored:
        """What it holds now."""
        return stored_in(self.admin_url)

    def close(self) -> None:
        """Shut it down for good."""
        self._background.run(self.proxy.stop())
        self.stop()

    def _backends(self) -> list[int]:
        with psycopg.connect(self.admin_url) as connection:
            query = "SELECT pid FROM pg_stat_activity WHERE usename = %s ORDER BY state_change DESC"
            return [row[0] for row in connection.execute(query, [OWN_LOGIN])]

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.admin_url).close()
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, "PostgreSQL did not come back"
                time.sleep(0.05)
            else:
                return


_servers: dict[Path, TestServer] = {}
"""Of the launcher's process, where the functions below run."""


def _make(folder: Path) -> TestDatabase:
    _servers[folder] = TestServer(folder)
    return _servers[folder].fresh_database()


def _pid(folder: Path) -> int | None:
    return _servers[folder].postgres.pid


def _start(folder: Path) -> None:
    _servers[folder].postgres.start()


def _stop(folder: Path, how: signal.Signals) -> None:
    if (pid := _pid(folder)) is not None:
        os.kill(pid, how)
    _servers[folder].postgres.stop()


def stored_in(admin_url: str) -> Stored:
    """What a database holds, as the checker wants to see it."""
    with psycopg.connect(admin_url) as connection:
        leads = connection.execute(
            "SELECT id::text, created_by, request_id, CASE WHEN phone_shared THEN '' ELSE phone_index END,"
            " CASE WHEN nid_shared THEN '' ELSE nid_index END FROM lead"
        ).fetchall()
        conflicts = connection.execute(
            "SELECT id::text, created_by, request_id, ''::bytea, ''::bytea, repeats::text FROM lead_conflict"
        ).fetchall()
        aliases = connection.execute("SELECT id::text, lead_id::text FROM lead_alias").fetchall()
    return Stored([Row(*row) for row in leads], [Row(*row) for row in conflicts], dict(aliases))
