"""The headers that are no JSON: of the frames that every GET and PUT has. Each has one writer and one reader, here.

A header is a fixed part, and in requests what that gives the length of: the fragment's own header as the disk
keeps it, and the id of the request the service works for. A header that is a byte too short or too long, or says
what cannot be, is refused. Big-endian, but for what is as in a fragment (see ``fragment``).

    GET     to · deadline · slice · index · first · many · aside?               · request · trace
    PUT     to · deadline · size hint                                            · fragment's header · request · trace
    WHOLE   to · deadline · slice size · last? · the cell's entry                · fragment's header · request · trace
    END     slice size · last?                        · feature bits · records
    STORED  heard
    CELLS   slice size · last? · length of the table  · feature bits · records

Feature bits and records are there only of a fragment that has any; in CELLS only where no cell was asked for.
``to`` is the cluster and the node a request is meant for, 16 bytes each. ``trace`` is a traceparent
(``headers.traceparent``), or nothing where nobody records.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple
from uuid import UUID

from distfs.errors import Corrupt, ProtocolError
from distfs.formats import wire
from distfs.formats.features import MAX_RECORDS, PLAIN, Extra, Features, read_records
from distfs.formats.fragment import ENTRY_SIZE, MAX_BLOCK, CellEntry, FragmentHeader, Outline, named, outline
from distfs.formats.wire import Type
from distfs.headers.traceparent import PACKED_SIZE
from distfs.model import MAX_K, MAX_M, FragmentId

TO_SIZE = 32
MAX_REQUEST = 64  # bytes of a request's id; what is longer is cut
_MAX_COUNT = 1 << 63

_GET = struct.Struct(f">{TO_SIZE}sd16sBQQ?B")
_SMALL = struct.Struct(wire.PREFIX.format + _GET.format.removeprefix(">"))  # a frame's prefix, too
_GET_BEGINS = wire.MAGIC, wire.VERSION, Type.GET, 0
_WHOLE_BEGINS = wire.MAGIC, wire.VERSION, Type.WHOLE, 0
_PUT = struct.Struct(f">{TO_SIZE}sdQBH")
_WHOLE = struct.Struct(f">{TO_SIZE}sdQ?{ENTRY_SIZE}sBH")
_WHOLE_FRAME = struct.Struct(wire.PREFIX.format + _WHOLE.format.removeprefix(">"))
_END = struct.Struct(">Q?")
_STORED = struct.Struct(">8s")
_CELLS = struct.Struct(">Q?Q")
_FEATURES = struct.Struct(">III")


class Get(NamedTuple):
    """What is asked for: ``many`` cells from cell ``first`` on."""

    to: bytes
    deadline: float
    id: FragmentId
    first: int
    many: int
    aside: bool
    request: bytes
    trace: bytes = b""

    def encode(self) -> bytes:
        return encode_get(*self)

    @classmethod
    def decode(cls, raw: bytes) -> Get:
        (to, deadline, slice_, index, first, many, aside, length), rest = _cut("GET", _GET, raw)
        if index >= MAX_K + MAX_M or first >= _MAX_COUNT or many >= _MAX_COUNT:
            raise _wrong("GET")
        if len(rest) != length and len(rest) != length + PACKED_SIZE:
            raise _wrong("GET")
        of = FragmentId(UUID(bytes=slice_), index)
        return cls(to, deadline, of, first, many, aside, rest[:length], rest[length:])

    @property
    def name(self) -> str:
        """Of the fragment, for people."""
        return str(self.id)


def encode_get(
    to: bytes,
    deadline: float,
    id: FragmentId,
    first: int,
    many: int,
    aside: bool,
    request: bytes,
    trace: bytes = b"",
) -> bytes:
    """A ``Get``, without making one."""
    request = request[:MAX_REQUEST]
    asked = id.slice.int.to_bytes(16), id.index, first, many, aside
    return _GET.pack(to, deadline, *asked, len(request)) + request + trace


def frame_of_small(to: bytes, deadline: float, id: FragmentId, request: bytes) -> bytes:
    """The frame of a ``Get`` of a fragment's first cell, in one go."""
    request = request[:MAX_REQUEST]
    size, slice_ = len(request), id.slice.int.to_bytes(16)
    lengths, asked = (_GET.size + size, 0), (slice_, id.index, 0, 1, False)
    return _SMALL.pack(*_GET_BEGINS, *lengths, to, deadline, *asked, size) + request


def answer_to_small(size: int) -> bytes:
    """What the answer to it begins with, up to the table, when a fragment has one cell of ``size`` bytes, which is
    all of its file."""
    return wire.encode(Type.CELLS, Cells(size, True, ENTRY_SIZE).encode(), ENTRY_SIZE + size)


class Put(NamedTuple):
    """A fragment to come, of about ``size_hint`` bytes."""

    to: bytes
    deadline: float
    size_hint: int
    packed: bytes  # the fragment's header
    request: bytes
    trace: bytes = b""

    def encode(self) -> bytes:
        to, deadline, size_hint, packed, request, trace = self
        request = request[:MAX_REQUEST]
        return _PUT.pack(to, deadline, size_hint, len(request), len(packed)) + packed + request + trace

    @classmethod
    def decode(cls, raw: bytes) -> Put:
        (to, deadline, size_hint, *lengths), rest = _cut("PUT", _PUT, raw)
        if size_hint >= _MAX_COUNT:
            raise _wrong("PUT")
        return cls(to, deadline, size_hint, *_texts("PUT", rest, *lengths))

    def fragment(self) -> FragmentHeader:
        """Raises ProtocolError, Corrupt."""
        _fragment("PUT", self.to, self.packed)
        return FragmentHeader.unpack(self.packed)[0]

    @property
    def name(self) -> str:
        return named(self.packed)


class Whole(NamedTuple):
    """A fragment of one cell, which is the frame's body."""

    to: bytes
    deadline: float
    slice_size: int
    last: bool
    entry: CellEntry
    packed: bytes  # the fragment's header
    request: bytes
    trace: bytes = b""

    def encode(self) -> bytes:
        return encode_whole(*self)

    @classmethod
    def decode(cls, raw: bytes) -> Whole:
        if len(raw) < _WHOLE.size:
            raise _wrong("WHOLE")
        to, deadline, slice_size, last, packed_entry, request, packed = _WHOLE.unpack_from(raw)
        begin = _WHOLE.size + packed
        end = begin + request
        if slice_size >= _MAX_COUNT or (len(raw) != end and len(raw) != end + PACKED_SIZE):
            raise _wrong("WHOLE")
        entry, texts = CellEntry.unpack(packed_entry), (raw[_WHOLE.size : begin], raw[begin:end], raw[end:])
        # A NamedTuple's own is a function in Python.
        return tuple.__new__(cls, (to, deadline, slice_size, last, entry, *texts))

    def fragment(self) -> Outline:
        """Raises ProtocolError, Corrupt."""
        return _fragment("WHOLE", self.to, self.packed)

    @property
    def name(self) -> str:
        return named(self.packed)


def frame_of_whole(
    to: bytes, deadline: float, slice_size: int, entry: CellEntry, packed: bytes, request: bytes
) -> bytes:
    """The frame of a ``Whole`` of a last slice, in one go; the cell is to follow."""
    request = request[:MAX_REQUEST]
    size, more = len(packed), len(request)
    said = to, deadline, slice_size, True, entry.pack(), more, size
    length = _WHOLE.size + size + more
    return _WHOLE_FRAME.pack(*_WHOLE_BEGINS, length, entry.length, *said) + packed + request


def encode_whole(
    to: bytes,
    deadline: float,
    slice_size: int,
    last: bool,
    entry: CellEntry,
    packed: bytes,
    request: bytes,
    trace: bytes = b"",
) -> bytes:
    """A ``Whole``, without making one."""
    request = request[:MAX_REQUEST]
    fixed = _WHOLE.pack(to, deadline, slice_size, last, entry.pack(), len(request), len(packed))
    return fixed + packed + request + trace


class End(NamedTuple):
    """No more cells."""

    slice_size: int
    last: bool
    extra: Extra = PLAIN

    def encode(self) -> bytes:
        return _END.pack(self.slice_size, self.last) + _pack_extra(self.extra)

    @classmethod
    def decode(cls, raw: bytes) -> End:
        fields, rest = _cut("END", _END, raw)
        slice_size, last = fields
        found = cls(slice_size, last, _read_extra("END", rest, MAX_RECORDS))
        if found.slice_size >= _MAX_COUNT:
            raise _wrong("END")
        return found


class Stored(NamedTuple):
    """What a node answers when a fragment is durable; ``heard``: see ``wire``."""

    heard: bytes

    def encode(self) -> bytes:
        return _STORED.pack(self.heard)

    @classmethod
    def decode(cls, raw: bytes) -> Stored:
        return cls(*_all("STORED", _STORED, raw))


#: The frame of a ``Stored`` up to what was heard.
STORED_BEGINS = wire.encode(Type.STORED, Stored(bytes(_STORED.size)).encode())[: -_STORED.size]


class Cells(NamedTuple):
    """Before a table and cells: what the table does not say, and how long it is."""

    slice_size: int
    last: bool
    table: int
    extra: Extra = PLAIN

    def encode(self) -> bytes:
        slice_size, last, table, extra = self
        packed = _CELLS.pack(slice_size, last, table)
        return packed if extra is PLAIN else packed + _pack_extra(extra)

    @classmethod
    def decode(cls, raw: bytes) -> Cells:
        extra = PLAIN
        if len(raw) != _CELLS.size:
            _, rest = _cut("CELLS", _CELLS, raw)
            extra = _read_extra("CELLS", rest, 2 * MAX_RECORDS)
        # a NamedTuple's own is a function in Python
        found = tuple.__new__(cls, (*_CELLS.unpack_from(raw), extra))
        if found.slice_size >= _MAX_COUNT:
            raise _wrong("CELLS")
        return found


def _pack_extra(extra: Extra) -> bytes:
    return b"" if extra is PLAIN else _FEATURES.pack(*extra.features) + extra.records


def _read_extra(name: str, rest: bytes, most: int) -> Extra:
    """``most``: bytes of records. Raises ProtocolError."""
    if not rest:
        return PLAIN
    if not _FEATURES.size <= len(rest) <= _FEATURES.size + most:
        raise _wrong(name)
    records = rest[_FEATURES.size :]
    try:
        read_records(records)
    except Corrupt as e:
        raise _wrong(name) from e
    return Extra(Features(*_FEATURES.unpack_from(rest)), records)


def _wrong(name: str) -> ProtocolError:
    return ProtocolError(f"{name} frame: a header of a wrong length, or with what cannot be")


def _cut(name: str, fixed: struct.Struct, raw: bytes) -> tuple[tuple[Any, ...], bytes]:
    """The fixed part's fields, and the rest."""
    if len(raw) < fixed.size:
        raise _wrong(name)
    return fixed.unpack_from(raw), raw[fixed.size :]


def _all(name: str, fixed: struct.Struct, raw: bytes) -> tuple[Any, ...]:
    if len(raw) != fixed.size:
        raise _wrong(name)
    return fixed.unpack(raw)


def _texts(name: str, rest: bytes, request: int, packed: int) -> tuple[bytes, bytes, bytes]:
    """The fragment's header, the request's id, and its trace."""
    end = packed + request
    if len(rest) != end and len(rest) != end + PACKED_SIZE:
        raise _wrong(name)
    return rest[:packed], rest[packed:end], rest[end:]


def _fragment(name: str, to: bytes, packed: bytes) -> Outline:
    """Raises ProtocolError on what is out of bounds, Corrupt on what is no such header."""
    said = outline(packed)
    cluster, _, index, k, m, block_size = said
    if not 0 < k <= MAX_K or m > MAX_M or index >= k + m or not 0 < block_size <= MAX_BLOCK:
        raise ProtocolError(f"{name} {said.id}: policy, index or block size out of bounds")
    if not to.startswith(cluster):
        raise ProtocolError(f"{name} {said.id}: a fragment of another cluster than its request")
    return said
