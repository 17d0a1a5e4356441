"""The committed stubs work with the oldest gRPC and protobuf that callers may have; all other tests have the newest."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.harness.leads import somebody
from tests.harness.running_service import RunningService

ROOT = Path(__file__).parents[2]
OLDEST = ROOT / ".venv-stubs/bin/python"

CREATE = """
import sys
from importlib.metadata import version
import grpc
from leadkeep.v1 import lead_service_pb2 as pb, lead_service_pb2_grpc, options_pb2

with grpc.insecure_channel(sys.argv[1]) as channel:
    request = pb.CreateLeadRequest(lead=pb.Lead.FromString(sys.stdin.buffer.read()))
    metadata = [("authorization", f"Bearer {sys.argv[2]}")]
    created = lead_service_pb2_grpc.LeadServiceStub(channel).CreateLead(request, timeout=15, metadata=metadata)
phone = pb.Lead.DESCRIPTOR.fields_by_name["phone"]
print(pb.SaveState.Name(created.state), phone.GetOptions().Extensions[options_pb2.sensitive])
print(version("grpcio"), version("protobuf"))
"""


@pytest.mark.skipif(not OLDEST.exists(), reason="no environment for the stubs: `make generate` sets it up")
def test_stubs_call_the_service_with_the_oldest_grpc(service: RunningService) -> None:
    command = [str(OLDEST), "-W", "error", "-c", CREATE, service.grpc_address, service.token("chatbot")]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "generated")}
    lead = somebody().SerializeToString()
    done = subprocess.run(command, env=environment, input=lead, capture_output=True, timeout=60, check=False)

    assert done.stdout.decode().splitlines() == ["SAVE_STATE_SAVED True", "1.63.0 5.26.1"], done.stderr.decode()
