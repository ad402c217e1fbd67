"""A signed link: what its text says, and that nobody else can say it."""

from __future__ import annotations

import base64
import hmac
import secrets
from ipaddress import ip_address, ip_network
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distfs.access.link import LATEST, MOST_TEXT, Link, _mac, seal, unseal
from distfs.access.link_terms import MOST_USES, read_download, read_upload
from distfs.errors import Forbidden, Refused

KEY, OTHER = secrets.token_bytes(32), secrets.token_bytes(32)
TOKEN, FILE = uuid4(), uuid4()
NOW = 1_800_000_000.0

texts = st.text(max_size=MOST_TEXT).filter(lambda text: len(text.encode()) <= MOST_TEXT)
numbers = st.integers(0, (1 << 63) - 1)
networks = st.one_of(
    st.builds(
        lambda a, p: ip_network((a, p), strict=False), st.integers(0, (1 << 32) - 1), st.integers(0, 32)
    ),
    st.builds(
        lambda a, p: ip_network((a, p), strict=False),
        st.integers(1 << 64, (1 << 128) - 1),
        st.integers(0, 128),
    ),
)
links = st.builds(
    Link,
    st.uuids(),
    st.integers(0, LATEST),
    st.none() | st.uuids(),
    st.none() | st.uuids(),
    st.none() | st.tuples(numbers, numbers),
    st.none() | networks,
    texts.filter(lambda text: "\ud800" not in text),
    numbers,
    texts,
)


def opened(text: str, *keys: bytes) -> Link | None:
    sealed = unseal(text)
    return sealed.open(keys) if sealed else None


@given(links)
def test_a_link_says_what_it_was_given(link: Link) -> None:
    text = seal(link, KEY)
    sealed = unseal(text)
    assert sealed is not None
    assert sealed.token == link.token.bytes
    assert sealed.open([KEY]) == sealed.open([OTHER, KEY]) == link
    assert sealed.open([OTHER]) is sealed.open([]) is None
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@given(links, st.data())
def test_a_link_that_was_changed_anywhere_is_none(link: Link, data: st.DataObject) -> None:
    text = seal(link, KEY)
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from("Aa0-_=.%é").filter(lambda digit: digit != text[at]))
    for changed in (
        text[:at] + other + text[at + 1 :],
        text[:at],
        text[at + 1 :],
        text + other,
        other + text,
    ):
        assert opened(changed, KEY, OTHER) is None


@given(st.text() | st.binary(max_size=200).map(lambda data: base64.urlsafe_b64encode(data).decode()))
def test_other_text_is_none(text: str) -> None:
    assert opened(text, KEY) is None


def test_another_version_is_none() -> None:
    text = seal(Link(TOKEN, 0, FILE), KEY)
    data = bytearray(base64.urlsafe_b64decode(text))
    assert data[0] == 1
    data[0] = 2
    assert unseal(base64.urlsafe_b64encode(data).decode()) is None


def test_a_usual_one_is_short() -> None:
    assert len(seal(Link(TOKEN, LATEST, FILE), KEY)) == 108


# --- when it is used ------------------------------------------------------------------------------


def test_it_ends() -> None:
    link = Link(TOKEN, 1_000_000_000, FILE)
    link.check(999_999_999.9, None)
    for now in (1_000_000_000, NOW):
        with pytest.raises(Forbidden, match="has expired, at 2001-09-09 01:46:40 UTC"):
            link.check(now, None)


def test_it_may_be_for_some_clients() -> None:
    link = Link(TOKEN, LATEST, FILE, network=ip_network("192.0.2.0/24"))
    link.check(NOW, ip_address("192.0.2.255"))
    for other in (ip_address("192.0.3.0"), ip_address("::1"), None):
        with pytest.raises(Forbidden, match="not for clients at"):
            link.check(NOW, other)


def test_it_may_be_for_some_bytes() -> None:
    link = Link(TOKEN, LATEST, FILE, span=(10, 19))
    for first, last in ((10, 19), (10, 10), (19, 19), (12, 15)):
        link.check_span(first, last)
    for first, last in ((9, 19), (10, 20), (0, 5), (0, 100)):
        with pytest.raises(Forbidden, match=r"curl -r 10-19"):
            link.check_span(first, last)


# --- when it is asked for -------------------------------------------------------------------------


def test_what_is_asked_for_a_download() -> None:
    asked = {"expires_in": "1h", "downloads": 5, "range": "2-", "network": "192.0.2.0/24", "name": "x y.pdf"}
    link = read_download(asked).link(TOKEN, FILE, 10, NOW)
    assert link.uses is not None
    assert link == Link(
        TOKEN, int(NOW) + 3600, FILE, link.uses, (2, 9), ip_network("192.0.2.0/24"), "x y.pdf"
    )
    assert read_download({}).link(TOKEN, FILE, 10, NOW) == Link(TOKEN, int(NOW) + 86400, FILE)
    assert read_download({"expires": "2030-01-31T12:00:00Z"}).link(TOKEN, FILE, 0, NOW).expires == 1896091200


def test_what_is_asked_for_uploads() -> None:
    link = read_upload({"max_size": "1MB", "policy": "archive"}).link(TOKEN, NOW)
    assert isinstance(link.uses, UUID)
    assert link == Link(TOKEN, int(NOW) + 86400, uses=link.uses, max_size=10**6, policy="archive")
    assert read_upload({"files": 0}).link(TOKEN, NOW).uses is None


@pytest.mark.parametrize(
    ("text", "span"), [("0-", (0, 9)), ("-3", (7, 9)), ("-30", (0, 9)), ("9-99", (9, 9))]
)
def test_a_range_is_one_of_the_file(text: str, span: tuple[int, int]) -> None:
    assert read_download({"range": text}).link(TOKEN, FILE, 10, NOW).span == span


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"expire": "1h"}, "it has: downloads, expires"),
        ({"expires_in": "soon"}, "expires_in"),
        ({"expires_in": 0}, "later than now"),
        ({"expires_in": "0s"}, "later than now"),
        ({"expires_in": "0s", "expires": "2030-01-31T12:00:00Z"}, "not both"),
        ({"expires_in": "1h", "expires": "2030-01-31T12:00:00Z"}, "not both"),
        ({"expires": "tomorrow"}, "such as 2030"),
        ({"expires": "2030-01-31T12:00:00"}, "time zone"),
        ({"expires": "2001-01-31T12:00:00Z"}, "later than now"),
        ({"downloads": -1}, "downloads"),
        ({"downloads": MOST_USES + 1}, f"at most {MOST_USES}"),
        ({"range": "10-"}, "none of the bytes"),
        ({"range": "0-1,3-4"}, "not one of bytes"),
        ({"range": "x"}, "not one of bytes"),
        ({"network": "everywhere"}, "network"),
        ({"name": "a\nb"}, "one line"),
        ({"name": "x" * 256}, "at most 255 bytes"),
        ({"name": ["x"]}, "name"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(Refused, match=words):
        read_download(given).link(TOKEN, FILE, 10, NOW)


@given(st.binary(max_size=64), st.binary(max_size=200))
def test_what_signs_is_hmac(key: bytes, body: bytes) -> None:
    assert _mac(key, body) == hmac.digest(key, body, "sha256")
