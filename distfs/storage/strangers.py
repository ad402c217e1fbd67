"""Who has connected to a node and not proved yet that he is of its cluster: few, for a moment, and told nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from distfs.config.callers import parse_address, whose_is
from distfs.formats.hello import Reason

log = logging.getLogger("distfs.node")

#: At once. One more, and the oldest from the address with the most of them is cut: no thread is held for long that
#: somebody else needs, and a service, which is done in a moment, is hardly ever the oldest.
MOST_WAITING = 500
LOG_EVERY_S = 60.0
#: Addresses that are remembered for that; what comes from others then is one line a minute together.
MOST_ADDRESSES = 1000
_MINUTE_S, _MINUTES = 60.0, 60


class Refused(NamedTuple):
    """Whom a node has refused, without those who left by themselves."""

    ever: int = 0  # since the start
    lately: int = 0  # in the last hour
    address: str = ""  # of the last one


class _Waiting:
    def __init__(self, address: str, cut: Callable[[], object]) -> None:
        self.address, self.cut = address, cut
        self.was_cut = False


class Strangers:
    """Thread-safe. ``counts``: how often somebody was refused, by reason, since the node was started."""

    def __init__(self, most: int = MOST_WAITING, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self._clock = most, clock
        self.counts: Counter[Reason] = Counter()
        self._minutes: Counter[int] = Counter()  # how many in each of the last hour
        self._ever, self._last = 0, ""
        self._lock = threading.Lock()
        self._waiting: dict[_Waiting, None] = {}  # the oldest first
        self._told: dict[
            str, list[float]
        ] = {}  # when a line was last written of an address, and refusals since

    @contextmanager
    def waiting(self, address: str, cut: Callable[[], object]) -> Iterator[Callable[[], bool]]:
        """In the body somebody proves who he is. ``cut``, from any thread, ends that. -> whether it was called."""
        who = _Waiting(address, cut)
        with self._lock:
            self._waiting[who] = None
            victim = self._crowding() if len(self._waiting) > self.most else None
            if victim is not None:
                del self._waiting[victim]
                victim.was_cut = True
                victim.cut()  # under the lock: who has left is never cut
        try:
            yield lambda: who.was_cut
        finally:
            with self._lock:
                self._waiting.pop(who, None)

    def _crowding(self) -> _Waiting:
        """The oldest from where most are."""
        most = Counter(each.address for each in self._waiting).most_common(1)[0][0]
        return next(each for each in self._waiting if each.address == most)

    def refused(self, address: str, reason: Reason, detail: str = "") -> None:
        """Count it, and say so, once a minute an address, with a ``detail`` of this one."""
        with self._lock:
            self.counts[reason] += 1
            now = self._clock()
            if reason is not Reason.GONE:
                self._ever, self._last = self._ever + 1, address
                self._minutes[int(now / _MINUTE_S)] += 1
                self._forget(now)
            known = self._told.get(address)
            if known is None and len(self._told) >= MOST_ADDRESSES:
                self._told = {a: told for a, told in self._told.items() if now - told[0] < LOG_EVERY_S}
                if len(self._told) >= MOST_ADDRESSES:
                    address = "others"
                    known = self._told.get(address)
            if known is not None and now - known[0] < LOG_EVERY_S:
                known[1] += 1
                return
            unsaid = int(known[1]) if known else 0
            self._told[address] = [now, 0]
            total = self.counts.total()
        level = (
            logging.INFO if reason is Reason.GONE else logging.WARNING
        )  # as who finds another node quicker does
        log.log(
            level,
            "%s is not welcome: %s (%d more from there since the last such line, %d in all since the start)",
            *(address, f"{reason.value}: {detail}" if detail else reason.value, unsaid, total),
        )

    def lately(self) -> Refused:
        """For who looks at nodes."""
        with self._lock:
            self._forget(self._clock())
            return Refused(self._ever, self._minutes.total(), self._last)

    def _forget(self, now: float) -> None:
        """What is older than an hour."""
        first = int(now / _MINUTE_S) - _MINUTES
        for minute in [each for each in self._minutes if each <= first]:
            del self._minutes[minute]


def network_of(host: str) -> str:
    """What counts as one address, as with a service's callers."""
    address = parse_address(host)
    return host if address is None else whose_is(address)
