"""The file worker's connection to a server that is frozen, and to one that is only slow."""

from __future__ import annotations

import signal
import time

import pytest

from service.storage.daily.daily_leads import DailyLeads, DailyLeadsError, Days, leave_when_frozen
from service.storage.database.session import connect
from tests.harness.postgres import TestDatabase, TestServer, folder_for_postgres
from tests.harness.processes import frozen, send_all


@pytest.fixture
def frozen_database(server: TestServer) -> TestDatabase:
    return server.fresh_database()


def test_a_frozen_server_is_left_within_seconds(server: TestServer, frozen_database: TestDatabase) -> None:
    leads = DailyLeads(frozen_database.serve_url, Days("UTC"))
    assert leads.touched() == set()
    assert server.postgres.pid is not None
    with frozen(server.postgres.pid):
        began = time.monotonic()
        with pytest.raises(DailyLeadsError) as left:
            leads.touched()
        took = time.monotonic() - began
    assert left.value.away
    # Four, on an idle machine. Without the look at the server it is as long as that is frozen.
    assert took < 15
    assert leads.touched() == set()
    leads.close()


def test_a_frozen_server_that_is_killed_leaves_no_process_behind() -> None:
    with folder_for_postgres() as folder:  # looks for them at its end
        server = TestServer(folder / "data")
        assert server.postgres.pid is not None
        for number in (signal.SIGSTOP, signal.SIGKILL):
            send_all(server.postgres.pid, number)
        server.stop()


def test_a_statement_that_is_only_slow_is_waited_for(frozen_database: TestDatabase) -> None:
    with connect(frozen_database.serve_url, "test") as connection:
        leave_when_frozen(frozen_database.serve_url, connection)
        assert connection.execute("SELECT 1 FROM pg_sleep(3.5)").fetchone() == (1,)
