"""The chaos harness's proxy does to PostgreSQL's connections what it says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from service.storage.postgres.folders import SOCKET_NAME
from tests.faults.chaos.background import Background
from tests.faults.chaos.proxy import Loss, Mode, PostgresProxy
from tests.harness.postgres import TestDatabase
from tests.harness.processes import eventually


class Through:
    """A proxy in front of a database of its own."""

    def __init__(self, background: Background, database: TestDatabase) -> None:
        parts = urlsplit(database.admin_url)
        self._path = parts.path
        self._background = background
        self.proxy = PostgresProxy(Path(parse_qs(parts.query)["host"][0]) / SOCKET_NAME)
        background.run(self.proxy.start())

    def connect(self) -> psycopg.Connection:
        url = f"postgresql://postgres@127.0.0.1:{self.proxy.port}{self._path}"
        return psycopg.connect(url, connect_timeout=2)

    @contextmanager
    def in_mode(self, mode: Mode) -> Iterator[None]:
        self._background.run(self.proxy.set_mode(mode))
        yield
        self._background.run(self.proxy.set_mode(Mode.FORWARD))

    def stop(self) -> None:
        self._background.run(self.proxy.stop())


@pytest.fixture
def through(database: TestDatabase) -> Iterator[Through]:
    with Background() as background:
        made = Through(background, database)
        with made.connect() as connection:
            connection.execute("CREATE TABLE seen (number int)")
        yield made
        made.stop()


def numbers(through: Through) -> list[int]:
    with through.connect() as connection:
        return [row[0] for row in connection.execute("SELECT number FROM seen ORDER BY number")]


def test_it_forwards(through: Through) -> None:
    with through.connect() as connection:
        connection.execute("INSERT INTO seen SELECT generate_series(1, 50000)")
    assert len(numbers(through)) == 50_000


def test_a_commit_whose_reply_is_swallowed_is_done_and_its_caller_hears_of_no_answer(through: Through) -> None:
    connection = through.connect()
    connection.execute("INSERT INTO seen VALUES (1)")
    through.proxy.lose([Loss.REPLY])
    with pytest.raises(psycopg.OperationalError):
        connection.commit()
    assert through.proxy.lost == {Loss.REPLY: 1}
    assert numbers(through) == [1]


def test_a_commit_that_is_swallowed_is_not_done_and_its_caller_hears_of_no_answer(through: Through) -> None:
    connection = through.connect()
    connection.execute("INSERT INTO seen VALUES (1)")
    through.proxy.lose([Loss.COMMIT])
    with pytest.raises(psycopg.OperationalError):
        connection.commit()
    assert through.proxy.lost == {Loss.COMMIT: 1}
    assert numbers(through) == []


def test_only_so_many_replies_are_swallowed(through: Through) -> None:
    through.proxy.lose([Loss.REPLY])
    with pytest.raises(psycopg.OperationalError), through.connect() as connection:
        connection.execute("INSERT INTO seen VALUES (1)")
    with through.connect() as connection:
        connection.execute("INSERT INTO seen VALUES (2)")
    assert numbers(through) == [1, 2]


def test_a_silent_proxy_takes_connections_and_answers_nothing(through: Through) -> None:
    with through.in_mode(Mode.SILENT), pytest.raises(psycopg.errors.ConnectionTimeout):
        through.connect()
    assert numbers(through) == []


def test_what_is_sent_to_a_silent_proxy_never_arrives(through: Through) -> None:
    connection = through.connect()
    connection.execute("INSERT INTO seen VALUES (1)")
    with through.in_mode(Mode.SILENT):
        connection.pgconn.send_query(b"COMMIT")
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    assert eventually(lambda: numbers(through) == [], within=5)


def test_a_refusing_proxy_closes_old_and_new_connections(through: Through) -> None:
    connection = through.connect()
    with through.in_mode(Mode.REFUSE):
        with pytest.raises(psycopg.OperationalError):
            through.connect()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
