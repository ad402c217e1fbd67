"""A fragment of one small cell, read on a connection that was just used, with nothing made that only others need.

Most downloads are that. What does not go as it mostly does, because the node is late, hangs up, refuses, or has
another fragment than was thought, goes on where it was as any other read.
"""

from __future__ import annotations

import time

from distfs.deadline import Deadline
from distfs.formats.fixed import answer_to_small, frame_of_small
from distfs.formats.fragment import ENTRY_SIZE
from distfs.model import FragmentId
from distfs.peers.client import NodeClient
from distfs.peers.late_read import SmallReader
from distfs.peers.link import Exchange
from distfs.peers.remote_fragment import RemoteReader
from distfs.telemetry import tracing
from distfs.telemetry.context import current_request_id
from distfs.telemetry.metrics import RETRIES, node_read
from distfs.wire_socket import ANSWERED, LATE, READ_AHEAD, UNSENT

#: Who waits no longer than so need not hear at once that nobody wants it any more.
_UNWATCHED_S = 0.1
_REQUEST = RETRIES.index("request")

#: As they came, and nothing of them was checked: the cell's entry, and the cell.
Came = tuple[bytes, bytes]


class SmallAsk:
    """What is asked for, and how an answer that is right begins: the same each time."""

    __slots__ = ("begins", "id", "size", "whole")

    def __init__(self, id: FragmentId, size: int) -> None:
        """The only cell of a file's only slice, of ``size`` bytes."""
        self.id, self.begins = id, answer_to_small(size)
        self.size = len(self.begins)  # of what comes before the cell's entry
        self.whole = self.size + ENTRY_SIZE + size


def read_small(
    client: NodeClient, ask: SmallAsk, deadline: Deadline, late: float
) -> Came | SmallReader | None:
    """-> what came at once, or who reads on. None: nothing was asked, or in vain: ask as for any other.

    ``late``: seconds of silence after which the node is late. Raises TooSlow, Cancelled.
    """
    if tracing.on or late > _UNWATCHED_S or ask.whole > READ_AHEAD:
        return None
    link = client.link
    left = deadline.remaining(link.peer)
    now = deadline.expires_at - left
    if left <= late or (sock := link.pool.lend(now)) is None:
        return None
    request = frame_of_small(client.to, left, ask.id, current_request_id().encode())
    stall: float = link.config.stall_timeout
    if left < stall:
        stall = left
    outcome = sock.ask(request, ask.begins, ask.whole, stall, late)
    if outcome == ANSWERED:
        heard_at = time.monotonic()
        entry_at, whole = ask.size, sock.scratch
        came = bytes(whole[entry_at : entry_at + ENTRY_SIZE]), bytes(whole[entry_at + ENTRY_SIZE : ask.whole])
        link.latency.add(heard_at - now, heard_at)
        node_read(link.series, heard_at - now, len(request), ask.whole - entry_at)
        link.breaker.succeeded()
        if sock.outdated:
            link.pool.discard(sock)
        else:
            link.pool.give_back(sock, heard_at)
        return came
    if outcome == UNSENT:
        RETRIES.add(at=_REQUEST)
        link.pool.discard(sock)
        return None
    exchange = Exchange.going_on(link, sock, deadline, request, late)
    if outcome == LATE:
        exchange.budget.spend(late)
    return RemoteReader(exchange, now, waited=True, late=outcome == LATE)
