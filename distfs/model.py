"""The nouns of distfs as immutable values. No behaviour beyond what follows from the values alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from distfs.errors import ConfigError

#: Anything whose bytes can be read in place (collections.abc.Buffer needs Python 3.12).
Buffer = bytes | bytearray | memoryview

#: Bounds of a policy; the product of every ``k`` and ``m`` within them is tested.
MAX_K, MAX_M = 8, 8

#: Modes of compression.
COMPRESSIONS = ("auto", "off", "zstd")
#: Of zstd: what is higher takes seconds a block.
MAX_LEVEL = 19

#: Bytes of UTF-8 kept of a file's name and of its media type; the schema's checks hold the same.
MAX_NAME_BYTES = 1024
MAX_TYPE_BYTES = 255


@dataclass(frozen=True, slots=True)
class Policy:
    """``k+m``: a slice becomes k+m fragments on as many nodes; any k of them rebuild it."""

    k: int
    m: int

    @classmethod
    def parse(cls, text: str) -> Policy:
        """``"1+1"`` -> Policy(1, 1). Raises ConfigError with the remedy."""
        match = re.fullmatch(r"\s*(\d{1,2})\s*\+\s*(\d{1,2})\s*", text)
        if not match:
            raise ConfigError(f"policy {text!r} is not of the form k+m, for example 1+1 (two copies) or 4+2")
        k, m = int(match[1]), int(match[2])
        if not 1 <= k <= MAX_K or not 0 <= m <= MAX_M:
            raise ConfigError(f"policy {text!r}: k must be 1 to {MAX_K} and m 0 to {MAX_M}")
        if k > 1 and m == 0:
            raise ConfigError(
                f"policy {text!r} would lose files with any node: m must be at least 1 when k is more"
            )
        return cls(k, m)

    @property
    def width(self) -> int:
        """Fragments a slice: k+m."""
        return self.k + self.m

    def __str__(self) -> str:
        return f"{self.k}+{self.m}"


@dataclass(frozen=True, slots=True)
class Compression:
    """How blocks are compressed: ``off``; ``zstd``: each that gets smaller enough; ``auto``: those that look as if
    they would. A higher level takes longer, and saves more."""

    mode: str = "auto"
    level: int = 1

    @classmethod
    def parse(cls, text: str) -> Compression:
        """``"zstd:9"`` -> Compression("zstd", 9). Raises ConfigError with the remedy."""
        match = re.fullmatch(r"\s*(?:(off)|(auto|zstd)(?::(\d{1,2}))?)\s*", text, re.ASCII)
        if not match or not 1 <= (level := int(match[3] or 1)) <= MAX_LEVEL:
            raise ConfigError(
                f"compression {text[:40]!r} is not off, auto or zstd, or zstd:9: a level is from 1 to {MAX_LEVEL}"
            )
        return cls(match[1] or match[2], level)

    def __str__(self) -> str:
        return self.mode if self.mode == "off" else f"{self.mode}:{self.level}"


_REACHABLE = re.compile(
    r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?\]):(?P<port>[0-9]{1,5})", re.ASCII
)


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """Where a storage node listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        host, colon, port = text.rpartition(":")
        if not colon or not port.isdecimal():
            raise ConfigError(f"address {text!r} is not of the form host:port")
        return cls(host.strip("[]"), int(port))

    @classmethod
    def reachable(cls, text: str) -> Address:
        """One that others are told to reach. Raises ConfigError; MetaDB's node_heartbeat has the same rule."""
        found = _REACHABLE.fullmatch(text)
        if not found or not 1 <= int(found["port"]) <= 65535 or len(text) > 300:
            raise ConfigError(
                f"nobody can reach a node at {text[:100]!r}: advertise host:port, with a port from 1 to 65535"
            )
        return cls(found["host"].strip("[]"), int(found["port"]))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def url_here(host: str, port: int, scheme: str = "http") -> str:
    """By which this machine reaches a service that listens at ``host``, which may be every address."""
    reachable = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared
    return f"{scheme}://{Address(reachable, port)}"


@dataclass(frozen=True, slots=True)
class Node:
    """A storage node as MetaDB knows it. Sizes in bytes."""

    id: int
    uuid: UUID
    address: Address
    zone: str
    capacity: int
    free: int  # what the node may still take: its reserve is already subtracted
    state: str  # 'active', 'draining', 'readonly'
    alive: (
        bool  # it did not stop, its heartbeat is younger than ``node.down_after``, and it is not unreachable
    )
    heartbeat_age: float  # seconds, by the database's clock
    used: int = 0  # of the disk, by whatever uses it
    disk: str = ""  # as NodeReport has it
    unreachable: bool = False  # it heartbeats, and was given up because it does not answer

    @property
    def disk_key(self) -> str:
        """The same for nodes whose bytes are those of one disk."""
        return self.disk or str(self.id)

    @property
    def writable(self) -> bool:
        return self.alive and self.state == "active"


@dataclass(frozen=True, slots=True)
class Strangers:
    """Whom a node has refused, by its own report: who could not prove that he is of the cluster."""

    node: int
    count: int  # in an hour
    address: str  # of the last one
    seconds_ago: float  # he came


@dataclass(frozen=True, slots=True)
class FragmentId:
    """One fragment of one slice; names its file on a node's disk."""

    slice: UUID
    index: int  # 0 <= index < k+m

    def __str__(self) -> str:
        return f"{self.slice}.{self.index}"


@dataclass(frozen=True, slots=True)
class Slice:
    """A run of a file's bytes and where its fragments are. ``nodes[i]`` keeps fragment i; 0: nobody does."""

    id: UUID
    ordinal: int
    size: int  # plain bytes
    digest: bytes  # anchors the fragment tables: see fragment.slice_digest
    nodes: tuple[int, ...]

    @classmethod
    def from_json(cls, row: Sequence[Any]) -> Slice:
        """As MetaDB's `json_build_array(id, ordinal, size, digest in hex, nodes)`."""
        slice_id, ordinal, size, digest, nodes = row
        return cls(UUID(slice_id), ordinal, size, bytes.fromhex(digest), tuple(nodes))


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file whose fragments are safe on their nodes but which no one can read yet. ``slices``: in order."""

    id: UUID
    name: str
    content_type: str
    size: int
    sha256: bytes
    policy: Policy
    block_size: int
    slices: tuple[Slice, ...]
    #: Bytes of its blocks as they are stored, compressed or not, before they are coded; None: as many as ``size``.
    stored: int | None = field(default=None, kw_only=True)
    #: What others have made of it, each by a key of its own, and need not make again; never what may change.
    kept: dict[Any, Any] = field(init=False, repr=False, compare=False, default_factory=dict)


@dataclass(frozen=True, slots=True)
class File(NewFile):
    """A committed file."""

    created_at: datetime  # by the database's clock
    owner: str | None = None  # None: nobody's, as all that is stored while auth is off
    visibility: str = "private"  # who may read it while auth is on: see access.authorize


@dataclass(frozen=True, slots=True)
class Ownership:
    """Whose new files are, who may read them, and how many bytes the owner may have (0: any number)."""

    owner: str | None = None
    visibility: str = "private"
    quota: int = 0


NOBODYS = Ownership()


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node says of itself in a heartbeat. Sizes in bytes, of the disk its data folder is on."""

    uuid: UUID
    address: Address
    zone: str
    capacity: int
    used: int
    free: int  # its reserve already subtracted; never negative
    state: str  # 'active' or 'readonly' (its disk is, or fails); 'draining' is an operator's word, kept in MetaDB
    disk: str = ""  # nodes that name the same one share its bytes; "": nobody else is on it


#: Ids of MetaDB's copies in the cluster itself, and of lists of what was deleted since; version 8, so that no random
#: one is such. The last twelve digits are when they were begun, in milliseconds since 1970.
_OF_COPIES = "6d657461-6462-80"
FIRST_COPY, LAST_COPY = UUID(f"{_OF_COPIES}00-8000-{0:012x}"), UUID(f"{_OF_COPIES}01-8000-{'f' * 12}")
_COPIES = range(FIRST_COPY.int, LAST_COPY.int + 1)  # to compare UUIDs is two functions of Python


def copy_id(at: float, *, deletions: bool = False) -> UUID:
    """``at``: seconds since 1970, by MetaDB's clock."""
    return UUID(f"{_OF_COPIES}{int(deletions):02x}-8000-{int(at * 1000):012x}")


def is_copy(id: UUID) -> bool:
    """Whether a file is such a copy or list: no client is told of it."""
    return id.int in _COPIES


def copied_at(id: UUID) -> tuple[float, bool]:
    """When a copy was begun, and whether it is a list of deletions."""
    return (id.int & ((1 << 48) - 1)) / 1000, bool((id.int >> 64) & 0xFF)
