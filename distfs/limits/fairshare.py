"""Who may move how many bytes now: arithmetic on a clock, without a thread, a sleep or a socket.

One Schedule shares one direction's bytes among transfers. Each asks for what it would like to move next and is
granted a portion of it when its turn comes. Whoever drives it says what time it is.

``fair``: start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queueing", SIGCOMM 1996), which stays fair
when the rate varies and needs no notion of how fast a transfer could go. Callers with a cap of their own form
groups, each with a virtual time of its own: while its cap holds a group back, that time falls behind the others',
and its members still share by weight what they get. What comes out is weighted max-min fairness, with nothing
left unused that anyone who may still go asks for.

``batch``: the oldest few transfers share the rate, in bigger portions; the others wait in the order they came. Every
transfer's first bytes go among the few, so that small ones are not starved; what the few leave unused goes to
the next in order.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from math import inf

from distfs.config.settings import KIB, MIB

#: Seconds of unused time a pace saves up: what lets a thread that wakes late catch up. So a cap holds in every
#: window of T seconds as at most ``cap * (T + SLACK_S)`` bytes and one portion.
SLACK_S = 0.05
#: The same for a caller's own cap: all others may have their turn, each a portion, before it has its own again.
TURN_S = 0.25
#: A portion is what the tightest cap allows in so many seconds, within bounds in bytes.
FAIR_PORTION_S, FAIR_LEAST, FAIR_MOST = 0.02, 4 * KIB, MIB
BATCH_PORTION_S, BATCH_LEAST, BATCH_MOST = SLACK_S, 64 * KIB, MIB  # longer, and a waiting cap would lose time
#: Who was away for a moment, to send what it was granted, may catch up by so many portions, or by SLACK_S.
CATCH_UP_PORTIONS = 4

#: batch: how many are served at once; bytes of each transfer that need not wait; a served one that asked for
#: nothing for so long makes room.
AT_ONCE = 2
EXPRESS = MIB
IDLE_S = 1.0


class Pace:
    """At most ``rate`` bytes a second; 0: no limit."""

    def __init__(self, rate: float, saves_s: float = SLACK_S) -> None:
        """``saves_s``: what it did not give in so many seconds it may give later."""
        self.rate, self._saves_s = rate, saves_s
        self.free_at = -inf  # from then on the next portion may go

    def spend(self, amount: float, now: float) -> None:
        if self.rate:
            self.free_at = max(self.free_at, now - self._saves_s) + amount / self.rate

    def give_back(self, amount: float) -> None:
        if self.rate:
            self.free_at -= amount / self.rate


@dataclass(slots=True, eq=False)
class Transfer:
    """One upload or download, as far as its bytes go. Its places are in virtual time."""

    order: int  # the older, the smaller
    weight: float = 1.0
    group: Group = field(kw_only=True)
    start: float = 0.0  # where what it asks for begins
    finish: float = -inf  # where what it was granted ends
    taken: int = 0  # bytes granted so far
    wanted: int = 0  # bytes asked for; 0: it does not wait
    granted: int = 0  # of what it asked for last
    seen_at: float = -inf


class Level:
    """Transfers that share by weight. Its time: bytes that a unit of weight was granted."""

    def __init__(self, credit: float) -> None:
        """``credit``: bytes by which a transfer that was away may be behind and still catch up."""
        self.time = 0.0
        self.credit = credit

    def enter(self, transfer: Transfer) -> None:
        """It asks. A new one begins with the others, not before them."""
        new = transfer.finish == -inf
        transfer.start = self.time if new else max(transfer.finish, self.floor(transfer))

    def serve(self, transfer: Transfer, amount: int) -> float:
        """-> where it began."""
        start = max(transfer.start, self.floor(transfer))  # it may have been held back by its cap for long
        self.time = max(self.time, start)
        transfer.finish = start + amount / transfer.weight
        return start

    def floor(self, transfer: Transfer) -> float:
        """As far behind as it may begin."""
        return self.time - self.credit / transfer.weight


class Group:
    """Transfers of one caller, with a cap together; 0: none, and then it is no more than a name."""

    def __init__(self, cap: float) -> None:
        self.pace = Pace(cap, TURN_S)
        self.level = Level(_credit(cap, batch=False))
        self.offset = 0.0  # from its time to everyone's


class Schedule:
    """One direction. Not thread-safe. ``now`` is monotonic and the same clock's in every call."""

    def __init__(self, cap: float, mode: str) -> None:
        """``cap``: bytes a second of all transfers together, 0: none. ``mode``: 'fair' or 'batch'."""
        self._pace = Pace(cap)
        self._batch = mode == "batch"
        self._level = Level(_credit(cap, self._batch))
        self._waiting: dict[Transfer, None] = {}
        self._live: dict[Transfer, None] = {}  # batch: those that have a place in the order

    def group(self, cap: float, name: str) -> Group:
        """Of transfers that have ``cap`` together; 0: they have none. ``name``: of no other group here."""
        return Group(cap)

    def portion(self, transfer: Transfer) -> int:
        """The most that is granted to it at once, in bytes."""
        return _portion(min(transfer.group.pace.rate or inf, self._pace.rate or inf), self._batch)

    @property
    def waiting(self) -> int:
        """How many transfers wait for their turn."""
        return len(self._waiting)

    def ask(self, transfer: Transfer, amount: int, now: float) -> None:
        """``transfer``, which does not wait, would move ``amount`` bytes, more than 0. See ``grant``."""
        group, new = transfer.group, transfer.finish == -inf
        self._level_of(transfer).enter(transfer)
        if new and group.pace.rate and not self._waits(group):
            group.offset = max(group.offset, self._level.time - transfer.start)  # with the others, not before
        transfer.wanted, transfer.granted, transfer.seen_at = amount, 0, now
        self._waiting[transfer] = None
        if self._batch:
            self._live[transfer] = None

    def _waits(self, group: Group) -> bool:
        """Whether any transfer of it does."""
        return any(other.group is group for other in self._waiting)

    def withdraw(self, transfer: Transfer) -> None:
        """It does not want any more what it asked for."""
        transfer.wanted = 0
        self._waiting.pop(transfer, None)

    def leave(self, transfer: Transfer) -> None:
        """It has ended; its place is the next one's."""
        self.withdraw(transfer)
        self._live.pop(transfer, None)

    def grant(self, now: float) -> Transfer | None:
        """Whose turn it is, with ``granted`` bytes of what it asked for; None: nobody's now, see ``wait``."""
        if self._pace.free_at > now or (transfer := self._next(now)) is None:
            return None
        return self._give(transfer, now)

    def _give(self, transfer: Transfer, now: float) -> Transfer:
        amount = transfer.granted = min(transfer.wanted, self.portion(transfer))
        self._charge(transfer, amount)
        self._pace.spend(amount, now)
        transfer.group.pace.spend(amount, now)
        self.withdraw(transfer)
        transfer.taken += amount
        transfer.seen_at = now
        return transfer

    def _next(self, now: float) -> Transfer | None:
        """Of those that their own caps do not hold back."""
        ready = [t for t in self._waiting if t.group.pace.free_at <= now]
        if not ready:
            return None
        return self._next_of_batch(ready, now) if self._batch else min(ready, key=self._turn)

    def give_back(self, transfer: Transfer, amount: int) -> None:
        """``amount`` bytes of what it was granted last were not moved."""
        transfer.taken -= amount
        transfer.finish -= amount / transfer.weight
        self._pace.give_back(amount)
        transfer.group.pace.give_back(amount)

    def wait(self, now: float) -> float:
        """Seconds until somebody's turn may come; 0: now; inf: nobody waits."""
        free_at = min((t.group.pace.free_at for t in self._waiting), default=inf)
        return max(0.0, max(free_at, self._pace.free_at) - now)

    def _level_of(self, transfer: Transfer) -> Level:
        group = transfer.group
        return group.level if group.pace.rate and not self._batch else self._level

    def _turn(self, transfer: Transfer) -> tuple[float, int]:
        """fair: the least is next."""
        return transfer.start + transfer.group.offset, transfer.order

    def _charge(self, transfer: Transfer, amount: int) -> None:
        level, group = self._level_of(transfer), transfer.group
        start = level.serve(transfer, amount)
        if level is group.level:
            # What its cap took from the group is not made up for. Who takes less than it might does not make it late.
            late = self._level.floor(transfer) - (level.time + group.offset)
            group.offset += max(0.0, late)
            self._level.time = max(self._level.time, start + group.offset)

    def _next_of_batch(self, ready: list[Transfer], now: float) -> Transfer:
        for transfer in [t for t in self._live if not t.wanted and now - t.seen_at > IDLE_S]:
            del self._live[transfer]
        served = self._served()
        first = [t for t in ready if t.taken < EXPRESS or t in served]
        return min(first, key=lambda t: (t.start, t.order)) if first else min(ready, key=_age)

    def _served(self) -> list[Transfer]:
        """batch: the few that share the rate."""
        large = (t for t in self._live if t.taken >= EXPRESS)
        return heapq.nsmallest(AT_ONCE, large, key=_age)


def _age(transfer: Transfer) -> int:
    return transfer.order


def _portion(cap: float, batch: bool) -> int:
    if batch:
        return int(min(max(cap * BATCH_PORTION_S, BATCH_LEAST), BATCH_MOST))
    return int(min(max(cap * FAIR_PORTION_S, FAIR_LEAST), FAIR_MOST))


def _credit(cap: float, batch: bool) -> float:
    return max(cap * SLACK_S, CATCH_UP_PORTIONS * _portion(cap or inf, batch))
