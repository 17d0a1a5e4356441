"""The public keys that verify tokens: a JSON Web Key Set (RFC 7517) in a file, or at the issuer's URL.

The algorithms come from the key, never from the token (RFC 8725, 3.1). Whatever cannot safely verify is left out
and named in `KeySet.ignored`: one odd key of an issuer must not take its good keys away.

Both sources keep their last good keys when the file or the issuer fails: an outage of the issuer must not become an
outage of this service. A key set without any usable key counts as such a failure; to cut off every token at once,
restart the service. (The third source, the local signing key, is in `local_key.py`.)
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK, PyJWTError

from service.errors import KeysUnavailableError, StartRefusedError, TokenInvalidError
from service.rpc.tokens.verifier import KEY_ALGORITHMS, PublicKey

FILE_CHECK_SECONDS = 2.0
"""A changed file is noticed this soon; to read it for each call would be a waste."""

REFRESH_SECONDS = 600.0
"""How long fetched keys are taken as fresh: a removed key is trusted for this long, and a minute of memory."""

FETCH_PAUSE_SECONDS = 60.0
"""Anyone can invent key ids: however many there are, the issuer is asked once in this time."""

FIRST_KEYS_PAUSE_SECONDS = 5.0
"""The same while there are no keys at all: then every call waits for the issuer to come back."""

FETCH_TIMEOUT_SECONDS = 5.0
"""For the whole fetch: connection, head and body."""

CUT_SECONDS = 0.25
"""How often a fetch is ended that went beyond its time."""

MOST_WAITING = 64
"""Calls that wait for a fetch at the same time; further ones are asked to retry. Each takes one of
LEADKEEP_MAX_CONCURRENT_CALLS, and anyone can make calls wait by inventing key ids."""

RETRY_SECONDS = 1.0
"""Within which a fetch commonly ends."""

MAX_JWKS_BYTES = 256 * 1024
"""Large issuers publish about 20 KiB; what is far beyond is not a key set."""

MIN_RSA_BITS = 2048
"""RFC 7518, 3.3 and 3.5."""

_P25519 = 2**255 - 19
_Y_OF_ORDER_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
SMALL_ORDER_Y = frozenset({0, 1, _P25519 - 1, _Y_OF_ORDER_8, _P25519 - _Y_OF_ORDER_8})
"""The y coordinates of Ed25519's points of small order. Anyone can sign for such a key, without a private half."""

_log = structlog.get_logger("leadkeep.tokens")


class JwksError(Exception):
    """The document is not a key set that could verify a token; the text gives the reason without its content."""


@dataclass(frozen=True, slots=True)
class KeySet:
    """The usable keys of a key set; `ignored` names the others, each with the reason."""

    keys: tuple[PublicKey, ...]
    ignored: tuple[str, ...] = ()

    def find(self, kid: str | None) -> PublicKey | None:
        """The key that a token means; a token without `kid` means the only key, where there is only one."""
        if kid is None:
            return self.keys[0] if len(self.keys) == 1 else None
        return next((key for key in self.keys if key.kid == kid), None)


def read_jwks(document: bytes) -> KeySet:
    """The keys of a JWKS document. Raises JwksError when it holds none that could verify a token."""
    if len(document) > MAX_JWKS_BYTES:
        raise JwksError(f"it is larger than {MAX_JWKS_BYTES // 1024} KiB")
    try:
        parsed = json.loads(document)
    except (ValueError, RecursionError):
        raise JwksError("it is not JSON") from None
    entries = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(entries, list):
        raise JwksError('it is not a JSON Web Key Set: an object with a list "keys"')
    keys: list[PublicKey] = []
    ignored: list[str] = []
    for position, entry in enumerate(entries, start=1):
        try:
            key = _read_key(entry)
        except JwksError as why:
            ignored.append(f"key {position}: {why}")
            continue
        if key.kid is not None and any(key.kid == other.kid for other in keys):
            ignored.append(f"key {position}: an earlier key has the same kid")
        else:
            keys.append(key)
    if not keys:
        raise JwksError("; ".join(["it holds no usable key", *ignored]))
    return KeySet(tuple(keys), tuple(ignored))


def _read_key(entry: Any) -> PublicKey:
    if not isinstance(entry, dict):
        raise JwksError("not an object")
    kid = entry.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise JwksError("its kid is not a string")
    if entry.get("kty") == "oct":
        raise JwksError("a shared secret (kty oct) could also sign; only public keys are used")
    if "d" in entry:
        raise JwksError("it holds a private key; publish the public half of a new one")
    operations = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        raise JwksError("it is not meant for signatures")
    kind = " ".join(str(entry[name]) for name in ("kty", "crv") if name in entry)
    if kind not in KEY_ALGORITHMS:
        raise JwksError("its type or curve is not supported")
    algorithms = tuple(name for name in KEY_ALGORITHMS[kind] if name == entry.get("alg", name))
    if not algorithms:
        raise JwksError("its alg does not fit its type, or is not for signatures")
    try:
        material = PyJWK(entry, algorithms[0]).key
    except (PyJWTError, ValueError, UnsupportedAlgorithm):
        raise JwksError("it is damaged") from None
    if isinstance(material, RSAPublicKey) and material.key_size < MIN_RSA_BITS:
        raise JwksError(f"RSA below {MIN_RSA_BITS} bits")
    if isinstance(material, Ed25519PublicKey) and _is_of_small_order(material):
        raise JwksError("a point of small order: anyone could sign for it")
    return PublicKey(kid, material, algorithms)


def _is_of_small_order(key: Ed25519PublicKey) -> bool:
    # The highest bit is the sign of x. The rest may be written beyond p, so that one point has two encodings.
    y = int.from_bytes(key.public_bytes_raw(), "little") % 2**255
    return y % _P25519 in SMALL_ORDER_Y


class _LastGoodKeys:
    """The last usable key set of a source. A failure of the source is logged once and leaves the keys as they are."""

    def __init__(self, source: str, failure_event: str) -> None:
        self._source = source
        self._failure_event = failure_event
        self._failing = False
        self.set: KeySet | None = None

    def key(self, kid: str | None) -> PublicKey:
        """See KeySource."""
        if self.set is None:
            raise KeysUnavailableError(retry_after=FIRST_KEYS_PAUSE_SECONDS)
        key = self.set.find(kid)
        if key is None:
            raise TokenInvalidError
        return key

    def load(self, read_document: Callable[[], bytes]) -> None:
        """Take the keys of a document. Raises JwksError and what `read_document` raises."""
        keys = read_jwks(read_document())
        if keys.ignored and (self.set is None or self.set.ignored != keys.ignored):
            _log.warning("keys_ignored", source=self._source, why=keys.ignored)
        self.set, self._failing = keys, False

    def refresh(self, read_document: Callable[[], bytes]) -> None:
        """Take the keys of a document; keep the last ones when there are none in it."""
        try:
            self.load(read_document)
        except (OSError, http.client.HTTPException, JwksError) as error:
            if not self._failing:
                _log.warning(self._failure_event, source=self._source, why=_why(error))
            self._failing = True


class JwksFile:
    """The keys of a JWKS file, read again while it is used (also through a swapped link, as Kubernetes does).

    The constructor reads the file and raises StartRefusedError when it has no usable keys. A file that breaks
    later is logged once, and the keys of before stay in use. `clock` is monotonic seconds.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._check_at = clock() + FILE_CHECK_SECONDS
        self._keys = _LastGoodKeys(str(path), "key_set_unreadable")
        try:
            self._keys.load(self._read)
        except (OSError, JwksError) as error:
            raise StartRefusedError(f"LEADKEEP_AUTH_JWKS: the key set {path} cannot be used: {_why(error)}") from None

    async def key(self, kid: str | None) -> PublicKey:
        """See KeySource."""
        now = self._clock()
        if now >= self._check_at:
            self._check_at = now + FILE_CHECK_SECONDS
            await asyncio.to_thread(self._keys.refresh, self._read)
        return self._keys.key(kid)

    def _read(self) -> bytes:
        with self._path.open("rb") as file:
            return file.read(MAX_JWKS_BYTES + 1)


class JwksUrl:
    """The keys that an issuer publishes, fetched when first needed and refreshed behind the calls.

    An unknown key id fetches them once more, within one fetch a minute for all; calls that need the same fetch
    wait for it together, MOST_WAITING at most. A token whose key is known never waits. The settings refuse a URL that
    others on the way could forge. `clock` gives monotonic seconds.

    PyJWT's own client does not do: it forgets its keys when the issuer fails, fetches for every unknown key id, and
    follows redirects.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._name = urlsplit(url).hostname or ""  # for the log: the rest of a URL may hold a secret
        # The environment's proxy cannot reach this machine's own addresses.
        direct = [urllib.request.ProxyHandler({})] if self._name in {"localhost", "127.0.0.1", "::1"} else []
        self._connections = _Connections()
        self._opener = urllib.request.build_opener(_NoRedirects(), self._connections, *direct)
        self._clock = clock
        self._keys = _LastGoodKeys(self._name, "key_set_unreachable")
        self._fetched_at = 0.0
        self._fetch_at = clock()
        self._fetching: asyncio.Task[None] | None = None
        self._waiting = 0

    async def key(self, kid: str | None) -> PublicKey:
        """See KeySource."""
        if self._keys.set is None or self._keys.set.find(kid) is None:
            fetch = self._begin_fetch()
            if fetch is not None:
                await self._wait_for(fetch)
        elif self._clock() >= self._fetched_at + REFRESH_SECONDS:
            self._begin_fetch()
        return self._keys.key(kid)

    async def _wait_for(self, fetch: asyncio.Task[None]) -> None:
        if self._waiting >= MOST_WAITING:
            raise KeysUnavailableError(retry_after=RETRY_SECONDS)
        self._waiting += 1
        try:
            # A caller that hangs up does not take the fetch away from the others.
            await asyncio.wait({fetch}, timeout=FETCH_TIMEOUT_SECONDS)
        finally:
            self._waiting -= 1

    def _begin_fetch(self) -> asyncio.Task[None] | None:
        """The fetch that is under way or may begin now; None when the issuer was asked too recently."""
        if self._fetching is None and self._clock() >= self._fetch_at:
            self._fetching = asyncio.create_task(self._fetch(), name="jwks-fetch")
        return self._fetching

    async def _fetch(self) -> None:
        before = self._keys.set
        refresh = asyncio.ensure_future(asyncio.to_thread(self._keys.refresh, self._download))
        try:
            await asyncio.wait({refresh}, timeout=FETCH_TIMEOUT_SECONDS)
            while not refresh.done():
                self._connections.cut()
                # The next address of the host may be tried now.
                await asyncio.wait({refresh}, timeout=CUT_SECONDS)
            await refresh
        finally:
            if self._keys.set is not before:
                self._fetched_at = self._clock()
            pause = FIRST_KEYS_PAUSE_SECONDS if self._keys.set is None else FETCH_PAUSE_SECONDS
            self._fetch_at = self._clock() + pause
            self._fetching = None

    def _download(self) -> bytes:
        give_up_at = time.monotonic() + FETCH_TIMEOUT_SECONDS
        body = bytearray()
        with (
            contextlib.closing(self._connections),
            self._opener.open(self._url, timeout=FETCH_TIMEOUT_SECONDS) as response,
        ):
            # The timeout above is for each read; an answer that trickles in must end too.
            while chunk := response.read1(MAX_JWKS_BYTES):
                body += chunk
                if len(body) > MAX_JWKS_BYTES or time.monotonic() > give_up_at:
                    raise JwksError("the answer is too large or too slow")
        return bytes(body)


class _Connections(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens the connection of a fetch. urllib bounds each read of it, and neither a TLS handshake nor a whole head."""

    def __init__(self) -> None:
        super().__init__()
        self._changing = threading.Lock()
        self._last: socket.socket | None = None
        """A second descriptor of the connection: a TLS handshake takes the first one away from its object."""

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """Send a request over http."""
        return self._open(http.client.HTTPConnection, request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """Send a request over https."""
        return self._open(http.client.HTTPSConnection, request)

    def cut(self) -> None:
        """End the connection that was opened last, whatever it waits for. Called from another thread."""
        with self._changing, contextlib.suppress(OSError):
            if self._last is not None:
                self._last.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close what was kept of the connection."""
        with self._changing:
            if self._last is not None:
                self._last.close()
            self._last = None

    def _connect(self, *arguments: Any) -> socket.socket:
        made = socket.create_connection(*arguments)
        self.close()
        with self._changing:
            self._last = made.dup()
        return made

    def _open(
        self, kind: type[http.client.HTTPConnection], request: urllib.request.Request
    ) -> http.client.HTTPResponse:
        def connection(*arguments: Any, **options: Any) -> http.client.HTTPConnection:
            made = kind(*arguments, **options)
            made._create_connection = self._connect  # type: ignore[attr-defined] # noqa: SLF001 # there is no other way
            return made

        return self.do_open(connection, request)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could lead to plain http, or into this network: the URL must be the key set's own."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        """Follow none: urllib then raises the answer as an HTTPError."""


def _why(error: Exception) -> str:
    """An error in words that hold neither a URL nor what a server answered."""
    if isinstance(error, urllib.error.HTTPError):
        return f"status {error.code}"
    if isinstance(error, urllib.error.URLError):
        return f"no connection ({type(error.reason).__name__})"
    if isinstance(error, JwksError):
        return str(error)
    return getattr(error, "strerror", None) or type(error).__name__
