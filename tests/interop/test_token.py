"""The clients of the examples take a renewed token: with the next call, and in the call that finds theirs expired."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from service.rpc.tokens.local_key import LocalSigningKey
from service.scopes import ROLES
from tests.harness.running_service import RunningService
from tests.interop.build import LANGUAGES, Language
from tests.interop.client import running


@pytest.fixture
def expired(service: RunningService) -> str:
    key = LocalSigningKey.load(service.data_dir / "signing-key.pem")
    return key.issue("chatbot", ROLES["chatbot"], timedelta(hours=1), now=time.time() - 7200)


@pytest.fixture
def tokens(service: RunningService, expired: str, tmp_path: Path) -> Iterator[Path]:
    """A token file that holds something else each time that it is read."""
    good = service.token("chatbot")
    path = tmp_path / "token"
    os.mkfifo(path)
    order = [good, expired, good, expired, expired, good]
    writer = threading.Thread(target=_write_one_after_the_other, args=(path, order), daemon=True)
    writer.start()
    yield path
    writer.join(timeout=10)
    assert not writer.is_alive(), "the token was not read again"


def _write_one_after_the_other(path: Path, texts: list[str]) -> None:
    for text in texts:
        # Returns when somebody has opened it to read. The next reader gets another pipe.
        with path.open("w") as pipe:
            following = path.with_name("following")
            os.mkfifo(following)
            following.rename(path)
            pipe.write(text)


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda each: each.name)
def test_a_renewed_token_is_used(language: Language, service: RunningService, tokens: Path) -> None:
    with running(language, ("--address", service.grpc_address, "--token-file", str(tokens))) as client:
        assert client.create().result(timeout=20).code == "OK", "renewed during the call"
        failed = client.create().result(timeout=20)
        assert (failed.code, failed.reason) == ("UNAUTHENTICATED", "TOKEN_EXPIRED"), "not renewed in time"
        assert client.create().result(timeout=20).code == "OK", "renewed afterwards"
