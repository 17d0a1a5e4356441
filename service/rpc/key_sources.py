"""Where the public keys come from that verify tokens: a JWKS file, or the issuer's JWKS URL.

Both keep their last good keys when the file or the issuer fails: an outage of the issuer must not become an
outage of this service. A key set without any usable key counts as such a failure; to cut off every token at once,
restart the service. (The third source, the local signing key, is in `local_key.py`.)
"""

from __future__ import annotations

import asyncio
import http.client
import ipaddress
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import structlog

from service.errors import KeysUnavailableError, StartRefusedError, TokenInvalidError
from service.rpc.jwks import MAX_JWKS_BYTES, JwksError, KeySet, PublicKey, read_jwks

FILE_LOOK_SECONDS = 2.0
"""A changed file is noticed this soon; a stat for each call would be a waste."""

REFRESH_SECONDS = 600.0
"""How long fetched keys are taken as fresh: a removed key is trusted for this long, and a minute of memory."""

FETCH_PAUSE_SECONDS = 60.0
"""Anyone can invent key ids: however many there are, the issuer is asked once in this time."""

FIRST_KEYS_PAUSE_SECONDS = 5.0
"""The same while there are no keys at all: then every call waits for the issuer to come back."""

FETCH_TIMEOUT_SECONDS = 5.0


class KeySource(Protocol):
    """The keys that may verify a token now."""

    async def key(self, kid: str | None) -> PublicKey:
        """The key named `kid`; None means the only key of the set.

        Must raise TokenInvalidError when the set has no such key (or several, for None), and a RetryableError
        when no key set is known: then it cannot be told whether a token is good. Must not block the event loop.
        """


class JwksFile:
    """The keys of a JWKS file, read again when the file changes (also by a swapped link, as Kubernetes does).

    The constructor reads the file and raises StartRefusedError when it has no usable keys. A file that breaks
    later is reported once, and the keys of before stay in use. `clock` is monotonic seconds.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._look_at = clock() + FILE_LOOK_SECONDS
        try:
            self._seen: tuple[int, ...] | None = _state(path)
            self._keys = _read(path)
        except (OSError, JwksError) as error:
            raise StartRefusedError(f"LEADKEEP_AUTH_JWKS: the key set {path} cannot be used: {_why(error)}") from None
        _report_ignored(str(path), None, self._keys)

    async def key(self, kid: str | None) -> PublicKey:
        """See KeySource."""
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + FILE_LOOK_SECONDS
            await asyncio.to_thread(self._read_if_changed)
        return _known(self._keys, kid)

    def _read_if_changed(self) -> None:
        seen = None
        try:
            seen = _state(self._path)
            if seen == self._seen:
                return
            keys = _read(self._path)
        except (OSError, JwksError) as error:
            if seen != self._seen:
                _log().warning("key_set_unreadable", source=str(self._path), why=_why(error))
        else:
            _report_ignored(str(self._path), self._keys, keys)
            self._keys = keys
        self._seen = seen


class JwksUrl:
    """The keys that an issuer publishes, fetched when first needed and refreshed behind the calls.

    An unknown key id fetches them once more, within one fetch a minute for all; calls that need the same fetch
    wait for it together. The constructor raises StartRefusedError for a URL that others on the way could forge:
    plain http beyond this machine, unless `plaintext_allowed` says that the network is trusted. `clock` gives
    monotonic seconds.
    """

    def __init__(
        self, url: str, *, plaintext_allowed: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        parts = urlsplit(url)
        local = _is_loopback(parts.hostname)
        schemes = {"https", "http"} if local or plaintext_allowed else {"https"}
        if not parts.hostname or parts.scheme not in schemes:
            raise StartRefusedError("LEADKEEP_AUTH_JWKS: use an https:// URL (http:// only on this machine)")
        self._url = url
        self._name = parts.hostname  # for the log: the rest of a URL may hold a secret
        self._opener = _opener(direct=local)
        self._clock = clock
        self._keys: KeySet | None = None
        self._fetched_at = 0.0
        self._fetch_at = clock()
        self._fetching: asyncio.Task[None] | None = None
        self._failing = False

    async def key(self, kid: str | None) -> PublicKey:
        """See KeySource."""
        if self._keys is None or self._keys.find(kid) is None:
            fetch = self._begin_fetch()
            if fetch is not None:
                # A caller that hangs up must not take the fetch away from the others.
                await asyncio.shield(fetch)
        elif self._clock() >= self._fetched_at + REFRESH_SECONDS:
            self._begin_fetch()
        if self._keys is None:
            raise KeysUnavailableError(retry_after=FIRST_KEYS_PAUSE_SECONDS)
        return _known(self._keys, kid)

    def _begin_fetch(self) -> asyncio.Task[None] | None:
        """The fetch that is under way or may begin now; None when the issuer was asked too recently."""
        if self._fetching is None and self._clock() >= self._fetch_at:
            self._fetching = asyncio.create_task(self._fetch(), name="jwks-fetch")
        return self._fetching

    async def _fetch(self) -> None:
        try:
            keys = read_jwks(await asyncio.to_thread(self._download))
        except (OSError, http.client.HTTPException, JwksError) as error:
            if not self._failing:
                _log().warning("key_set_unreachable", source=self._name, why=_why(error))
            self._failing = True
        else:
            _report_ignored(self._name, self._keys, keys)
            self._keys, self._failing = keys, False
            self._fetched_at = self._clock()
        finally:
            pause = FIRST_KEYS_PAUSE_SECONDS if self._keys is None else FETCH_PAUSE_SECONDS
            self._fetch_at = self._clock() + pause
            self._fetching = None

    def _download(self) -> bytes:
        give_up_at = time.monotonic() + FETCH_TIMEOUT_SECONDS
        body = bytearray()
        with self._opener.open(self._url, timeout=FETCH_TIMEOUT_SECONDS) as response:
            # The timeout above is for each read; an answer that trickles in must end too.
            while chunk := response.read1(MAX_JWKS_BYTES):
                body += chunk
                if len(body) > MAX_JWKS_BYTES or time.monotonic() > give_up_at:
                    raise JwksError("the answer is too large or too slow")
        return bytes(body)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could lead to plain http, or into this network: the URL must be the key set's own."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        """Follow none: urllib then raises the answer as an HTTPError."""


def _opener(*, direct: bool) -> urllib.request.OpenerDirector:
    """An opener without redirects; `direct` also without the environment's proxy, which cannot reach loopback."""
    handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
    if direct:
        handlers.append(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener(*handlers)


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _known(keys: KeySet, kid: str | None) -> PublicKey:
    key = keys.find(kid)
    if key is None:
        raise TokenInvalidError
    return key


def _state(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size


def _read(path: Path) -> KeySet:
    with path.open("rb") as file:
        return read_jwks(file.read(MAX_JWKS_BYTES + 1))


def _why(error: Exception) -> str:
    """An error in words that hold neither a URL nor what a server answered."""
    if isinstance(error, urllib.error.HTTPError):
        return f"status {error.code}"
    if isinstance(error, urllib.error.URLError):
        return f"no connection ({type(error.reason).__name__})"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error) if isinstance(error, JwksError) else type(error).__name__


def _report_ignored(source: str, before: KeySet | None, now: KeySet) -> None:
    if now.ignored and (before is None or before.ignored != now.ignored):
        _log().warning("keys_ignored", source=source, why=now.ignored)


def _log() -> structlog.stdlib.BoundLogger:
    log: structlog.stdlib.BoundLogger = structlog.get_logger("leadkeep.tokens")
    return log
