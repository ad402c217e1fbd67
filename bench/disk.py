"""What this disk can do: small files made durable a second, and one large one written in a row."""

from __future__ import annotations

import mmap
import os
import threading
import time
from pathlib import Path


def durable_files(folder: Path, threads: int, seconds: float) -> float:
    """Files of 4 KiB a second, each written, fsynced, renamed, and its folder fsynced; ``threads`` at once."""
    counts = [0] * threads
    end = time.monotonic() + seconds

    def write(thread: int) -> None:
        own = folder / f"durable-{thread}"
        own.mkdir()
        descriptor = os.open(own, os.O_RDONLY | os.O_DIRECTORY)
        content = os.urandom(4096)
        while time.monotonic() < end:
            path = own / f"{counts[thread]}.part"
            with path.open("wb", buffering=0) as file:
                file.write(content)
                os.fsync(file.fileno())
            path.rename(path.with_suffix(""))
            os.fsync(descriptor)
            counts[thread] += 1
        os.close(descriptor)

    workers = [threading.Thread(target=write, args=(thread,)) for thread in range(threads)]
    start = time.monotonic()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.monotonic() - start)


def sequential_write(folder: Path, size: int) -> float:
    """Bytes a second of one file, written in aligned 4 MiB pieces past the page cache and fsynced."""
    path = folder / "sequential"
    piece = mmap.mmap(-1, 4 << 20)
    piece.write(os.urandom(4 << 20))
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | getattr(os, "O_DIRECT", 0), 0o644)
    try:
        start = time.monotonic()
        written = 0
        while written < size:
            written += os.write(descriptor, piece)
        os.fsync(descriptor)
        return written / (time.monotonic() - start)
    finally:
        os.close(descriptor)
        path.unlink()
