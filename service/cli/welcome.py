"""What a newcomer needs next, printed when the service is ready."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from datetime import timedelta
from pathlib import Path

from service.access import ROLES
from service.config import Settings
from service.rpc.local_key import LocalSigningKey

FIRST_TOKEN_LIFE = timedelta(hours=1)

EXAMPLE = {
    "name": "John Doe",
    "phone": "+1234567890",
    "nid": "123456789",
    "address": "123 Main St, City, Country",
    "interested_policy": "Term Life 20-Year",
    "email": "john@example.com",
}
"""The story's own example (US-013)."""


def welcome(settings: Settings, grpc_port: int, http_port: int, *, first: bool, now: float) -> str:
    """Where the endpoints are; on the first start, calls that can be pasted, with a token."""
    grpc = settings.grpc_address.reachable(grpc_port)
    http = settings.http_address.reachable(http_port)
    secure = settings.tls_cert is not None
    scheme = "https" if secure else "http"
    lines = [f"Leadkeep is ready: gRPC on {grpc}, JSON on {scheme}://{http}"]
    if not first:
        return "\n".join(lines)
    key = LocalSigningKey.load_or_create(settings.signing_key_path)
    token = key.issue("chatbot", ROLES["chatbot"], FIRST_TOKEN_LIFE, now=now)
    header = f"authorization: Bearer {token}"
    lead = json.dumps(EXAMPLE)
    request = json.dumps({"lead": {**EXAMPLE, "phone": "+1234567891", "nid": "123456790"}})
    grpcurl = ["grpcurl", *([] if secure else ["-plaintext"]), "-H", header, "-d", request, grpc]
    curl = ["curl", "-H", header, "-H", "content-type: application/json", "-d", lead, f"{scheme}://{http}/api/leads/"]
    lines += [
        "",
        "Create a lead as a chatbot (this token is good for an hour):",
        "",
        shlex.join([*grpcurl, "leadkeep.v1.LeadService/CreateLead"]),
        "",
        shlex.join(curl),
        "",
        f"More tokens, in another terminal: {_command()} token --role agent (or admin, chatbot)",
    ]
    return "\n".join(lines)


def _command() -> str:
    """The command as it can be pasted: in a clone it is not on the PATH."""
    beside = Path(sys.executable).with_name("leadkeep")
    return shlex.quote(str(beside)) if beside.exists() and shutil.which("leadkeep") is None else "leadkeep"
