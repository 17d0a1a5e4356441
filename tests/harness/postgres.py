"""One real PostgreSQL a test run; each test that asks gets a fresh clone of a migrated database."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from service.storage.embedded import EmbeddedPostgres
from service.storage.schema import OWN_LOGIN, prepare_own_database

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
        # fsync off: these tests kill services, not machines. Tests of durability start servers of their own.
        self.postgres = EmbeddedPostgres(
            folder, settings={"fsync": "off", "max_connections": "200"}, root_base=folder.parent / "root-base"
        )
        self.postgres.start()
        self._admin = self.postgres.url(user="postgres", database="postgres")
        prepare_own_database(self._admin, self.postgres.url(user="postgres", database="leadkeep"))

    def fresh_database(self) -> TestDatabase:
        """A clone of the template."""
        return self._create("TEMPLATE leadkeep")

    def empty_database(self) -> TestDatabase:
        """A database without a schema."""
        return self._create("TEMPLATE template0")

    def _create(self, options: str) -> TestDatabase:
        name = f"test_{next(_numbers)}"
        with psycopg.connect(self._admin, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} {options}".encode())
        return TestDatabase(
            serve_url=self.postgres.url(user=OWN_LOGIN, database=name),
            admin_url=self.postgres.url(user="postgres", database=name),
        )

    def stop(self) -> None:
        """Shut it down."""
        self.postgres.stop()


@contextmanager
def folder_for_postgres() -> Iterator[Path]:
    """A folder that PostgreSQL's user can enter, when root runs it.

    Not one of pytest's: every run of pytest closes the folder above all of its folders to others, also those of a
    run beside it.
    """
    folder = Path(tempfile.mkdtemp(prefix="lk-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
