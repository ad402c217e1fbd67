"""One input, within bounds: a hang, too much memory, or an error that nobody thought of is a failure."""

from __future__ import annotations

import resource
import signal
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from distfs.errors import DistfsError

#: Of CPU, whatever the input; inputs are small.
MOST_SECONDS = 1.0
#: What never ends is ended by a signal.
ENDLESS_SECONDS = 5.0
#: Of memory, while one input is read.
MOST_BYTES = 64 << 20


class TooLong(Exception):
    """It took more CPU than any input of its size may."""


class TooMuch(Exception):
    """It took more memory than that."""


Target = Callable[[bytes], None]


def feed(target: Target, data: bytes) -> None:
    """Raises TooLong, and whatever the target raises but errors of distfs, which are what hostile bytes are for. One
    of them that is of no kind (DistfsError itself), or more than a line, is a bug."""
    began = time.thread_time()
    with _ended_if_endless():
        try:
            target(data)
        except DistfsError as e:
            if type(e) is DistfsError or "\n" in e.for_client:
                raise AssertionError(f"an error of no kind, or of several lines: {e!r}") from e
    if (took := time.thread_time() - began) > MOST_SECONDS:
        raise TooLong(f"{len(data)} bytes took {took:.1f} s")


def feed_measured(target: Target, data: bytes) -> None:
    """As ``feed``, and memory is counted, which takes several times as long. Raises TooMuch, too."""
    tracemalloc.start()
    try:
        feed(target, data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    if peak > MOST_BYTES:
        raise TooMuch(f"{len(data)} bytes took {peak >> 20} MiB")


def limit_memory(most: int) -> None:
    """Of this process, for good: more is a MemoryError."""
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


@contextmanager
def _ended_if_endless() -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"it has not ended after {ENDLESS_SECONDS:g} s")

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, ENDLESS_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
