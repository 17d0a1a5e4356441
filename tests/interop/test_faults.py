"""What the clients of the examples do while the service restarts, refuses connections, or has no database.

FAULTS=whole (`make interop`) restarts under 16 callers of one language at a time, refuses for 1, 3, 6 and 9 seconds,
and holds the answers to the times that docs/clients.md names.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.conftest import StartService
from tests.faults import times
from tests.harness.certificates import Authority
from tests.harness.faults import value_of
from tests.harness.nginx import INSTALLED, Nginx
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.processes import eventually
from tests.harness.refusing_proxy import RefusingProxy
from tests.harness.running_service import RunningService
from tests.interop.build import LANGUAGES
from tests.interop.client import Answer, Client, running

WHOLE = times(0, whole=1) == 1

ANSWERED_WITHIN = 2.0 if WHOLE else 4.0
"""Seconds after the service is back. A machine that runs other tests takes longer. Without `waitForReady`, or with
gRPC's own waits in place of the reconnect settings, calls take five seconds and more."""

REFUSED_WITHIN = 1.0 if WHOLE else 8.0
"""Seconds until a read fails while the database is known to be away. A client that repeats it takes ten."""

DEADLINE = 15
"""Seconds: that of the examples."""

NAMES = [language.name for language in LANGUAGES]


@contextmanager
def connected(address: str, token_file: Path, names: list[str]) -> Iterator[dict[str, Client]]:
    """A connected client in each of these languages."""
    options = ("--address", address, "--token-file", str(token_file))
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        entering = {
            each.name: pool.submit(stack.enter_context, running(each, options))
            for each in LANGUAGES
            if each.name in names
        }
        yield {name: client.result() for name, client in entering.items()}


@pytest.fixture(scope="module")
def proxy(service: RunningService) -> Iterator[RefusingProxy]:
    with RefusingProxy(service.grpc_address) as between:
        yield between


@pytest.fixture(scope="module")
def clients(proxy: RefusingProxy, token_file: Path) -> Iterator[dict[str, Client]]:
    """A client in each language, by its name; all of them reach the service through the proxy."""
    with connected(proxy.address, token_file, NAMES) as found:
        yield found


def report(what: str, answers: dict[str, Answer]) -> None:
    for name, answer in answers.items():
        print(f"{what}: {name} {answer.code} {answer.reason} after {answer.seconds:.2f} s")  # noqa: T201 # with -s, the trial


@pytest.mark.parametrize("seconds", [3, *[1, 6, 9][: times(0, whole=3)]])
def test_a_lead_is_saved_once_and_soon_after_connections_are_accepted_again(
    clients: dict[str, Client],
    proxy: RefusingProxy,
    service: RunningService,
    service_database: TestDatabase,
    seconds: float,
) -> None:
    before, logged = leads(service_database), len(calls_in_log(service, "CreateLead"))
    with proxy.refusing():
        calls = {name: client.create() for name, client in clients.items()}
        time.sleep(seconds)
        assert {name: call.result() for name, call in calls.items() if call.done()} == {}
    answers = {name: call.result(timeout=DEADLINE + 5) for name, call in calls.items()}
    report(f"refused for {seconds} s", answers)
    assert {answer.code for answer in answers.values()} == {"OK"}
    assert {name for name, answer in answers.items() if answer.seconds > seconds + ANSWERED_WITHIN} == set()
    assert leads(service_database) == before + len(calls)
    # They waited for the connection: attempts that fail at once would be used up before a long restart is over. One may
    # have been under way when the old connection ended.
    answered = calls_in_log(service, "CreateLead")[logged:]
    assert len(answered) == len(calls)
    assert {call["retries"] for call in answered} <= {0, 1}


def test_a_call_that_begins_as_its_connection_ends_is_repeated(
    clients: dict[str, Client], proxy: RefusingProxy
) -> None:
    # In one of ten such moments grpc-java says UNKNOWN: channel closed (grpc-java issue 10120).
    for _ in range(times(5, whole=60)):
        with proxy.refusing():
            calls = {name: client.create() for name, client in clients.items()}
        answers = {name: call.result(timeout=DEADLINE + 5).code for name, call in calls.items()}
        assert answers == dict.fromkeys(NAMES, "OK")


def test_a_call_that_is_cut_amid_its_answer_is_repeated(
    clients: dict[str, Client], proxy: RefusingProxy, service_database: TestDatabase
) -> None:
    # A library repeats no call whose answer has begun.
    before = leads(service_database)
    proxy.answers_to_cut = len(clients)
    calls = {name: client.create() for name, client in clients.items()}
    answers = {name: call.result(timeout=DEADLINE + 5).code for name, call in calls.items()}
    assert answers == dict.fromkeys(NAMES, "OK")
    assert proxy.answers_to_cut == 0
    assert leads(service_database) == before + len(calls)


@pytest.mark.skipif(INSTALLED is None, reason="nginx is not installed")
def test_a_call_that_a_proxy_answers_with_html_is_repeated(
    service: RunningService, proxy: RefusingProxy, token_file: Path, tmp_path: Path
) -> None:
    # grpc-js repeats none of these, grpcio not always.
    with (
        Nginx(tmp_path, proxy.address, service.http_address, html=True) as nginx,
        connected(nginx.grpc_address, token_file, NAMES) as clients,
    ):
        with proxy.refusing():
            calls = {name: client.create() for name, client in clients.items()}
            time.sleep(1)
        answers = {name: call.result(timeout=DEADLINE + 5).code for name, call in calls.items()}
    assert answers == dict.fromkeys(NAMES, "OK")


def test_a_read_fails_at_once_while_the_database_is_known_to_be_away(
    clients: dict[str, Client], service: RunningService, server: TestServer
) -> None:
    lead_id = clients["python"].create().result(timeout=20).lead_id
    assert {client.read(lead_id).result(timeout=20).code for client in clients.values()} == {"OK"}
    # Each has met an error: a virtual machine loads half of gRPC for its first one.
    assert {client.read(str(uuid4())).result(timeout=20).reason for client in clients.values()} == {"LEAD_NOT_FOUND"}
    server.postgres.stop()
    try:
        assert eventually(lambda: "database_away" in service.readiness["reasons"], within=20)
        before = len(calls_in_log(service, "GetLead"))
        answers = {name: client.read(lead_id).result(timeout=20) for name, client in clients.items()}
        report("database away", answers)
        assert {(answer.code, answer.reason) for answer in answers.values()} == {("UNAVAILABLE", "STORAGE_UNAVAILABLE")}
        assert {name for name, answer in answers.items() if answer.seconds > REFUSED_WITHIN} == set()
        repeated = len(calls_in_log(service, "GetLead")) - before - len(clients)
        assert repeated == 0, "the service allowed it, or a client does not obey"

        began = time.monotonic()
        headers = dict(service.metadata("chatbot"))
        plain = httpx.get(f"{service.http_url}/api/leads/{lead_id}?view=masked", headers=headers, timeout=DEADLINE)
        assert (plain.status_code, plain.json()["reason"]) == (503, "STORAGE_UNAVAILABLE")
        assert time.monotonic() - began < REFUSED_WITHIN
    finally:
        server.postgres.start()
    assert eventually(lambda: clients["python"].read(lead_id).result(timeout=20).code == "OK", within=20)


@pytest.mark.skipif(not WHOLE, reason="four restarts; tests/faults/test_stop_under_load.py has a short one")
@pytest.mark.parametrize("name", NAMES)
def test_a_restart_fails_no_call(name: str, server: TestServer, tmp_path: Path) -> None:
    database = server.fresh_database()
    service = RunningService(tmp_path / "leadkeep", database_url=database.serve_url).start()
    service.environment["LEADKEEP_GRPC_ADDRESS"] = service.grpc_address
    token_file = tmp_path / "token"
    token_file.write_text(service.token("chatbot"))
    try:
        with connected(service.grpc_address, token_file, [name]) as found, Load(found[name], callers=16) as load:
            assert load.continues()
            stopped = time.monotonic()
            assert service.stop() == 0
            service.start()
            gap = time.monotonic() - stopped
            assert load.continues()
        slowest = max(answer.seconds for answer in load.answers)
        print(f"{name}: {len(load.answers)} calls, gap {gap:.2f} s, slowest {slowest:.2f} s")  # noqa: T201 # with -s, the trial
        assert {answer.code for answer in load.answers} == {"OK"}
        assert slowest < gap + ANSWERED_WITHIN
        assert eventually(lambda: leads(database) == len(load.answers) + 1, within=30)
    finally:
        service.stop()


@pytest.mark.skipif(not WHOLE, reason="it waits for the whole deadline")
def test_mutual_tls_without_a_certificate_looks_like_no_service(
    start_service: StartService, server: TestServer, tmp_path: Path
) -> None:
    """The trap of docs/clients.md: the policy waits for a connection that never comes."""
    authority = Authority(tmp_path, "authority")
    own = authority.issue("service")
    settings = {
        "LEADKEEP_TLS_CERT": str(own.certificate),
        "LEADKEEP_TLS_KEY": str(own.key),
        "LEADKEEP_TLS_CLIENT_CA": str(authority.path),
    }
    service = start_service(database_url=server.fresh_database().serve_url, settings=settings)
    token_file = tmp_path / "token"
    token_file.write_text(service.token("chatbot"))
    options = ("--address", service.grpc_address, "--token-file", str(token_file), "--ca", str(authority.path))
    clients = {language.name: Client(language, *options) for language in LANGUAGES}
    calls = {name: client.create() for name, client in clients.items()}
    answers = {name: call.result(timeout=DEADLINE + 15) for name, call in calls.items()}
    report("no certificate", answers)
    assert {(answer.code, answer.reason) for answer in answers.values()} == {("DEADLINE_EXCEEDED", "")}
    for client in clients.values():
        client.close()


class Load:
    """Callers who save one lead after the other until the end of the block."""

    def __init__(self, client: Client, *, callers: int) -> None:
        self._client, self._count = client, callers
        self._end = threading.Event()
        self.answers: list[Answer] = []
        """Those of all calls, in the order in which they ended."""

    def __enter__(self) -> Load:
        self._pool = ThreadPoolExecutor(self._count)
        self._callers = [self._pool.submit(self._call) for _ in range(self._count)]
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for caller in self._callers:
            caller.result(timeout=DEADLINE + 5)
        self._pool.shutdown()

    def continues(self) -> bool:
        """Wait until as many further calls as there are callers, four times over, were answered; whether they were."""
        enough = len(self.answers) + 4 * self._count
        return eventually(lambda: len(self.answers) >= enough, within=60)

    def _call(self) -> None:
        while not self._end.is_set():
            self.answers.append(self._client.create().result(timeout=DEADLINE + 5))


def leads(database: TestDatabase) -> int:
    return int(str(value_of(database.admin_url, "SELECT count(*) FROM lead")))


def calls_in_log(service: RunningService, rpc: str) -> list[dict[str, Any]]:
    """The calls of an rpc over gRPC that the service has answered. Each is logged before its answer leaves."""
    lines = (line for line in service.log().splitlines() if f'"rpc":"{rpc}","door":"grpc"' in line)
    return [json.loads(line) for line in lines]
