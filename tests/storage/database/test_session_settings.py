from __future__ import annotations

import psycopg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.database.database import Database
from tests.harness.postgres import TestDatabase


async def test_a_role_that_commits_without_waiting_does_not_make_the_service_do_so(database: TestDatabase) -> None:
    name = database.serve_url.partition("?")[0].rpartition("/")[2]
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off".encode())

    async def ask(connection: AsyncConnection) -> str:
        return str((await connection.execute(text("SHOW synchronous_commit"))).scalar_one())

    service = Database(database.serve_url)
    assert await service.read(ask) == "on"
    await service.close()
