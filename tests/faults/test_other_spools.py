"""A person's submission waits in the spool of a replica that is stopped or killed: real services.

What is erased meanwhile is erased there before the first lead that the replica drains.
"""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from leadkeep.v1 import lead_service_pb2 as pb

from service.storage.keys.replicas import known_name
from service.storage.spool.rows import FILE_NAME
from tests.conftest import StartService
from tests.harness import faults
from tests.harness.disguises import disguises, encodings, hidden_in, hidden_under
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService

LEAD, WAITING = pb.PERSON_MATCH_KIND_LEAD, pb.PERSON_MATCH_KIND_WAITING
WELL_WITHIN = 60
"""Seconds; it takes one or two, but a test's machine may be busy."""

# What each lead that is stored finds open: an erasure that comes too late shows.
TOO_LATE = (
    "CREATE TABLE too_late (id uuid)",
    "CREATE FUNCTION note_order() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN"
    " INSERT INTO too_late SELECT NEW.id FROM spool_erasure; RETURN NULL; END $$",
    "CREATE TRIGGER note_order AFTER INSERT ON lead FOR EACH ROW EXECUTE FUNCTION note_order()",
)


@dataclass
class Two:
    """Two services with one keyring on one database."""

    here: RunningService
    there: RunningService
    database: TestDatabase
    bin_dir: Path

    def value(self, query: str) -> object:
        return faults.value_of(self.database.admin_url, query)

    @property
    def open_erasures(self) -> object:
        return self.value("SELECT count(*) FROM spool_erasure")


@pytest.fixture(scope="module")
def two(postgres_server: TestServer, shared_keyring: dict[str, str], start_shared: StartService) -> Two:
    database = postgres_server.fresh_database()
    here, there = (
        start_shared(name, database_url=database.serve_url, settings=shared_keyring) for name in ("here", "there")
    )
    faults.execute(database.admin_url, *TOO_LATE)
    return Two(here, there, database, postgres_server.postgres.bin_dir)


@pytest.fixture
def gone(two: Two) -> Iterator[str]:
    """The name of a replica that never comes back, with something in its spool."""
    faults.execute(
        two.database.admin_url,
        "INSERT INTO replica (name, state, epoch, opens, seals, spool_keys, seen_at)"
        " SELECT 'gone', 'stopped', epoch, opens, seals, seals, now() - interval '1 day' FROM replica LIMIT 1",
    )
    yield "gone"
    faults.execute(two.database.admin_url, "DELETE FROM replica WHERE name = 'gone'", "DELETE FROM spool_erasure")


def spooled(two: Two, *leads: pb.Lead) -> list[str]:
    """Let the other replica take these while the database refuses them; their ids.

    What is erased from now on was accepted before, even if the replica's clock was measured badly.
    """
    with refusing(two.database):
        made = [two.there.create(lead) for lead in leads]
        assert {each.state for each in made} == {pb.SAVE_STATE_DELAYED}
        two.there.kill()
    with sqlite3.connect(f"file:{two.there.data_dir / 'spool' / FILE_NAME}?mode=ro", uri=True) as file:
        ((latest,),) = file.execute("SELECT max(accepted_at + clock_ahead + clock_error) FROM entry")
    past = f"SELECT clock_timestamp() > to_timestamp({latest} / 1e6)"
    assert eventually(lambda: two.value(past) is True, within=WELL_WITHIN)
    return [each.id for each in made]


@contextmanager
def refusing(database: TestDatabase) -> Iterator[None]:
    """The database takes no leads meanwhile, and none that resubmit one."""
    faults.execute(database.admin_url, "REVOKE INSERT ON lead, resubmission FROM leadkeep_app")
    try:
        yield
    finally:
        faults.execute(database.admin_url, "GRANT INSERT ON lead, resubmission TO leadkeep_app")


def find(two: Two, **wanted: str) -> tuple[list[tuple[int, str]], list[str]]:
    """Kinds and ids of what is found of a person, and the replicas that did not answer."""
    found = two.here.call("FindPerson", pb.FindPersonRequest(**wanted))
    return [(match.kind, match.id) for match in found.matches], list(found.unanswered_replicas)


def erase(two: Two, *refs: tuple[int, str]) -> tuple[list[str], list[str]]:
    """The ids of what was erased, and the replicas that did not answer."""
    chosen = [pb.PersonRef(kind=kind, id=each) for kind, each in refs]  # type: ignore[arg-type] # a number of the enum
    done = two.here.call("ErasePerson", pb.ErasePersonRequest(refs=chosen, reason="asked for it"))
    return [ref.id for ref in done.erased], list(done.unanswered_replicas)


def export(two: Two, *refs: tuple[int, str]) -> list[pb.PersonRecord]:
    chosen = [pb.PersonRef(kind=kind, id=each) for kind, each in refs]  # type: ignore[arg-type] # a number of the enum
    with two.here.channel() as channel:
        done = two.here.stub(channel).ExportPerson(
            pb.ExportPersonRequest(refs=chosen),
            timeout=20,
            metadata=[*two.here.metadata(), ("leadkeep-reason", "asked for it")],
        )
    return list(done.records)


def dump(two: Two) -> bytes:
    """A dump of the database, in SQL."""
    command: list[str | Path] = [two.bin_dir / "pg_dump", "--dbname", two.database.admin_url]
    return subprocess.run(command, capture_output=True, check=True).stdout


def drained(service: RunningService) -> bool:
    return eventually(lambda: service.metric("leadkeep_spool_entries") == 0, within=WELL_WITHIN)


def test_a_replica_that_was_killed_erases_before_its_first_drained_lead(two: Two) -> None:
    person = {"phone": "+8801733000009", "nid": "3310000000009"}
    lead = two.here.create(somebody(**person))
    other_id, again = spooled(two, somebody(), somebody(**person))
    there = known_name(two.there.data_dir / "spool")
    assert find(two, phone=person["phone"]) == ([(LEAD, lead.id)], [there])
    assert erase(two, (LEAD, lead.id)) == ([lead.id], [there])
    assert two.open_erasures == 1
    assert eventually(lambda: two.here.metric("leadkeep_open_erasures") == 1, within=WELL_WITHIN)

    two.there.start()
    assert drained(two.there)

    assert two.value(f"SELECT array_agg(id::text) FROM lead WHERE id IN ('{other_id}', '{again}')") == [other_id]
    assert two.value("SELECT count(*) FROM too_late") == 0
    assert two.value(f"SELECT lead_id::text FROM tombstone WHERE id = '{again}'") == lead.id
    assert eventually(lambda: two.here.metric("leadkeep_open_erasures") == 0, within=WELL_WITHIN)
    assert find(two, phone=person["phone"]) == ([], [])


def test_what_waits_in_a_spool_that_cannot_drain_is_found_exported_and_erased(two: Two) -> None:
    person = somebody(phone="+8801733000011", nid="3310000000011", notes="Wellensittich im Wohnzimmer")
    with refusing(two.database):
        waiting = two.there.create(person).id
        other = two.there.create(somebody()).id
        assert find(two, email=person.email) == ([(WAITING, waiting)], [])
        shown, *_ = export(two, (WAITING, waiting))
        assert (shown.lead.phone, shown.lead.notes) == (person.phone, person.notes)

        with sqlite3.connect(f"file:{two.there.data_dir / 'spool' / FILE_NAME}?mode=ro", uri=True) as file:
            stored = file.execute("SELECT phone, nid, content, payload FROM entry WHERE id = ?", [UUID(waiting).bytes])
            *digests, payload = stored.fetchone()
        assert erase(two, (WAITING, waiting)) == ([waiting], [])
        assert find(two, nid=person.nid) == ([], [])
        looked_for = {
            "values": [
                form for field in ("phone", "nid", "email", "notes") for form in disguises(getattr(person, field))
            ],
            "digests": [form for digest in digests for form in encodings(digest)],
            "token": [payload.encode()[-60:]],
        }
        written = [two.here.data_dir / "spool", two.there.data_dir / "spool", two.there.log_path, two.here.log_path]
        assert hidden_under(written, looked_for) == {}
        assert hidden_in(dump(two), looked_for) == set()
    assert drained(two.there)
    assert two.value(f"SELECT array_agg(id::text) FROM lead WHERE id IN ('{other}', '{waiting}')") == [other]


def test_a_replica_that_is_killed_in_the_middle_of_an_erasure_goes_on_with_it(two: Two) -> None:
    person = {"phone": "+8801733000010", "nid": "3310000000010"}
    lead = two.here.create(somebody(**person))
    again, other_id = spooled(two, somebody(**person), somebody())
    erase(two, (LEAD, lead.id))
    with (
        psycopg.connect(two.database.admin_url) as holding,
        psycopg.connect(two.database.admin_url, autocommit=True) as looking,
    ):
        # What erases waits for everybody who stores drained leads: for a fifth of a second, again and again.
        holding.execute("SELECT pg_advisory_xact_lock_shared(x'4c4b4552'::int)")
        two.there.start()
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND wait_event = 'advisory'"
        assert eventually(lambda: looking.execute(waits).fetchone() != (0,), within=WELL_WITHIN)
        two.there.kill()
    assert two.open_erasures == 1
    two.there.start()
    assert drained(two.there)
    assert two.value(f"SELECT array_agg(id::text) FROM lead WHERE id IN ('{other_id}', '{again}')") == [other_id]
    assert (two.open_erasures, two.value("SELECT count(*) FROM too_late")) == (0, 0)


def test_a_replica_that_is_gone_for_good_is_forgotten_with_what_it_had_to_erase_on_record(two: Two, gone: str) -> None:
    lead = two.here.create(somebody())
    erase(two, (LEAD, lead.id))
    done = two.here.leadkeep_here("keys", "reindex", "--timeout", "60s", "--forget", gone)
    assert done.returncode == 0, done.stderr
    assert two.value(f"SELECT count(*) FROM spool_erasure WHERE replica = '{gone}'") == 0
    query = "SELECT array_agg(ARRAY[operation, lead_id::text, reason]) FROM access_record WHERE reason LIKE 'replica %'"
    assert two.value(query) == [["forget an open erasure", lead.id, f"replica {gone}"]]
    assert two.here.leadkeep_here("audit", "verify").returncode == 0


def test_an_erasure_that_waits_for_long_is_an_alarm(two: Two, gone: str) -> None:
    erase(two, (LEAD, two.here.create(somebody()).id))
    assert "ok    erasures: " in two.here.leadkeep_here("doctor").stdout
    faults.execute(two.database.admin_url, "UPDATE spool_erasure SET opened_at = now() - interval '11 minutes'")
    assert f"FAIL  erasures: erasures wait, 1 for the replica {gone}" in two.here.leadkeep_here("doctor").stdout
    assert eventually(lambda: "erasures_wait" in two.here.log(), within=WELL_WITHIN)
