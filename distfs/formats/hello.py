"""How a connection to a storage node begins, sans-IO: each side proves that it is of the cluster, before a frame.

    HELLO      asker -> node   its role, versions lowest and highest, features, ids of its keys, a nonce
    CHALLENGE  node -> asker   which of the keys counts, a nonce: nothing else, for the asker may be anybody
    PROOF      asker -> node   HMAC-SHA-256 under that key
    WELCOME    node -> asker   the version and the features that hold from now on, and HMAC-SHA-256 of its own
    NAME       node -> asker   of which release it is, the versions it speaks; with HMAC-SHA-256, too
    REFUSED    node -> asker   in the place of either: no reason, since it may be a stranger who asks

NAME is said to who says by a feature that he knows it, and he says his own in his first frame (``wire``): a release
is nothing for strangers. To who has proved himself and speaks none of the node's versions WELCOME has version 0, and
NAME is why.

Messages have fixed lengths, so nobody reads more than 112 bytes of a stranger. A MAC is over a label of its side, the
UUIDs of the cluster and of the node that is meant, and every byte that was said before, the reserved ones included:
so both nonces, both roles, versions, features and keys. What was heard elsewhere or before (replay), what one's own
mouth said (reflection), and what somebody on the way made less of (downgrade) all give another MAC.

Like every challenge without a channel that it binds, it says who is there when a connection begins: who can change
packets on their way may still cut in afterwards. Against that there is TLS.

Keys are 256 random bits, known by the first 8 bytes of their SHA-256. The asker names up to two, the preferred first,
and the node takes the first that it has: so keys change while everybody goes on.
"""

from __future__ import annotations

import enum
import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple
from uuid import UUID

from distfs import __version__
from distfs.errors import ProtocolError
from distfs.formats import wire

MAGIC = b"DFSH"
FORMAT = 1
NONCE_SIZE = KEY_SIZE = 32
KEY_ID_SIZE = 8
MOST_KEYS = 2

#: Version of the wire that follows; both sides speak all from LOWEST to HIGHEST.
LOWEST, HIGHEST = wire.VERSION, wire.VERSION
#: Feature bits this distfs knows: of the wire, and of fragments.
FEATURES = wire.FEATURES

_HEAD = struct.Struct(">4sBB2s")  # magic, kind, format, what the kind says
#: Versions, features, reserved, key ids, nonce.
_HELLO = struct.Struct(">HHI8s8s8s32s")
_WELCOME = struct.Struct(">HHI")  # version, reserved, features
_NAME = struct.Struct(">HHI32s")  # versions, reserved, software
HEAD_SIZE = _HEAD.size
_ZEROS = bytes(8)
_MAC_SIZE = sha256().digest_size


class Kind(enum.IntEnum):
    HELLO = 1
    CHALLENGE = 2
    PROOF = 3
    WELCOME = 4
    REFUSED = 5
    NAME = 6


#: Bytes of a message of each kind.
SIZES = {
    Kind.HELLO: HEAD_SIZE + _HELLO.size,
    Kind.CHALLENGE: HEAD_SIZE + NONCE_SIZE,
    Kind.PROOF: HEAD_SIZE + _MAC_SIZE,
    Kind.WELCOME: HEAD_SIZE + _WELCOME.size + _MAC_SIZE,
    Kind.REFUSED: HEAD_SIZE,
    Kind.NAME: HEAD_SIZE + _NAME.size + _MAC_SIZE,
}


class Role(enum.IntEnum):
    """Who asks."""

    SERVICE = 1  # and a command of an operator


class Reason(enum.StrEnum):
    """Why somebody is not welcome: for the node's own log, never for him."""

    FORM = "what came is no HELLO of distfs"
    KEY = "it has none of this cluster's keys"
    VERSION = "it speaks no version that this node does"
    PROOF = "its proof is wrong: of another key or cluster, for another node, or not its own"
    TLS = "no TLS came about"
    SLOW = "it did not prove in time who it is"
    GONE = "it left before it proved who it is"
    CROWDED = "too many others had not proved who they are"


class Unwelcome(ProtocolError):
    """The asker is not of this cluster."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        """``detail``: what more there is to say in the log."""
        super().__init__(reason.value)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Key:
    """A cluster key. Never shown: neither by ``repr`` nor by ``str``."""

    secret: bytes = field(repr=False)
    id: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_SIZE:
            raise ValueError(f"a cluster key has {KEY_SIZE} bytes, not {len(self.secret)}")
        object.__setattr__(self, "id", sha256(self.secret).digest()[:KEY_ID_SIZE])

    def __str__(self) -> str:
        return self.id.hex()


#: The newest first.
Keys = Sequence[Key]


class Agreed(NamedTuple):
    """What holds on the connection from now on."""

    version: int  # 0: none, the connection ends
    features: int
    role: int  # of the asker
    key: bytes  # the id of that which counted


class Asker:
    """The side that connects. ``nonce``: 32 fresh random bytes. The methods are called in order, once each."""

    def __init__(
        self,
        keys: Keys,
        cluster: UUID,
        node: UUID,
        nonce: bytes,
        role: Role = Role.SERVICE,
        speaks: tuple[int, int] = (LOWEST, HIGHEST),
    ) -> None:
        """``node``: that which is meant; ``speaks``: which versions."""
        if not keys:
            raise ProtocolError("this process has no cluster key to prove itself with")
        self._keys, self._role, self._speaks = keys[:MOST_KEYS], role, speaks
        ids = [key.id for key in self._keys] + [_ZEROS] * (MOST_KEYS - len(self._keys))
        said = _HELLO.pack(*speaks, FEATURES, _ZEROS, *ids, nonce)
        self.hello = _head(Kind.HELLO, bytes([role, 0])) + said
        self._transcript = cluster.bytes + node.bytes + self.hello

    def prove(self, challenge: bytes) -> bytes:
        """CHALLENGE -> PROOF. Raises ProtocolError."""
        which, zero = _body(Kind.CHALLENGE, challenge)
        if zero or which >= len(self._keys):
            raise ProtocolError("a CHALLENGE that makes no sense")
        self._key = self._keys[which]
        self._transcript += challenge
        proof = _head(Kind.PROOF) + _mac(self._key, b"asks", self._transcript)
        self._transcript += proof
        return proof

    def accept(self, welcome: bytes) -> Agreed:
        """What the node proves itself with. Raises ProtocolError for one that has not the key, or another node.

        With the feature NAMES its NAME follows, for ``named``.
        """
        said = welcome[: HEAD_SIZE + _WELCOME.size]
        mac = _mac(self._key, b"answers", self._transcript + said)
        if _body(Kind.WELCOME, welcome) != b"\0\0" or not hmac.compare_digest(mac, welcome[len(said) :]):
            raise ProtocolError("it has not proved that it is the node that is meant")
        version, zero, features = _WELCOME.unpack_from(said, HEAD_SIZE)
        lowest, highest = self._speaks
        why_follows = not version and features & wire.Feature.NAMES
        if not (lowest <= version <= highest or why_follows) or zero or features & ~FEATURES:
            raise ProtocolError("it agreed to what nobody offered")
        self._version, self._transcript = version, self._transcript + said
        return Agreed(version, features, self._role, self._key.id)

    def named(self, name: bytes) -> str:
        """-> of which release the node is. Raises ProtocolError when the two have no version in common."""
        said, mac = name[:-_MAC_SIZE], name[-_MAC_SIZE:]
        right = hmac.compare_digest(mac, _mac(self._key, b"is named", self._transcript + said))
        if _body(Kind.NAME, name) != b"\0\0" or not right:
            raise ProtocolError("a NAME that is not the node's")
        lowest, highest, zero, packed = _NAME.unpack_from(said, HEAD_SIZE)
        if zero:
            raise ProtocolError("a NAME that makes no sense")
        software = name_of(packed)
        if not self._version:
            raise ProtocolError(
                f"it is distfs {software} and speaks {_versions(lowest, highest)}, this is distfs {__version__} and "
                f"speaks {_versions(*self._speaks)}: upgrade the older one"
            )
        return software


class Answerer:
    """The node's side of one connection. ``nonce``: 32 fresh random bytes."""

    def __init__(
        self,
        keys: Keys,
        cluster: UUID,
        node: UUID,
        nonce: bytes,
        speaks: tuple[int, int] = (LOWEST, HIGHEST),
    ) -> None:
        self._speaks, self.no_version = speaks, ""  # why there is none in common, in words
        self._keys, self._ours, self._nonce = keys, cluster.bytes + node.bytes, nonce

    def challenge(self, hello: bytes) -> bytes:
        """HELLO -> CHALLENGE. Raises Unwelcome."""
        try:
            self._role, zero = _body(Kind.HELLO, hello)
            lowest, highest, features, zeros, *ids, _ = _HELLO.unpack_from(hello, HEAD_SIZE)
        except ProtocolError:
            raise Unwelcome(Reason.FORM) from None
        if self._role not in _ROLES or zero or any(zeros) or lowest > highest:
            raise Unwelcome(Reason.FORM)
        self._features = features & FEATURES
        self._version = min(highest, self._speaks[1])
        if self._version < max(lowest, self._speaks[0]):
            self.no_version = f"{_versions(lowest, highest)}, this node {_versions(*self._speaks)}"
            self._version = 0
            if not features & wire.Feature.NAMES:
                raise Unwelcome(Reason.VERSION, self.no_version)
        ours = {key.id: key for key in self._keys}
        for which, id in enumerate(ids):
            if id in ours:
                self._key = ours[id]
                challenge = _head(Kind.CHALLENGE, bytes([which, 0])) + self._nonce
                self._transcript = self._ours + hello + challenge
                return challenge
        raise Unwelcome(Reason.KEY)

    def welcome(self, proof: bytes) -> tuple[bytes, Agreed]:
        """PROOF -> WELCOME, and what was agreed. Raises Unwelcome."""
        try:
            zeros = _body(Kind.PROOF, proof)
        except ProtocolError:
            raise Unwelcome(Reason.FORM) from None
        mac = _mac(self._key, b"asks", self._transcript)
        if not hmac.compare_digest(mac, proof[HEAD_SIZE:]):
            raise Unwelcome(Reason.PROOF)
        if any(zeros):
            raise Unwelcome(Reason.FORM)
        said = _head(Kind.WELCOME) + _WELCOME.pack(self._version, 0, self._features)
        self._transcript += proof + said
        welcome = said + _mac(self._key, b"answers", self._transcript)
        return welcome, Agreed(self._version, self._features, self._role, self._key.id)

    def name(self) -> bytes:
        """NAME, behind WELCOME where NAMES is agreed on."""
        said = _head(Kind.NAME) + _NAME.pack(*self._speaks, 0, __version__.encode()[:32])
        return said + _mac(self._key, b"is named", self._transcript + said)


def name_of(packed: bytes) -> str:
    """A release, from whatever its bytes are, for people."""
    text = packed[:32].rstrip(b"\0").decode("ascii", "replace")
    return "".join(c if c.isprintable() and c.isascii() else "?" for c in text)


def _versions(lowest: int, highest: int) -> str:
    return f"wire version {lowest}" if lowest == highest else f"wire versions {lowest} to {highest}"


REFUSED = _HEAD.pack(MAGIC, Kind.REFUSED, FORMAT, b"\0\0")
_ROLES = frozenset(role.value for role in Role)


def kind_of(head: bytes) -> Kind:
    """Of a message that begins so. Raises ProtocolError."""
    magic, kind, form, _ = _HEAD.unpack(head)
    if magic != MAGIC or form != FORMAT or kind not in _KINDS:
        raise ProtocolError("the peer does not greet as distfs does: is this a storage node's port?")
    return Kind(kind)


_KINDS = frozenset(kind.value for kind in Kind)


def _head(kind: Kind, said: bytes = b"\0\0") -> bytes:
    return _HEAD.pack(MAGIC, kind, FORMAT, said)


def _body(kind: Kind, message: bytes) -> bytes:
    """What the head of a message says, which is to be of this kind. Raises ProtocolError."""
    if len(message) != SIZES[kind] or kind_of(message[:HEAD_SIZE]) is not kind:
        raise ProtocolError(f"what came is no {kind.name}")
    said: bytes = _HEAD.unpack_from(message)[3]
    return said


def _mac(key: Key, side: bytes, transcript: bytes) -> bytes:
    return hmac.digest(key.secret, b"distfs hello 1: who " + side + b"\0" + transcript, "sha256")
