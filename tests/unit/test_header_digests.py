"""Digests as RFC 9530 has them, in dictionaries as RFC 9651 has them."""

from __future__ import annotations

import hashlib
from base64 import b64encode

import pytest

from distfs.errors import Refused
from distfs.headers.digests import announced, dictionary, stated

SHA256, SHA512 = hashlib.sha256(b"x").digest(), hashlib.sha512(b"x").digest()
RIGHT = f"sha-256=:{b64encode(SHA256).decode()}:"
WRONG = f"sha-256=:{b64encode(bytes(32)).decode()}:"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("a=:AAAA:", {"a": b"\0\0\0"}),
        ("  a=:AAAA:  ", {"a": b"\0\0\0"}),
        ("a=:AAAA:, b=:/w==:", {"a": b"\0\0\0", "b": b"\xff"}),
        ("a=:AAAA: \t,\t b=::", {"a": b"\0\0\0", "b": b""}),
        ("a=:/w:", {"a": b"\xff"}),
        ("a=:AAAA:, a=:/w==:", {"a": b"\xff"}),
        ("a=:AAAA:, a", {"a": None}),
        ("a=:AAAA:;p=1;q", {"a": b"\0\0\0"}),
        ("a, b;x, c=?1", {"a": None, "b": None, "c": None}),
        ('a="x, b=:AAAA:", c=:AAAA:', {"a": None, "c": b"\0\0\0"}),
        ('a="\\", b=:AAAA:"', {"a": None}),
        ("a=tok/en:x, b=-1.5, c=@99, d=12", dict.fromkeys("abcd")),
        ('a=( ), b=(1 "x" :AAAA:;y);z=1, c=:AAAA:', {"a": None, "b": None, "c": b"\0\0\0"}),
        ("*a-b_c.d*9=1", {"*a-b_c.d*9": None}),
    ],
)
def test_a_dictionary_is_read_to_its_last_entry(text: str, found: dict[str, bytes | None]) -> None:
    assert dictionary(text) == found


@pytest.mark.parametrize(
    "text",
    [
        ",",
        "a=:AAAA:,",
        ",a=:AAAA:",
        "a,,b",
        "a b",
        "A=:AAAA:",
        "1=:AAAA:",
        "a =:AAAA:",
        "a= :AAAA:",
        "a=",
        "a=:AAAA",
        "a=:AA AA:",
        "a=:A:",
        "a=:=AAA:",
        "a=:A?AA:",
        "a='x'",
        'a="x',
        'a="é"',
        "a=(1",
        "a=1)",
        "a=?2",
        "a=1234567890123456",
        "a=:AAAA:;",
        "a=:AAAA:;P",
        "a:AAAA:",
    ],
)
def test_what_is_no_dictionary_is_none_at_all(text: str) -> None:
    assert dictionary(text) is None


def claims(**headers: str) -> list[tuple[str, str, bytes]]:
    given = {name.replace("_", "-"): text for name, text in headers.items()}
    return [(c.header, c.algorithm, c.digest) for c in stated(given.get)]


def test_every_header_and_every_known_algorithm_is_a_claim() -> None:
    both = f"{RIGHT}, sha-512=:{b64encode(SHA512).decode()}:, md5=:AAAA:, unixsum=30637"
    assert claims() == []
    assert claims(Repr_Digest="md5=:AAAA:, sha=1") == []
    assert claims(Content_Digest=both, Repr_Digest=WRONG) == [
        ("Repr-Digest", "sha-256", bytes(32)),
        ("Content-Digest", "sha-256", SHA256),
        ("Content-Digest", "sha-512", SHA512),
    ]
    assert claims(Repr_Digest=f"{WRONG}, {RIGHT}") == [("Repr-Digest", "sha-256", SHA256)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sha-256", "has no sha-256 in it"),
        ("sha-256=:AAAA:", "has no sha-256.* of the 32 bytes"),
        (f"{RIGHT}, sha-256=5", "has no sha-256"),
        (f"sha-512=:{b64encode(SHA256).decode()}:", "has no sha-512.* of the 64 bytes"),
        (RIGHT.upper(), "cannot be read"),
        ("sha-256=" + SHA256.hex(), "cannot be read|has no sha-256"),
        (f"{RIGHT},", "cannot be read"),
        ("", None),
    ],
)
def test_a_digest_that_cannot_be_read_is_not_taken_for_none(text: str, words: str | None) -> None:
    if words is None:
        assert claims(Repr_Digest=text) == []
    else:
        with pytest.raises(Refused, match=f"Repr-Digest ({words})"):
            claims(Repr_Digest=text)


@pytest.mark.parametrize(
    ("trailer", "is_announced"),
    [
        ("", False),
        ("Content-Digest", True),
        ("X, repr-digest", True),
        ("Digest", False),
        ("X-Repr-Digest", False),
    ],
)
def test_a_trailer_is_announced_by_its_name(trailer: str, is_announced: bool) -> None:
    assert announced(trailer) == is_announced


@pytest.mark.parametrize(
    "piece", ["a,", "a=:", "a=(", "a=(1 ", "a;b", ' "', "a=1,", "(", ";", " ", "a=:AAAA:,", "a=1 \t"]
)
def test_hostile_headers_are_read_at_once(piece: str) -> None:
    assert dictionary(piece * (60_000 // len(piece)) + "!") is None
