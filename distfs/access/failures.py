"""Who shows what is no token, again and again: told to wait, longer each time, by address.

It protects the log and the service's time, not tokens: 256 bits are not guessed. So who shows a good token is never
looked for here, and no number of others, from the same address or from everywhere, can keep a user out.

All processes of a service count together, in memory that they share, without a lock between them: when two count one
address in the same moment, one failure may be lost; when two take one place, the one's failures count as the other's.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Callable

from distfs.config.callers import IPAddress, whose_is
from distfs.errors import TooManyWrong
from distfs.telemetry.metrics import BAD_LOGINS

#: So many may be wrong before anybody is told to wait; one more is free after each so many seconds.
FREE, FORGIVE_S = 10, 6.0
#: The longest wait that is told.
MOST_S = 60
#: Addresses that are remembered. Each may be in one of so many places; where all are taken, the one that is forgiven
#: first gives way.
REMEMBERED, WAYS = 1 << 14, 8


class Failures:
    """Made before the processes of a service are forked. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: the same in all processes."""
        self._clock = clock
        self._lock = threading.Lock()
        memory = memoryview(mmap.mmap(-1, 2 * REMEMBERED * 8))
        self._whose = memory[: REMEMBERED * 8].cast("q")
        self._until = memory[REMEMBERED * 8 :].cast("d")  # when all failures of that one will be forgiven
        self.total = 0  # of this process

    def failed(self, address: IPAddress | None) -> None:
        """One more. Raises TooManyWrong when there were too many: after how many seconds there will not have been."""
        now, who = self._clock(), whose_is(address)
        with self._lock:
            self.total += 1
            BAD_LOGINS.add()
            place = self._place(hash(who))
            left = max(self._until[place] - now, 0.0) + FORGIVE_S
            self._until[place] = now + min(left, FREE * FORGIVE_S + MOST_S)
        if left > FREE * FORGIVE_S:
            seconds = max(1, min(MOST_S, round(left - FREE * FORGIVE_S)))
            error = TooManyWrong(
                f"too many tokens from {who} were not good: show one that is, or wait {seconds} s"
            )
            error.retry_after = seconds
            raise error

    def _place(self, key: int) -> int:
        """Of who has this hash, which is the same in all that were forked."""
        first = key % (REMEMBERED // WAYS) * WAYS
        places = range(first, first + WAYS)
        for place in places:
            if self._whose[place] == key:
                return place
        place = min(places, key=self._until.__getitem__)
        self._until[place] = 0.0
        self._whose[place] = key
        return place

    def forgive(self) -> None:
        """All of them."""
        for place in range(REMEMBERED):
            self._until[place] = 0.0
