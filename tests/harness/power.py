"""What a disk does to SQLite: writes that fail, and power that goes away.

Between SQLite and the system every write, truncate, sync and delete of the default VFS is recorded, and one of them
may fail on request. From the record the folder is rebuilt as a power cut at any moment would have left it: with all
that was synced, and with none, a beginning, or some of what was not. A sync that failed loses what it was to write for
good, as Linux does: the system forgets those pages, and a later sync that succeeds does not bring them back.
"""

from __future__ import annotations

import ctypes
import errno
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SQLITE_OK = 0
SQLITE_FULL = 13
IOERR = {"write": 778, "sync": 1034, "truncate": 1546, "delete": 2570}
"""SQLITE_IOERR_WRITE and so on: what the VFS answers when the system says EIO."""


@dataclass(frozen=True)
class Operation:
    """One thing that SQLite asked of the disk."""

    kind: str
    """write, truncate, sync, delete; or acknowledge, which the test records itself."""
    path: str
    offset: int = 0
    data: bytes = field(default=b"", repr=False)
    failed: bool = False


@dataclass(frozen=True)
class Fault:
    """The `number`-th operation (from 0) fails once: with EIO, ENOSPC, or after half of the data (`short`)."""

    number: int
    how: str


class _Vfs(ctypes.Structure):
    _fields_ = [
        ("iVersion", ctypes.c_int),
        ("szOsFile", ctypes.c_int),
        ("mxPathname", ctypes.c_int),
        ("pNext", ctypes.c_void_p),
        ("zName", ctypes.c_char_p),
        ("pAppData", ctypes.c_void_p),
        ("xOpen", ctypes.c_void_p),
        ("xDelete", ctypes.c_void_p),
    ]


_METHODS = [
    *("xClose", "xRead", "xWrite", "xTruncate", "xSync", "xFileSize", "xLock", "xUnlock", "xCheckReservedLock"),
    *("xFileControl", "xSectorSize", "xDeviceCharacteristics"),
    *("xShmMap", "xShmLock", "xShmBarrier", "xShmUnmap", "xFetch", "xUnfetch"),
]


class _Methods(ctypes.Structure):
    _fields_ = [("iVersion", ctypes.c_int), *((name, ctypes.c_void_p) for name in _METHODS)]


class _File(ctypes.Structure):
    _fields_ = [("pMethods", ctypes.POINTER(_Methods))]


_int, _pointer, _long = ctypes.c_int, ctypes.c_void_p, ctypes.c_int64
# The name as a pointer: SQLite keeps it, so it must be the very one that SQLite passed.
_OPEN = ctypes.CFUNCTYPE(_int, _pointer, _pointer, _pointer, _int, _pointer)
_DELETE = ctypes.CFUNCTYPE(_int, _pointer, ctypes.c_char_p, _int)
_WRITE = ctypes.CFUNCTYPE(_int, _pointer, _pointer, _int, _long)
_TRUNCATE = ctypes.CFUNCTYPE(_int, _pointer, _long)
_SYNC = ctypes.CFUNCTYPE(_int, _pointer, _int)


def _library() -> ctypes.CDLL:
    """The SQLite that Python's own module uses."""
    connection = sqlite3.connect(":memory:")
    connection.close()
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split()[-1]
        if "sqlite3" in path:
            library = ctypes.CDLL(path)
            if hasattr(library, "sqlite3_vfs_find"):
                return library
    raise AssertionError("the SQLite library of this Python was not found")


class Disk:
    """The record of everything that was asked of the disk while `recording` lasted."""

    def __init__(self, fault: Fault | None = None) -> None:
        self.operations: list[Operation] = []
        self._fault = fault
        self._count = 0
        self._paths: dict[int, str] = {}
        self._methods: dict[int, _Methods] = {}
        self._kept: list[object] = []

    @property
    def asked(self) -> int:
        """How many operations could have failed."""
        return self._count

    def acknowledge(self, name: str) -> None:
        """Note that by now this was confirmed to be on disk."""
        self.operations.append(Operation("acknowledge", name))

    @contextmanager
    def recording(self) -> Iterator[Disk]:
        """Stand between SQLite and the system; connections are opened and closed inside."""
        library = _library()
        library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
        library.sqlite3_vfs_find.argtypes = [ctypes.c_char_p]
        vfs = library.sqlite3_vfs_find(None).contents
        opened, deleted = vfs.xOpen, vfs.xDelete
        open_file, delete_file = _OPEN(opened), _DELETE(deleted)

        def on_open(this: int, name: int | None, file: int, flags: int, out: int) -> int:
            code = int(open_file(this, name, file, flags, out))
            if code == SQLITE_OK and name is not None:
                self._paths[file] = ctypes.string_at(name).decode()
                self._wrap(file)
            return code

        def on_delete(this: int, name: bytes, sync: int) -> int:
            return self._do(Operation("delete", name.decode()), lambda: int(delete_file(this, name, sync)))

        patched = _OPEN(on_open), _DELETE(on_delete)
        self._kept.append(patched)
        vfs.xOpen, vfs.xDelete = (ctypes.cast(each, _pointer).value for each in patched)
        try:
            yield self
        finally:
            vfs.xOpen, vfs.xDelete = opened, deleted

    def _wrap(self, address: int) -> None:
        file = _File.from_address(address)
        original = ctypes.addressof(file.pMethods.contents)
        if original not in self._methods:
            self._methods[original] = self._wrapped(file.pMethods.contents)
        file.pMethods = ctypes.pointer(self._methods[original])

    def _wrapped(self, original: _Methods) -> _Methods:
        copy = _Methods.from_buffer_copy(original)
        write, truncate, sync = _WRITE(original.xWrite), _TRUNCATE(original.xTruncate), _SYNC(original.xSync)

        def on_write(file: int, data: int, size: int, offset: int) -> int:
            asked = Operation("write", self._paths[file], offset, ctypes.string_at(data, size))
            half = size // 2
            return self._do(
                asked, lambda: int(write(file, data, size, offset)), lambda: int(write(file, data, half, offset))
            )

        def on_truncate(file: int, size: int) -> int:
            return self._do(Operation("truncate", self._paths[file], size), lambda: int(truncate(file, size)))

        def on_sync(file: int, flags: int) -> int:
            return self._do(Operation("sync", self._paths[file]), lambda: int(sync(file, flags)))

        wrapped = _WRITE(on_write), _TRUNCATE(on_truncate), _SYNC(on_sync)
        self._kept.append(wrapped)
        copy.xWrite, copy.xTruncate, copy.xSync = (ctypes.cast(each, _pointer).value for each in wrapped)
        return copy

    def _do(self, asked: Operation, act: Callable[[], int], half: Callable[[], int] | None = None) -> int:
        number, self._count = self._count, self._count + 1
        fault = self._fault
        if fault is None or number != fault.number:
            self.operations.append(asked)
            return act()
        if fault.how == "short" and half is not None:
            part = asked.data[: len(asked.data) // 2]
            self.operations.append(Operation("write", asked.path, asked.offset, part))
            half()
        self.operations.append(Operation(asked.kind, asked.path, failed=True))
        return IOERR[asked.kind] if fault.how == errno.errorcode[errno.EIO] else SQLITE_FULL


def acknowledged(operations: list[Operation]) -> set[str]:
    """What was confirmed by the end of these operations."""
    return {each.path for each in operations if each.kind == "acknowledge"}


def after_power_cut(operations: list[Operation], keep: Callable[[int], list[int]]) -> dict[str, bytes]:
    """The files as they are found after a power cut at the end of these operations.

    `keep` names which of that many unsynced operations of a file reached the disk all the same, in their order.
    """
    durable: dict[str, bytearray] = {}
    pending: dict[str, list[Operation]] = {}
    for each in operations:
        if each.kind == "acknowledge" or (each.failed and each.kind != "sync"):
            continue
        if each.kind == "delete":
            durable.pop(each.path, None)
            pending.pop(each.path, None)
        elif each.kind == "sync":
            waiting = pending.pop(each.path, [])
            content = durable.setdefault(each.path, bytearray())
            if not each.failed:
                for one in waiting:
                    _apply(content, one)
        else:
            pending.setdefault(each.path, []).append(each)
    for path, waiting in pending.items():
        content = durable.setdefault(path, bytearray())
        for number in keep(len(waiting)):
            _apply(content, waiting[number])
    return {path: bytes(content) for path, content in durable.items()}


def nothing_unsynced(_count: int) -> list[int]:
    """The disk had written only what was synced."""
    return []


def some_unsynced(seed: int) -> Callable[[int], list[int]]:
    """The disk had also written some of the rest, in any order."""
    chance = random.Random(seed)
    return lambda count: [number for number in range(count) if chance.random() < 0.5]


def first_unsynced(seed: int) -> Callable[[int], list[int]]:
    """The disk had also written a beginning of the rest."""
    chance = random.Random(seed)
    return lambda count: list(range(chance.randint(0, count)))


def _apply(content: bytearray, operation: Operation) -> None:
    if operation.kind == "truncate":
        del content[operation.offset :]
        return
    missing = operation.offset - len(content)
    if missing > 0:
        content.extend(bytes(missing))
    content[operation.offset : operation.offset + len(operation.data)] = operation.data
