"""The fence: which servers are refused, and what outlives the process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest

from service.storage.database.fence import FILE, Fence, timeline_of
from service.storage.database.session import SessionRefusedError
from tests.harness.postgres import TestDatabase

UNREADABLE = """
    CREATE SCHEMA managed;
    GRANT USAGE ON SCHEMA managed TO PUBLIC;
    CREATE FUNCTION managed.pg_control_system() RETURNS TABLE (system_identifier bigint) LANGUAGE plpgsql AS
      $$BEGIN RAISE feature_not_supported; END$$
"""
"""What a managed server does: it refuses the function."""


async def check(database: TestDatabase, folder: Path, prepare: str = "SELECT 1") -> None:
    fence = Fence(database.serve_url, folder)
    driver: psycopg.AsyncConnection[Any] = await psycopg.AsyncConnection.connect(database.serve_url, autocommit=True)
    try:
        await driver.execute(prepare.encode())
        await fence.check(driver)
    finally:
        await driver.close()
        await fence.close()


async def cluster_of(database: TestDatabase) -> str:
    async with await psycopg.AsyncConnection.connect(database.serve_url) as driver:
        own = await timeline_of(driver)
    assert own is not None
    assert own.number == 1
    return own.cluster


async def test_what_a_server_shows_is_remembered(database: TestDatabase, tmp_path: Path) -> None:
    await check(database, tmp_path)
    assert json.loads((tmp_path / FILE).read_text()) == {await cluster_of(database): 1}


async def test_an_older_timeline_of_the_same_cluster_is_refused_after_a_restart(
    database: TestDatabase, tmp_path: Path
) -> None:
    (tmp_path / FILE).write_text(json.dumps({await cluster_of(database): 2}))
    with pytest.raises(SessionRefusedError, match="a standby was promoted in its place"):
        await check(database, tmp_path)


async def test_another_cluster_is_accepted_and_both_are_remembered(database: TestDatabase, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"7": 5}))
    await check(database, tmp_path)
    assert json.loads((tmp_path / FILE).read_text()) == {"7": 5, await cluster_of(database): 1}


async def test_a_server_whose_timeline_cannot_be_read_is_not_refused(database: TestDatabase, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({await cluster_of(database): 2}))
    with psycopg.connect(database.admin_url) as admin:
        admin.execute(UNREADABLE.encode())
    await check(database, tmp_path, "SET search_path = managed, pg_catalog")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"7": "x"}', '{"7": null}'])
async def test_a_damaged_memory_stops_nothing(database: TestDatabase, tmp_path: Path, damage: str) -> None:
    (tmp_path / FILE).write_text(damage)
    await check(database, tmp_path)
    assert json.loads((tmp_path / FILE).read_text()) == {await cluster_of(database): 1}


async def test_a_memory_that_cannot_be_written_stops_nothing(database: TestDatabase, tmp_path: Path) -> None:
    await check(database, tmp_path / "missing")
