"""A TCP socket under TLS that is called as one without: the same flags, time limits and exceptions.

OpenSSL works on memory here, and the socket stays ours. So who waits, for how long, and whether at all, is what it is
without TLS, where Python's SSLSocket allows no flags, waits for itself, and may be used by one thread only. And the
socket is asked for many records at once: of a MiB OpenSSL by itself would read each head and each body of 16 KiB.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import ssl
import sys
import termios
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from distfs.model import Buffer

#: Plain bytes that are sealed at once: so much may lie in memory for a peer that takes nothing.
PIECE = 64 << 10
#: What is received at once, in buffers that all share.
_RECEIVE, _SPARE = 128 << 10, 32
_LEAST_S = 0.001
#: A record, at most 16 KiB, that takes longer is waited for anew, so that the one who waits may look at his limit.
RECORD_S = 5.0

#: Of a handshake's first record (RFC 8446, 5.1).
_HANDSHAKE = 0x16

_buffers: deque[bytearray] = deque(maxlen=_SPARE)


class PlainText(OSError):
    """The peer speaks no TLS: ``said`` is what came of it."""

    def __init__(self, said: bytes) -> None:
        super().__init__(0, "it speaks no TLS")
        self.said = said


class TlsSocket:
    """Of ``socket.socket``, what distfs uses. One thread may send while another receives.

    Bytes count as sent when the socket has taken all of their record. What is not sent must be given again: a part of
    its record may have gone.
    """

    __slots__ = (
        "_context",
        "_ended",
        "_half",
        "_held",
        "_in",
        "_lock",
        "_more",
        "_out",
        "_peeked",
        "_record_s",
        "_sealed",
        "_server",
        "_tls",
        "established",
        "generation",
        "raw",
    )

    def __init__(
        self,
        raw: socket.socket,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        generation: int = 0,
        record_s: float = RECORD_S,
    ) -> None:
        """``generation``: of the context, for who wants to know whether it is still the one. ``record_s``: how long
        one who receives waits for the rest of a record, however many pieces of it come."""
        self.raw, self.generation, self._record_s = raw, generation, record_s
        self.established = False
        self._context, self._server = context, server_side
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None  # until the first byte comes
        self._lock = threading.Lock()
        self._sealed, self._held = memoryview(b""), 0  # on its way; how many plain bytes that are
        self._more = False  # there may be more to read without asking the socket
        self._peeked = b""
        self._ended = self._half = False  # by the peer; by us

    # --- the handshake --------------------------------------------------------------------------------

    def shake(self, until: float) -> None:
        """Until TLS is established, ``until`` then on the monotonic clock. Raises OSError; TimeoutError."""
        while True:
            with self._lock:
                if self._shaken():
                    return
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError("the TLS handshake was not done in time")
            self.raw.settimeout(max(left, _LEAST_S))
            self._receive(0)
            if self._ended:
                raise ConnectionResetError("it closed the connection in the TLS handshake")

    def _shaken(self) -> bool:
        """Go on with the handshake, as far as what came allows; whether it is done."""
        if self._tls is None:
            self._tls = self._context.wrap_bio(self._in, self._out, server_side=self._server)
        if not self.established:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                return False
            finally:
                self._answer()
            self.established = True
            self._more = True
        return True

    def _answer(self) -> None:
        """What TLS itself has to say: of a handshake, an alert. It is never waited for."""
        if self._out.pending:
            self._sealed = memoryview(bytes(self._sealed) + self._out.read())
            with contextlib.suppress(OSError):
                self._sealed = self._sealed[self.raw.send(self._sealed, socket.MSG_DONTWAIT) :]

    @property
    def peer(self) -> ssl.SSLObject:
        """What was agreed on. After the handshake."""
        if self._tls is None:
            raise ConnectionError("the TLS handshake has not begun")
        return self._tls

    # --- receiving ------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether there may be something to receive that no poll of the descriptor shows."""
        return self._more and not self._half

    def waiting(self) -> int:
        """Bytes that have come and were not received: not fewer than there are, and hardly more."""
        there = waiting_in(self.raw)
        with self._lock:
            return there + self._in.pending + (self._tls.pending() if self._tls else 0)

    def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        """As a socket's. MSG_WAITALL is as good as none: who asks for more asks again, and may look at his limit."""
        view = memoryview(buffer)
        if nbytes:
            view = view[:nbytes]
        flags, gives_up = flags & ~socket.MSG_WAITALL, 0.0
        if self._half:  # who has said goodbye throws away what comes
            return self.raw.recv_into(view, len(view), flags)
        while True:
            done = self._open(view)
            if done or self._ended:
                return done
            if (
                gives_up and time.monotonic() > gives_up
            ):  # only now: of what has come a poll shows nothing any more
                raise BlockingIOError("a record comes in pieces")  # which is as good as silence
            self._receive(flags)
            gives_up = gives_up or time.monotonic() + self._record_s

    def recv(self, size: int, flags: int = 0) -> bytes:
        if flags & socket.MSG_PEEK:
            if not self._peeked:
                self._peeked = self.recv(1, flags & ~socket.MSG_PEEK)
            return self._peeked
        data = bytearray(size)
        return bytes(data[: self.recv_into(data, size, flags)])

    def _open(self, view: memoryview) -> int:
        """How many bytes of what came were opened into ``view``."""
        done = 0
        with self._lock:
            if self._peeked:
                view[:1], self._peeked, done = self._peeked, b"", 1
            if not self.established and not ((self._in.pending or not self._server) and self._shaken()):
                return 0  # who says nothing costs nothing
            tls: Any = self.peer  # of a buffer to read into typeshed knows for sockets only
            try:
                while done < len(view):
                    count = tls.read(len(view) - done, view[done:])
                    if not count:
                        self._ended = True
                        break
                    done += count
                self._more = not self._ended
            except ssl.SSLWantReadError:
                self._more = False
            finally:
                self._answer()
        return done

    def _receive(self, flags: int) -> None:
        """From the socket, as much as there is. Raises OSError; PlainText for the first that is no TLS."""
        try:
            buffer = _buffers.pop()
        except IndexError:
            buffer = bytearray(_RECEIVE)
        try:
            count = self.raw.recv_into(buffer, _RECEIVE, flags)
            with memoryview(buffer) as view, view[:count] as came:
                if not count:
                    self._ended = True
                elif self._server and self._tls is None and came[0] != _HANDSHAKE:
                    raise PlainText(bytes(came))
                self._in.write(came)
        finally:
            _buffers.append(buffer)

    # --- sending --------------------------------------------------------------------------------------

    def send(self, data: Buffer, flags: int = 0) -> int:
        return self.sendmsg((data,), (), flags)

    def sendmsg(self, buffers: Sequence[Buffer], ancillary: Sequence[object] = (), flags: int = 0) -> int:
        """As a socket's, but that it may be none when only a part of a record went."""
        views = [memoryview(buffer) for buffer in buffers]
        total, done = sum(map(len, views)), 0
        with self._lock:
            if not self.established:
                raise BlockingIOError("the TLS handshake is not done")
            while True:
                if not self._sealed:
                    done, self._held = done + self._held, 0
                    if done >= total:
                        return done
                    self._seal(views, done, total)
                try:
                    self._sealed = self._sealed[self.raw.send(self._sealed, flags) :]
                except OSError:
                    if done:
                        return done
                    raise
                if self._sealed and (done or not flags & socket.MSG_DONTWAIT):
                    return done  # the kernel has waited for as long as it may

    def _seal(self, views: Sequence[memoryview], done: int, total: int) -> None:
        """The next PIECE of them, from byte ``done`` on."""
        tls = self.peer
        at, left, pieces = done, min(PIECE, total - done), []
        self._held = left
        for view in views:
            if at >= len(view):
                at -= len(view)
                continue
            piece = view[at : at + left]
            pieces.append(piece)
            at, left = 0, left - len(piece)
            if not left:
                break
        whole = (
            pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
        )  # a small head has no record of its own
        sent = 0
        while sent < len(whole):
            sent += tls.write(whole[sent:])
        self._sealed = memoryview(self._out.read())

    # --- the end --------------------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        """SHUT_RDWR: from any thread, whoever sends or receives here fails. SHUT_WR: says goodbye first."""
        if how == socket.SHUT_WR:
            self._say_goodbye()
        self.raw.shutdown(how)

    def close(self) -> None:
        """Without a goodbye: after an answer that was cut, that would say that it was all."""
        self.raw.close()

    def _say_goodbye(self) -> None:
        with self._lock:
            self._half = True
            if self.established and not self._sealed:
                with contextlib.suppress(OSError, ValueError):
                    self.peer.unwrap()
                self._answer()

    # --- as it is without -----------------------------------------------------------------------------

    def fileno(self) -> int:
        return self.raw.fileno()

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        self.raw.setsockopt(level, option, value)

    def setblocking(self, flag: bool) -> None:
        self.raw.setblocking(flag)


#: Who is handed one need not know which.
AnySocket = socket.socket | TlsSocket


def waiting_in(sock: AnySocket) -> int:
    """Bytes that have come and were not received."""
    if isinstance(sock, TlsSocket):
        return sock.waiting()
    return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, b"\0\0\0\0"), sys.byteorder)


def in_words(error: OSError) -> str:
    """What went wrong, without OpenSSL's own words where it is about certificates."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not believed: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason in ("WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG"):
        return "it speaks no TLS"
    if isinstance(error, ssl.SSLError) and error.reason:
        reason = error.reason.removeprefix("SSLV3_").removeprefix("TLSV1_").replace("_", " ").lower()
        return f"TLS: {reason.replace('alert', 'it answers', 1)}"
    return error.strerror or str(error)
