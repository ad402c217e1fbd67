"""Clients that share a rate on a clock of their own, and what they would get in an ideal world."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from distfs.limits.fair_together import SharedSchedule
from distfs.limits.fairshare import Group, Schedule, Transfer
from distfs.process.shared_table import SharedTable

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


class Together:
    """What several processes share, each with a part of the clients, as the one schedule that it should look like."""

    def __init__(self, cap: float, mode: str, caps: Sequence[float], processes: int) -> None:
        self._table = SharedTable(processes)
        self._turns = itertools.cycle(range(processes))
        self._parts: list[Schedule] = []
        self._groups: list[list[Group]] = []
        self._process_of: dict[Transfer, int] = {}
        for row in range(processes):
            self._table.mine(row)
            part = SharedSchedule(cap, mode, self._table, "out")
            self._parts.append(part)
            self._groups.append([part.group(each, str(i)) for i, each in enumerate(caps)])

    def join(self, number: int, client: Client, everyone: Group) -> Transfer:
        """Its transfer, in some process."""
        row = next(self._turns)
        group = everyone if client.rule is None else self._groups[row][client.rule]
        transfer = Transfer(number, client.weight, group=group)
        self._process_of[transfer] = row
        return transfer

    def _part(self, row: int) -> Schedule:
        self._table.mine(row)
        return self._parts[row]

    def portion(self, transfer: Transfer) -> int:
        return self._part(self._process_of[transfer]).portion(transfer)

    def ask(self, transfer: Transfer, amount: int, now: float) -> None:
        self._part(self._process_of[transfer]).ask(transfer, amount, now)

    def leave(self, transfer: Transfer) -> None:
        self._part(self._process_of[transfer]).leave(transfer)

    def grant(self, now: float) -> Transfer | None:
        for (
            _
        ) in self._parts:  # whoever comes first; twice, since who is first may yield to one who says it later
            for row in range(len(self._parts)):
                if granted := self._part(row).grant(now):
                    return granted
        return None

    def wait(self, now: float) -> float:
        return min(self._part(row).wait(now) for row in range(len(self._parts)))


class Alone(Schedule):
    """The schedule of one process."""

    def __init__(self, cap: float, mode: str, caps: Sequence[float]) -> None:
        super().__init__(cap, mode)
        self._groups = [Group(each) for each in caps]

    def join(self, number: int, client: Client, everyone: Group) -> Transfer:
        group = everyone if client.rule is None else self._groups[client.rule]
        return Transfer(number, client.weight, group=group)


def simulate(
    clients: Sequence[Client],
    until: float,
    cap: float,
    mode: str = "fair",
    caps: Sequence[float] = (),
    processes: int = 1,
) -> Alone | Together:
    """Let the clients run from 0 to ``until``; their ``grants`` tell what happened."""
    schedule = Alone(cap, mode, caps) if processes == 1 else Together(cap, mode, caps, processes)
    numbers = itertools.count()
    everyone = Group(0)
    events: list[tuple[float, int, Client]] = []  # when it asks
    busy_until: dict[Client, float] = defaultdict(float)
    transfers: dict[Client, Transfer] = {}
    clients_of: dict[Transfer, Client] = {}
    for client in sorted(clients, key=lambda each: each.arrives):
        transfers[client] = schedule.join(next(numbers), client, everyone)
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
