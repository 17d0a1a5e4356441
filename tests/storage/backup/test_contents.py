"""What a table holds is compared between databases, whatever their locales are."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from service.errors import StartRefusedError
from service.storage.backup.backup_manifest import TRANSACTION, contents
from service.storage.postgres.embedded import EmbeddedPostgres
from service.storage.postgres.folders import find_binaries
from tests.harness.postgres import folder_for_postgres


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL with the locales of ICU, which the package has not."""
    try:
        binaries = find_binaries(major=15)
    except StartRefusedError:
        pytest.skip("PostgreSQL 15 is not installed (Debian: apt-get install postgresql-15)")
    with folder_for_postgres() as folder:
        made = EmbeddedPostgres(folder / "data", binaries=binaries, root_base=folder / "root-base")
        made.start()
        yield made
        made.stop()


def test_the_digest_of_a_table_is_the_same_in_every_locale(server: EmbeddedPostgres) -> None:
    found = []
    for name, locale in (("plain", "LOCALE 'C'"), ("numeric", "LOCALE_PROVIDER icu ICU_LOCALE 'en-u-kn-true'")):
        root = server.url(user="postgres", database="postgres")
        with psycopg.connect(root, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 {locale}".encode())
        with psycopg.connect(server.url(user="postgres", database=name)) as connection:
            connection.execute("CREATE TABLE lead AS SELECT generate_series(1, 50) AS number")
            connection.commit()
            connection.execute(TRANSACTION)
            found.append(contents(connection))
    assert found[0] == found[1]
