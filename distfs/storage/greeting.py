"""How a connection begins, as a node sees it: whoever it is learns nothing before he has proved who he is."""

from __future__ import annotations

import contextlib
import os
from uuid import UUID

from distfs import __version__
from distfs.deadline import Deadline
from distfs.errors import DistfsError, NodeUnavailable, ProtocolError, TooSlow
from distfs.formats import hello
from distfs.formats.hello import Agreed, Answerer, Keys, Kind, Reason, Unwelcome
from distfs.formats.wire import Feature, Frame
from distfs.wire_socket import WireSocket


def examine(
    sock: WireSocket, keys: Keys, cluster: UUID, node: UUID, deadline: Deadline
) -> tuple[bytes, Agreed]:
    """Have who connects prove that he is of this cluster and means this node. Raises Unwelcome; he is told no more
    than that. -> the welcome, which is still to be sent to him, and what is agreed then."""
    try:
        answerer = Answerer(keys, cluster, node, os.urandom(hello.NONCE_SIZE))
        sock.send(answerer.challenge(_receive(sock, Kind.HELLO, deadline)), limit=deadline)
        welcome, agreed = answerer.welcome(_receive(sock, Kind.PROOF, deadline))
    except Unwelcome:
        with contextlib.suppress(DistfsError):
            sock.send(hello.REFUSED, limit=deadline)
        raise
    except TooSlow as e:
        raise Unwelcome(Reason.SLOW) from e
    except NodeUnavailable as e:
        raise Unwelcome(Reason.GONE) from e
    if agreed.features & Feature.NAMES:
        welcome += answerer.name()
    if not agreed.version:  # he has proved who he is: he is told why
        with contextlib.suppress(DistfsError):
            sock.send(welcome, limit=deadline)
        raise Unwelcome(Reason.VERSION, answerer.no_version)
    return welcome, agreed


def other_release(name: Frame) -> str:
    """To be said behind a caller's address: of which release he is, if it is another than this."""
    try:
        software = hello.name_of(str(name.header().get("software", "")).encode())
    except ProtocolError:
        software = "?"
    return "" if software == __version__ else f" (distfs {software})"


def _receive(sock: WireSocket, kind: Kind, deadline: Deadline) -> bytes:
    """As many bytes as a message of this kind has, if it begins as one."""
    message = bytearray(hello.SIZES[kind])
    view = memoryview(message)
    sock.receive_body(view[: hello.HEAD_SIZE], deadline)
    if message[: len(hello.MAGIC)] != hello.MAGIC:  # whoever speaks something else may never say that much
        raise Unwelcome(Reason.FORM)
    sock.receive_body(view[hello.HEAD_SIZE :], deadline)
    return bytes(message)
