"""What a fragment has that an older distfs does not know: feature bits, as ext4 has them, and records. Pure.

    compat     who does not know it ignores it
    incompat   who does not know it reads nothing of the fragment, and says so
    read only  who does not know it may read the fragment, and neither makes it anew nor takes it away

What is newer than its reader is not damaged: ``NewerFormat`` says so, and nobody repairs, puts aside or deletes it.

Records are small facts beside the cells: a type, a length, bytes. Who does not know a type keeps it as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from distfs.errors import Corrupt, NewerFormat

#: Bits this distfs knows. A new feature is a constant of its own here, and part of its union.
COMPRESSED = 1 << 0  # blocks of it may be compressed
FILE_RECORD = 1 << 0  # compat: the end of its file's last slice has a record of the file

COMPAT = FILE_RECORD
INCOMPAT = COMPRESSED
READ_ONLY = 0

MAX_RECORDS = 1024  # bytes in a header, and as many in a footer
_RECORD = struct.Struct("<HH")  # type, length
SHA256 = 1  # a record's type; it is of the whole file


class Features(NamedTuple):
    """Bits, 32 of each kind."""

    compat: int = 0
    incompat: int = 0
    read_only: int = 0

    def check_readable(self, known: int | None = None) -> None:
        """Raises NewerFormat when it takes a newer distfs to read. ``known``: incompat bits; None: ours."""
        if self.incompat and (unknown := self.incompat & ~(INCOMPAT if known is None else known)):
            raise newer(f"incompatible features {unknown:#x}")

    def check_changeable(self) -> None:
        """Raises NewerFormat when it takes a newer distfs to make it anew, or to take it away."""
        self.check_readable()
        if self.read_only and (unknown := self.read_only & ~READ_ONLY):
            raise newer(f"features {unknown:#x} that make it read-only for this one")


class Extra(NamedTuple):
    """All that a fragment of format version 2 has more than one of version 1."""

    features: Features = Features()
    records: bytes = b""  # packed

    def __or__(self, other: Extra) -> Extra:
        """What both say, of one fragment: its header and its footer. Of one type, the latter's record holds."""
        if self == PLAIN or other == PLAIN:
            return other if self == PLAIN else self
        features = Features(*(a | b for a, b in zip(self.features, other.features, strict=True)))
        return Extra(features, pack_records(read_records(self.records) | read_records(other.records)))

    def check_room(self) -> None:
        """Raises NewerFormat when not all of it fits into a header, as who makes another writes it; a footer has room
        for as much again."""
        if len(self.records) > MAX_RECORDS:
            raise newer(f"records of {len(self.records)} bytes")


#: Of a fragment that has no more than the first distfs wrote: it is written as that one did.
PLAIN = Extra()


def newer(what: str) -> NewerFormat:
    return NewerFormat(f"written by a newer distfs, with {what}: upgrade this part")


def pack_records(records: Mapping[int, bytes]) -> bytes:
    """By type. Raises ValueError when they are too many."""
    packed = b"".join(_RECORD.pack(kind, len(data)) + data for kind, data in sorted(records.items()))
    if len(packed) > 2 * MAX_RECORDS:
        raise ValueError(f"records of {len(packed)} bytes, at most {2 * MAX_RECORDS} can be")
    return packed


def read_records(packed: bytes) -> dict[int, bytes]:
    """By type. Raises Corrupt."""
    records, at = {}, 0
    while at < len(packed):
        if at + _RECORD.size > len(packed):
            raise Corrupt("a fragment's record is cut short")
        kind, length = _RECORD.unpack_from(packed, at)
        at += _RECORD.size
        if at + length > len(packed) or kind in records:
            raise Corrupt("a fragment's records do not fit, or one is there twice")
        records[kind] = packed[at : at + length]
        at += length
    return records


#: Of a fragment whose end may tell of its file.
TELLS_OF_FILE = Extra(Features(compat=FILE_RECORD))


def file_record(sha256: bytes) -> Extra:
    """What the end of a file's last slice says of the file."""
    return Extra(TELLS_OF_FILE.features, pack_records({SHA256: sha256}))


def sha256_in(extra: Extra) -> bytes | None:
    """Of the file; None: it is not said. Raises Corrupt."""
    if not extra.records:
        return None
    said = read_records(extra.records).get(SHA256)
    if said is not None and len(said) != 32:
        raise Corrupt(f"a sha-256 of {len(said)} bytes")
    return said
