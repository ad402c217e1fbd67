"""What a node's lines say of a request."""

from __future__ import annotations

from distfs.storage.connection import _named


def test_a_request_that_is_about_no_fragment_names_none() -> None:
    assert _named({}) == ("-", "-")
    assert _named({"request": "r1"}) == ("-", "r1")
    assert _named({"slice": "s", "index": 2, "request": "r1"}) == ("s.2", "r1")
