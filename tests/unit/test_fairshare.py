"""Bandwidth shared by arithmetic alone: simulated clients against the ideal."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distfs.config.settings import MIB
from distfs.limits.fairshare import AT_ONCE, EXPRESS, FAIR_MOST, SLACK_S, TURN_S, Group, Schedule, Transfer
from tests.unit.bandwidth_model import Client, fair_rates, ideal_bytes, simulate

CAP = 10 * MIB
PORTION = Schedule(CAP, "fair").portion(Transfer(0, group=Group(0)))
WITHIN = 0.05  # of the ideal
#: One process that has all transfers, or several that have some each and one cap together.
OF_SEVERAL = pytest.mark.parametrize("processes", [1, 3])


def most_in_any_window(grants: Sequence[tuple[float, int]], seconds: float) -> int:
    """Bytes in the fullest window of that length."""
    ordered = sorted(grants)
    most = first = inside = 0
    for at, amount in ordered:
        inside += amount
        while ordered[first][0] < at - seconds:
            inside -= ordered[first][1]
            first += 1
        most = max(most, inside)
    return most


def all_grants(clients: Sequence[Client]) -> list[tuple[float, int]]:
    return [grant for client in clients for grant in client.grants]


# --- fair -------------------------------------------------------------------------------------------


@st.composite
def mixes(draw: st.DrawFn) -> tuple[list[Client], list[float]]:
    """Clients of many weights and speeds, some under caps of their own -> (clients, caps)."""
    caps = draw(st.lists(st.sampled_from([0.0, 0.5 * MIB, 2.0 * MIB, 4.0 * MIB]), max_size=3))
    rules = st.sampled_from([None, *range(len(caps))])
    speeds = st.sampled_from([math.inf, math.inf, math.inf, 0.7 * MIB, 1.5 * MIB, 4.0 * MIB])
    weights = st.sampled_from([0.5, 1.0, 1.0, 2.0, 3.0, 4.0])
    client = st.builds(Client, weight=weights, rule=rules, speed=speeds)
    return draw(st.lists(client, min_size=1, max_size=9)), caps


def slow_ones_before_a_capped_one() -> tuple[list[Client], list[float]]:
    """Each of the slow may be further behind than it, and take a turn before it: it lost a tenth of its cap."""
    speeds = [math.inf, 0.7 * MIB, 0.7 * MIB, 4.0 * MIB]
    return [*(Client(weight=0.5, speed=speed) for speed in speeds), Client(rule=0)], [0.5 * MIB]


def a_light_one_among_slow_ones_of_its_caller() -> tuple[list[Client], list[float]]:
    """Their cap has room for all. Heavy ones that took less than their share had it lose a tenth of its own."""
    weights = [(1.0, 4.0), (1.0, math.inf), (1.0, math.inf), (0.5, 0.7), (1.0, 0.7)]
    members = [(3.0, 0.7), (0.5, 1.5), (4.0, 0.7), (1.0, 0.7)]
    others = [Client(weight=weight, speed=speed * MIB) for weight, speed in weights]
    return [*others, *(Client(weight=w, rule=0, speed=speed * MIB) for w, speed in members)], [4.0 * MIB]


def slow_ones_beside_a_light_one() -> tuple[list[Client], list[float]]:
    """Each has a little more than it can take, for as long as its buffer is not full."""
    slow = [Client(weight=0.5, speed=0.7 * MIB), Client(weight=3.0, speed=4.0 * MIB)]
    capped = [Client(weight=0.5, rule=0), Client(weight=3.0, rule=1)]
    return [Client(weight=0.5), *slow, *capped], [0.5 * MIB, 4.0 * MIB]


@settings(max_examples=25, deadline=None)
@given(mixes())
@example(slow_ones_before_a_capped_one())
@example(a_light_one_among_slow_ones_of_its_caller())
@example(slow_ones_beside_a_light_one())
@OF_SEVERAL
def test_every_mix_of_weights_caps_and_speeds_gets_its_share(
    processes: int, mix: tuple[list[Client], list[float]]
) -> None:
    clients, caps = mix
    until, since = 25.0, 5.0
    for client in clients:
        client.grants.clear()  # an example is the same for each
    simulate(clients, until, CAP, caps=caps, processes=processes)
    for client, rate in fair_rates(clients, CAP, caps).items():
        got, ideal = client.got(until, since), rate * (until - since)
        assert got == pytest.approx(ideal, rel=WITHIN, abs=PORTION), (
            client.weight,
            client.rule,
            client.speed,
        )


@pytest.mark.parametrize("seed", range(6))
@OF_SEVERAL
def test_shares_follow_arrivals_and_departures(processes: int, seed: int) -> None:
    chance = random.Random(seed)
    caps = [2.0 * MIB, 0.0]
    clients = [
        Client(
            weight=chance.choice([0.5, 1, 2, 4]),
            rule=chance.choice([None, None, 0, 1]),
            arrives=chance.uniform(0, 40),
            size=chance.choice([2, 8, 20, 60, 2000]) * MIB,
        )
        for _ in range(14)
    ]
    for until in (20.0, 40.0, 60.0):
        for client in clients:
            client.grants.clear()
        simulate(clients, until, CAP, caps=caps, processes=processes)
        for client, ideal in ideal_bytes(clients, until, CAP, caps).items():
            assert client.got(until) == pytest.approx(ideal, rel=WITHIN, abs=SLACK_S * CAP)


@OF_SEVERAL
def test_weights_decide_within_a_capped_group_too(processes: int) -> None:
    light, heavy = Client(weight=1, rule=0), Client(weight=3, rule=0)
    others = [Client() for _ in range(4)]
    simulate([light, heavy, *others], 30, CAP, caps=[1.0 * MIB], processes=processes)
    assert heavy.got(30) / light.got(30) == pytest.approx(3, rel=WITHIN)
    assert light.got(30) + heavy.got(30) == pytest.approx(30 * MIB, rel=WITHIN)


@OF_SEVERAL
def test_a_caller_may_be_capped_where_the_service_is_not(processes: int) -> None:
    capped = [Client(rule=0, weight=w) for w in (1, 2)]
    other = [Client(rule=1, weight=1)]
    simulate([*capped, *other], 20, 0, caps=[3.0 * MIB, 1.0 * MIB], processes=processes)
    assert [c.got(20) / 20 / MIB for c in (*capped, *other)] == pytest.approx([1, 2, 1], rel=WITHIN)


@OF_SEVERAL
def test_what_slow_clients_leave_is_used_by_the_others(processes: int) -> None:
    slow = [Client(speed=0.1 * MIB) for _ in range(5)]
    fast = [Client(), Client()]
    simulate([*slow, *fast], 30, CAP, processes=processes)
    assert sum(c.got(30) for c in (*slow, *fast)) == pytest.approx(30 * CAP, rel=0.01)
    for client in fast:
        assert client.got(30) == pytest.approx(30 * (CAP - 0.5 * MIB) / 2, rel=WITHIN)


@OF_SEVERAL
def test_one_transfer_alone_gets_everything(processes: int) -> None:
    alone = Client()
    simulate([alone], 20, CAP, processes=processes)
    assert alone.got(20) == pytest.approx(20 * CAP, rel=0.01)


@OF_SEVERAL
def test_the_lightest_among_many_heavy_ones_is_never_starved(processes: int) -> None:
    light = Client(weight=0.5)
    simulate([light, *(Client(weight=8) for _ in range(30))], 60, CAP, processes=processes)
    pauses = [b - a for (a, _), (b, _) in zip(light.grants, light.grants[1:])]
    turn_s = light.grants[0][1] * (30 * 8 + 0.5) / 0.5 / CAP
    assert len(pauses) > 3
    assert max(pauses) < 1.5 * turn_s


@OF_SEVERAL
def test_who_comes_back_after_a_pause_gets_no_more_than_its_share(processes: int) -> None:
    """Time that it did not use is not saved up for it."""
    steady, returning = Client(), Client(arrives=0, size=MIB)
    simulate([steady, returning], 20, CAP, processes=processes)
    late = Client(arrives=10.0)
    others = [Client(), Client()]
    simulate([*others, late], 12, CAP, processes=processes)
    assert late.got(12) == pytest.approx(2 * CAP / 3, rel=WITHIN)


# --- caps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fair", "batch"])
@pytest.mark.parametrize("seed", range(4))
@OF_SEVERAL
def test_no_window_holds_more_than_the_caps_allow(processes: int, mode: str, seed: int) -> None:
    chance = random.Random(seed)
    caps = [1.0 * MIB, 3.0 * MIB]
    clients = [
        Client(
            rule=chance.choice([None, 0, 1]),
            arrives=chance.uniform(0, 10),
            size=chance.choice([10_000, MIB, 30 * MIB]),
            speed=chance.choice([math.inf, 2.0 * MIB]),
        )
        for _ in range(20)
    ]
    simulate(clients, 20, CAP, mode, caps, processes=processes)
    portion = MIB if mode == "batch" else FAIR_MOST
    for cap, saved_s, members in [(CAP, SLACK_S, clients)] + [
        (c, TURN_S, [x for x in clients if x.rule == i]) for i, c in enumerate(caps)
    ]:
        for seconds in (0.0, 0.1, 1.0, 5.0):
            allowed = cap * (seconds + saved_s) + portion
            assert most_in_any_window(all_grants(members), seconds) <= allowed * (1 + 1e-9)


def test_bytes_given_back_are_somebody_elses() -> None:
    schedule = Schedule(MIB, "fair")
    everyone = Group(0)
    first, second = (Transfer(number, group=everyone) for number in (1, 2))
    schedule.ask(first, MIB, 100.0)
    assert schedule.grant(100.0) is first
    free_again = 100.0
    while schedule.grant(free_again) is None and schedule.wait(free_again) == math.inf:
        schedule.ask(second, MIB, free_again)
    schedule.give_back(second, second.granted)
    schedule.give_back(first, first.granted)
    assert first.taken == second.taken == 0
    schedule.ask(first, 1000, 100.0)
    assert schedule.grant(100.0) is first


def test_who_withdraws_is_not_waited_for() -> None:
    schedule = Schedule(1000, "fair")
    transfer = Transfer(1, group=Group(0))
    schedule.ask(transfer, 4096, 0.0)
    assert schedule.waiting == 1
    schedule.withdraw(transfer)
    assert (schedule.waiting, schedule.grant(0.0), schedule.wait(0.0)) == (0, None, math.inf)


# --- batch ------------------------------------------------------------------------------------------


@OF_SEVERAL
def test_batch_serves_few_at_a_time_and_the_rest_in_order(processes: int) -> None:
    clients = [Client(arrives=0.01 * n, size=20 * MIB) for n in range(8)]
    simulate(clients, 40, CAP, "batch", processes=processes)
    ends = [client.finished_at for client in clients]
    assert math.inf not in ends
    for pair in range(0, 8, AT_ONCE):
        later = clients[pair + 2 * AT_ONCE :]
        assert all(client.got(ends[pair]) <= EXPRESS + MIB for client in later)
    pairs = [sorted(ends[pair : pair + AT_ONCE]) for pair in range(0, 8, AT_ONCE)]
    assert sorted(pairs) == pairs


@OF_SEVERAL
def test_batch_ends_transfers_sooner_on_average_than_fair(processes: int) -> None:
    def mean_end(mode: str) -> float:
        clients = [Client(size=20 * MIB) for _ in range(8)]
        simulate(clients, 60, CAP, mode, processes=processes)
        return sum(client.finished_at for client in clients) / 8

    assert mean_end("batch") < 0.75 * mean_end("fair")


@OF_SEVERAL
def test_batch_lets_small_transfers_through(processes: int) -> None:
    large = [Client(size=500 * MIB) for _ in range(6)]
    small = [Client(arrives=5.0 + n, size=MIB // 2) for n in range(20)]
    simulate([*large, *small], 60, CAP, "batch", processes=processes)
    assert all(client.finished_at - client.arrives < 1.0 for client in small)


@OF_SEVERAL
def test_batch_serves_everyone_in_the_end_under_a_stream_of_small_ones(processes: int) -> None:
    large = [Client(size=20 * MIB) for _ in range(4)]
    small = [Client(arrives=0.1 * n, size=MIB // 2) for n in range(400)]
    simulate([*large, *small], 60, CAP, "batch", processes=processes)
    assert all(client.finished_at < 60 for client in large)


@OF_SEVERAL
def test_batch_leaves_nothing_unused_when_those_in_front_are_slow(processes: int) -> None:
    slow = [Client(speed=2.0 * MIB) for _ in range(AT_ONCE)]
    fast = [Client(arrives=1.0), Client(arrives=1.1)]
    simulate([*slow, *fast], 31, CAP, "batch", processes=processes)
    assert sum(c.got(31, 1) for c in (*slow, *fast)) == pytest.approx(30 * CAP, rel=0.02)
    assert fast[0].got(31) > 10 * fast[1].got(31)  # in order, not a little for each


@OF_SEVERAL
def test_batch_gives_the_place_of_a_stalled_transfer_to_the_next(processes: int) -> None:
    stalled = [Client(speed=1.0) for _ in range(AT_ONCE)]
    rest = [Client(arrives=1.0 + n / 10) for n in range(3)]
    simulate([*stalled, *rest], 31, CAP, "batch", processes=processes)
    first, second, third = (client.got(31) for client in rest)
    assert first == pytest.approx(second, rel=0.1)  # both served now
    assert third <= EXPRESS + MIB


@OF_SEVERAL
def test_batch_keeps_the_caps_of_callers_and_gives_the_rest_to_others(processes: int) -> None:
    capped = [Client(rule=0) for _ in range(AT_ONCE)]
    other = Client(arrives=1.0)
    simulate([*capped, other], 31, CAP, "batch", caps=[1.0 * MIB], processes=processes)
    assert sum(client.got(31, 1) for client in capped) == pytest.approx(30 * MIB, rel=WITHIN)
    assert other.got(31, 1) == pytest.approx(30 * 9 * MIB, rel=WITHIN)
