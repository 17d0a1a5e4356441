"""The TLS files that change on disk: what is taken, what changes nothing, and what the operator reads about it."""

from __future__ import annotations

import asyncio
import os
import pty
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from structlog.testing import capture_logs

from service.errors import StartRefusedError
from service.rpc.tls_files import TlsFiles
from service.supervisor import Component
from tests.harness.certificates import Authority, Certificate
from tests.harness.processes import until
from tests.harness.supervision import running

OFTEN = 0.02
NEVER = 3600.0


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


@pytest.fixture
def served(tmp_path: Path, authority: Authority) -> Certificate:
    """The files that the settings name, with a first certificate in them."""
    files = Certificate(tmp_path / "served-cert.pem", tmp_path / "served-key.pem")
    write(authority.issue("first"), files)
    return files


def write(certificate: Certificate, to: Certificate) -> None:
    shutil.copy(certificate.certificate, to.certificate)
    shutil.copy(certificate.key, to.key)


@asynccontextmanager
async def following(
    served: Certificate, client_authority: Path | None = None, *, check_seconds: float = OFTEN
) -> AsyncIterator[TlsFiles]:
    """The files, followed while the block runs."""
    files = TlsFiles(served.certificate, served.key, client_authority, check_seconds=check_seconds)
    async with running(Component(name="TLS files", run=files.run)):
        yield files


async def test_a_new_pair_is_taken_and_its_end_is_logged(authority: Authority, served: Certificate) -> None:
    with capture_logs() as logs:
        async with following(served) as files:
            before = files.current
            write(authority.issue("second"), served)
            await until(lambda: files.current is not before)
            assert files.alarm is None
    assert logs[-1]["event"] == "TLS certificate taken"
    assert logs[-1]["valid_until"] == files.current.valid_until.isoformat()


async def test_a_file_of_the_same_size_and_time_is_taken(served: Certificate) -> None:
    """What a tool leaves that restores times, and a filesystem with coarse ones."""
    async with following(served) as files:
        before, path = files.current, served.certificate
        times = path.stat()
        # PEM allows blanks at a line's end: another content of the same meaning.
        path.write_bytes(path.read_bytes()[:-1] + b" ")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert path.stat().st_size == times.st_size
        await until(lambda: files.current is not before)


async def test_a_folder_that_is_exchanged_by_a_link_is_taken(authority: Authority, tmp_path: Path) -> None:
    """How Kubernetes renews a secret."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(authority.issue(name), Certificate(tmp_path / name / "tls.crt", tmp_path / name / "tls.key"))
    (tmp_path / "data").symlink_to("one")
    served = Certificate(tmp_path / "data" / "tls.crt", tmp_path / "data" / "tls.key")
    async with following(served) as files:
        before = files.current
        (tmp_path / "next").symlink_to("two")
        (tmp_path / "next").replace(tmp_path / "data")
        await until(lambda: files.current is not before)
        assert files.alarm is None


def another_key(served: Certificate, authority: Authority) -> None:
    shutil.copy(authority.issue("other").key, served.key)


def half_a_certificate(served: Certificate, authority: Authority) -> None:
    served.certificate.write_bytes(served.certificate.read_bytes()[:200])


def no_key(served: Certificate, authority: Authority) -> None:
    served.key.unlink()


def no_authority(served: Certificate, authority: Authority) -> None:
    authority.path.unlink()


def damaged_authority(served: Certificate, authority: Authority) -> None:
    authority.path.write_text("no certificate")


def curve_that_grpc_does_not_know(served: Certificate, authority: Authority) -> None:
    write(authority.issue("curve", ec.SECP256K1), served)


def key_with_a_password(served: Certificate, authority: Authority) -> None:
    key = load_pem_private_key(served.key.read_bytes(), None)
    served.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"a password")))


FAULTS = {
    another_key: "LEADKEEP_TLS_KEY",
    half_a_certificate: "LEADKEEP_TLS_CERT",
    no_key: "served-key.pem cannot be read",
    no_authority: "authority.pem cannot be read",
    damaged_authority: "LEADKEEP_TLS_CLIENT_CA",
    curve_that_grpc_does_not_know: "P-256",
    key_with_a_password: "without a password",
}


@pytest.mark.parametrize(("fault", "says"), FAULTS.items(), ids=[fault.__name__ for fault in FAULTS])
async def test_files_that_cannot_be_used_change_nothing_and_are_reported_once(
    authority: Authority, served: Certificate, fault: Callable[[Certificate, Authority], None], says: str
) -> None:
    with capture_logs() as logs:
        async with following(served, authority.path) as files:
            before = files.current
            fault(served, authority)
            await until(lambda: files.alarm is not None)
            await asyncio.sleep(20 * OFTEN)
            assert files.current is before
            assert str(served.certificate.parent) not in str(files.alarm)
    errors = [line for line in logs if line["log_level"] == "error"]
    assert len(errors) == 1
    assert says in errors[0]["what"]


@pytest.mark.parametrize(("fault", "says"), FAULTS.items(), ids=[fault.__name__ for fault in FAULTS])
def test_files_that_cannot_be_used_refuse_the_start(
    authority: Authority, served: Certificate, fault: Callable[[Certificate, Authority], None], says: str
) -> None:
    fault(served, authority)
    with pytest.raises(StartRefusedError, match=says):
        TlsFiles(served.certificate, served.key, authority.path)


async def test_the_alarm_ends_when_the_files_are_mended(authority: Authority, served: Certificate) -> None:
    async with following(served) as files:
        another_key(served, authority)
        await until(lambda: files.alarm is not None)
        write(authority.issue("mended"), served)
        await until(lambda: files.alarm is None)


async def test_the_alarm_ends_when_the_old_files_return(authority: Authority, served: Certificate) -> None:
    old = served.key.read_bytes()
    async with following(served) as files:
        another_key(served, authority)
        await until(lambda: files.alarm is not None)
        served.key.write_bytes(old)
        await until(lambda: files.alarm is None)


async def test_a_file_is_not_taken_while_it_is_written(authority: Authority, served: Certificate) -> None:
    """Half a chain or half a bundle is valid by itself: the file must have come to rest."""
    other = Authority(authority.path.parent, "other")
    bundle = authority.path.read_bytes() + other.path.read_bytes()
    async with following(served, authority.path, check_seconds=0.5) as files:
        before = files.current
        for length in range(len(bundle) // 2, len(bundle), 20):
            authority.path.write_bytes(bundle[:length])
            await asyncio.sleep(0.05)
        assert files.current is before
        assert files.alarm is None
        authority.path.write_bytes(bundle)
        await until(lambda: files.current is not before)


def test_files_that_change_while_they_are_read_are_refused(
    authority: Authority, served: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one endpoint would show the old certificate and the other one the new."""
    load, second = ssl.SSLContext.load_cert_chain, authority.issue("second")

    def renewed_meanwhile(context: ssl.SSLContext, *arguments: Any, **options: Any) -> None:
        write(second, served)
        load(context, *arguments, **options)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", renewed_meanwhile)
    with pytest.raises(StartRefusedError, match="changed while"):
        TlsFiles(served.certificate, served.key, None)


async def test_the_operator_who_asks_is_answered_at_once(authority: Authority, served: Certificate) -> None:
    async with following(served, check_seconds=NEVER) as files:
        before = files.current
        write(authority.issue("second"), served)
        files.reload_now()
        await until(lambda: files.current is not before)


async def test_the_operator_who_asks_again_reads_the_fault_again(authority: Authority, served: Certificate) -> None:
    with capture_logs() as logs:
        async with following(served, check_seconds=NEVER) as files:
            another_key(served, authority)
            files.reload_now()
            await until(lambda: files.alarm is not None)
            files.reload_now()
            await until(lambda: [line["log_level"] for line in logs].count("error") == 2)


async def test_no_log_line_holds_the_key(authority: Authority, served: Certificate) -> None:
    with capture_logs() as logs:
        async with following(served, authority.path) as files:
            another_key(served, authority)
            await until(lambda: files.alarm is not None)
            text = repr(logs) + repr(files.current) + repr(files)
    secret = served.key.read_text().splitlines()[1]
    assert secret not in text


def test_a_key_with_a_password_asks_for_none_at_the_terminal(authority: Authority, served: Certificate) -> None:
    key_with_a_password(served, authority)
    load = "import sys; from pathlib import Path; from service.rpc.tls_files import TlsFiles; "
    load += "TlsFiles(Path(sys.argv[1]), Path(sys.argv[2]), None)"
    ours, theirs = pty.openpty()
    # A session of its own with a terminal that nobody types at.
    started = f"import os, sys; os.setsid(); os.open(os.ttyname(0), os.O_RDWR); {load}"
    ended = subprocess.run(
        [sys.executable, "-c", started, served.certificate, served.key],
        stdin=theirs,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    os.close(ours)
    os.close(theirs)
    assert "without a password" in ended.stderr
