"""What must not be left behind: temp files, open files, threads, buffers."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distfs.storage.disk.store import DiskStore


def eventually(holds: Callable[[], object], what: str | Callable[[], str], seconds: float = 60.0) -> None:
    """Wait until ``holds``; fails, saying ``what``, when it does not in time. It may be asked of other processes."""
    began, pause = time.monotonic(), 0.001
    while not holds():
        if (waited := time.monotonic() - began) >= seconds:
            pytest.fail(f"waited {seconds:.0f} s in vain until {what if isinstance(what, str) else what()}")
        time.sleep(pause)
        # What takes long is asked less often: to ask is work, too.
        pause = min(2 * pause, max(0.02, waited / 20), 0.1)


def temp_files(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "tmp").iterdir())


def open_files(folder: Path) -> list[str]:
    """Files under a node's folder that this process has open, but for the folder's lock."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = str(Path(f"/proc/self/fd/{fd}").readlink())
        except FileNotFoundError:
            continue  # the listing's own
        if target.startswith(f"{folder}/") and target != f"{folder}/lock":
            found.append(target)
    return found


def writer_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "disk-writer"]


def buffers_out(store: DiskStore) -> int:
    """Write buffers that were taken and not given back."""
    return store._buffers.in_use


def litter(store: DiskStore) -> list[object]:
    return [
        *temp_files(store.folder),
        *open_files(store.folder),
        *writer_threads(),
        *["a buffer"] * buffers_out(store),
    ]


def assert_no_litter(store: DiskStore) -> None:
    """Nothing of an unfinished fragment is left; at once, or soon where another thread ends it."""
    eventually(lambda: not litter(store), lambda: f"left behind: {litter(store)}")
