"""The service's log: one JSON object a line, whatever is told."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import structlog
from service.log import configure_logging

configure_logging("info")
log = structlog.get_logger()
log.info("name", name="করিম উদ্দিন")
log.info("path", path="keyring-\\udcff.json")
log.info("object", value=object)
"""


def test_every_line_is_an_object_whatever_it_tells() -> None:
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, encoding="utf-8", check=True).stderr
    name, path, value = (json.loads(line) for line in said.splitlines())
    assert name["name"] == "করিম উদ্দিন"
    assert path["path"] == "keyring-\udcff.json"
    assert value["value"] == "<class 'object'>"


def test_letters_of_any_script_stay_readable() -> None:
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, encoding="utf-8", check=True).stderr
    assert "করিম উদ্দিন" in said
