"""Host, Content-Length, entity tags and lists of words, as their RFCs have them."""

from __future__ import annotations

import pytest

from distfs.headers import etags, fields, host, lengths


@pytest.mark.parametrize(
    "text",
    [
        "",
        "files",
        "files.example",
        "my_files.example:8080",
        "_",
        "-",
        "127.0.0.1:80",
        "[::1]",
        "[::1]:8080",
        "[2001:db8::192.0.2.1]:1",
        "[v1.a:b]",
        "a%20b",
        "!$&'()*+;=~",
        "a:",
        "a:0",
        "a:00080",
        "a:65535",
        "[::1]:",
    ],
)
def test_a_host_is_a_name_or_an_address_and_a_port(text: str) -> None:
    assert host.is_host(text)


@pytest.mark.parametrize(
    "text",
    [
        "a b",
        "x/y",
        "x:abc",
        "x:-1",
        "x:65536",
        "x:" + "9" * 5000,
        "x:٣",
        "x:1:2",
        ":80",
        "::1",
        "a, b",
        "a,a",
        "a%2",
        "a%zz",
        "user@a",
        "a?b",
        "a#b",
        "a\\b",
        '"a"',
        "<a>",
        "é",
        "[::1",
        "[::1]80",
        "[::1%eth0]",
        "[1.2.3.4]",
        "[]",
        "[v.a]",
        "a[::1]",
    ],
)
def test_what_is_no_host_is_none(text: str) -> None:
    assert not host.is_host(text)


@pytest.mark.parametrize(
    ("text", "scheme", "shown"),
    [
        ("a", "http", "a"),
        ("a:80", "http", "a"),
        ("a:", "http", "a"),
        ("a:443", "http", "a:443"),
        ("a:443", "https", "a"),
        ("my_a:8080", "http", "my_a:8080"),
        ("[::1]:80", "http", "[::1]"),
        ("[::1]", "http", "[::1]"),
        ("[::80]", "http", "[::80]"),
    ],
)
def test_a_url_leaves_out_the_port_that_goes_without_saying(text: str, scheme: str, shown: str) -> None:
    assert host.in_url(text, scheme) == shown


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("5", 5),
        ("0005", 5),
        (str(2**63 - 1), 2**63 - 1),
        (str(2**63), 2**63),
        ("9" * 30, int("9" * 30)),
        ("9" * 31, lengths.ENDLESS),
        ("9" * 60_000, lengths.ENDLESS),
        ("0" * 60_000 + "5", 5),
        ("5, 5", 5),
        ("5 ,5,\t5", 5),
        ("5, 6", None),
        ("5, 05", None),
        ("5,", None),
        (",", None),
        ("", None),
        ("-1", None),
        ("+1", None),
        ("1 2", None),
        ("1e3", None),
        ("0x5", None),
        ("5.0", None),
        ("٣", None),
        ("²", None),
    ],
)
def test_a_content_length_is_a_number_however_long(text: str, size: int | None) -> None:
    assert lengths.content_length(text) == size


@pytest.mark.parametrize(
    ("text", "strong", "weak"),
    [
        ('"a"', ["a"], []),
        ('W/"a"', [], ["a"]),
        ('"a", W/"b" ,"c,d"', ["a", "c,d"], ["b"]),
        (',"a",,', ["a"], []),
        ('""', [""], []),
        ('"a\\"', ["a\\"], []),
        ("", [], []),
    ],
)
def test_a_list_of_entity_tags(text: str, strong: list[str], weak: list[str]) -> None:
    tags = etags.read(text)
    assert tags is not None
    assert (sorted(tags.strong), sorted(tags.weak), tags.any) == (strong, weak, False)


@pytest.mark.parametrize(
    "text", ["a", '"a', 'a"', '"a" "b"', '"a b"', 'w/"a"', "*, *", '"a", *', '"a"x', "**"]
)
def test_what_is_no_list_of_entity_tags(text: str) -> None:
    assert etags.read(text) is None


def test_any_tag_and_how_tags_compare() -> None:
    anything, tags = etags.read(" * "), etags.read('"a", W/"b"')
    assert anything is not None
    assert tags is not None
    assert anything.has("x")
    assert anything.has_weakly("x")
    assert (tags.has("a"), tags.has("b"), tags.has_weakly("b"), tags.has("c")) == (True, False, True, False)


@pytest.mark.parametrize(
    "hostile", [" " * 60_000 + "x", '"' * 60_001, 'W/"a",' * 10_000 + "x", "," * 60_000 + "x"]
)
def test_hostile_lists_are_read_at_once(hostile: str) -> None:
    assert etags.read(hostile) is None
    assert fields.words(hostile)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", set()),
        ("Close", {"close"}),
        ("keep-alive , CLOSE,,", {"keep-alive", "close"}),
        ("100-Continue", {"100-continue"}),
    ],
)
def test_a_list_of_words(text: str, words: set[str]) -> None:
    assert fields.words(text) == words
