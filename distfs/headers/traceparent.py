"""Who asked for this, and whether that is looked at: W3C Trace Context's ``traceparent``, as text and in bytes.

https://www.w3.org/TR/trace-context/. What is no such header is none: a request never fails for it.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

#: Of version 0 all there is; a later one may have more behind it.
_TEXT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.{0,400})?", re.ASCII)
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


def unpack(packed: bytes) -> TraceParent | None:
    """None: it is none, or none was sent."""
    if len(packed) != PACKED_SIZE:
        return None
    trace, span, flags = _PACKED.unpack(packed)
    return _valid(int.from_bytes(trace), int.from_bytes(span), flags)


def _valid(trace: int, span: int, flags: int) -> TraceParent | None:
    return TraceParent(trace, span, bool(flags & _SAMPLED)) if trace and span else None
