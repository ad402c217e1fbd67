"""W3C Trace Context: what is a traceparent, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distfs.headers.traceparent import PACKED_SIZE, TraceParent, parse, read_state, unpack

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HERE = TraceParent(int(TRACE, 16), int(SPAN, 16), True)

parents = st.builds(TraceParent, st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"00-{TRACE}-{SPAN}-01", HERE),
        (f"00-{TRACE}-{SPAN}-03", HERE),
        (f"00-{TRACE}-{SPAN}-00", HERE._replace(sampled=False)),
        (f"00-{TRACE}-{SPAN}-fe", HERE._replace(sampled=False)),
        (f"01-{TRACE}-{SPAN}-01-more", HERE),
        (f"cc-{TRACE}-{SPAN}-01", HERE),
    ],
)
def test_what_is_one_is_read(text: str, found: TraceParent) -> None:
    assert parse(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"01-{TRACE}-{SPAN}-01more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE}-{SPAN}-01, 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE[1:]}\N{ARABIC-INDIC DIGIT ONE}-{SPAN}-01",
        f"01-{TRACE}-{SPAN}-01-{'x' * 9000}",
    ],
)
def test_what_is_none_is_ignored(text: str) -> None:
    assert parse(text) is None


@given(parents)
def test_it_comes_out_as_it_went_in(parent: TraceParent) -> None:
    assert parse(str(parent)) == parent
    assert unpack(parent.pack()) == parent


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("vendor=a:1;b", "vendor=a:1;b"),
        ("a=1 , \tt@v=2,,", "a=1,t@v=2"),
        ("", ""),
        ("A=1", ""),
        ("a=1\n", ""),
        ("a=b=c", ""),
        ("no value", ""),
        ("a=" + "x" * 600, ""),
        (",".join(f"k{n}=1" for n in range(33)), ""),
    ],
)
def test_a_state_is_passed_on_if_it_is_one(text: str, read: str) -> None:
    assert read_state(text) == read


@given(st.binary(max_size=2 * PACKED_SIZE))
def test_bytes_that_are_none_are_none(packed: bytes) -> None:
    found = unpack(packed)
    assert found is None or (found.trace and found.span and len(packed) == PACKED_SIZE)
