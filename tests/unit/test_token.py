"""The text of a token, how it is shown, and what it is good for."""

from __future__ import annotations

import base64
import hashlib
import re
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distfs.access.terms import read_terms
from distfs.access.token import LENGTH, hash_of, new_token
from distfs.errors import Refused
from distfs.headers.authorization import shown_token


def test_a_token_has_a_prefix_and_a_checksum() -> None:
    text = new_token()
    assert re.fullmatch(r"distfs_[0-9A-Za-z]{49}", text)
    assert len(text) == LENGTH
    assert hash_of(text) == hashlib.sha256(text.encode()).digest()
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    number = 0
    for digit in text[-6:]:
        number = number * 62 + digits.index(digit)
    assert number == zlib.crc32(text[:-6].encode())


def test_no_two_are_alike() -> None:
    assert len({new_token() for _ in range(1000)}) == 1000


def test_any_other_digit_is_noticed() -> None:
    text = new_token()
    for at in range(len(text)):
        for digit in "0Zz_":
            if text[at] != digit:
                assert hash_of(text[:at] + digit + text[at + 1 :]) is None


@given(st.text(max_size=80) | st.text(max_size=60).map(lambda rest: "distfs_" + rest))
def test_other_text_is_none(text: str) -> None:
    assert hash_of(text) is None


@pytest.mark.parametrize(
    ("header", "token"),
    [
        (None, None),
        ("", None),
        ("Digest abc", None),
        ("Bearer", ""),
        ("Bearer ", ""),
        ("Bearer T", "T"),
        ("bEaReR   T ", "T"),
        ("Basic " + base64.b64encode(b"anybody:T").decode(), "T"),
        ("basic " + base64.b64encode(b":T").decode(), "T"),
        ("basic " + base64.b64encode(b":T:U").decode(), "T:U"),
        ("Basic " + base64.b64encode(b"T").decode(), ""),
        ("Basic not base64", ""),
        ("Basic " + base64.b64encode(b":\xff").decode(), ""),
        ("Basic", ""),
    ],
)
def test_how_a_token_is_shown(header: str | None, token: str | None) -> None:
    assert shown_token(header) == token


@given(st.text())
def test_any_header_is_read(header: str) -> None:
    shown_token(header)


# --- terms ----------------------------------------------------------------------------------------


def test_terms_are_read_as_settings_are() -> None:
    terms = read_terms(
        {
            "owner": "alice",
            "scopes": ["upload", "list"],
            "expires": "30d",
            "quota": "10GB",
            "cap_in": "1MiB/s",
        }
    )
    assert (terms.owner, terms.scopes) == ("alice", ("upload", "list"))
    assert (float(terms.expires), int(terms.quota), int(terms.cap_in)) == (30 * 86400, 10**10, 1 << 20)
    assert read_terms({"owner": "a", "scopes": "upload, list"}).scopes == ("upload", "list")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "needs owner"),
        ({"owner": "a"}, "needs scopes"),
        ({"owner": "a", "scopes": []}, "needs scopes"),
        ({"owner": "a", "scopes": ","}, "needs scopes"),
        ({"owner": "a", "scopes": [""]}, "needs scopes"),
        ({"owner": "a ", "scopes": ["list"]}, "without spaces around it"),
        ({"owner": "a", "name": "\u00a0n", "scopes": ["list"]}, "text on one line"),
        ({"owner": "a", "scopes": ["upload"], "policies": ["a\0b"]}, "text on one line"),
        ({"owner": "a", "scopes": ["root"]}, "no scope 'root'; there are: upload, download"),
        ({"owner": "a", "scopes": [7]}, "scopes: 7 is not text"),
        ({"owner": 7, "scopes": ["list"]}, "owner: 7 is not text"),
        ({"owner": "a\nb", "scopes": ["list"]}, "text on one line"),
        ({"owner": "\udc80", "scopes": ["list"]}, "text on one line"),
        ({"owner": "a" * 256, "scopes": ["list"]}, "at most 255 bytes"),
        ({"owner": "a", "scopes": ["list"], "hash": "x"}, "a token has no 'hash'"),
        ({"owner": "a", "scopes": ["list"], "quota": "much"}, "quota: 'much' is not a size"),
        ({"owner": "a", "scopes": ["list"], "quota": str(1 << 63)}, "more than there can be"),
        ({"owner": "a", "scopes": ["list"], "max_uploads": 1 << 31}, "more than there can be"),
        ({"owner": "a", "scopes": ["list"], "expires": "99999d"}, "more than there can be"),
    ],
)
def test_terms_that_cannot_be_are_one_line(given: dict[str, object], words: str) -> None:
    with pytest.raises(Refused) as refused:
        read_terms(given)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
