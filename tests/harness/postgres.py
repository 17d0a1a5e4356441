"""One real PostgreSQL a test run; each test that asks gets a fresh clone of a migrated database.

initdb and the migrations run once: what they made is kept in pytest's cache folder and copied for each server.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from alembic import command
from alembic.config import Config

from service.storage import schema
from service.storage.postgres.embedded import EmbeddedPostgres
from service.storage.postgres.folders import find_binaries
from service.storage.schema import OWN_LOGIN, prepare_own_database
from tests.harness.processes import eventually, working_in

REPO = Path(__file__).parents[2]
PREPARED = REPO / ".pytest_cache" / "postgres"

SETTINGS = {
    # These tests kill services, not machines. Tests of durability start servers of their own.
    "fsync": "off",
    "max_connections": "500",  # on a busy machine those of the last tests take a while to end
    # With a database for each test it would start a process several times a second, for tables of a few rows.
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
    "max_wal_size": "2GB",
}

_numbers = itertools.count(1)


@dataclass(frozen=True)
class TestDatabase:
    """A migrated, empty database."""

    __test__ = False

    serve_url: str
    """As the role of `serve`."""
    admin_url: str
    """As its owner, a superuser."""


class TestServer:
    """A PostgreSQL server with a template database."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        root_base = folder.parent / "root-base"
        for made, place in ((_prepared() / "data", folder), (_prepared() / "root-base", root_base)):
            if made.exists():
                _copy(made, place)
        self.postgres = EmbeddedPostgres(folder, settings=SETTINGS, root_base=root_base)
        self.postgres.start()
        self._admin = self.postgres.url(user="postgres", database="postgres")

    def fresh_database(self) -> TestDatabase:
        """A clone of the template."""
        return self._create("TEMPLATE leadkeep STRATEGY file_copy")

    def empty_database(self, locale: str = "") -> TestDatabase:
        """A database without a schema, of another `locale` than the server's, as CREATE DATABASE takes it."""
        return self._create(f"TEMPLATE template0 STRATEGY file_copy {locale}")

    def database_at(self, revision: str) -> TestDatabase:
        """An empty database of the schema of an earlier release."""
        database = self.empty_database()
        engine = schema.engine_of(database.admin_url)
        config = Config()
        config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
        engine.dispose()
        return database

    def _create(self, options: str) -> TestDatabase:
        name = f"test_{next(_numbers)}"
        with psycopg.connect(self._admin, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} {options}".encode())
        return TestDatabase(
            serve_url=self.postgres.url(user=OWN_LOGIN, database=name),
            admin_url=self.postgres.url(user="postgres", database=name),
        )

    def drop(self, database: TestDatabase) -> None:
        """Remove a database, which keeps the disk small where it is memory."""
        name = urlsplit(database.admin_url).path.removeprefix("/")
        with psycopg.connect(self._admin, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())

    def stop(self) -> None:
        """Shut it down."""
        self.postgres.stop()


@contextmanager
def own_postgres() -> Iterator[TestServer]:
    """A running server in a folder of its own."""
    with folder_for_postgres() as folder:
        server = TestServer(folder / "data")
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def folder_for_postgres() -> Iterator[Path]:
    """A folder that PostgreSQL's user can enter, when root runs it. Raises AssertionError when a server outlives it.

    Not one of pytest's: every run of pytest closes the folder above all of its folders to others, also those of a
    run beside it.
    """
    folder = Path(tempfile.mkdtemp(prefix="lk-"))
    folder.chmod(0o711)
    try:
        yield folder
        assert eventually(lambda: not working_in(folder), within=20), f"{len(working_in(folder))} processes are left"
    finally:
        shutil.rmtree(folder)


@cache
def _prepared() -> Path:
    """The folders of a server that was stopped after its database was migrated."""
    kept = PREPARED / _version()
    if not kept.exists():
        PREPARED.mkdir(parents=True, exist_ok=True)
        with folder_for_postgres() as folder, tempfile.TemporaryDirectory(dir=PREPARED) as beside:
            made = EmbeddedPostgres(folder / "data", settings=SETTINGS, root_base=folder / "root-base")
            made.start()
            prepare_own_database(made)
            made.stop()
            _copy(folder, Path(beside) / "made")
            with suppress(OSError):  # another worker was faster
                (Path(beside) / "made").rename(kept)
    return kept


def _version() -> str:
    """A name for what initdb and the migrations make."""
    storage = REPO / "service" / "storage"
    read = [*(storage / "migrations").rglob("*.py"), storage / "schema.py", storage / "postgres" / "embedded.py"]
    digest = hashlib.sha256(str(find_binaries()).encode())
    for path in sorted(read):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _copy(folder: Path, to: Path) -> None:
    subprocess.run(["cp", "--archive", "--reflink=auto", folder, to], check=True)
