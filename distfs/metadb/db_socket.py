"""The socket below a connection to MetaDB. Every wait on it ends with one deadline, whatever trickles in meanwhile.

Python's time limits, and so the driver's, begin anew with each call: one who sends a byte now and then is never
late, be it a server that is overloaded or something else that listens on its port.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Any, cast

from distfs.deadline import Deadline
from distfs.dial import dial, keep_alive
from distfs.errors import Cancelled, TooSlow
from distfs.metadb.url import Host

_KEEPALIVE = 30, 5, 3  # a server behind a firewall that went silent is noticed after 45 s

#: Length 8 and the request's code (https://www.postgresql.org/docs/current/protocol-message-formats.html).
_TLS_REQUEST, _TLS_GRANTED = b"\0\0\0\x08\x04\xd2\x16\x2f", b"S"


class DBSocket(socket.socket):
    """While it has a ``limit``, sending and receiving raise TimeoutError as soon as that is over."""

    limit: Deadline | None = None

    def recv_into(self, *args: Any) -> int:
        self.wait_no_longer()
        return super().recv_into(*args)

    def send(self, *args: Any) -> int:
        self.wait_no_longer()
        return super().send(*args)

    def wait_no_longer(self) -> None:
        """The next call ends with the limit. Raises TimeoutError when that is over, or was cancelled."""
        if self.limit is not None:
            try:
                self.settimeout(self.limit.remaining())
            except (TooSlow, Cancelled) as e:
                raise TimeoutError(str(e)) from e

    def interrupt(self) -> None:
        """From any thread: whoever waits here fails at once, and the connection is of no more use."""
        with contextlib.suppress(OSError):  # it has ended already
            # Not TLS's own, which would also forget its state, in mid-call.
            socket.socket.shutdown(self, socket.SHUT_RDWR)


class _TLSSocket(DBSocket, ssl.SSLSocket):
    pass


def connect(host: Host, limit: Deadline) -> DBSocket:
    """Connect within ``limit``, which stays the socket's. Raises OSError; what ``limit`` raises when it is over."""
    left = limit.remaining("connecting to MetaDB")
    if host.socket_path is not None:
        sock = DBSocket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(left)
            sock.connect(host.socket_path)
        except OSError:
            sock.close()
            raise
    else:
        sock = DBSocket(fileno=dial(host.name, host.port, left).detach())
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(sock, *_KEEPALIVE)
    sock.limit = limit
    return sock


def start_tls(sock: DBSocket, context: ssl.SSLContext, name: str) -> DBSocket:
    """``sock`` under TLS, within its limit. Raises OSError, also for a server that speaks none."""
    sock.sendall(_TLS_REQUEST)
    answer = bytearray(1)
    if not sock.recv_into(answer):
        raise ConnectionResetError("it closed the connection")
    if answer != _TLS_GRANTED:
        raise ConnectionError("it speaks no TLS: turn that on there, or put ?sslmode=disable into metadb.url")
    try:
        sock.getpeername()
    except OSError:  # reset; Python's ssl raises, too, but leaves the descriptor open in a socket nobody has
        raise ConnectionResetError("it closed the connection") from None
    context.sslsocket_class = _TLSSocket
    sock.wait_no_longer()  # of a handshake, the socket's time limit is for all of it
    wrapped = cast(DBSocket, context.wrap_socket(sock, server_hostname=name))
    wrapped.limit = sock.limit
    return wrapped
