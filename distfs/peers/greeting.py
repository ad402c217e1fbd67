"""How a connection to a node begins: who asks proves that it is of the cluster, and so does the node."""

from __future__ import annotations

import os
from collections.abc import Callable
from uuid import UUID

from distfs import __version__
from distfs.deadline import Deadline
from distfs.errors import ProtocolError
from distfs.formats import hello
from distfs.formats.hello import Agreed, Asker, Keys, Kind
from distfs.formats.wire import Feature, Type, encode
from distfs.wire_socket import Limit, WireSocket

#: The cluster's keys, the newest first. Raises Unavailable when they cannot be asked for.
KnownKeys = Callable[[Deadline], Keys]


class NodeSocket(WireSocket):
    """A connection to a node. ``greeting``: what is still to be said before a request; None: nothing."""

    greeting: Greeting | None = None


class Greeting:
    """Said step by step, so that who reads may ask another node while this one is late with its part."""

    def __init__(
        self, sock: NodeSocket, keys: Keys, cluster: UUID, node: UUID, agreed: Callable[[Agreed, str], object]
    ) -> None:
        """Begins it. ``node``: that which is meant; ``agreed`` is told what was agreed on, and of which release the
        node is ("": it does not say). Raises NodeUnavailable,
        ProtocolError without a key."""
        self._agreed = agreed
        self._sock, self._asker = sock, Asker(keys, cluster, node, os.urandom(hello.NONCE_SIZE))
        self._kind, self._message, self._done = Kind.CHALLENGE, bytearray(hello.SIZES[Kind.CHALLENGE]), 0
        sock.send(self._asker.hello)
        sock.greeting = self

    def go_on(self, limit: Limit | None = None) -> bool:
        """Whether both have proved who they are; False after a silence of ``notice``: call again to wait on.

        Raises ProtocolError for a node that is not the one that is meant, or does not let us in; NodeUnavailable,
        TooSlow.
        """
        try:
            while self._sock.greeting is not None:
                if not self._receive(limit):
                    return False
                self._answer(bytes(self._message), limit)
        except ProtocolError as e:
            raise ProtocolError(f"{self._sock.peer}: {e}") from e
        return True

    def _answer(self, message: bytes, limit: Limit | None) -> None:
        if self._kind is Kind.CHALLENGE:
            self._sock.send(self._asker.prove(message), limit=limit)
            self._kind, self._message, self._done = Kind.WELCOME, bytearray(hello.SIZES[Kind.WELCOME]), 0
        elif self._kind is Kind.WELCOME:
            agreed = self._asker.accept(message)
            self._sock.features = agreed.features
            if agreed.features & Feature.NAMES:
                self._told = agreed
                self._kind, self._message, self._done = Kind.NAME, bytearray(hello.SIZES[Kind.NAME]), 0
            else:
                self._end(agreed, "")
        else:
            software = self._asker.named(message)
            # It leaves with the request, for which the connection is made.
            self._sock.send(encode(Type.NAME, {"software": __version__}), more=True, limit=limit)
            self._end(self._told, software)

    def _end(self, agreed: Agreed, software: str) -> None:
        self._agreed(agreed, software)
        self._sock.greeting, self._sock.heard = None, False

    def _receive(self, limit: Limit | None) -> bool:
        """Whether the whole message has come."""
        view = memoryview(self._message)
        for end in (hello.HEAD_SIZE, len(view)):
            if self._done < end:
                self._done = self._sock.receive_body_or_late(view[:end], self._done, limit)
                if self._done < end:
                    return False
            if hello.kind_of(bytes(view[: hello.HEAD_SIZE])) is Kind.REFUSED:
                raise ProtocolError(
                    "it does not let us in, and says why in its log alone: mostly it is of another cluster, or "
                    "another node than this one listens there now, or it has not our cluster key "
                    "(`distfs cluster-key show-id`)"
                )
        return True
