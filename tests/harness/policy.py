"""What clients/policy offers, as a Python client uses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "clients" / "policy"

RETRY_POLICY = (FOLDER / "retry_policy.json").read_text()

CHANNEL: dict[str, dict[str, Any]] = json.loads((FOLDER / "channel.json").read_text())
"""Options of a channel, by language."""

PYTHON_OPTIONS: list[tuple[str, Any]] = [("grpc.service_config", RETRY_POLICY), *CHANNEL["python"].items()]
