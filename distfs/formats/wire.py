"""The wire between services and storage nodes, sans-IO: bytes in, frames out; no socket is imported here.

Every message is a frame: a fixed binary prefix, a header, a raw body.

    magic "DFSW" · version u8 · type u8 · reserved u16 · header length u32 · body length u64   (big-endian)

The header is a JSON object. Only the frames that every GET and PUT has are fixed structs (``fixed``), and CELL,
whose header is the cell's table entry as it will be stored. Every length is bounded by the frame's type before it
is believed. A body is not collected here: the decoder says how long it is, and its reader takes it straight from
the socket to where it belongs.

A request is one frame, answered by one frame, but for PUT and LOGS; ERROR {kind, message} answers any at any moment:

    PUT · CELL · CELL · … · END                    ->  STORED, when it is durable
    WHOLE, body: the only cell, of at most 64 KiB  ->  STORED
    GET                                            ->  CELLS, body: the whole table, then the cells asked for
    STAT {slice, index}                            ->  CELLS, body: the table
    DELETE, VERIFY {slice, index}                  ->  OK {…}
    LIST {cursor, limit, quarantine?}              ->  OK {cursor}, body: LISTED entries; no cursor: complete
    QUARANTINE, DISCARD {slice, index, min_age}    ->  OK {done}: put aside; delete from what was put aside
    RELEASE {slice, index}                         ->  OK {done}: back from there, when it is good
    INFO {}                                        ->  OK {node, cluster, capacity, used, free, state, clock}
    HEADS {cursor, limit}                          ->  OK {cursor}, body: as ``heads`` has it
    METRICS {accept}                               ->  OK {type}, body: as Prometheus reads it
    NAME {software}                                ->  nothing: of which release the caller is
    TRACES {wanted}                                ->  OK {}: their spans are sent, too
    LOGS {wanted}                                  ->  OK {more}, body: bytes of lines of its log; until more is false

What a peer does not know is neither asked of it nor said to it: ``Feature`` has what both agreed on when they greeted
each other (``hello``).

STORED has the xxh3-64 of the headers of PUT, CELLs and END, or of WHOLE, as the node received them: cells have
checksums, and by this the caller knows that name, size and table of what was stored are right, too.

Every request names the cluster and the node it is meant for, and is refused by any other; it carries the
seconds its caller will still wait (``deadline``) and the request id it works for (``request``). Within the
deadline a caller may pause between bytes, as its own client does; one that is gone is told by TCP.
"""

from __future__ import annotations

import enum
import json
import struct
from typing import Any, NamedTuple
from uuid import UUID

from distfs.errors import (
    Busy,
    Cancelled,
    Corrupt,
    DistfsError,
    Full,
    NewerFormat,
    NodeUnavailable,
    NotFound,
    OutcomeUnknown,
    ProtocolError,
    Refused,
    TooSlow,
    Unavailable,
)
from distfs.formats.features import INCOMPAT, PLAIN, Extra
from distfs.formats.fragment import ENTRY_SIZE, MAX_BLOCK, MAX_CELLS
from distfs.model import MAX_K, MAX_M, Buffer, FragmentId

VERSION = 2
MAGIC = b"DFSW"
PREFIX = struct.Struct(">4sBBHIQ")
PREFIX_SIZE = PREFIX.size
MAX_HEADER = 64 << 10
MAX_WHOLE = 64 << 10  # a longer cell has a frame of its own
MAX_CELL = MAX_BLOCK + (64 << 10)  # a coded or badly compressible block may grow a little
MAX_TABLE = MAX_CELLS * ENTRY_SIZE
MAX_FRAGMENT = (2 << 30) + MAX_TABLE


class Feature(enum.IntFlag):
    """Bits that both sides of a connection may agree on, beside those of fragments. New ones go below bit 16."""

    EXTRA = 1  # fragments of version 2; STAT tells what they have more; the error "newer"
    HEADS = 2
    NAMES = 4  # both say of which release they are, as a connection begins
    LOGS = 8
    TRACES = 16


#: From this bit on: the incompat bits of fragments that both read.
INCOMPAT_AT = 16
#: All that this distfs knows.
FEATURES = sum(Feature) | INCOMPAT << INCOMPAT_AT


def takes(agreed: int, extra: Extra) -> bool:
    """Whether a fragment that has ``extra`` may be sent to a peer with whom these features were agreed."""
    if extra is PLAIN:
        return True
    return bool(agreed & Feature.EXTRA) and not extra.features.incompat & ~(agreed >> INCOMPAT_AT)


#: One LIST entry: slice, index, stored bytes, age in seconds by the node's clock.
LISTED = struct.Struct(">16sBQd")
MAX_LISTED = 10_000


class Type(enum.IntEnum):
    PUT = 1
    CELL = 2
    END = 3
    GET = 4
    STAT = 5
    DELETE = 6
    LIST = 7
    VERIFY = 8
    INFO = 9
    QUARANTINE = 10
    RELEASE = 11
    DISCARD = 12
    WHOLE = 13
    METRICS = 14
    LOGS = 15
    HEADS = 16
    NAME = 17
    TRACES = 18
    OK = 64
    ERROR = 65
    STORED = 66
    CELLS = 67


#: Bytes; every other type has none.
_MAX_BODY = {
    Type.CELL: MAX_CELL,
    Type.WHOLE: MAX_WHOLE,
    Type.CELLS: MAX_FRAGMENT,
    Type.OK: MAX_LISTED * LISTED.size,
}


#: What a node may say went wrong. Everything else is a service's own affair: an answer "cancelled" or "busy" would
#: be taken for nobody's fault, whatever the node does.
_SAYABLE = (
    DistfsError, Refused, NotFound, Unavailable, NodeUnavailable, TooSlow, Full, NewerFormat, Corrupt, ProtocolError
)  # fmt: skip
ERRORS: dict[str, type[DistfsError]] = {cls.kind: cls for cls in _SAYABLE}


#: What reading a field of a header raises when it is missing, of another type or of no sane size.
_WRONG = (KeyError, IndexError, ValueError, TypeError, AttributeError, OverflowError)


_KINDS = {type_.value: (type_, _MAX_BODY.get(type_, 0)) for type_ in Type}


class Frame(NamedTuple):
    """One decoded frame. ``body_length`` bytes of body follow it on the stream."""

    type: Type
    raw: bytes  # the header's bytes
    body_length: int

    def header(self) -> dict[str, Any]:
        """The JSON header. Raises ProtocolError when it is not an object."""
        try:
            header = json.loads(self.raw.decode())
        except (ValueError, RecursionError) as e:
            raise ProtocolError(f"{self.type.name} frame: header is not JSON") from e
        if not isinstance(header, dict):
            raise ProtocolError(f"{self.type.name} frame: header is not an object")
        return header


def encode(type_: Type, header: dict[str, Any] | bytes, body_length: int = 0) -> bytes:
    """Prefix and header of a frame, ready to send; ``body_length`` bytes of body must follow."""
    if not isinstance(header, bytes):
        header = json.dumps(header, separators=(",", ":")).encode()
    length = len(header)
    if length > MAX_HEADER:
        raise ProtocolError(f"{type_.name} frame: a header of {length} bytes is over {MAX_HEADER}")
    return PREFIX.pack(MAGIC, VERSION, type_, 0, length, body_length) + header


def encode_error(error: DistfsError, agreed: int = FEATURES) -> bytes:
    """An ERROR frame; what may not be said, or not to a peer with whom so much was agreed, is said as the nearest
    that may."""
    later = isinstance(error, Busy | Cancelled | OutcomeUnknown)
    later |= isinstance(error, NewerFormat) and not agreed & Feature.EXTRA
    kind = Unavailable.kind if later else next(c.kind for c in type(error).__mro__ if c in _SAYABLE)
    return encode(Type.ERROR, {"kind": kind, "message": str(error)[:2000]})


def decode_error(header: dict[str, Any], peer: str) -> DistfsError:
    """What ``peer`` says went wrong; a ProtocolError when it may not say that."""
    kind, message = header.get("kind"), header.get("message", "no reason given")
    if not isinstance(kind, str) or kind not in ERRORS:
        return ProtocolError(f"{peer}: an error of a kind that no node may raise, {kind!r:.40}: {message}")
    return ERRORS[kind](f"{peer}: {message}")


def encode_id(id: FragmentId) -> dict[str, Any]:
    """The fields of a JSON header that name a fragment."""
    return {"slice": id.slice.hex, "index": id.index}


def decode_id(header: dict[str, Any]) -> FragmentId:
    """Raises ProtocolError."""
    try:
        fragment = FragmentId(UUID(header["slice"]), int(header["index"]))
    except _WRONG as e:
        raise ProtocolError("the request names no fragment") from e
    if not 0 <= fragment.index < MAX_K + MAX_M:
        raise ProtocolError(f"the request names fragment {fragment}, whose index is out of bounds")
    return fragment


class Decoder:
    """Bytes of one direction of a connection in, frames out.

    Feed what was received; ``next_frame`` answers None until a whole prefix and header are there. After a
    frame with a body, its bytes must be taken (``take``, then from the socket) before the next frame.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0  # bytes of _data already consumed

    @property
    def buffered(self) -> int:
        """Bytes received and not yet consumed."""
        return len(self._data) - self._at

    def feed(self, data: Buffer) -> None:
        if self._at:  # what was consumed goes, so that a stream never cut at a frame's edge is not kept
            del self._data[: self._at]
            self._at = 0
        self._data += data

    def next_frame(self, more: Buffer = b"") -> Frame | None:
        """The next frame, or None for more bytes; ``more``: to be fed before. Raises ProtocolError on anything out of
        bounds."""
        data = self._data
        if more:  # as ``feed`` does
            if self._at:
                del data[: self._at]
                self._at = 0
            data += more
        header_at = self._at + PREFIX_SIZE
        size = len(data)
        if size < header_at:
            return None
        type_, header, body = _check_prefix(*PREFIX.unpack_from(data, self._at))
        end = header_at + header
        if size < end:
            return None
        self._at = end
        return tuple.__new__(Frame, (type_, bytes(data[header_at:end]), body))  # its own is one in Python

    def take(self, view: memoryview) -> int:
        """Move buffered body bytes into ``view``; returns how many."""
        n = min(len(view), self.buffered)
        view[:n] = self._data[self._at : self._at + n]
        self._at += n
        return n

    def take_bytes(self, count: int) -> bytes | None:
        """So many body bytes, if as many have come."""
        end = self._at + count
        if end > len(self._data):
            return None
        taken = bytes(memoryview(self._data)[self._at : end])
        self._at = end
        return taken

    def take_all(self, view: memoryview) -> bool:
        """Fill ``view`` with body bytes, if as many have come; whether they had."""
        end = self._at + len(view)
        if end > len(self._data):
            return False
        view[:] = self._data[self._at : end]
        self._at = end
        return True


def _check_prefix(
    magic: bytes, version: int, type_: int, zero: int, header: int, body: int
) -> tuple[Type, int, int]:
    if magic != MAGIC:
        raise ProtocolError("the peer does not speak the distfs wire: is this a storage node's port?")
    if version != VERSION:
        raise ProtocolError(
            f"the peer speaks wire version {version}, this distfs {VERSION}: run one release everywhere"
        )
    known = _KINDS.get(type_)
    if known is None:
        raise ProtocolError(f"unknown frame type {type_}")
    kind, most = known
    if zero:
        raise ProtocolError(f"{kind.name} frame: its reserved bytes are not zero")
    if header > MAX_HEADER or body > most:
        raise ProtocolError(f"{kind.name} frame: lengths {header} + {body} are out of bounds")
    return kind, header, body
