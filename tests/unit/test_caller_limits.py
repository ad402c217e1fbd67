"""How much one caller may have: pure counting, by address or by rule."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack

import pytest

from distfs.config.callers import LOOPBACK, Caller, CallerMatch, parse_network
from distfs.config.settings import Bytes, CallerRule, CallersConfig, Fraction, HttpConfig
from distfs.errors import TooMany
from distfs.limits.callers import Callers
from distfs.limits.tally import SharedTally
from distfs.process.shared_table import SharedTable

HTTP = HttpConfig(max_connections=8, threads=6, max_uploads=4, max_bytes_in_flight=Bytes(1000))
HALF = CallersConfig(exempt=())
PROXY = "192.0.2.1"


def caller(address: str, headers: Mapping[str, str] | None = None) -> Caller:
    return Caller(address, (headers or {}).get)


def test_one_address_has_half_of_the_connections_and_others_the_rest() -> None:
    callers = Callers(HALF, HTTP)
    for _ in range(4):
        callers.connect("198.51.100.7")
    with pytest.raises(
        TooMany, match=r"198\.51\.100\.7 has 4 connections.*callers\.address_share"
    ) as refused:
        callers.connect("198.51.100.7")
    assert (refused.value.status, refused.value.retry_after) == (429, 5)
    callers.connect("198.51.100.8")
    callers.disconnect("198.51.100.7")
    callers.connect("198.51.100.7")


@pytest.mark.parametrize("way", ["download", "upload"])
def test_one_address_has_half_of_the_transfers(way: str) -> None:
    callers = Callers(HALF, HTTP)
    begin = getattr(callers, way)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(begin(caller("198.51.100.7")))
        with pytest.raises(TooMany, match="has 3 transfers"), begin(caller("198.51.100.7")):
            pass
        with begin(caller("198.51.100.8")):
            pass
    with begin(caller("198.51.100.7")):
        pass


def test_one_address_has_half_of_the_large_uploads_and_of_what_they_declare() -> None:
    callers = Callers(HALF, HTTP)
    one, other = caller("198.51.100.7"), caller("198.51.100.8")
    with callers.large_upload(one, 300):
        with pytest.raises(TooMany, match=r"300 bytes.*201 bytes more.*500 bytes.*address_share"):
            callers.large_upload(one, 201).__enter__()
        with callers.large_upload(one, 200):
            with pytest.raises(TooMany, match="has 2 large uploads"):
                callers.large_upload(one, 0).__enter__()
            with callers.large_upload(other, 500):
                pass
    with callers.large_upload(one, 900):
        pass  # who has nothing else may have what is larger than its share
    assert not callers.tally.of("large uploads")
    assert not callers.tally.of("declared bytes")


def test_an_address_has_one_share_of_what_several_processes_have_together() -> None:
    table = SharedTable(2)
    first, second = (Callers(HALF, HTTP, SharedTally(table)) for _ in range(2))
    one = caller("198.51.100.7")
    table.mine(0)
    with first.large_upload(one, 100):
        table.mine(1)
        with pytest.raises(TooMany, match="401 bytes more would pass the 500 bytes"):
            second.large_upload(one, 401).__enter__()
        with second.large_upload(one, 400), pytest.raises(TooMany, match="has 2 large uploads"):
            second.large_upload(one, 0).__enter__()
        table.mine(0)


def test_who_has_nothing_is_forgotten() -> None:
    callers = Callers(HALF, HTTP)
    for number in range(1000):
        address = f"198.51.{number >> 8}.{number & 255}"
        callers.connect(address)
        with callers.upload(caller(address)), callers.large_upload(caller(address), 10):
            assert len(callers.tally._held) == 4
        callers.disconnect(address)
        callers.disconnect(address)  # nothing is below 0
    assert not callers.tally._held


@pytest.mark.parametrize(
    ("first", "second", "are_one"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:198.51.100.7", "198.51.100.7", True),
        ("198.51.100.7", "198.51.100.8", False),
        ("fe80::1%eth0", "fe80::2", True),
    ],
)
def test_an_address_of_ipv6_is_a_64(first: str, second: str, are_one: bool) -> None:
    callers = Callers(HALF, HttpConfig(max_connections=2))
    callers.connect(first)
    if are_one:
        with pytest.raises(TooMany):
            callers.connect(second)
    else:
        callers.connect(second)


@pytest.mark.parametrize(
    ("config", "address"),
    [
        (CallersConfig(exempt=(parse_network("198.51.100.0/24"),)), "198.51.100.7"),
        (CallersConfig(exempt=(), address_share=Fraction(0)), "198.51.100.7"),
        (CallersConfig(exempt=(), trusted_proxies=(parse_network(PROXY),)), PROXY),
        (CallersConfig(), "127.0.0.1"),
        (CallersConfig(), "::1"),
        (HALF, ""),
    ],
    ids=["exempt", "no share", "a proxy", "loopback", "loopback of IPv6", "a Unix socket"],
)
def test_who_is_excepted_has_what_there_is(config: CallersConfig, address: str) -> None:
    callers = Callers(config, HTTP)
    with ExitStack() as stack:
        for _ in range(100):
            callers.connect(address)
            stack.enter_context(callers.upload(caller(address)))
            stack.enter_context(callers.download(caller(address)))
            stack.enter_context(callers.large_upload(caller(address), 1000))
    assert CallersConfig().exempt == LOOPBACK


def test_behind_a_proxy_the_client_is_counted() -> None:
    callers = Callers(CallersConfig(exempt=(), trusted_proxies=(parse_network(PROXY),)), HTTP)

    def behind(client: str) -> AbstractContextManager[None]:
        return callers.download(caller(PROXY, {"X-Forwarded-For": client}))

    with behind("198.51.100.7"), behind("198.51.100.7"), behind("198.51.100.7"):
        with pytest.raises(TooMany, match=r"198\.51\.100\.7 has"):
            behind("203.0.113.9, 198.51.100.7").__enter__()
        with behind("198.51.100.8"):
            pass
        with callers.download(caller("203.0.113.5", {"X-Forwarded-For": "198.51.100.7"})):
            pass  # who is no proxy speaks for nobody


def test_a_rule_with_a_number_of_uploads_takes_the_place_of_the_address() -> None:
    rule = CallerRule(CallerMatch.parse("198.51.100.0/24"), max_uploads=5)
    callers = Callers(CallersConfig(rules=(rule,), exempt=()), HTTP)
    one = caller("198.51.100.7")
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(callers.large_upload(one, 900))
            stack.enter_context(callers.upload(one))
        for begin in (callers.check, lambda c: callers.large_upload(c, 1).__enter__()):
            with pytest.raises(TooMany, match=r"may have 5 uploads at once \(callers\.rules\)"):
                begin(caller("198.51.100.9"))
        assert callers.by_rule() == {"198.51.100.0/24": 5}
        with callers.download(one), callers.download(one), callers.download(one):
            with pytest.raises(TooMany, match=r"callers\.address_share"):
                callers.download(one).__enter__()
    assert not callers.tally._held


def test_a_rule_without_one_leaves_the_address_its_share() -> None:
    rule = CallerRule(CallerMatch.parse("198.51.100.0/24"))
    callers = Callers(CallersConfig(rules=(rule,), exempt=()), HTTP)
    one = caller("198.51.100.7")
    with callers.upload(one), callers.upload(one), callers.upload(one):
        assert callers.by_rule() == {"198.51.100.0/24": 3}
        with pytest.raises(TooMany):
            callers.upload(one).__enter__()
        with callers.upload(caller("198.51.100.8")):
            pass
    assert not callers.tally._held


def test_counting_survives_another_configuration() -> None:
    callers = Callers(HALF, HTTP)
    with callers.upload(caller("198.51.100.7")):
        callers.config = CallersConfig(exempt=(parse_network("198.51.100.0/24"),))
        with ExitStack() as stack:
            for _ in range(10):
                stack.enter_context(callers.upload(caller("198.51.100.7")))
            callers.config = HALF
            with pytest.raises(TooMany):
                callers.upload(caller("198.51.100.7")).__enter__()
    assert not callers.tally._held
