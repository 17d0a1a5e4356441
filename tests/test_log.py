"""The service's log: one JSON object a line, whatever is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from service import log
from service.log import STALLED_SECONDS, LogStream

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


class TestALogThatCannotBeWritten:
    def test_a_full_disk_costs_lines_and_raises_nothing(self) -> None:
        with Path("/dev/full").open("w") as full:
            stream = LogStream(full)
            for _ in range(3):
                stream.write("{}\n")
        assert stream.lost == 3

    def test_the_next_line_that_can_be_written_follows_how_many_were_lost(self, tmp_path: Path) -> None:
        log = (tmp_path / "log").open("w+")
        kept, full = os.dup(log.fileno()), os.open("/dev/full", os.O_WRONLY)
        stream = LogStream(log)
        os.dup2(full, log.fileno())
        for _ in range(2):
            stream.write('{"event": "lost"}\n')
        os.dup2(kept, log.fileno())
        for number in range(2):
            stream.write(f'{{"event": {number}}}\n')
        lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        assert [(line["event"], line.get("lines")) for line in lines] == [
            ("log lines were lost", 2),
            (0, None),
            (1, None),
        ]

    def test_a_reader_that_has_ended_costs_lines(self) -> None:
        read_end, write_end = os.pipe()
        os.close(read_end)
        with os.fdopen(write_end, "w") as pipe:
            stream = LogStream(pipe)
            stream.write("{}\n")
        assert stream.lost == 1

    @pytest.mark.parametrize("blocking", [True, False])
    def test_a_reader_that_does_not_read_is_waited_for_once(self, blocking: bool) -> None:
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, blocking)
        with os.fdopen(read_end, "rb", buffering=0) as reader, os.fdopen(write_end, "w") as pipe:
            stream = LogStream(pipe)
            began = time.monotonic()
            # A line of more than a pipe's whole content, and many short ones.
            for line in ("x" * 100_000, *("y" * 5000 for _ in range(300))):
                stream.write(f"{line}\n")
            took = time.monotonic() - began
            assert stream.lost == 301
            assert STALLED_SECONDS <= took < STALLED_SECONDS + 5
            os.set_blocking(read_end, False)
            while reader.read(1_000_000):
                pass
            stream.write('{"event": "again"}\n')
            torn, lost, again = reader.read(1_000_000).splitlines()
        assert torn == b""
        assert json.loads(lost)["lines"] == 301
        assert json.loads(again) == {"event": "again"}

    def test_a_reader_that_pauses_costs_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(log, "STALLED_SECONDS", 20)  # a busy machine may let it pause for longer
        read_end, write_end = os.pipe()
        received = []
        with os.fdopen(read_end, "rb") as reader, os.fdopen(write_end, "w") as pipe:

            def read() -> None:
                time.sleep(0.2)
                received.extend(reader.readlines())

            reading = threading.Thread(target=read)
            reading.start()
            stream = LogStream(pipe)
            for number in range(200):
                stream.write(f"{number} {'x' * 1000}\n")
            pipe.close()
            reading.join(20)
        assert [int(line.split()[0]) for line in received] == list(range(200))
        assert stream.lost == 0
