"""A real PostgreSQL server that belongs to this service: it starts with it and never outlives it.

Promise: one service for one data folder (a lock decides), a server that is started again when it dies and stops when
the service dies in whatever way, a start that needs no help after kill -9 or a power cut, and a server log without any
customer's value.

Caveat for root: PostgreSQL refuses to run as root, so its data then lies in `/var/lib/leadkeep/<name>/`, where its
own user can reach it. The data folder keeps the name (`database-name`), and `data-folder.txt` there says which data
folder that is. Back up both: a data folder whose database is gone is refused, a data folder that was deleted leaves
its database behind, and a container that keeps only the data folder on a volume loses the database. Started by an
ordinary user, everything lies inside the data folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from urllib.parse import quote

import structlog

from service.errors import StartRefusedError
from service.keys.secret_file import sync_folder
from service.storage.postgres.folders import (
    PORT,
    PostgresBinaries,
    ServerUser,
    choose_server_user,
    claim_root_home,
    find_binaries,
    homes,
    lock_data_dir,
    make_folder,
    make_reachable,
    make_socket_dir,
    note_restarts,
)
from service.storage.postgres.process import PidFile, running_server, spawn, wait_for_previous_server
from service.supervisor import longest_wait

ROOT_BASE = Path("/var/lib/leadkeep")

_START_SECONDS = 60  # crash recovery of max_wal_size takes a few seconds
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds before a restart; doubled each time

_DEFAULTS = {
    "shared_buffers": "64MB",
    "max_connections": "100",
    "max_wal_size": "256MB",  # bounds both the disk and the time of a crash recovery
    "min_wal_size": "64MB",
    "jit": "off",  # compiling costs more than any statement here runs
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
}
_FIXED = {
    "listen_addresses": "",  # the socket is the only way in
    "port": str(PORT),
    # The log must never hold a customer's value: no statement, no parameter, and no DETAIL, which prints the key
    # that violates a unique index. Errors themselves are logged: "fatal" would hide a damaged page.
    "log_min_messages": "warning",
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "logging_collector": "off",
}


class EmbeddedPostgres:
    """The server of one data folder.

    `binaries` None finds them, and keeps to the major version that made the database. `settings` are PostgreSQL's
    own (`{"shared_buffers": "1GB"}`), above the defaults here and below those that keep the promises above.
    `root_base` is where root's servers keep their data.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        binaries: PostgresBinaries | None = None,
        settings: Mapping[str, str] | None = None,
        root_base: Path = ROOT_BASE,
    ) -> None:
        self._data_dir = data_dir.resolve()
        self._root_base = root_base.resolve()
        self._asked_binaries = binaries
        self._binaries: PostgresBinaries | None = None
        self._settings = {**_DEFAULTS, **(settings or {})}
        self._user: ServerUser | None = None
        self._socket_dir: Path | None = None
        self._lock: int | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self.restarting = False
        """Whether the server ended by itself and does not answer again yet."""

    @staticmethod
    def running_url(data_dir: Path, *, user: str, database: str, root_base: Path = ROOT_BASE) -> str | None:
        """The URL of the server that a service runs for this data folder now; None when there is none."""
        for home in homes(data_dir.resolve(), root_base.resolve()):
            for data in (home / "postgres").glob("*/data"):
                server = running_server(data)
                if server is not None and server.ready:
                    return _url(server.socket_dir, user, database)
        return None

    @staticmethod
    def has_database(data_dir: Path, *, root_base: Path = ROOT_BASE) -> bool:
        """Whether a database was ever made for this data folder."""
        places = homes(data_dir.resolve(), root_base.resolve())
        return any(found for home in places for found in home.glob("postgres/*/data/PG_VERSION"))

    @property
    def running(self) -> bool:
        """Whether our server process is alive."""
        return self._server is not None and self._server.poll() is None

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._server.pid if self._server is not None and self.running else None

    @property
    def bin_dir(self) -> Path:
        """The folder with psql and pg_dump of the server's own version, also before the start."""
        return (self._binaries or self._choose_binaries()).bin_dir

    @property
    def log_file(self) -> Path:
        """The log of the started server: starts, warnings and errors, never a customer's value."""
        return self._clusters.with_name("postgres.log")

    @property
    def _clusters(self) -> Path:
        return homes(self._data_dir, self._root_base)[0] / "postgres"

    def url(self, *, user: str, database: str) -> str:
        """How libpq, psycopg, pg_dump and (after a change of scheme) SQLAlchemy reach the started server."""
        assert self._socket_dir is not None  # noqa: S101 # `start` has returned
        return _url(self._socket_dir, user, database)

    def start(self) -> None:
        """Own the data folder, make the database when there is none, and return when the server answers.

        Blocks. Call it in the main thread: the kernel ties the server's life to the thread that started it.
        Raises DataDirInUseError, or StartRefusedError with what to do about it.
        """
        self._lock = lock_data_dir(self._data_dir)
        try:
            self._prepare()
            self._launch_and_wait()
        except BaseException:
            self.stop()
            raise

    async def keep_running(self) -> None:
        """Start the started server again whenever it ends, until this is cancelled. Never blocks the event loop.

        Must run in the main thread, see `start`. Cancelled in the middle of a restart it leaves the server to `stop`.
        """
        assert self._lock is not None  # noqa: S101 # `start` has returned
        note_restarts(self._lock)
        log = structlog.get_logger("leadkeep.postgres")
        failures, started_at = 0, time.monotonic()
        while True:
            if self.running:
                await asyncio.sleep(0.1)  # a look costs one waitpid
                continue
            self.restarting = True
            if time.monotonic() - started_at > 60:  # it had recovered
                failures = 0
            pause = longest_wait(failures, first=_FIRST_PAUSE, longest=_LONGEST_PAUSE)
            log.error("PostgreSQL ended and is started again", pause_seconds=pause, log=str(self.log_file))
            await asyncio.sleep(pause)
            failures, started_at = failures + 1, time.monotonic()
            try:
                for seconds in self._launching():
                    await asyncio.sleep(seconds)
            except Exception as error:  # noqa: BLE001 # it must be tried again, whatever it was
                what = str(error) if isinstance(error, StartRefusedError) else type(error).__qualname__
                log.error("PostgreSQL could not be started", what=what)
            else:
                self.restarting = False
                log.info("PostgreSQL runs again")

    def stop(self) -> None:
        """Shut the server down in order (open transactions are rolled back), then give the data folder free."""
        if self._server is not None:
            # A fast shutdown writes a checkpoint, at most shared_buffers: that may take long.
            for how, seconds in ((signal.SIGINT, 60), (signal.SIGQUIT, 10), (signal.SIGKILL, None)):
                self._server.send_signal(how)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._server.wait(seconds)
                    break
            self._server = None
        self._socket_dir = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _prepare(self) -> None:
        """Choose the programs and their user, end an earlier server, and make the database when there is none."""
        user = None
        if os.geteuid() == 0:
            if any(self._data_dir.glob("postgres/*/data/PG_VERSION")):
                raise StartRefusedError(
                    f"the database in {self._data_dir} was made by an ordinary user "
                    f"({self._data_dir.stat().st_uid}): start Leadkeep as that user, root would begin an empty one"
                )
            claim_root_home(self._data_dir, self._root_base)
            user = choose_server_user(self._clusters)
        binaries = self._choose_binaries()
        if user is not None:
            binaries = make_reachable(binaries, user, self._root_base / "runtime")
        self._binaries = binaries

        cluster = self._clusters / str(binaries.major)
        for folder in (self._clusters, cluster):
            # Root keeps every folder above PostgreSQL's own, so that nothing which root does in them can be led astray.
            make_folder(folder, 0o711 if user else 0o700)
        self._data = cluster / "data"
        wait_for_previous_server(self._data)
        for leftover in cluster.glob("initdb-*"):
            shutil.rmtree(leftover, ignore_errors=True)  # its initdb may be dying still; the next start goes on
        if not (self._data / "PG_VERSION").exists():
            self._make_database(cluster, binaries, user)
        self._user = user

    def _choose_binaries(self) -> PostgresBinaries:
        """The programs that fit the database that is there; the folder is named after their major version."""
        binaries = self._asked_binaries or find_binaries()
        made_by = sorted(int(path.parents[1].name) for path in self._clusters.glob("[0-9]*/data/PG_VERSION"))
        if not made_by or binaries.major in made_by:
            return binaries
        with contextlib.suppress(StartRefusedError):
            if self._asked_binaries is None:
                return find_binaries(major=made_by[-1])
        raise StartRefusedError(
            f"the database in {self._clusters} was made by PostgreSQL {made_by[-1]}, and this is PostgreSQL "
            f"{binaries.major}, which cannot read it: install PostgreSQL {made_by[-1]} again, or dump the database "
            f"with it, move {self._clusters / str(made_by[-1])} away and restore the dump"
        )

    def _make_database(self, cluster: Path, binaries: PostgresBinaries, user: ServerUser | None) -> None:
        """Run initdb beside the final place and move the result there, so that a half-made one is never used."""
        fresh = Path(tempfile.mkdtemp(prefix="initdb-", dir=cluster))  # mode 0700
        if user is not None:
            os.chown(fresh, user.uid, user.gid)
        # Code point order, which no upgrade of the operating system can change under an index; from 17 on the builtin
        # provider gives it with the right upper and lower case for every script. Both sort alike.
        builtin = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if binaries.major >= 17 else []
        # "trust": only root and the server's own user can enter the folder of the socket, and there is no other way in.
        options = ["-U", "postgres", "--auth-local=trust", "--auth-host=reject", "--data-checksums"]
        command: list[str | Path] = [
            binaries.bin_dir / "initdb",
            "-D",
            fresh,
            *options,
            "--encoding=UTF8",
            "--locale=C",
            *builtin,
        ]
        initdb = spawn(command, cluster, user, subprocess.PIPE)
        output = initdb.communicate()[0]
        if initdb.returncode != 0:
            last_lines = os.fsdecode(output).strip().splitlines()[-5:]
            raise StartRefusedError("\n".join([f"initdb could not make a database in {cluster}:", *last_lines]))
        fresh.rename(cluster / "data")
        for folder in (cluster, *cluster.parents[:2]):  # initdb has synced what is inside; these hold the new names
            sync_folder(folder)

    def _launch_and_wait(self) -> None:
        began = time.monotonic()
        while True:
            try:
                for seconds in self._launching():
                    if time.monotonic() - began > _START_SECONDS:
                        raise self._refused(f"was not ready after {_START_SECONDS} s")
                    time.sleep(seconds)
            except StartRefusedError:
                left = PidFile.read(self._data)
                # It ended without taking over a killed server's pid file: that one's last backends are still alive, and
                # may hold its shared memory for some seconds.
                blocked = left is not None and self._server is not None and left.pid != self._server.pid
                if not blocked or time.monotonic() - began > 15:
                    raise
                time.sleep(0.5)
            else:
                return

    def _launching(self) -> Iterator[float]:
        """Start the server; yields how many seconds to wait before the next look, and ends when it answers.

        Raises StartRefusedError when it ended before that.
        """
        assert self._binaries is not None  # noqa: S101 # chosen by `start`
        self._socket_dir = make_socket_dir(self._clusters, self._data_dir, self._user)
        PidFile.disown(self._data)
        sockets = str(self._socket_dir).replace('"', '""')
        settings = {**self._settings, **_FIXED, "unix_socket_directories": f'"{sockets}"'}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        # A start and stop write 1 kB, so 5 MB are years, or a fault that repeats.
        if self.log_file.exists() and self.log_file.stat().st_size > 5_000_000:
            self.log_file.replace(self.log_file.with_suffix(".log.1"))
        with open(self.log_file, "ab", opener=partial(os.open, mode=0o600)) as log:
            command: list[str | Path] = [self._binaries.bin_dir / "postgres", "-D", self._data, *options]
            self._server = server = spawn(command, self._data, self._user, log.fileno())
        while server.poll() is None:
            found = PidFile.read(self._data)
            if found is not None and found.pid == server.pid and found.ready:
                return
            yield 0.01
        raise self._refused("ended while it started")

    def _refused(self, what: str) -> StartRefusedError:
        with self.log_file.open(errors="replace") as log:
            last = log.read().splitlines()[-5:]
        return StartRefusedError("\n".join([f"PostgreSQL {what}; its log {self.log_file} ends with:", *last]))


def _url(socket_dir: Path, user: str, database: str) -> str:
    where = quote(os.fsencode(socket_dir), safe="")
    # With the port, for a PGPORT in the caller's environment would name another socket.
    return f"postgresql://{quote(user, safe='')}@/{quote(database, safe='')}?host={where}&port={PORT}"
