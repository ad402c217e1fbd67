"""How many large uploads a service takes at once, and how many bytes: counted from their headers to their answer."""

from __future__ import annotations

from distfs.errors import Busy
from distfs.limits.tally import Held, Tally
from distfs.quantity import compared, counted

_UPLOADS, _BYTES = Held("gate", "uploads"), Held("gate", "bytes")


class Gate:
    """Thread-safe. A limit of 0 is none."""

    def __init__(self, max_uploads: int = 0, max_bytes: int = 0, tally: Tally | None = None) -> None:
        self._max_uploads, self._max_bytes = max_uploads, max_bytes
        self._tally = tally or Tally()

    @property
    def uploads(self) -> int:
        """In flight."""
        return self._tally.total(_UPLOADS)

    @property
    def bytes(self) -> int:
        """Declared by them."""
        return self._tally.total(_BYTES)

    def enter(self, size: int) -> Ticket:
        """``size``: what the body was declared to have; 0: nothing was. Raises Busy."""
        if (has := self._tally.take(_UPLOADS, 1, self._max_uploads)) is not None:
            running = counted(has, "large upload")
            raise Busy(f"no more than {running} at once (http.max_uploads): try again soon")
        if (has := self._tally.take(_BYTES, size, self._max_bytes)) is not None:
            self._tally.give_back(_UPLOADS, 1)
            running, more, most = compared(has, size, self._max_bytes)
            raise Busy(
                f"uploads of {running} run already, {more} more would pass {most} "
                "(http.max_bytes_in_flight): try again soon"
            )
        return Ticket(self, size)

    def _leave(self, size: int) -> None:
        self._tally.give_back(_UPLOADS, 1)
        self._tally.give_back(_BYTES, size)


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
