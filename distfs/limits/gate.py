"""How many large uploads a service takes at once, and how many bytes: counted from their headers to their answer."""

from __future__ import annotations

import threading

from distfs.errors import Busy
from distfs.quantity import compared, counted


class Gate:
    """Thread-safe. A limit of 0 is none."""

    def __init__(self, max_uploads: int = 0, max_bytes: int = 0) -> None:
        self._max_uploads, self._max_bytes = max_uploads, max_bytes
        self._lock = threading.Lock()
        self.uploads = self.bytes = 0  # in flight; bytes as they were declared

    def enter(self, size: int) -> Ticket:
        """``size``: what the body was declared to have; 0: nothing was. Raises Busy."""
        with self._lock:
            if self._max_uploads and self.uploads >= self._max_uploads:
                running = counted(self.uploads, "large upload")
                raise Busy(f"no more than {running} at once (http.max_uploads): try again soon")
            if self._max_bytes and self.bytes + size > self._max_bytes:
                running, more, most = compared(self.bytes, size, self._max_bytes)
                raise Busy(
                    f"uploads of {running} run already, {more} more would pass {most} "
                    "(http.max_bytes_in_flight): try again soon"
                )
            self.uploads += 1
            self.bytes += size
        return Ticket(self, size)

    def _leave(self, size: int) -> None:
        with self._lock:
            self.uploads -= 1
            self.bytes -= size


class Ticket:
    """The right to one upload. Used by one thread at a time."""

    def __init__(self, gate: Gate, size: int) -> None:
        self._gate: Gate | None = gate
        self._size = size

    def leave(self) -> None:
        """Once or more often."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate._leave(self._size)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *exc: object) -> None:
        self.leave()
