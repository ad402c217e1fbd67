"""Who shows what is no token, again and again: told to wait, longer each time, by address.

It protects the log and the service's time, not tokens: 256 bits are not guessed. So who shows a good token is never
looked for here, and no number of others, from the same address or from everywhere, can keep a user out.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from distfs.config.callers import IPAddress, whose_is
from distfs.errors import TooMany
from distfs.telemetry.metrics import BAD_LOGINS

#: So many may be wrong before anybody is told to wait; one more is free after each so many seconds.
FREE, FORGIVE_S = 10, 6.0
#: The longest wait that is told.
MOST_S = 60
#: Addresses that are remembered; the one that failed longest ago gives way.
REMEMBERED = 10_000


class Failures:
    """Counts. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._of: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (failures that count, as of)
        self.total = 0

    def failed(self, address: IPAddress | None) -> None:
        """One more. Raises TooMany when there were too many: after how many seconds there will not have been."""
        now, who = self._clock(), whose_is(address)
        with self._lock:
            self.total += 1
            BAD_LOGINS.add()
            count, at = self._of.pop(who, (0.0, now))
            count = min(max(0.0, count - (now - at) / FORGIVE_S) + 1, FREE + MOST_S / FORGIVE_S)
            self._of[who] = (count, now)
            if len(self._of) > REMEMBERED:
                self._of.popitem(last=False)
        if count > FREE:
            seconds = max(1, round((count - FREE) * FORGIVE_S))
            error = TooMany(
                f"too many tokens from {who} were not good: show one that is, or wait {seconds} s"
            )
            error.retry_after = seconds
            raise error

    def __len__(self) -> int:
        return len(self._of)
