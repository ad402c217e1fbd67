"""Clients that share a rate on a clock of their own, and what they would get in an ideal world."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from distfs.limits.fairshare import Group, Schedule, Transfer

#: Portions that fit into a client's socket buffer: it asks for the next while the last is under way.
BUFFER = 4


@dataclass(eq=False)
class Client:
    """Wants ``size`` bytes from ``arrives`` on and takes ``speed`` bytes a second."""

    weight: float = 1.0
    rule: int | None = None  # whose cap it shares, an index into the caps
    speed: float = math.inf
    arrives: float = 0.0
    size: float = math.inf
    grants: list[tuple[float, int]] = field(default_factory=list)  # when, bytes

    def got(self, until: float, since: float = -1.0) -> int:
        return sum(amount for at, amount in self.grants if since < at <= until)

    @property
    def finished_at(self) -> float:
        """When its last byte was granted; inf: not yet."""
        return self.grants[-1][0] if self.grants and self.got(math.inf) >= self.size else math.inf


def simulate(
    clients: Sequence[Client], until: float, cap: float, mode: str = "fair", caps: Sequence[float] = ()
) -> Schedule:
    """Let the clients run from 0 to ``until``; their ``grants`` tell what happened."""
    schedule = Schedule(cap, mode)
    numbers = itertools.count()
    groups = [Group(each) for each in caps]
    everyone = Group(0)
    events: list[tuple[float, int, Client]] = []  # when it asks
    busy_until: dict[Client, float] = defaultdict(float)
    transfers: dict[Client, Transfer] = {}
    clients_of: dict[Transfer, Client] = {}
    for client in sorted(clients, key=lambda each: each.arrives):
        group = everyone if client.rule is None else groups[client.rule]
        transfers[client] = Transfer(next(numbers), client.weight, group=group)
        clients_of[transfers[client]] = client
        heapq.heappush(events, (client.arrives, next(numbers), client))
        # Its buffer is full: what fills a slow one's, at the others' cost, comes once and is no share.
        busy_until[client] = client.arrives + BUFFER * schedule.portion(transfers[client]) / client.speed
    now = 0.0
    while now <= until:
        while events and events[0][0] <= now:
            _, _, client = heapq.heappop(events)
            left = client.size - transfers[client].taken
            if left > 0:
                schedule.ask(transfers[client], int(min(left, 1 << 20)), now)
            else:
                schedule.leave(transfers[client])
        while granted := schedule.grant(now):
            client = clients_of[granted]
            client.grants.append((now, granted.granted))
            busy_until[client] = max(busy_until[client], now) + granted.granted / client.speed
            again = max(now, busy_until[client] - BUFFER * schedule.portion(granted) / client.speed)
            heapq.heappush(events, (again, next(numbers), client))
            if again <= now:
                break  # it asks before anyone else is looked at
        upcoming = min(events[0][0] if events else math.inf, now + schedule.wait(now))
        if upcoming == math.inf:
            break
        if not (events and events[0][0] <= now):
            now = max(upcoming, math.nextafter(now, math.inf))
    return schedule


def fair_rates(clients: Sequence[Client], cap: float, caps: Sequence[float]) -> dict[Client, float]:
    """Weighted max-min by progressive filling (Bertsekas, Gallager: Data Networks, 6.5.2), caps of rules included."""
    rates = dict.fromkeys(clients, 0.0)
    limits: list[tuple[float, list[Client]]] = [(each.speed, [each]) for each in clients]
    limits += [(c, [x for x in clients if x.rule == i]) for i, c in enumerate(caps) if c]
    limits += [(cap, list(clients))] if cap else []
    growing = set(clients)
    while growing:
        steps = []
        for limit, members in limits:
            weight = sum(each.weight for each in members if each in growing)
            if weight and limit < math.inf:
                steps.append(((limit - sum(rates[each] for each in members)) / weight, members))
        step, _ = min(steps, key=lambda pair: pair[0])
        for each in growing:
            rates[each] += each.weight * step
        for more, members in steps:
            if more <= step * (1 + 1e-9) + 1e-9:
                growing.difference_update(members)
    return rates


def ideal_bytes(
    clients: Sequence[Client], until: float, cap: float, caps: Sequence[float] = ()
) -> dict[Client, float]:
    """What each would have got at ``until``, with clients that come and end, if bytes were a fluid."""
    got = dict.fromkeys(clients, 0.0)
    now = 0.0
    while now < until:
        here = [each for each in clients if each.arrives <= now and got[each] < each.size - 0.5]
        rates = fair_rates(here, cap, caps)
        ends = [now + (each.size - got[each]) / rates[each] for each in here if rates[each] > 0]
        arrivals = [each.arrives for each in clients if each.arrives > now]
        upcoming = min([until, *ends, *arrivals])
        for each in here:
            got[each] += rates[each] * (upcoming - now)
        now = max(upcoming, math.nextafter(now, math.inf))
    return got
