from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.harness.running_service import RunningService
from tests.rpc.calls import Client

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
