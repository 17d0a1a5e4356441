"""The key set of an issuer: how often it is fetched, and what an outage or a forged answer changes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from structlog.testing import capture_logs

from service.errors import KeysUnavailableError, TokenInvalidError
from service.rpc.tokens import jwks
from service.rpc.tokens.jwks import (
    FETCH_PAUSE_SECONDS,
    FIRST_KEYS_PAUSE_SECONDS,
    MOST_WAITING,
    REFRESH_SECONDS,
    JwksUrl,
)
from service.rpc.tokens.verifier import TokenRules, TokenVerifier
from tests.harness.processes import until
from tests.rpc.tokens.signing import (
    AUDIENCE,
    EC_JWK,
    EC_KEY,
    ED_JWK,
    ISSUER,
    Clock,
    base64url,
    document,
    refused,
    signed,
)


class Issuer(ThreadingHTTPServer):
    """An issuer on this machine: what it answers, and how often it was asked."""

    def __init__(self) -> None:
        self.body = document(ED_JWK)
        self.status = 200
        self.headers: dict[str, str] = {}
        self.requests: list[str] = []
        self.tail: tuple[bytes, int, float] | None = None  # a chunk that follows, how often, the pause between
        self.tail_was_read = False
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.head_never_ends = False
        super().__init__(("127.0.0.1", 0), _Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/jwks"


class _Answer(BaseHTTPRequestHandler):
    server: Issuer

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self.server.may_answer.wait(10)
        with contextlib.suppress(ConnectionError):  # who asked may wait no longer
            self._answer()

    def _answer(self) -> None:
        if self.server.head_never_ends:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while self.server.head_never_ends:
                self.wfile.write(b"a")
                time.sleep(0.01)
            return
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.body)
        if self.server.tail is not None:
            chunk, times, pause = self.server.tail
            for _ in range(times):
                self.wfile.write(chunk)
                time.sleep(pause)
            self.server.tail_was_read = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.may_answer.set()
        server.head_never_ends = False
        server.shutdown()


async def asked(issuer: Issuer, times: int) -> None:
    """Wait until the issuer was asked so often: a refresh runs behind the calls."""
    await until(lambda: len(issuer.requests) >= times)


async def fetch_ended() -> None:
    """Wait until no fetch is under way."""
    await until(lambda: not any(task.get_name() == "jwks-fetch" for task in asyncio.all_tasks()))


async def test_keys_are_fetched_once_and_kept(issuer: Issuer, clock: Clock) -> None:
    source = JwksUrl(issuer.url, clock=clock)
    for _ in range(10):
        assert (await source.key("ed")).kid == "ed"
        clock.now += 50
    assert len(issuer.requests) == 1


async def test_calls_at_the_same_time_share_one_fetch(issuer: Issuer, clock: Clock) -> None:
    source = JwksUrl(issuer.url, clock=clock)
    keys = await asyncio.gather(*(source.key("ed") for _ in range(50)))
    assert len(keys) == 50
    assert len(issuer.requests) == 1


async def test_caller_that_hangs_up_leaves_the_fetch_to_the_others(issuer: Issuer, clock: Clock) -> None:
    issuer.may_answer.clear()
    source = JwksUrl(issuer.url, clock=clock)
    impatient, patient = (asyncio.create_task(source.key("ed")) for _ in range(2))
    await asked(issuer, 1)
    impatient.cancel()
    issuer.may_answer.set()
    assert (await patient).kid == "ed"
    assert len(issuer.requests) == 1


async def test_10000_unknown_kids_make_one_fetch_a_minute(issuer: Issuer, clock: Clock) -> None:
    source = JwksUrl(issuer.url, clock=clock)
    await source.key("ed")
    for minute in range(2):
        clock.now += FETCH_PAUSE_SECONDS
        answers = await asyncio.gather(
            *(source.key(f"invented-{minute}-{number}") for number in range(5000)), return_exceptions=True
        )
        assert {type(answer) for answer in answers} == {TokenInvalidError, KeysUnavailableError}
        assert len(issuer.requests) == minute + 2


async def test_10000_tokens_with_unknown_kids_make_one_fetch(issuer: Issuer, clock: Clock) -> None:
    verifier = TokenVerifier(JwksUrl(issuer.url, clock=clock), TokenRules(ISSUER, AUDIENCE), clock=clock)
    rest = signed().partition(".")[2]
    for number in range(10_000):
        header = base64url(json.dumps({"alg": "EdDSA", "kid": f"k{number}"}).encode())
        await refused(verifier, f"{header}.{rest}")
    assert len(issuer.requests) == 1


async def test_new_key_of_the_issuer_is_accepted_after_one_more_fetch(issuer: Issuer, clock: Clock) -> None:
    verifier = TokenVerifier(JwksUrl(issuer.url, clock=clock), TokenRules(ISSUER, AUDIENCE), clock=clock)
    await verifier.verify(signed())
    issuer.body = document(ED_JWK, EC_JWK)
    clock.now += FETCH_PAUSE_SECONDS
    token = signed(key=EC_KEY, algorithm="ES256", headers={"kid": "ec"})
    assert (await verifier.verify(token)).subject == "chatbot"


async def test_removed_key_is_refused_after_the_refresh(issuer: Issuer, clock: Clock) -> None:
    source = JwksUrl(issuer.url, clock=clock)
    await source.key("ed")
    issuer.body = document(EC_JWK)
    clock.now += REFRESH_SECONDS
    assert (await source.key("ed")).kid == "ed"  # the refresh runs behind this call
    with pytest.raises(TokenInvalidError):
        await source.key("another")  # waits for the same refresh
    with pytest.raises(TokenInvalidError):
        await source.key("ed")
    assert len(issuer.requests) == 2


@pytest.mark.parametrize(("status", "body"), [(500, b""), (200, b"{"), (200, document()), (404, document(EC_JWK))])
async def test_failing_issuer_leaves_the_old_keys(issuer: Issuer, clock: Clock, status: int, body: bytes) -> None:
    source = JwksUrl(issuer.url, clock=clock)
    await source.key("ed")
    issuer.status, issuer.body = status, body
    with capture_logs() as logs:
        for _ in range(3):
            clock.now += REFRESH_SECONDS
            with pytest.raises(TokenInvalidError):
                await source.key("another")
            assert (await source.key("ed")).kid == "ed"
    assert [entry["event"] for entry in logs] == ["key_set_unreachable"]


async def test_failed_refresh_is_repeated_once_a_minute(issuer: Issuer, clock: Clock) -> None:
    source = JwksUrl(issuer.url, clock=clock)
    await source.key("ed")
    issuer.status = 500
    clock.now += REFRESH_SECONDS
    with pytest.raises(TokenInvalidError):
        await source.key("another")
    for _ in range(100):
        await source.key("ed")
    assert len(issuer.requests) == 2
    clock.now += FETCH_PAUSE_SECONDS
    await source.key("ed")
    await asked(issuer, 3)


async def test_issuer_that_was_never_reached_makes_the_call_repeatable(issuer: Issuer, clock: Clock) -> None:
    issuer.status = 503
    source = JwksUrl(issuer.url, clock=clock)
    for _ in range(100):
        with pytest.raises(KeysUnavailableError):
            await source.key("ed")
    assert len(issuer.requests) == 1
    issuer.status = 200
    clock.now += FIRST_KEYS_PAUSE_SECONDS
    assert (await source.key("ed")).kid == "ed"


async def test_issuer_that_does_not_listen_makes_the_call_repeatable(issuer: Issuer, clock: Clock) -> None:
    source = JwksUrl("http://127.0.0.1:9/jwks?key=s3cret", clock=clock)
    with capture_logs() as logs, pytest.raises(KeysUnavailableError):
        await source.key("ed")
    assert "s3cret" not in repr(logs)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_is_not_followed(issuer: Issuer, clock: Clock, status: int) -> None:
    issuer.status = status
    issuer.headers = {"Location": f"{issuer.url}/elsewhere"}
    with pytest.raises(KeysUnavailableError):
        await JwksUrl(issuer.url, clock=clock).key("ed")
    assert issuer.requests == ["/jwks"]


async def test_answer_that_is_too_large_is_not_read_to_its_end(issuer: Issuer, clock: Clock) -> None:
    issuer.tail = (b" " * 65536, 1000, 0)
    with pytest.raises(KeysUnavailableError):
        await JwksUrl(issuer.url, clock=clock).key("ed")
    assert not issuer.tail_was_read


async def test_answer_that_trickles_in_is_given_up(
    issuer: Issuer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_SECONDS", 0.2)
    issuer.tail = (b" ", 300, 0.01)
    with pytest.raises(KeysUnavailableError):
        await JwksUrl(issuer.url, clock=clock).key("ed")


async def test_issuer_that_does_not_answer_is_given_up(
    issuer: Issuer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_SECONDS", 0.05)
    issuer.may_answer.clear()
    with pytest.raises(KeysUnavailableError):
        await JwksUrl(issuer.url, clock=clock).key("ed")


async def test_head_that_trickles_in_is_given_up_and_the_issuer_is_asked_again(
    issuer: Issuer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_SECONDS", 0.2)
    issuer.head_never_ends = True
    source = JwksUrl(issuer.url, clock=clock)
    with pytest.raises(KeysUnavailableError):
        await asyncio.wait_for(source.key("ed"), 20)
    issuer.head_never_ends = False
    await fetch_ended()  # then the pause begins
    monkeypatch.undo()
    clock.now += FIRST_KEYS_PAUSE_SECONDS
    assert (await source.key("ed")).kid == "ed"


async def test_good_key_is_answered_at_once_and_few_wait_while_a_fetch_for_invented_ones_hangs(
    issuer: Issuer, clock: Clock
) -> None:
    source = JwksUrl(issuer.url, clock=clock)
    await source.key("ed")
    clock.now += FETCH_PAUSE_SECONDS
    issuer.may_answer.clear()
    invented = [asyncio.create_task(source.key(f"invented-{number}")) for number in range(700)]
    await asked(issuer, 2)
    assert (await source.key("ed")).kid == "ed"
    answered = [task for task in invented if task.done()]
    assert len(answered) == 700 - MOST_WAITING
    assert {type(task.exception()) for task in answered} == {KeysUnavailableError}
    issuer.may_answer.set()
    waited = await asyncio.gather(*(task for task in invented if task not in answered), return_exceptions=True)
    assert {type(answer) for answer in waited} == {TokenInvalidError}
    assert len(issuer.requests) == 2


async def test_invented_key_ids_are_refused_at_once_while_the_keys_are_fresh(issuer: Issuer, clock: Clock) -> None:
    source = JwksUrl(issuer.url, clock=clock)
    await source.key("ed")
    issuer.may_answer.clear()
    for number in range(100):
        with pytest.raises(TokenInvalidError):
            await asyncio.wait_for(source.key(f"invented-{number}"), 5)
    assert len(issuer.requests) == 1


async def test_proxy_of_the_environment_is_not_asked_for_this_machine(
    issuer: Issuer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert (await JwksUrl(issuer.url, clock=clock).key("ed")).kid == "ed"


@contextlib.contextmanager
def trickling_tls() -> Iterator[int]:
    """The port of a server that accepts and sends the first message of a TLS handshake byte by byte, for ever."""
    ended = threading.Event()

    def trickle(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"\x16\x03\x03\x40\x00")  # a handshake record of 16 KiB
            while not ended.wait(0.01):
                connection.sendall(b"\x02")

    def serve() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):
                threading.Thread(target=trickle, args=[listener.accept()[0]], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            ended.set()


async def test_tls_handshake_that_trickles_in_is_given_up(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_SECONDS", 0.2)
    with trickling_tls() as port:
        source = JwksUrl(f"https://127.0.0.1:{port}/jwks", clock=clock)
        with pytest.raises(KeysUnavailableError):
            await asyncio.wait_for(source.key("ed"), 20)
        await asyncio.wait_for(fetch_ended(), 20)


async def test_host_with_several_addresses_that_trickles_at_a_later_one_is_given_up(
    issuer: Issuer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_SECONDS", 0.3)
    issuer.head_never_ends = True
    with silent_port() as silent:
        of_host = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
            for port in (silent, silent, issuer.server_port)
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: of_host)
        source = JwksUrl(issuer.url, clock=clock)
        with pytest.raises(KeysUnavailableError):
            await asyncio.wait_for(source.key("ed"), 20)
        await asyncio.wait_for(fetch_ended(), 20)


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port on which no connection is refused or made: the queue of those that wait is full."""
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield int(listener.getsockname()[1])
