"""What takes too long on a connection that the loop has, and what it comes to."""

from __future__ import annotations

from distfs.errors import RequestTooSlow
from distfs.host.connection import REST, Connection
from distfs.host.ending import Ending
from distfs.host.host import LINGER_SECONDS
from distfs.quantity import size as readable


def check(connection: Connection, now: float) -> float:
    """End what takes too long; -> when to look again. ``now`` is monotonic."""
    http = connection.loop.http
    stall, rate = http.client_stall_timeout, http.client_min_rate
    if connection.with_worker:
        return now + connection.loop.shortest
    if connection.answering is not None:
        if now > connection.since + stall:
            connection.cut(f"the client took no byte for {stall:g} s")
        return max(now, connection.since + stall)
    if connection.request is not None:
        return _check_body(connection, now)
    if connection.thrown_away >= 0:
        until = connection.since + LINGER_SECONDS
    elif connection.unsent:
        until = min(connection.since + stall, connection.answered + stall + REST / rate)
    elif connection.begun:
        until = connection.began + stall
    else:
        until = connection.since + http.idle_timeout
    if now <= until:
        return until
    if connection.unsent:
        connection.ending = Ending.CUT
    elif connection.begun and connection.thrown_away < 0 and not connection.shakes_hands:
        connection.refuse(
            RequestTooSlow(f"the request's headers took more than {stall:g} s: send them at once")
        )
        return now
    connection.loop.close(connection)
    return now


def _check_body(connection: Connection, now: float) -> float:
    http, request = connection.loop.http, connection.request
    stall, rate, age = http.client_stall_timeout, http.client_min_rate, now - connection.began
    received = request.small.received if request and request.small else 0
    if now - connection.since > stall:
        connection.refuse(RequestTooSlow(f"no byte of the body came for {stall:g} s: send it again"))
    elif age > stall and received < rate * age:
        connection.refuse(
            RequestTooSlow(f"the body came slower than {readable(rate)}/s (http.client_min_rate)")
        )
    return min(connection.since + stall, max(connection.began + stall, now + connection.loop.shortest))
