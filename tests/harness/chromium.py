"""Pages in Debian's Chromium, driven by its chromedriver over WebDriver (a W3C standard: JSON over HTTP)."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")

PATIENCE = 60
"""Seconds for what happens in a page: only a fault exceeds them."""

_ARGUMENTS = (
    "headless=new",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "disable-dev-shm-usage",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "window-size=1100,820",
)
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Page:
    """The one tab of a browser."""

    def __init__(self, session: httpx.Client) -> None:
        self._session = session

    def open(self, url: str) -> None:
        """Load a page in place of the current one."""
        self._post("url", url=url)

    def run(self, script: str, *arguments: object) -> Any:
        """What the body of a function in JavaScript returns."""
        return self._post("execute/sync", script=script, args=arguments)

    def click(self, selector: str) -> None:
        """Click an element, as a person does: one that is covered or invisible fails."""
        self._post(f"element/{self._found(selector)}/click")

    def enter(self, fields: Mapping[str, str]) -> None:
        """Type into empty fields, by selector."""
        for selector, text in fields.items():
            self._post(f"element/{self._found(selector)}/value", text=text)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a list."""
        self.click(f'{selector} option[value="{value}"]')

    def text(self, selector: str) -> str:
        """The text of an element."""
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def wait_for_text(self, selector: str, pattern: str) -> str:
        """The text of an element, once `pattern` is found in it. Raises AssertionError."""
        deadline = time.monotonic() + PATIENCE
        while not re.search(pattern, text := self.text(selector)):
            assert time.monotonic() < deadline, f"{selector}: {self.run('return document.body.innerText')}"
            time.sleep(0.02)
        return text

    def log(self, kind: str) -> list[dict[str, Any]]:
        """What was logged since the last look: of the `browser` (the console), or `performance` (the network)."""
        entries = self._post("se/log", type=kind)
        return [json.loads(entry["message"])["message"] if kind == "performance" else entry for entry in entries]

    def screenshot(self) -> bytes:
        """A PNG of what is visible."""
        return base64.b64decode(self._session.get("screenshot").raise_for_status().json()["value"])

    def _found(self, selector: str) -> str:
        return str(self._post("element", using="css selector", value=selector)[_ELEMENT])

    def _post(self, path: str, **parameters: object) -> Any:
        response = self._session.post(path, json=parameters)
        assert response.is_success, response.text
        return response.json()["value"]


@contextmanager
def chromium() -> Iterator[Page]:
    """A browser without a past."""
    with TemporaryDirectory() as profile, _driver() as url, httpx.Client(base_url=url, timeout=2 * PATIENCE) as driver:
        options = {
            "binary": CHROMIUM,
            "args": [f"--{argument}" for argument in (*_ARGUMENTS, f"user-data-dir={profile}")],
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        made = driver.post("session", json={"capabilities": {"alwaysMatch": wanted}})
        assert made.is_success, made.text
        session = f"session/{made.json()['value']['sessionId']}"
        try:
            with httpx.Client(base_url=f"{url}/{session}/", timeout=2 * PATIENCE) as client:
                # An element is waited for until it is there.
                client.post("timeouts", json={"implicit": PATIENCE * 1000}).raise_for_status()
                yield Page(client)
        finally:
            driver.delete(session)


@contextmanager
def _driver() -> Iterator[str]:
    assert CHROMEDRIVER
    with subprocess.Popen([CHROMEDRIVER, "--port=0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            port = next(filter(None, (re.search(r"successfully on port (\d+)", line) for line in process.stdout)))[1]
            # What it writes later must not fill the pipe.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


class Site:
    """A web server that delivers a folder, at an origin of its own."""

    def __init__(self, folder: Path) -> None:
        handler = partial(_Files, directory=str(folder))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        # Another name of the same address: pages of it have another origin than the service by name, too.
        self.origin = f"http://localhost:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Close its socket."""
        self._server.shutdown()
        self._server.server_close()


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing: a test fails by what it sees."""
