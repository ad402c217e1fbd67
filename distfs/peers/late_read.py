"""Reading from a fragment store with an eye on the clock, so that another can be asked when it is late."""

from __future__ import annotations

import select
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Protocol

from distfs.deadline import Deadline
from distfs.errors import DistfsError
from distfs.formats.fragment import FragmentTable
from distfs.fragment_store import FragmentReader, FragmentStore
from distfs.model import FragmentId

_LOOK_S = 0.25  # how often a race looks at who has been silent for too long


class LateReader(Protocol):
    """A FragmentReader that was asked for; nothing of its answer need have come. All but ``fileno`` may raise
    what ``FragmentStore.get`` and ``read_cell`` raise."""

    table: FragmentTable  # once started

    def start_or_late(self) -> bool:
        """Wait for the table; False when the store is late: call again to wait on."""

    def read_cell_or_late(self, view: memoryview) -> bool:
        """The next cell; False when the store is late: call again with the same view."""

    def fileno(self) -> int:
        """What to poll for bytes; -1: there is nothing to wait for."""

    def waited(self, seconds: float) -> None:
        """It was polled for so long and gave nothing. Raises TooSlow when that is too much."""

    def abandon(self, waited: float) -> None:
        """Close it: late already, it was waited for so many seconds more, and another was first."""

    def close(self) -> None:
        """Release what the reader holds, also in the middle; closing twice is fine."""


class OnlyCell(NamedTuple):
    """Of a fragment of one cell, as it came: nothing of it was checked."""

    slice_size: int
    entry: bytes
    data: bytes


class SmallReader(LateReader, Protocol):
    """One that can give a small fragment whole."""

    def begin_or_late(self) -> bool:
        """Wait for the first bytes of the answer, as ``start_or_late``."""

    def only_cell(self, size: int) -> OnlyCell | None:
        """Once it has begun: the cell of a fragment of one, of ``size`` bytes, if all has come already.

        None: it did not, or is another; nothing was taken, go on by ``start_or_late``.
        """


class AsksAhead(ABC):
    """A store whose answers take time to come. Its stores say so by inheriting: asking a protocol takes longer."""

    @property
    @abstractmethod
    def hedge_delay(self) -> float:
        """Seconds of silence after which it is late."""

    @abstractmethod
    def ask(
        self,
        id: FragmentId,
        first: int,
        count: int,
        deadline: Deadline,
        connect_within: float | None = None,
    ) -> LateReader:
        """``FragmentStore.get`` without waiting for the answer."""


class _BlockingReader:
    """A reader of a store that is never late."""

    def __init__(self, reader: FragmentReader) -> None:
        self._reader = reader
        self.table = reader.table

    def start_or_late(self) -> bool:
        return True

    def read_cell_or_late(self, view: memoryview) -> bool:
        self._reader.read_cell(view)
        return True

    def fileno(self) -> int:
        return -1

    def waited(self, seconds: float) -> None:
        pass

    def abandon(self, waited: float) -> None:
        self._reader.close()

    def close(self) -> None:
        self._reader.close()


class Attempt(NamedTuple):
    """One of two that are read from at once. ``advance`` receives what there is: whether that is all."""

    reader: LateReader
    advance: Callable[[], bool]


class SecondFailed(Exception):
    """The one that was asked beside the late one gave nothing good."""

    def __init__(self, error: DistfsError) -> None:
        super().__init__(error)
        self.error = error


def ask(
    store: FragmentStore, id: FragmentId, first: int, count: int, deadline: Deadline, hasty: bool
) -> LateReader:
    """Ask any store for cells. ``hasty``: one to which there is no connection soon is TooSlow already."""
    if isinstance(store, AsksAhead):
        return store.ask(id, first, count, deadline, store.hedge_delay if hasty else None)
    return _BlockingReader(store.get(id, first, count, deadline))


def race(late: Attempt, second: Attempt, deadline: Deadline) -> bool:
    """Let both receive until one has all it wants; whether that is ``second``.

    Raises what ends ``late``, and SecondFailed when ``late`` is left alone.
    """
    while True:
        started = time.monotonic()
        ready = _ready(late.reader, second.reader, deadline.bound(_LOOK_S, "reading from two nodes"))
        waited = time.monotonic() - started
        if late.reader in ready:
            if late.advance():
                return False
        else:
            late.reader.waited(waited)
        try:
            if second.reader in ready:
                if second.advance():
                    return True
            else:
                second.reader.waited(waited)
        except DistfsError as e:
            raise SecondFailed(e) from e


def _ready(one: LateReader, other: LateReader, seconds: float) -> list[LateReader]:
    """Those that have bytes, or the end of their connection; none after so long."""
    poll = select.poll()
    readers = {each.fileno(): each for each in (one, other)}
    if min(readers) < 0:
        return [each for fd, each in readers.items() if fd < 0]
    for fd in readers:
        poll.register(fd, select.POLLIN)
    return [readers[fd] for fd, _ in poll.poll(seconds * 1000)]
