"""A chatbot's client in Python: creates a lead, repeats it safely, and reads what an error says.

    LEADKEEP_TOKEN=$(.venv/bin/leadkeep token --role chatbot) .venv/bin/python examples/python_client.py [host:port]

It needs grpcio, grpcio-status and the stubs in `generated/`, which a development install has on its path.
"""

# ruff: noqa: T201 # printing is what an example is for

import json
import os
import sys
from pathlib import Path

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1.lead_service_pb2_grpc import LeadServiceStub

POLICY = Path(__file__).parents[1] / "clients" / "policy"
DEADLINE = 15  # seconds for all attempts together: the service itself goes on for 10 when its database is away


def main() -> None:
    """Create a lead, create it once more, and make two mistakes."""
    target = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"
    metadata = (("authorization", f"Bearer {os.environ['LEADKEEP_TOKEN']}"),)
    # A call waits for the connection, which comes back within a second after a restart, and is repeated.
    channel_options = json.loads((POLICY / "channel.json").read_text())["python"]
    options = (("grpc.service_config", (POLICY / "retry_policy.json").read_text()), *channel_options.items())
    # With TLS: grpc.secure_channel(target, grpc.ssl_channel_credentials(), options)
    with grpc.insecure_channel(target, options) as channel:
        leads = LeadServiceStub(channel)

        lead = pb.Lead(
            name="Anika Rahman",
            phone="+880 1712-345678",
            nid="1990 1234 5678",
            address="12 Lake Road, Dhaka",
            interested_policy="Term Life 20-Year",
            preferred_contact_time="after 6 pm",
            conversation_id="python-example-1",
        )
        # One id for each submission, made before the first attempt and kept until it is answered: with it a repeat
        # answers the same lead. Here it comes from the conversation, so the whole example can be run again.
        submission = pb.CreateLeadRequest(lead=lead, request_id="python-example-1/submission-1", locale="bn-BD, en")

        created = leads.CreateLead(submission, timeout=DEADLINE, metadata=metadata)
        print("created: ", created.id, pb.SaveState.Name(created.state))
        print("tell the customer:", created.confirmation.text, *created.confirmation.next_steps, sep="\n    ")

        again = leads.CreateLead(submission, timeout=DEADLINE, metadata=metadata)
        print("repeated:", again.id, "the same lead" if again.id == created.id else "ANOTHER LEAD")

        found = leads.GetLeadByConversation(
            pb.GetLeadByConversationRequest(conversation_id=lead.conversation_id), timeout=DEADLINE, metadata=metadata
        ).lead
        print("found:   ", found.id, found.phone, found.nid, "masked" if found.masked else "unmasked")

        other_submission = pb.CreateLeadRequest(lead=lead, request_id="python-example-1/submission-2")
        for mistake in (other_submission, pb.CreateLeadRequest(lead=pb.Lead(name="Anika Rahman", phone="12"))):
            try:
                leads.CreateLead(mistake, timeout=DEADLINE, metadata=metadata)
            except grpc.RpcError as error:
                explain(error)


def explain(error: grpc.RpcError) -> None:
    """Print what went wrong; a program decides by `reason`, never by the text."""
    print("refused: ", error.code().name, error.details())
    status = rpc_status.from_call(error)  # None when the error comes from the channel and not from Leadkeep
    for detail in status.details if status else ():
        info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            print("    reason", info.reason, dict(info.metadata))
        elif detail.Unpack(bad_request):
            for violation in bad_request.field_violations:
                print("   ", violation.field, violation.description)


if __name__ == "__main__":
    main()
