"""Who asked for this, and whether that is looked at: W3C Trace Context's ``traceparent``, as text and in bytes.

https://www.w3.org/TR/trace-context/. What is no such header is none: a request never fails for it.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

#: Of version 0 all there is; a later one may have more behind it.
_TEXT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.{0,400})?", re.ASCII)
_MEMBER = re.compile(r"[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,256}", re.ASCII)
_MOST_STATE, _MOST_MEMBERS = 512, 32
_PACKED = struct.Struct(">16s8sB")
PACKED_SIZE = _PACKED.size
_SAMPLED = 1


class TraceParent(NamedTuple):
    """A span of another process, of which ours are children."""

    trace: int
    span: int
    sampled: bool

    def __str__(self) -> str:
        return f"00-{self.trace:032x}-{self.span:016x}-{self.sampled:02x}"

    def pack(self) -> bytes:
        """As the wire between service and node has it."""
        return ((self.trace << 72) | (self.span << 8) | self.sampled).to_bytes(PACKED_SIZE)


def parse(text: str) -> TraceParent | None:
    """None: it is no traceparent."""
    found = _TEXT.fullmatch(text)
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    if version == "ff" or (version == "00" and more):
        return None
    return _valid(int(trace, 16), int(span, 16), int(flags, 16))


def read_state(text: str) -> str:
    """What ``tracestate`` says, for whoever reads our spans; empty: it is none, or too long to be passed on."""
    members = [member.strip(" \t") for member in text.split(",")] if len(text) <= _MOST_STATE else []
    fits = len(members) <= _MOST_MEMBERS and all(not each or _MEMBER.fullmatch(each) for each in members)
    return ",".join(filter(None, members)) if fits else ""


def unpack(packed: bytes) -> TraceParent | None:
    """None: it is none, or none was sent."""
    if len(packed) != PACKED_SIZE:
        return None
    trace, span, flags = _PACKED.unpack(packed)
    return _valid(int.from_bytes(trace), int.from_bytes(span), flags)


def _valid(trace: int, span: int, flags: int) -> TraceParent | None:
    return TraceParent(trace, span, bool(flags & _SAMPLED)) if trace and span else None
