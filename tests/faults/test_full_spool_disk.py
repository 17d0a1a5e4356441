"""The disk of the spool is full while the database is away, and is freed before the database is back."""

from __future__ import annotations

from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2
from leadkeep.v1 import lead_service_pb2 as pb

from tests.conftest import StartService
from tests.harness.answers import health_of
from tests.harness.leads import somebody
from tests.harness.postgres import TestServer
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService

SERVING = health_pb2.HealthCheckResponse.SERVING


def create(service: RunningService, channel: grpc.Channel) -> pb.CreateLeadResponse:
    answer: pb.CreateLeadResponse = service.stub(channel).CreateLead(
        pb.CreateLeadRequest(lead=somebody()), timeout=20, metadata=service.metadata("chatbot")
    )
    return answer


def fill(filler: Path) -> None:
    """Let a file take all the room that its disk has left."""
    with filler.open("ab", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass


def test_a_disk_that_was_full_and_is_freed_serves_again_while_the_database_is_still_away(
    server: TestServer, start_service: StartService, small_disk: Path
) -> None:
    database = server.fresh_database()
    service = start_service(database_url=database.serve_url, settings={"LEADKEEP_SPOOL_DIR": str(small_disk / "spool")})
    with service.channel() as channel:
        create(service, channel)
        server.postgres.stop()
        assert create(service, channel).state == pb.SAVE_STATE_DELAYED
        filler = small_disk / "filler"
        # A spool that fails gives back what room it can, and takes leads again: that room is filled too.
        assert any(is_full(service, channel, filler) for _ in range(30)), "it serves on a full disk"
        filler.unlink()
        assert eventually(lambda: health_of(channel) == SERVING, within=60)
        assert create(service, channel).state == pb.SAVE_STATE_DELAYED


def is_full(service: RunningService, channel: grpc.Channel, filler: Path) -> bool:
    """Take all room that is left; whether the service gives up for longer than its spool's upkeep takes."""
    fill(filler)
    fails_or_saves(service, channel)
    return eventually(lambda: health_of(channel) != SERVING, within=2) and not eventually(
        lambda: health_of(channel) == SERVING, within=8
    )


def fails_or_saves(service: RunningService, channel: grpc.Channel) -> None:
    """Take what room is left."""
    try:
        create(service, channel)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017 # a lead may still fit
