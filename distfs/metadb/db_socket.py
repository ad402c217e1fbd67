"""The socket below a connection to MetaDB. Every wait on it ends with one deadline, whatever trickles in meanwhile.

Time limits of sockets begin anew with each call: one who sends a byte now and then is never late, be it a server that
is overloaded or something else that listens on its port. So before each call it is looked whether the kernel's limit
(SO_RCVTIMEO; Python's own costs a poll before each call) is within what is left, and seldom it has to be set.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Any, cast

from distfs.deadline import Deadline
from distfs.errors import Cancelled, TooSlow
from distfs.metadb.url import Host
from distfs.process.dial import dial, keep_alive, timeval

_KEEPALIVE = 30, 5, 3  # a server behind a firewall that went silent is noticed after 45 s

_READ = 16 << 10  # bytes at once
_SHORTEST_S = 0.05  # is not halved
#: Of a question that is mostly answered sooner, whose asker may not hear before that nobody wants it any more.
_SOON_S = 0.1
_PART = 0.45  # of what is left: two calls end within it, also when the next one has a little less

#: Length 8 and the request's code (https://www.postgresql.org/docs/current/protocol-message-formats.html).
_TLS_REQUEST, _TLS_GRANTED = b"\0\0\0\x08\x04\xd2\x16\x2f", b"S"


class DBSocket(socket.socket):
    """While it has a ``limit``, sending and receiving raise TimeoutError as soon as that is over."""

    limit: Deadline | None = None
    times_itself = True  # its time limits are the kernel's
    _waits = 0.0  # seconds that the kernel lets a call wait; 0: for ever

    def recv_into(self, *args: Any) -> int:
        while True:
            self.wait_no_longer()
            try:
                return super().recv_into(*args)
            except BlockingIOError:
                self._waits = 0.0  # anew, by what is left

    def send(self, *args: Any) -> int:
        while True:
            self.wait_no_longer()
            try:
                return super().send(*args)
            except BlockingIOError:
                self._waits = 0.0

    def makefile(self, *args: Any, **kwargs: Any) -> Any:
        return Stream(self)

    def sendall(self, data: Any, flags: int = 0) -> None:
        sent, most = self.send(data, flags), len(data)
        while sent < most:
            sent += self.send(memoryview(data)[sent:], flags)

    def wait_no_longer(self) -> None:
        """The next call ends with the limit. Raises TimeoutError when that is over, or was cancelled."""
        if self.limit is not None:
            try:
                left = self.limit.remaining()
            except (TooSlow, Cancelled) as e:
                raise TimeoutError(str(e)) from e
            self._wait_within(left)

    def _wait_within(self, left: float) -> None:
        """A call of no more than ``left`` seconds; of a part of them, so that the next one may be as long."""
        if not 0 < self._waits <= left:
            self.wait_seconds(max(left * _PART, min(left, _SHORTEST_S)))

    def wait_seconds(self, seconds: float) -> None:
        """From now on the kernel lets no call wait longer."""
        self._waits = seconds
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self.setsockopt(socket.SOL_SOCKET, option, timeval(seconds))

    def interrupt(self) -> None:
        """From any thread: whoever waits here fails at once, and the connection is of no more use."""
        with contextlib.suppress(OSError):  # it has ended already
            # Not TLS's own, which would also forget its state, in mid-call.
            socket.socket.shutdown(self, socket.SHUT_RDWR)


class Stream:
    """What the driver writes to and reads from, and our statements too: what has come is in one place.

    A file of Python's would keep what it has read ahead to itself, and go through three more calls for it.
    """

    def __init__(self, sock: DBSocket) -> None:
        self._sock, self._scratch = sock, memoryview(bytearray(_READ))
        self._come, self._to_send = b"", bytearray()
        # Without a look at the clock.
        self._send, self._receive = super(DBSocket, sock).send, super(DBSocket, sock).recv_into

    def ask(self, data: bytes, left: float) -> bytes:
        """Send ``data``; -> what comes then, as ``receive``. ``left``: seconds of the socket's limit; 0: nobody has
        looked. Most of the time both go at once, and end within it whatever happens."""
        sock = self._sock
        if self._come or not 0 < 2 * sock._waits <= left:
            sock.sendall(data)
            return self.receive()
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            sock._waits = 0.0  # anew, by what is left
            sock.sendall(data[sent:])
            return self.receive()
        try:
            return bytes(self._scratch[: self._receive(self._scratch)])
        except BlockingIOError:
            sock._waits = 0.0
            return self.receive()

    def ask_soon(self, data: bytes) -> bytes | None:
        """As ``ask``, if both go at once and within a moment. None: it did not go so, and all that comes is still to
        be received; where ``data`` could not be sent, that is the connection's end."""
        sock = self._sock
        if sock._waits != _SOON_S:
            sock.wait_seconds(_SOON_S)
        try:
            sent = self._send(data)
        except OSError:
            sent = 0
        if sent != len(data):
            sock.interrupt()
            return None
        try:
            return bytes(self._scratch[: self._receive(self._scratch)])
        except OSError:
            return None

    def put_back(self, data: bytes) -> None:
        """It is what comes next."""
        self._come = data + self._come

    def read(self, size: int) -> bytes:
        """So many bytes; fewer at the connection's end."""
        data = self._come
        if len(data) < size:
            pieces = bytearray(data)
            self._come = b""
            while len(pieces) < size and (more := self.receive()):
                pieces += more
            data = bytes(pieces)
        self._come = data[size:]
        return data[:size]

    def receive(self) -> bytes:
        """What has come and was not read; else what comes next. Empty: the connection's end. Raises OSError."""
        if self._come:
            data, self._come = self._come, b""
            return data
        return bytes(self._scratch[: self._sock.recv_into(self._scratch)])

    def write(self, data: bytes) -> None:
        self._to_send += data

    def flush(self) -> None:
        """Raises OSError."""
        data, self._to_send = self._to_send, bytearray()
        if data:
            self._sock.sendall(data)


class _TLSSocket(DBSocket, ssl.SSLSocket):
    times_itself = False

    def _wait_within(self, left: float) -> None:
        self.settimeout(left)  # a call of TLS is several of the kernel's


def connect(host: Host, limit: Deadline) -> DBSocket:
    """Connect within ``limit``, which stays the socket's. Raises OSError; what ``limit`` raises when it is over."""
    left = limit.remaining("connecting to MetaDB")
    if host.socket_path is not None:
        sock = DBSocket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(left)
            sock.connect(host.socket_path)
            sock.setblocking(True)
        except OSError:
            sock.close()
            raise
    else:
        sock = DBSocket(fileno=dial(host.name, host.port, left).detach())
        sock.setblocking(True)
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
    sock.wait_no_longer()
    if sock.limit is not None:
        sock.settimeout(sock.limit.remaining())  # of a handshake, it is for all of it
    wrapped = cast(DBSocket, context.wrap_socket(sock, server_hostname=name))
    wrapped.limit = sock.limit
    return wrapped
