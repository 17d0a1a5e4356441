"""Two replicas that let a subject find 3 duplicates an hour."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import grpc
import pytest
from grpc import StatusCode
from leadkeep.v1 import lead_service_pb2 as pb

from tests.conftest import StartService
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client, execute, refused

LIMIT = 3

CallerOf = Callable[..., Client]


@pytest.fixture(scope="module")
def replicas(
    service_database: TestDatabase, shared_keyring: dict[str, str], start_shared: StartService
) -> list[RunningService]:
    settings = shared_keyring | {"LEADKEEP_DUPLICATE_LIMIT": str(LIMIT)}
    return [start_shared(name, database_url=service_database.serve_url, settings=settings) for name in ("one", "other")]


@pytest.fixture
def caller(replicas: list[RunningService], channels: list[grpc.Channel], request: pytest.FixtureRequest) -> CallerOf:
    """A caller of one replica, with a subject of the test's own."""

    def of(replica: int = 0, *, role: str = "admin", subject: str = "") -> Client:
        return Client(replicas[replica], channels[replica], role, subject=subject or request.node.name)

    return of


@pytest.fixture
def known(caller: CallerOf) -> pb.Lead:
    """Somebody whose lead exists."""
    person = somebody()
    person.id = caller(subject="another").create(person).id
    return person


def find_duplicate(client: Client, known: pb.Lead, **request: str) -> None:
    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
        client.create(somebody(phone=known.phone), **request)


def reach_limit(client: Client, known: pb.Lead) -> None:
    for _ in range(LIMIT):
        find_duplicate(client, known)


def test_beyond_the_limit_every_submission_is_refused_at_every_replica(
    caller: CallerOf, known: pb.Lead, replicas: list[RunningService]
) -> None:
    reach_limit(caller(), known)
    for replica in (0, 1):
        for lead in (somebody(), somebody(phone=known.phone)):
            with refused(StatusCode.RESOURCE_EXHAUSTED, "DUPLICATE_LIMIT") as refusal:
                caller(replica).create(lead)
            assert refusal.metadata["limit"] == str(LIMIT)
    assert caller().get(known.id).resubmissions == LIMIT
    assert caller(subject="another").create(somebody()).id, "another subject has found none"


def test_a_refusal_says_when_to_come_back_and_that_no_library_should_retry(caller: CallerOf, known: pb.Lead) -> None:
    reach_limit(caller(), known)
    with pytest.raises(grpc.RpcError) as refusal:
        caller().create(somebody())
    trailers: dict[str, str | bytes] = dict(refusal.value.trailing_metadata())  # type: ignore[arg-type]
    assert trailers["grpc-retry-pushback-ms"] == "-1"
    assert "RetryInfo" in str(trailers["grpc-status-details-bin"])


def test_corrections_of_phone_and_nid_count_and_are_refused_and_others_are_not(
    caller: CallerOf, known: pb.Lead
) -> None:
    mine = caller(subject="another").create(somebody()).id
    for _ in range(LIMIT):
        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
            caller().correct(mine, phone=known.phone)
    for field in ("phone", "nid"):
        with refused(StatusCode.RESOURCE_EXHAUSTED, "DUPLICATE_LIMIT"):
            caller(1).correct(mine, **{field: getattr(somebody(), field)})
    with refused(StatusCode.RESOURCE_EXHAUSTED, "DUPLICATE_LIMIT"):
        caller().create(somebody())
    assert caller().correct(mine, name="Somebody Else").name == "Somebody Else"


def test_what_proves_both_values_and_repeats_are_not_counted(caller: CallerOf, known: pb.Lead) -> None:
    for _ in range(LIMIT + 1):
        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
            caller().create(somebody(phone=known.phone, nid=known.nid))
    request_id, again = str(uuid4()), somebody(phone=known.phone)
    for _ in range(LIMIT + 1):
        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
            caller().create(again, request_id=request_id)
    assert caller().create(somebody()).id


def test_one_submission_that_matches_two_leads_counts_once(caller: CallerOf, known: pb.Lead) -> None:
    other = somebody()
    caller(subject="another").create(other)
    for _ in range(LIMIT - 1):
        with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
            caller().create(somebody(phone=known.phone, nid=other.nid))
    assert caller().create(somebody()).id


def test_an_hour_later_there_is_room_again(
    caller: CallerOf, known: pb.Lead, replicas: list[RunningService], request: pytest.FixtureRequest
) -> None:
    reach_limit(caller(), known)
    execute(
        replicas[0],
        "UPDATE resubmission SET submitted_at = submitted_at - interval '61 min' WHERE actor = %(subject)s",
        subject=request.node.name,
    )
    assert caller().create(somebody()).id


def test_a_restart_does_not_reset_it(
    caller: CallerOf, known: pb.Lead, replicas: list[RunningService], request: pytest.FixtureRequest
) -> None:
    reach_limit(caller(), known)
    other = replicas[1]
    other.stop()
    other.start()
    with other.channel() as channel, refused(StatusCode.RESOURCE_EXHAUSTED, "DUPLICATE_LIMIT"):
        Client(other, channel, subject=request.node.name).create(somebody())
