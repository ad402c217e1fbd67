"""What a fragment's header, table and footer say, without its cells; and pages of that on the wire. Pure.

A page is JSON, an object a fragment: it is asked for when a MetaDB was lost, and is to be easy to add to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from distfs.formats.fragment import RAW, FragmentHeader, FragmentTable
from distfs.model import MAX_K, MAX_M, MAX_NAME_BYTES, MAX_TYPE_BYTES, FragmentId

_MAX_SIZE = 1 << 62
_MAX_ORDINAL = 1 << 31
_MAX_WORDS = 500


@dataclass(frozen=True, slots=True)
class Head:
    """Of a fragment: all that MetaDB had of its slice and file."""

    cluster: UUID
    file: UUID
    ordinal: int
    k: int
    m: int
    block_size: int
    name: str
    content_type: str
    size: int  # of the slice
    last: bool
    digest: bytes  # of the slice
    sha256: bytes | None  # of the file; None: it does not say
    saved: int = 0  # bytes of the slice, by compression

    @classmethod
    def of(cls, header: FragmentHeader, table: FragmentTable, sha256: bytes | None = None) -> Head:
        digest, left, saved = table.digest(header.block_size), table.slice_size, 0
        for entry in table.entries:
            block = min(left, header.block_size)
            saved += 0 if entry.codec == RAW else max(0, block - header.policy.k * entry.length)
            left -= block
        shape = header.policy.k, header.policy.m, header.block_size
        texts = header.name, header.content_type
        return cls(
            header.cluster,
            header.file,
            header.ordinal,
            *shape,
            *texts,
            table.slice_size,
            table.last,
            digest,
            sha256,
            saved,
        )


@dataclass(frozen=True, slots=True)
class HeadOf:
    """One fragment in a page."""

    id: FragmentId
    stored: int  # bytes of its file
    age: float  # seconds since it was written, by the node's clock
    head: Head | None  # None: it cannot be read
    wrong: str = ""  # why


@dataclass(frozen=True, slots=True)
class HeadPage:
    """A run of a listing in the order of names. ``cursor`` fetches the next; None: the listing is complete."""

    fragments: tuple[HeadOf, ...]
    cursor: str | None


def encode(fragment: HeadOf) -> bytes:
    """A line of a page."""
    said: dict[str, Any] = {
        "slice": fragment.id.slice.hex,
        "index": fragment.id.index,
        "stored": fragment.stored,
        "age": round(fragment.age, 3),
    }
    if (head := fragment.head) is None:
        said["wrong"] = fragment.wrong[:_MAX_WORDS]
    else:
        said |= {
            "cluster": head.cluster.hex,
            "file": head.file.hex,
            "ordinal": head.ordinal,
            "k": head.k,
            "m": head.m,
            "block": head.block_size,
            "name": head.name,
            "type": head.content_type,
            "size": head.size,
            "last": head.last,
            "digest": head.digest.hex(),
            "sha256": head.sha256 and head.sha256.hex(),
            "saved": head.saved,
        }
    return json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"


def decode(page: bytes) -> Iterable[HeadOf]:
    """Raises ValueError, KeyError, TypeError, AttributeError for what cannot be."""
    for line in filter(None, page.split(b"\n")):
        said = json.loads(line)
        id = FragmentId(UUID(said["slice"]), _number(said["index"], MAX_K + MAX_M))
        head = None if "wrong" in said else _head(said)
        wrong = "" if head else str(said["wrong"])[:_MAX_WORDS]
        yield HeadOf(id, _number(said["stored"], _MAX_SIZE), float(said["age"]), head, wrong)


def _head(said: dict[str, Any]) -> Head:
    name, kind = str(said["name"]), str(said["type"])
    digest, sha256 = bytes.fromhex(said["digest"]), said["sha256"]
    known = None if sha256 is None else bytes.fromhex(sha256)
    if len(name.encode()) > MAX_NAME_BYTES or len(kind.encode()) > MAX_TYPE_BYTES:
        raise ValueError("a name that is too long")
    if len(digest) != 16 or (known is not None and len(known) != 32) or not isinstance(said["last"], bool):
        raise ValueError("a digest of another length")
    k, m = _number(said["k"], MAX_K + 1), _number(said["m"], MAX_M + 1)
    if k < 1:
        raise ValueError("a policy that cannot be")
    return Head(
        UUID(said["cluster"]),
        UUID(said["file"]),
        _number(said["ordinal"], _MAX_ORDINAL),
        k,
        m,
        _number(said["block"], _MAX_ORDINAL),
        name,
        kind,
        _number(said["size"], _MAX_SIZE),
        said["last"],
        digest,
        known,
        _number(said["saved"], _MAX_SIZE),
    )


def _number(value: Any, end: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < end:
        raise ValueError(f"{value!r} is not a number below {end}")
    return value
