"""A commit that waits for its synchronous standby is cancelled: nobody confirms that lead before the standby has it.

PostgreSQL answers a cancelled wait with success and a warning. The row is then visible on the primary, and a failover
may still lose it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from leadkeep.v1 import lead_service_pb2 as pb

from tests.conftest import StartService
from tests.harness.failures import reason_of
from tests.harness.faults import broken_spool, execute
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase, folder_for_postgres
from tests.harness.processes import eventually, frozen
from tests.harness.replication import ReplicatedServer
from tests.harness.running_service import RunningService

T = TypeVar("T")

PATIENCE = 1.0
"""Seconds that a caller waits for what must not come. After two of them the writer would not ask the database again."""

NOT_CONFIRMED = {"DEADLINE_TOO_SHORT", "STORAGE_UNAVAILABLE", "DEADLINE_EXCEEDED"}
"""The last where its own deadline ended a call, before the service's answer on a busy machine."""

CANCELLATIONS = ["pg_cancel_backend", "pg_terminate_backend"]
"""Both end the wait with the transaction committed on the primary alone."""


@pytest.fixture(scope="module")
def primary() -> Iterator[ReplicatedServer]:
    with folder_for_postgres() as folder:
        server = ReplicatedServer(folder)
        server.standby.attach()
        server.require_standby()
        yield server
        server.stop()


@pytest.fixture(scope="module")
def database(primary: ReplicatedServer) -> TestDatabase:
    made = primary.fresh_database()
    # The warning that a commit did not wait for the standby is only sent to sessions that want it.
    execute(made.admin_url, f"ALTER DATABASE {name_of(made)} SET client_min_messages = 'error'")
    return made


@pytest.fixture(scope="module")
def service(
    primary: ReplicatedServer, database: TestDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    running = RunningService(tmp_path_factory.mktemp("service") / "leadkeep", database_url=database.serve_url)
    # What the spool confirms rests on no standby.
    broken_spool(running.data_dir)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def at_work(service: RunningService) -> None:
    """The service knows that the test before is over."""
    assert eventually(lambda: takes_leads(service), within=60)


@pytest.fixture
def standby_away(primary: ReplicatedServer, at_work: None) -> Iterator[None]:
    """The standby goes away after the service's start, and is back for the next test."""
    primary.standby.detach()
    yield
    if not primary.ask("SELECT count(*) FROM pg_stat_replication"):
        primary.standby.attach()
    assert eventually(lambda: not primary.waiting(), within=60)


def takes_leads(service: RunningService) -> bool:
    """Whether it saves: for what lasts it asks the database no more, until it has found it well."""
    try:
        return service.create(timeout=10).state == pb.SAVE_STATE_SAVED
    except grpc.RpcError:
        return False


class Caller:
    """Calls of one service, each on its own thread and channel when it must not be waited for."""

    def __init__(self, service: RunningService) -> None:
        self._service = service
        self._channel = service.channel()
        self.stub = service.stub(self._channel)
        self._threads = ThreadPoolExecutor(8)

    def create(self, lead: pb.Lead, request_id: str = "", *, timeout: float = PATIENCE) -> pb.CreateLeadResponse:
        request = pb.CreateLeadRequest(lead=lead, request_id=request_id)
        response: pb.CreateLeadResponse = self.stub.CreateLead(request, timeout=timeout, metadata=self.metadata)
        return response

    @property
    def metadata(self) -> list[tuple[str, str]]:
        return self._service.metadata("admin")

    def meanwhile(self, call: Callable[[], T]) -> Future[T]:
        return self._threads.submit(call)

    def close(self) -> None:
        self._threads.shutdown()
        self._channel.close()


@pytest.fixture
def caller(service: RunningService) -> Iterator[Caller]:
    made = Caller(service)
    yield made
    made.close()


def cancel_the_waiting_commit(
    primary: ReplicatedServer, caller: Caller, call: Callable[[], Message], how: str = "pg_cancel_backend"
) -> Future[Message]:
    """Make a call, and end the wait of its commit; the service's own repeats wait anew."""
    called = caller.meanwhile(call)
    while not (waiting := primary.waiting()):
        if called.done():  # on a busy machine its time may be over before its commit
            assert refusal(called.result) in NOT_CONFIRMED
            called = caller.meanwhile(call)
    for pid in waiting:
        primary.ask(f"SELECT {how}(%s)", pid)
    return called


def lead_on_the_primary_alone(
    primary: ReplicatedServer, caller: Caller, lead: pb.Lead, request_id: str, how: str = "pg_cancel_backend"
) -> None:
    """Create a lead whose commit is cancelled while it waits, and see that its caller is not told OK."""
    created = cancel_the_waiting_commit(primary, caller, lambda: caller.create(lead, request_id), how)
    assert refusal(created.result) in NOT_CONFIRMED


def refusal(call: Callable[[], Message]) -> str:
    """The reason with which a call is refused; without one, its status."""
    with pytest.raises(grpc.RpcError) as refused:
        call()
    assert isinstance(refused.value, grpc.Call)
    return reason_of(refused.value) or refused.value.code().name


LEADS_OF_REQUEST = "SELECT coalesce(array_agg(id::text), '{}') FROM lead WHERE request_id = %s"


def leads_on_the_primary(primary: ReplicatedServer, database: TestDatabase, request_id: str) -> list[str]:
    found: list[str] = primary.ask(LEADS_OF_REQUEST, request_id, database=name_of(database))
    return found


def leads_on_the_standby(primary: ReplicatedServer, database: TestDatabase, request_id: str) -> list[str]:
    assert eventually(primary.standby.holds, within=30)
    found: list[str] = primary.standby.ask(LEADS_OF_REQUEST, request_id, database=name_of(database))
    return found


def name_of(database: TestDatabase) -> str:
    return database.serve_url.partition("?")[0].rpartition("/")[2]


@pytest.mark.parametrize("how", CANCELLATIONS)
def test_the_services_own_retry_does_not_confirm_a_commit_whose_wait_was_ended(
    how: str, primary: ReplicatedServer, database: TestDatabase, caller: Caller, standby_away: None
) -> None:
    lead_on_the_primary_alone(primary, caller, somebody(), how, how)
    assert len(leads_on_the_primary(primary, database, how)) == 1, "the row must be visible, or this test shows nothing"


def test_the_services_own_retry_answers_when_the_standby_is_back_in_time(
    primary: ReplicatedServer, database: TestDatabase, caller: Caller, at_work: None
) -> None:
    with frozen(primary.standby.pid):  # a start would take too long on a busy machine
        call = partial(caller.create, somebody(), "in-time", timeout=20)
        created = cancel_the_waiting_commit(primary, caller, call)
        assert not created.done()
    answered = created.result().id  # type: ignore[attr-defined] # the response has it
    assert leads_on_the_standby(primary, database, "in-time") == [answered]


def test_a_repeat_with_the_same_request_id_is_not_confirmed(
    primary: ReplicatedServer, caller: Caller, standby_away: None
) -> None:
    lead = somebody()
    lead_on_the_primary_alone(primary, caller, lead, "repeated-1")
    assert refusal(lambda: caller.create(lead, "repeated-1")) in NOT_CONFIRMED


def test_the_same_without_a_request_id_is_not_confirmed(
    primary: ReplicatedServer, caller: Caller, standby_away: None
) -> None:
    lead = somebody()
    lead_on_the_primary_alone(primary, caller, lead, "repeated-2")
    assert refusal(lambda: caller.create(lead)) in NOT_CONFIRMED


def test_a_duplicate_by_phone_alone_is_not_confirmed(
    primary: ReplicatedServer, caller: Caller, standby_away: None
) -> None:
    lead = somebody()
    lead_on_the_primary_alone(primary, caller, lead, "repeated-3")
    assert refusal(lambda: caller.create(somebody(phone=lead.phone))) in NOT_CONFIRMED


def test_a_reused_request_id_is_not_confirmed(primary: ReplicatedServer, caller: Caller, standby_away: None) -> None:
    lead_on_the_primary_alone(primary, caller, somebody(), "reused")
    assert refusal(lambda: caller.create(somebody(), "reused")) in NOT_CONFIRMED


def test_after_the_standby_has_caught_up_the_repeat_answers_the_one_lead(
    primary: ReplicatedServer, database: TestDatabase, service: RunningService, caller: Caller, standby_away: None
) -> None:
    lead = somebody()
    lead_on_the_primary_alone(primary, caller, lead, "repeated-4")
    kept = leads_on_the_primary(primary, database, "repeated-4")
    primary.standby.attach()
    assert eventually(lambda: takes_leads(service), within=60)
    assert caller.create(lead, "repeated-4", timeout=10).id == kept[0]
    assert leads_on_the_standby(primary, database, "repeated-4") == kept


def test_after_standbys_are_given_up_the_repeat_answers_the_one_lead(
    primary: ReplicatedServer, database: TestDatabase, service: RunningService, caller: Caller, standby_away: None
) -> None:
    lead = somebody()
    lead_on_the_primary_alone(primary, caller, lead, "repeated-5")
    primary.release_commits()
    try:
        assert eventually(lambda: takes_leads(service), within=60)
        answered = caller.create(lead, "repeated-5", timeout=10).id
        assert leads_on_the_primary(primary, database, "repeated-5") == [answered]
    finally:
        primary.require_standby()


def test_a_caller_who_hangs_up_cancels_no_commit(
    primary: ReplicatedServer, database: TestDatabase, service: RunningService, caller: Caller, standby_away: None
) -> None:
    lead = somebody()
    request = pb.CreateLeadRequest(lead=lead, request_id="hung-up")
    call = caller.stub.CreateLead.future(request, timeout=30, metadata=caller.metadata)
    assert eventually(lambda: bool(primary.waiting()), within=30)
    waiting = primary.waiting()
    call.cancel()
    time.sleep(0.5)  # a cancel that travels to the database would have ended the wait by now
    assert {*waiting} <= {*primary.waiting()}, "on a busy machine the service's own repeat waits as well"
    assert leads_on_the_primary(primary, database, "hung-up") == [], "the commit still waits, so nobody sees its row"
    primary.standby.attach()
    assert eventually(lambda: takes_leads(service), within=60)
    repeated = caller.create(lead, "hung-up", timeout=10).id
    assert leads_on_the_standby(primary, database, "hung-up") == [repeated]


def existing_lead(caller: Caller) -> str:
    return str(caller.create(somebody(), timeout=10).id)


def update_status(caller: Caller, lead_id: str, timeout: float) -> pb.UpdateStatusResponse:
    request = pb.UpdateStatusRequest(id=lead_id, status=pb.LEAD_STATUS_CONTACTED)
    response: pb.UpdateStatusResponse = caller.stub.UpdateStatus(request, timeout=timeout, metadata=caller.metadata)
    return response


def assign(caller: Caller, lead_id: str, timeout: float) -> pb.AssignLeadResponse:
    request = pb.AssignLeadRequest(id=lead_id, assignee="rahima")
    response: pb.AssignLeadResponse = caller.stub.AssignLead(request, timeout=timeout, metadata=caller.metadata)
    return response


def correct(caller: Caller, lead_id: str, timeout: float) -> pb.UpdateLeadResponse:
    request = pb.UpdateLeadRequest(lead=pb.Lead(id=lead_id, name="Rahima Begum"))
    request.update_mask.paths.append("name")
    response: pb.UpdateLeadResponse = caller.stub.UpdateLead(request, timeout=timeout, metadata=caller.metadata)
    return response


@pytest.mark.parametrize("change", [update_status, assign, correct])
def test_a_change_on_the_primary_alone_is_not_confirmed_by_making_it_again(
    change: Callable[[Caller, str, float], Message], primary: ReplicatedServer, caller: Caller, at_work: None
) -> None:
    lead_id = existing_lead(caller)
    primary.standby.detach()
    try:
        first = cancel_the_waiting_commit(primary, caller, lambda: change(caller, lead_id, PATIENCE))
        assert refusal(first.result) in NOT_CONFIRMED
        assert refusal(lambda: change(caller, lead_id, PATIENCE)) in NOT_CONFIRMED
    finally:
        primary.standby.attach()
    assert change(caller, lead_id, 20).lead.version == 2  # type: ignore[attr-defined] # each response has it


def test_a_service_that_is_stopped_while_a_commit_waits_ends_in_its_grace(
    primary: ReplicatedServer, start_service: StartService
) -> None:
    fresh = primary.fresh_database()
    service = start_service(database_url=fresh.serve_url, settings={"LEADKEEP_SHUTDOWN_GRACE": "1"})
    primary.standby.detach()
    try:
        with service.channel() as channel:
            call = service.stub(channel).CreateLead.future(
                pb.CreateLeadRequest(lead=somebody()), timeout=30, metadata=service.metadata("chatbot")
            )
            assert eventually(lambda: bool(primary.waiting()), within=30)
            began = time.monotonic()
            assert service.stop() == 0
            assert time.monotonic() - began < 15
            with pytest.raises(grpc.RpcError):
                call.result()
    finally:
        primary.standby.attach()
