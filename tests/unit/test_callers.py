"""What a proxy says of whom it speaks for, and which of it is believed."""

from __future__ import annotations

import pytest

from distfs.config.callers import Caller, CallerMatch, parse_address, parse_network
from distfs.telemetry.context import enter_request

PROXIES = (parse_network("10.0.0.0/8"),)


def caller(**headers: str) -> Caller:
    named = {name.replace("_", "-").lower(): value for name, value in headers.items()}
    return Caller("10.0.0.9", lambda name: named.get(name.lower()))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("198.51.100.7", "198.51.100.7"),
        (" 198.51.100.7\t", "198.51.100.7"),
        ("198.51.100.7:4711", "198.51.100.7"),
        ("2001:DB8::5", "2001:db8::5"),
        ("[2001:db8::5]", "2001:db8::5"),
        ("[2001:db8::5]:80", "2001:db8::5"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("[::ffff:198.51.100.7]:80", "198.51.100.7"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_an_address_as_proxies_write_it(text: str, address: str) -> None:
    assert str(parse_address(text)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unknown",
        "_hidden",
        "example.org",
        "for=198.51.100.7",
        '"198.51.100.7"',
        "198.51.100",
        "198.51.100.256",
        "198.51.100.007",
        "198.51.100.7:",
        "198.51.100.7:x",
        "198.51.100.7:123456",
        "198.51.100.7:٣",
        "198.51.100.7%eth0",
        "198.51.100.7/32",
        "١.2.3.4",
        "0x7f.1",
        "2130706433",
        "\xa0198.51.100.7",
        "[2001:db8::5",
        "2001:db8::5]",
        "[]",
        "[2001:db8::5]80",
        "2001:db8:::5",
        "1:2:3:4:5:6:7:8:9",
    ],
)
def test_what_is_no_address_is_none(text: str) -> None:
    assert parse_address(text) is None


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ("198.51.100.7,", "198.51.100.7"),
        (", 198.51.100.7, ,10.0.0.2,,", "198.51.100.7"),
        ('6.6.6.6", 198.51.100.7', "198.51.100.7"),  # a client's quote swallows nothing
        ('"6.6.6.6, 198.51.100.7', "198.51.100.7"),
        ("198.51.100.7;10.0.0.2", "10.0.0.9"),
        ("198.51.100.7 10.0.0.2", "10.0.0.9"),
        ("198.51.100.7, unknown, 10.0.0.2", "10.0.0.2"),
        (",", "10.0.0.9"),
        (" ", "10.0.0.9"),
    ],
)
def test_the_clients_address_is_the_last_that_is_no_proxys(forwarded: str, address: str) -> None:
    assert str(caller(X_Forwarded_For=forwarded).identify(PROXIES).address) == address
    assert str(caller(X_Forwarded_For=forwarded).identify(()).address) == "10.0.0.9"


@pytest.mark.parametrize(
    ("said", "scheme"),
    [
        ("https,", "https"),
        (" HTTPS ,\t", "https"),
        ("http, https", "https"),
        ("https, gopher", "http"),
        ("https;x", "http"),
        ("https https", "http"),
        ('"https"', "http"),
        ("\xa0https", "http"),
        (",", "http"),
    ],
)
def test_the_scheme_is_the_last_proxys_word(said: str, scheme: str) -> None:
    assert caller(X_Forwarded_Proto=said).identify(PROXIES).scheme("http") == scheme


@pytest.mark.parametrize(
    ("rule", "said", "is_it"),
    [
        ("X-Team=gold", "gold", True),
        ("X-Team=gold", " gold\t", True),
        ("x-team=gold", "gold", True),
        ("X-Team=a=b", "a=b", True),
        ("X-Team=gold, silver", "gold, silver", True),
        ("X-Team=gold", "Gold", False),
        ("X-Team=gold", "gold, silver", False),
        ("X-Team=gold", "gold, gold", False),
        ("X-Team=gold", '"gold"', False),
        ("X-Team=gold", "gold\xa0", False),
        ("X-Team=gold", "", False),
    ],
)
def test_a_rules_header_is_its_value_and_nothing_else(rule: str, said: str, is_it: bool) -> None:
    match = CallerMatch.parse(rule)
    assert caller(X_Team=said).identify(PROXIES).matches(match) == is_it
    assert not caller(X_Team=said).identify(()).matches(match)
    assert not caller().identify(PROXIES).matches(match)


@pytest.mark.parametrize("text", ["a", "A.b_c-9", "x" * 64, "0"])
def test_a_clients_request_id_is_kept(text: str) -> None:
    assert enter_request(text) == text


@pytest.mark.parametrize("text", ["", " ", "a b", "a,b", "x" * 65, "a\n", "é", "٣", "a=b", '"a"', "../a/b"])
def test_another_request_id_is_replaced(text: str) -> None:
    replaced = enter_request(text)
    assert replaced != text
    assert enter_request(replaced) == replaced
