"""Saves a lead by a route, and reads it by Connect, with the client that openapi-python-client makes."""

import json
import os
from uuid import uuid4

from leadkeep_client import AuthenticatedClient
from leadkeep_client.api.lead_service import lead_service_get_lead
from leadkeep_client.api.routes import create_lead, get_lead, list_leads
from leadkeep_client.models import CreateLeadResponse, GetLeadRequest, GetLeadResponse, LeadSubmission, Problem

with AuthenticatedClient(base_url=os.environ["LEADKEEP_URL"], token=os.environ["LEADKEEP_TOKEN"]) as client:
    lead = LeadSubmission.from_dict(json.loads(os.environ["LEAD"]))
    created = create_lead.sync(client=client, body=lead, idempotency_key=str(uuid4()), request_timeout="15")
    assert isinstance(created, CreateLeadResponse), created

    shown = lead_service_get_lead.sync(client=client, body=GetLeadRequest(id=created.id))
    assert isinstance(shown, GetLeadResponse), shown

    listed = list_leads.sync(client=client, statuses=[shown.lead.status], page_size=1)
    refused = get_lead.sync(id=uuid4(), client=client)
    assert isinstance(refused, Problem)
    print(
        json.dumps(
            {
                "id": str(shown.lead.id),
                "state": created.state,
                "status": shown.lead.status,
                "day": shown.lead.created_at.year > 0,
                "found": len(listed.leads),
                "refused": refused.reason,
            }
        )
    )
