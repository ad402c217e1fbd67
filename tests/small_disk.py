"""File systems of their own for a test: one that is full soon, one that takes no O_DIRECT, one gone read-only.

Mounting needs root. Without it, the same errors come from the calls that write, for the whole process.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from distfs.storage.disk import store as disk_store
from distfs.storage.disk import writer as disk_writer
from tests.faults.patch import unplanned

SMALL = 8 << 20  # bytes of the disk that is full soon


def _mount(kind: str, folder: Path, *options: str) -> bool:
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", kind, *options, kind, str(folder)]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0


@contextmanager
def small_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on a disk of ``SMALL`` bytes."""
    if _mount("tmpfs", folder, "-o", f"size={SMALL}"):
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    write_all = disk_writer._write_all

    def write(fd: int, view: memoryview) -> None:
        grows = max(0, os.lseek(fd, 0, os.SEEK_CUR) + len(view) - os.fstat(fd).st_size)
        if _bytes_in(folder) + grows > SMALL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_all(fd, view)

    monkeypatch.setattr(disk_writer, "_write_all", unplanned(write))
    yield folder


def _bytes_in(folder: Path) -> int:
    """Of all files that are there now: what is removed makes room, as on a disk."""
    sizes = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # renamed or removed meanwhile
            sizes += path.stat().st_size if path.is_file() else 0
    return sizes


@contextmanager
def disk_without_direct_io(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder where opening with O_DIRECT fails after it made the file."""
    if _mount("ramfs", folder):
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    open_ = os.open

    def refuse(path: Path | str, flags: int, mode: int = 0o777) -> int:
        fd = open_(path, flags & ~os.O_DIRECT, mode)
        if flags & os.O_DIRECT:
            os.close(fd)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return fd

    monkeypatch.setattr(os, "open", refuse)
    yield folder


@contextmanager
def readonly(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The file system mounted at ``folder`` takes no changes for a while."""
    remount = ["mount", "-o", "remount,ro", str(folder)]
    if os.geteuid() == 0 and subprocess.run(remount, capture_output=True).returncode == 0:
        try:
            yield
        finally:
            subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
        return

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(disk_store, "open_sink", refuse)
        yield
