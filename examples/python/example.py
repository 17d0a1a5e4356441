"""A chatbot's submission: save a lead, repeat it, read it masked, and decide by what an error says.

Printed are ids, states, names of fields and reasons: never a message, whose text shows every value.
"""

# ruff: noqa: T201 # printing is what an example is for

import argparse
import os
import uuid
from pathlib import Path

from client import LeadkeepClient, LeadkeepError
from leadkeep.v1 import lead_service_pb2 as pb


def run(client: LeadkeepClient) -> None:
    """Make the calls."""
    number = uuid.uuid4().int
    lead = pb.Lead(
        name="Anika Rahman",
        phone=f"+88017{number % 10**8:08d}",
        nid=f"19{number % 10**11:011d}",
        address="12 Lake Road, Dhaka",
        interested_policy="Term Life 20-Year",
        conversation_id=f"python-{uuid.uuid4()}",
    )
    # The idempotency key: made when the customer confirms, before the first attempt, and kept until it is answered.
    submission = pb.CreateLeadRequest(lead=lead, request_id=str(uuid.uuid4()), locale="bn-BD, en")
    created = client.call(client.leads.CreateLead, submission)
    print("created ", created.id, pb.SaveState.Name(created.state), created.confirmation.reference)

    repeated = client.call(client.leads.CreateLead, submission)
    print("repeated", repeated.id, "is_repeat" if repeated.is_repeat else "ANOTHER LEAD")

    read = pb.GetLeadRequest(id=created.id, view=pb.LEAD_VIEW_MASKED)
    found = client.call(client.leads.GetLead, read).lead
    print("read    ", found.id, pb.LeadStatus.Name(found.status), "masked:", ",".join(found.masked_fields))

    known = pb.CreateLeadRequest(lead=lead, request_id=str(uuid.uuid4()))
    invalid = pb.CreateLeadRequest(lead=pb.Lead(name="Anika Rahman", phone="12"), request_id=str(uuid.uuid4()))
    for mistake in (known, invalid):
        try:
            client.call(client.leads.CreateLead, mistake)
        except LeadkeepError as error:
            print("refused ", error, error.metadata.get("fields", ""), "repeat" if error.repeat else "do not repeat")
            for field, reason in error.violations:
                print("        ", field, reason)


def connect() -> LeadkeepClient:
    """Make the client that the arguments describe."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", default="127.0.0.1:50051", help="host:port of the service")
    parser.add_argument("--token-file", type=Path, help="file with the token; without, LEADKEEP_TOKEN")
    parser.add_argument("--ca", type=Path, help="certificate of the service's authority: TLS")
    parser.add_argument("--cert", type=Path, help="your certificate, for mutual TLS")
    parser.add_argument("--key", type=Path, help="its key")
    given = parser.parse_args()

    def token() -> str:
        return given.token_file.read_text().strip() if given.token_file else os.environ["LEADKEEP_TOKEN"]

    return LeadkeepClient(given.address, token, given.ca, given.cert, given.key)


if __name__ == "__main__":
    with connect() as opened:
        run(opened)
