from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from grpc import Channel, StatusCode
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import lead_service_pb2_grpc

from service.rpc.tokens.verifier import TokenRules, TokenVerifier
from tests.harness.faults import conflict_with
from tests.harness.running_service import RunningService
from tests.rpc.calls import Client, refused
from tests.rpc.showing import CONFLICT_WITH, known_person
from tests.rpc.tokens.signing import AUDIENCE, EC_PUBLIC, ED_PUBLIC, ISSUER, RSA_PUBLIC, Clock, Keys

Connect = Callable[..., Client]


@pytest.fixture(scope="module")
def connect(service: RunningService) -> Iterator[Connect]:
    """Callers of the module's service: `connect("chatbot", subject="bot-1")`, `connect(scopes={Scope.READ})`."""
    with service.channel() as channel:

        def connected(role: str = "admin", **token: object) -> Client:
            return Client(service, channel, role, **token)  # type: ignore[arg-type]

        yield connected


@pytest.fixture(scope="module")
def admin(connect: Connect) -> Client:
    """Somebody with every scope."""
    return connect("admin")


@pytest.fixture(scope="module")
def agent(connect: Connect) -> Client:
    """Somebody who may read and update, and sees sensitive fields masked."""
    return connect("agent")


@pytest.fixture(scope="module")
def chatbot(connect: Connect) -> Client:
    """Somebody who may create, and read what the same subject created."""
    return connect("chatbot")


@pytest.fixture(scope="module")
def stub(service: RunningService) -> Iterator[lead_service_pb2_grpc.LeadServiceStub]:
    """The generated client of the module's service."""
    with service.channel() as channel:
        yield service.stub(channel)


@pytest.fixture(scope="module")
def channels(replicas: Sequence[RunningService]) -> Iterator[list[Channel]]:
    """A channel to each replica, in a module that starts several."""
    opened = [replica.channel() for replica in replicas]
    yield opened
    for channel in opened:
        channel.close()


@pytest.fixture(scope="module")
def database_url(service: RunningService) -> str:
    return service.environment["LEADKEEP_DATABASE_URL"]


@pytest.fixture(scope="module")
def person() -> pb.Lead:
    return known_person()


@pytest.fixture(scope="module")
def lead_id(service: RunningService, admin: Client, person: pb.Lead) -> str:
    """The known person's lead, with one resubmission and one conflict."""
    lead_id = admin.create(person).id
    with refused(StatusCode.ALREADY_EXISTS, "DUPLICATE_PHONE"):
        admin.create(person, request_id="another")
    CONFLICT_WITH[lead_id] = conflict_with(service.environment["LEADKEEP_DATABASE_URL"], lead_id)
    return lead_id


@pytest.fixture
def keys() -> Keys:
    return Keys(RSA_PUBLIC, EC_PUBLIC, ED_PUBLIC)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def verifier(keys: Keys, clock: Clock) -> TokenVerifier:
    return TokenVerifier(keys, TokenRules(ISSUER, AUDIENCE), clock=clock)
