"""The story from end to end, over a real socket."""

from __future__ import annotations

from leadkeep.v1 import lead_service_pb2 as pb

from tests.harness.leads import STORY, somebody
from tests.harness.running_service import RunningService


def test_the_storys_request_is_accepted_over_grpc(service: RunningService) -> None:
    with service.channel() as channel:
        response = service.stub(channel).CreateLead(
            pb.CreateLeadRequest(lead=somebody(**STORY)), metadata=service.metadata("chatbot"), timeout=10
        )
    assert response.id
    assert response.message == "Lead created successfully"
    assert response.state == pb.SAVE_STATE_SAVED
