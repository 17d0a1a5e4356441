"""Calls for the tests: a line `NUMBER create PHONE NID` or `NUMBER read ID`, an answer `NUMBER CODE REASON ID`."""

import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

from client import LeadkeepClient, LeadkeepError
from example import connect
from leadkeep.v1 import lead_service_pb2 as pb


def make(client: LeadkeepClient, what: list[str]) -> str:
    """The id of the lead."""
    if what[0] == "read":
        request = pb.GetLeadRequest(id=what[1], view=pb.LEAD_VIEW_MASKED)
        return client.call(client.leads.GetLead, request).lead.id
    lead = pb.Lead(
        name="Anika Rahman", phone=what[1], nid=what[2], address="12 Lake Road", interested_policy="Term Life"
    )
    submission = pb.CreateLeadRequest(lead=lead, request_id=str(uuid.uuid4()))
    return client.call(client.leads.CreateLead, submission).id


def answer(client: LeadkeepClient, line: str) -> None:
    """Make the call of a line."""
    number, *what = line.split()
    try:
        written = f"{number} OK - {make(client, what)}\n"
    except LeadkeepError as error:
        written = f"{number} {error.code.name} {error.reason or '-'} -\n"
    sys.stdout.write(written)
    sys.stdout.flush()


with connect() as opened, ThreadPoolExecutor(32) as pool:
    for asked in sys.stdin:
        pool.submit(answer, opened, asked)
