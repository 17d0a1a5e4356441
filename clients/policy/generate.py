"""`python -m clients.policy.generate` writes reasons.json anew, from the service's table of reasons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from google.rpc import code_pb2

from service.errors import ViolationReason
from service.http.problems import HTTP_STATUS
from service.rpc.status import DOMAIN, REASONS

GENERATED = Path(__file__).with_name("reasons.json")


def reasons() -> str:
    """The text of reasons.json: one line for each reason."""
    lines = [
        {
            "reason": reason,
            "code": code_pb2.Code.Name(rule.code),
            "http": HTTP_STATUS[rule.code],
            "repeat": rule.repeat,
            "metadata": list(rule.metadata),
        }
        for reason, rule in REASONS.items()
    ]
    listed = ",\n".join(f"    {json.dumps(line)}" for line in lines)
    violations = json.dumps(get_args(ViolationReason))
    return f'{{\n  "domain": "{DOMAIN}",\n  "reasons": [\n{listed}\n  ],\n  "violation_reasons": {violations}\n}}\n'


if __name__ == "__main__":
    GENERATED.write_text(reasons())
