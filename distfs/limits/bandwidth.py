"""The bandwidth of a service: worker threads ask here before each portion they read from or write to a client.

What may go when is fairshare's to say; here are the threads that wait for it. Without a cap nobody waits, and
asking costs one look at whether there is one.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from math import inf
from typing import Literal

from distfs.body.source import Source
from distfs.config.callers import Caller
from distfs.config.settings import BandwidthConfig, CallerRule, CallersConfig
from distfs.deadline import Deadline
from distfs.errors import Unavailable
from distfs.limits.fair_together import SharedSchedule
from distfs.limits.fairshare import Group, Schedule, Transfer
from distfs.process.shared_table import SharedTable

log = logging.getLogger("distfs.bandwidth")

Direction = Literal["in", "out"]


class Bandwidth:
    """Shares what a service may receive and send. Thread-safe; ``configure`` applies to running transfers too."""

    def __init__(
        self,
        config: BandwidthConfig,
        callers: CallersConfig,
        clock: Callable[[], float] = time.monotonic,
        table: SharedTable | None = None,
    ) -> None:
        """``table``: by which the processes of a service have one cap together; ``clock`` is then the same in all."""
        self._table = table
        self._shapers: dict[Direction, _Shaper] = {
            "in": _Shaper(clock, table is not None),
            "out": _Shaper(clock, table is not None),
        }
        self._changing = threading.Lock()
        self._of_tokens: Collection[CallerRule] = ()
        self.configure(config, callers)

    def configure(self, config: BandwidthConfig, callers: CallersConfig) -> None:
        """From now on these caps, this mode, these callers."""
        with self._changing:
            self._config, self._callers = config, callers
            self._apply()

    def pace(self, rules: Collection[CallerRule]) -> None:
        """From now on these are the limits of tokens that say how fast who has them is."""
        with self._changing:
            self._of_tokens = rules
            try:
                self._apply()
            except Unavailable as e:
                log.error("not all caps of tokens are kept to: %s", e)

    def _apply(self) -> None:
        config, callers = self._config, self._callers
        rules = (*callers.rules, *self._of_tokens)
        self._change("in", config.mode, config.cap_in, callers, {rule: rule.cap_in for rule in rules})
        self._change("out", config.mode, config.cap_out, callers, {rule: rule.cap_out for rule in rules})

    def _change(
        self,
        direction: Direction,
        mode: str,
        cap: int,
        callers: CallersConfig,
        caps: Mapping[CallerRule, int],
    ) -> None:
        """No discipline where nothing is capped."""
        discipline: _Discipline | None = None
        if cap or any(caps.values()):
            table = self._table
            schedule = Schedule(cap, mode) if table is None else SharedSchedule(cap, mode, table, direction)
            groups = {rule: schedule.group(most, str(rule.match)) for rule, most in caps.items()}
            discipline = _Discipline(schedule, callers, Group(0), groups)
        self._shapers[direction].change(discipline)

    def transfer(self, caller: Caller, direction: Direction) -> Share:
        """For one upload ('in') or download ('out'), used by one thread at a time."""
        return Share(self._shapers[direction], caller)

    def capped(self, direction: Direction) -> bool:
        """Whether anybody may have to wait."""
        return self._shapers[direction].discipline is not None

    def waiting(self, direction: Direction) -> int:
        """How many transfers wait for their turn now."""
        return self._shapers[direction].waiting

    def incoming(self, source: Source, caller: Caller, deadline: Deadline, size: int | None) -> PacedSource:
        """``source``, read no faster than it may be; to be closed. ``size``: bytes to come; None: nobody knows."""
        return PacedSource(source, self.transfer(caller, "in"), deadline, size)

    def outgoing(self, views: Iterator[memoryview], share: Share, deadline: Deadline) -> Iterator[memoryview]:
        """``views``, in pieces, each when it may be sent; valid until the next one is asked for."""
        try:
            for view in views:
                at = 0
                while at < len(view):
                    amount = share.take(len(view) - at, deadline)
                    yield view[at : at + amount]
                    at += amount
        finally:
            if close := getattr(views, "close", None):
                close()

    def close(self) -> None:
        """Who waits gets Unavailable: the service is stopping."""
        for shaper in self._shapers.values():
            shaper.close()


class Share:
    """One transfer's part of the bandwidth."""

    def __init__(self, shaper: _Shaper, caller: Caller) -> None:
        self.shaper = shaper
        self._caller = caller
        self.discipline: _Discipline | None = None  # the one it last asked in
        self.transfer: Transfer | None = None  # there
        self.turn: threading.Condition | None = None  # it is its turn

    def take(self, amount: int, deadline: Deadline) -> int:
        """Wait until some of ``amount`` bytes, more than 0, may be moved; how many. Raises TooSlow, Unavailable."""
        if self.shaper.discipline is None:
            return amount
        return self.shaper.take(self, amount, deadline)

    def give_back(self, amount: int) -> None:
        """``amount`` bytes of what was taken last were not moved, because there were no more."""
        if amount and self.discipline is not None:
            self.shaper.give_back(self, amount)

    def close(self) -> None:
        """The transfer has ended. One that is forgotten loses its place a little later."""
        if self.discipline is not None:
            self.shaper.leave(self)

    def join(self, discipline: _Discipline, order: Iterator[int]) -> Transfer:
        """Its transfer in ``discipline``; one that comes from another discipline keeps its place in the order."""
        if self.discipline is not discipline or self.transfer is None:
            before = self.transfer
            group, weight = discipline.place(self._caller)
            number = next(order) if before is None else before.order
            taken = 0 if before is None else before.taken
            self.discipline, self.transfer = discipline, Transfer(number, weight, group=group, taken=taken)
        return self.transfer


class _Discipline:
    """How one direction is shared, as configured now: a schedule, and for each rule the transfers it is about."""

    def __init__(
        self, schedule: Schedule, callers: CallersConfig, everyone: Group, groups: Mapping[CallerRule, Group]
    ) -> None:
        self.schedule = schedule
        self.shares: dict[Transfer, Share] = {}  # those that wait
        self._callers, self._everyone, self._groups = callers, everyone, groups

    def place(self, caller: Caller) -> tuple[Group, float]:
        """By the first rule about the caller that says how fast it is: who it shares a cap with, and its weight."""
        for rule in self._callers.all_rules(caller):
            if rule.paces and (group := self._groups.get(rule)) is not None:
                return group, rule.weight
        return self._everyone, 1.0


class _Shaper:
    """One direction. Of those that wait, one (the leader) sleeps until the next turn; it wakes whose turn it is."""

    def __init__(self, clock: Callable[[], float], together: bool) -> None:
        """``together``: the order is one of all processes of a service."""
        self.discipline: _Discipline | None = None
        self._clock = clock
        self._lock = threading.Lock()
        self._order = _by_the_clock() if together else itertools.count()
        self._leader: Share | None = None
        self._leader_wakes_at = inf
        self._closed = False

    def change(self, discipline: _Discipline | None) -> None:
        with self._lock:
            before, self.discipline = self.discipline, discipline
            self._wake_all(before)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._wake_all(self.discipline)

    @property
    def waiting(self) -> int:
        discipline = self.discipline
        return 0 if discipline is None else discipline.schedule.waiting

    def take(self, share: Share, amount: int, deadline: Deadline) -> int:
        unwatch = deadline.watch(lambda: self._rouse(share))
        try:
            return self._take(share, amount, deadline)
        finally:
            unwatch()

    def _take(self, share: Share, amount: int, deadline: Deadline) -> int:
        with self._lock:
            while (discipline := self.discipline) is not None:
                transfer = share.join(discipline, self._order)
                discipline.schedule.ask(transfer, amount, self._clock())
                discipline.shares[transfer] = share
                try:
                    if self._wait(discipline, share, transfer, deadline):
                        return transfer.granted
                finally:
                    discipline.shares.pop(transfer, None)
                    discipline.schedule.withdraw(transfer)
                    if self._leader is share:
                        self._appoint()
        return amount

    def give_back(self, share: Share, amount: int) -> None:
        with self._lock:
            if (
                share.discipline is self.discipline
                and share.discipline is not None
                and share.transfer is not None
            ):
                share.discipline.schedule.give_back(share.transfer, amount)
                self._wake_leader_for(share.discipline, self._clock())

    def leave(self, share: Share) -> None:
        with self._lock:
            if share.discipline is not None and share.transfer is not None:
                share.discipline.schedule.leave(share.transfer)

    def _wait(self, discipline: _Discipline, share: Share, transfer: Transfer, deadline: Deadline) -> bool:
        """Until it is granted; False: the discipline has been replaced meanwhile."""
        while True:
            now = self._clock()
            while discipline is self.discipline and (granted := discipline.schedule.grant(now)):
                self._wake(discipline.shares[granted])
            if transfer.granted:
                return True
            if discipline is not self.discipline:
                return False
            if self._closed:
                raise Unavailable("the service is stopping: try again later")
            seconds = deadline.remaining("waiting for bandwidth")
            if self._leader in (None, share):
                self._leader = share
                seconds = min(seconds, discipline.schedule.wait(now))
                self._leader_wakes_at = now + seconds
            else:
                self._wake_leader_for(discipline, now)
            if share.turn is None:
                share.turn = threading.Condition(self._lock)
            share.turn.wait(seconds)

    def _wake_leader_for(self, discipline: _Discipline, now: float) -> None:
        """It need not sleep on when a turn comes sooner than it thought."""
        if self._leader and now + discipline.schedule.wait(now) < self._leader_wakes_at:
            self._leader_wakes_at = now
            self._wake(self._leader)

    def _appoint(self) -> None:
        """The leader goes: someone else that waits, in the discipline there is now, leads."""
        self._leader = next(iter(self.discipline.shares.values()), None) if self.discipline else None
        if self._leader:
            self._wake(self._leader)

    def _wake_all(self, discipline: _Discipline | None) -> None:
        for share in discipline.shares.values() if discipline else ():
            self._wake(share)

    def _rouse(self, share: Share) -> None:
        """Its request was cancelled."""
        with self._lock:
            self._wake(share)

    def _wake(self, share: Share) -> None:
        if share.turn is not None:
            share.turn.notify()


class PacedSource:
    """A Source that takes a share of the bandwidth before it reads, until it is closed."""

    def __init__(self, source: Source, share: Share, deadline: Deadline, size: int | None) -> None:
        self._source, self._share, self._deadline = source, share, deadline
        self._left = inf if size is None else size

    def readinto(self, view: memoryview) -> int:
        """As Source says. Raises TooSlow and Unavailable as well."""
        if self._share.shaper.discipline is None:
            count = self._source.readinto(view)
            self._left -= count
            return count
        got = 0
        while got < len(view):
            wanted = int(min(len(view) - got, max(self._left, 1)))  # at its end, the source has the last word
            amount = self._share.take(wanted, self._deadline)
            count = self._source.readinto(view[got : got + amount])
            got += count
            self._left -= count
            if count < amount:
                self._share.give_back(amount - count)
                self._share.close()
                break
        return got

    def close(self) -> None:
        """Nobody reads it any more, whether it has ended or not."""
        self._share.close()

    def __enter__(self) -> PacedSource:
        return self

    def __exit__(self, *exc: object) -> None:
        self._share.close()


def _by_the_clock() -> Iterator[int]:
    while True:
        yield time.monotonic_ns() // 1000
