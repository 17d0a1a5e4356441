"""Files and folders that hold secrets: made whole or not at all, and for their owner only.

And reading of files in whose place others may have put something else: what is no regular file is refused, never waited
for. A pipe without a writer would hold up whoever opens it, and a device would never end.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from service.errors import StartRefusedError

OWNER_ONLY = 0o600

_LONGEST = 10_000_000
"""Bytes; a keyring of a thousand keys has 200,000."""


def make_private_folder(folder: Path) -> None:
    """Make a folder, and what is missing above it, for the owner only; one that is there stays as it is.

    `mkdir(parents=True)` would leave those above to the umask. Raises OSError.
    """
    if not folder.parent.exists():
        make_private_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def create_secret_file(path: Path, content: bytes) -> bool:
    """Write `content` to a new file of mode 0600; False when the file is there already, which then stays as it is.

    The content reaches the disk before the name does (fsync, link, fsync of the folder), so a crash leaves either
    no file or the whole one, and of two racing processes both end up with the same file.
    """
    make_private_folder(path.parent)
    with _draft(path, content) as draft:
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            return False
    sync_folder(path.parent)
    return True


def replace_secret_file(path: Path, content: bytes) -> None:
    """Put `content` in the place of a file, at once and as a whole: a crash leaves the old file or the new one."""
    with _draft(path, content) as draft:
        draft.replace(path)
    sync_folder(path.parent)


@contextmanager
def _draft(path: Path, content: bytes) -> Iterator[Path]:
    """A file with this content beside `path`, on disk, which is removed unless it was given another name."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, OWNER_ONLY)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def takes_lock(descriptor: int) -> bool:
    """Lock an open file or folder until it is closed, unless another process has it; whether it is ours now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_secret_file(path: Path) -> bytes:
    """The file's content. Raises StartRefusedError when it cannot be read or others than its owner may read it."""
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise StartRefusedError(f"{path} holds secrets and may be read by others; run: chmod 600 '{path}'")
            content = file.read(_LONGEST + 1)
    except OSError as error:
        raise StartRefusedError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > _LONGEST:
        raise StartRefusedError(f"{path} is longer than any secret that is kept in a file")
    return content


def open_regular(path: Path) -> IO[bytes]:
    """Open a file to be read; what it is, is asked of the open file. Raises OSError, also for what is no file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise OSError(errno.EINVAL, "it is no regular file")
