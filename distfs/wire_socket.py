"""A blocking socket that speaks wire frames: the one place where socket errors become ours.

The socket blocks in the kernel with SO_RCVTIMEO and SO_SNDTIMEO instead of Python's own timeout, which polls
before every call: with MSG_WAITALL a 1 MiB cell is one system call and one release of the interpreter lock.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import Protocol, Self

from distfs.deadline import Deadline
from distfs.errors import Busy, DistfsError, NodeUnavailable, ProtocolError, TooSlow
from distfs.formats import wire
from distfs.model import Buffer
from distfs.process import descriptors
from distfs.process.dial import dial, keep_alive, timeval
from distfs.tls.contexts import LOOK_EVERY_S, Side
from distfs.tls.stream import AnySocket, TlsSocket, in_words

READ_AHEAD = 16 << 10
#: How an exchange went that was tried in one go: see ``WireSocket.ask``.
ANSWERED, OTHERWISE, LATE, UNSENT = range(4)
_CLOSE_S = 0.0005  # so near to a limit is at it
_SEND, _RECEIVE = int(socket.SO_SNDTIMEO), int(socket.SO_RCVTIMEO)
_FILE_PIECE, _LOOK_UP_S = 1 << 20, 1.0
_SEALED_PIECE = 256 << 10  # of a file under TLS, where there is no sendfile
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)  # made once: these flags are no plain numbers
_KEEPALIVE = 10, 5, 3  # a peer that sends no FIN is noticed after 25 s


class Limit(Protocol):
    """How long something may take in all; a Deadline is one."""

    def remaining(self, phase: str) -> float:
        """Seconds left, always positive. Raises TooSlow, naming ``phase``, when none are; Cancelled."""


class WireSocket:
    """One connection. ``peer`` names the other side in errors. Used by one thread at a time, but ``interrupt``."""

    def __init__(self, sock: socket.socket, peer: str, stall: float) -> None:
        self.sock: AnySocket = sock
        self.peer = peer
        self._side: Side | None = None  # without TLS
        self.features = 0  # what both agreed on
        self.heard = False  # whether anything was received since ``heard`` was last set to False
        self._decoder = wire.Decoder()
        #: The next so many bytes of the body of the last frame, if all of them have come already.
        self.take_bytes = self._decoder.take_bytes
        self.scratch = memoryview(bytearray(READ_AHEAD))
        # Seconds: what the kernel lets a call wait, maybe less than its limit; the limits; how long it was silent.
        self._timeouts = {_SEND: math.inf, _RECEIVE: math.inf}
        self._send_stall = self._stall = self._notice = self._silent = 0.0
        self._closing = threading.Lock()
        self._first, self._between = f"{peer}: first byte", f"{peer}: between bytes"  # phases of a wait
        try:
            sock.setblocking(True)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_alive(sock, *_KEEPALIVE)
            self.set_send_stall(stall)
            self.set_receive_stall(stall)
        except OSError as e:
            sock.close()
            raise NodeUnavailable(f"{peer}: {e.strerror or e}") from e

    @classmethod
    def connect(cls, host: str, port: int, peer: str, timeout: float, stall: float) -> Self:
        """Raises NodeUnavailable, or TooSlow in the connect phase; Busy when it is this process that cannot."""
        try:
            sock = dial(host, port, timeout)
        except TimeoutError as e:
            raise TooSlow(f"{peer}: connect: no connection within {timeout:.2f} s") from e
        except OSError as e:
            kind = Busy if descriptors.used_up(e) else NodeUnavailable
            raise kind(f"{peer}: cannot connect: {descriptors.in_words(e)}") from e
        return cls(sock, peer, stall)

    def start_tls(self, side: Side, within: float) -> None:
        """From now on all goes under TLS, with the one whom ``side`` wants. Raises NodeUnavailable; TooSlow."""
        if isinstance(self.sock, TlsSocket):
            raise ProtocolError(f"{self.peer}: TLS in TLS")
        try:
            self.sock, self._side = side.begin(self.sock, time.monotonic() + within), side
            self.sock.setblocking(True)
        except TimeoutError as e:
            raise TooSlow(f"{self.peer}: no TLS handshake within {within:.2f} s") from e
        except OSError as e:
            raise NodeUnavailable(f"{self.peer}: {in_words(e)}") from e

    @property
    def outdated(self) -> bool:
        """Whom the certificates believed when it began may be revoked: it is not to be used again."""
        return self._side is not None and self._side.outdated(self.sock)

    def begin(self, send_stall: float, receive_stall: float, notice: float | None) -> None:
        """A new exchange, of which nothing is heard yet."""
        self.heard, self._silent = False, 0.0
        self._send_stall = send_stall if send_stall > 0.001 else 0.001  # noqa: FURB136 - calls take longer
        self._stall = receive_stall if receive_stall > 0.001 else 0.001  # noqa: FURB136
        self._notice = self._stall if notice is None or notice > self._stall else notice
        told = self._timeouts  # as ``_bound`` does, which most of the time has nothing to do
        if told[_SEND] > self._send_stall:
            self._set_timeout(_SEND, self._send_stall)
        if told[_RECEIVE] > self._notice:
            self._set_timeout(_RECEIVE, self._notice)

    def set_send_stall(self, seconds: float) -> None:
        """A send that moves no byte for so long raises TooSlow."""
        self._send_stall = max(seconds, 0.001)
        self._bound(_SEND, self._send_stall)

    def set_receive_stall(self, seconds: float, notice: float | None = None) -> None:
        """A receive that gets no byte for so long raises TooSlow.

        ``notice``: what ends in ``_or_late`` returns already after that many seconds of silence.
        """
        self._stall = max(seconds, 0.001)
        self._silent = 0.0
        self._notice = self._stall if notice is None or notice > self._stall else notice
        self._bound(_RECEIVE, self._notice)

    def _bound(self, option: int, seconds: float) -> None:
        """No call waits longer than so. One that waits less is called again, so the limit of before mostly does:
        to set it takes a system call, for each request."""
        if self._timeouts[option] > seconds:
            self._set_timeout(option, seconds)

    def _set_timeout(self, option: int, seconds: float) -> None:
        seconds = max(seconds, 0.001)  # zero would mean: wait for ever
        if self._timeouts[option] != seconds:
            self.sock.setsockopt(socket.SOL_SOCKET, option, timeval(seconds))
            self._timeouts[option] = seconds

    @property
    def idle(self) -> bool:
        """Nothing to read: neither stray bytes nor the peer's end. What a pooled connection must be."""
        return not self._decoder.buffered and self._peek() is None and not self.outdated

    @property
    def reusable(self) -> bool:
        """Nothing is left of the exchange that has ended."""
        if self._decoder.buffered:
            return False
        return self._side is None or not self._side.outdated(self.sock)

    @property
    def buffered(self) -> int:
        """Bytes that were received and not taken."""
        return self._decoder.buffered

    @property
    def ended(self) -> bool:
        """The peer has closed its side, or the connection is broken."""
        return self._peek() == b""

    def _peek(self) -> bytes | None:
        """What comes next; empty: the peer's end, or a broken connection; None: nothing yet."""
        try:  # a peek and not select(), which takes no descriptor over 1023
            return self.sock.recv(1, _PEEK)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    # --- frames -----------------------------------------------------------------------------------

    def ask(self, request: bytes, beginning: bytes, size: int, stall: float, notice: float) -> int:
        """A new exchange, most of which go so: its request leaves in one go, and its answer of ``size`` bytes, which
        begins so, comes in one and is in ``scratch`` until the next is received. -> ANSWERED. ``stall``, ``notice``:
        as ``begin``.

        OTHERWISE: go on by ``receive_frame_or_late``, which is told what came, if something did; LATE: the same, and
        nothing came for ``notice``; UNSENT: this connection is of no more use.
        """
        self.begin(stall, stall, notice)
        try:
            if self.sock.send(request) != len(request):
                return UNSENT
        except OSError:
            return UNSENT
        try:
            count = self.sock.recv_into(self.scratch)
        except BlockingIOError:
            self._silent = self._timeouts[_RECEIVE]
            return LATE if self._silent >= self._notice - _CLOSE_S else OTHERWISE
        except OSError:
            return OTHERWISE  # as whoever receives next is told, too
        if count == size and self.scratch[: len(beginning)] == beginning:
            self.heard = True
            return ANSWERED
        if count:
            self.heard = True
            self._decoder.feed(self.scratch[:count])
        return OTHERWISE

    def hear(self, answer: bytes) -> bool:
        """Whether the answer to what was sent is this, as nearly always; it has come in one go then.

        False: go on by ``receive_frame``, which is told what came, if something did. Raises TooSlow after a silence
        that is too long.
        """
        try:
            count = self.sock.recv_into(self.scratch)
        except BlockingIOError:
            self.count_silence(self._timeouts[_RECEIVE])
            return False
        except OSError:
            return False  # as whoever receives next is told, too
        self.heard = self.heard or count > 0
        if count == len(answer) and self.scratch[:count] == answer:
            return True
        self._decoder.feed(self.scratch[:count])
        return False

    def send(self, *buffers: Buffer, more: bool = False, limit: Limit | None = None) -> None:
        """Send them in order, as few packets as may be. ``more``: further bytes follow at once.

        Raises TooSlow soon after ``limit``, also for a peer that takes a byte now and then.
        """
        flags = socket.MSG_MORE if more else 0
        total = sum(map(len, buffers))
        sent = self._send(buffers, flags)
        if sent == total:
            return
        left = [memoryview(buffer) for buffer in buffers if len(buffer)]
        while True:
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if not left:
                return
            left[0] = left[0][sent:]
            if limit is not None:
                limit.remaining(f"{self.peer}: send, with {sum(map(len, left)):,} bytes left,")
            sent = self._send(left, flags)

    def _send(self, buffers: Sequence[Buffer], flags: int) -> int:
        """How many bytes went, at least one of those there are."""
        stuck = 0.0
        while True:
            try:
                return self.sock.sendmsg(buffers, (), flags)
            except BlockingIOError as e:
                stuck += self._timeouts[_SEND]
                left = self._send_stall - stuck
                if left < _CLOSE_S:
                    raise TooSlow(f"{self.peer}: send made no progress for {stuck:.1f} s, the limit") from e
                self._set_timeout(_SEND, left)
            except OSError as e:
                raise NodeUnavailable(f"{self.peer}: send failed: {e.strerror or e}") from e

    def receive_frame(self, limit: Limit | None = None) -> wire.Frame:
        """The next frame; its body is still to be received. Raises ProtocolError, NodeUnavailable, TooSlow."""
        while (frame := self.receive_frame_or_late(limit)) is None:
            pass
        return frame

    def receive_request(self, idle: float, within: float) -> wire.Frame:
        """The next frame, its first byte within ``idle`` seconds and all of its header soon after ``within`` more.

        Raises what ``receive_frame`` does.
        """
        decoder = self._decoder
        more = b"" if decoder.buffered else self.scratch[: self._receive_first(idle)]
        frame = decoder.next_frame(more)
        if frame is None:
            self.set_receive_stall(within)
            frame = self.receive_frame(Deadline(within))
        return frame

    def _receive_first(self, idle: float) -> int:
        """Bytes of a request, within ``idle`` seconds. Under TLS, as long as its certificates are believed."""
        if self._side is None:
            self._stall = self._notice = idle  # as set_receive_stall does
            self._silent = 0.0
            if self._timeouts[_RECEIVE] > idle:
                self._set_timeout(_RECEIVE, idle)
            return self._receive(self.scratch, 0)
        until = time.monotonic() + idle
        while True:
            self.set_receive_stall(min(idle, LOOK_EVERY_S))
            try:
                return self._receive(self.scratch, 0)
            except TooSlow:
                if self.outdated or time.monotonic() >= until:
                    raise

    def receive_frame_or_late(self, limit: Limit | None = None) -> wire.Frame | None:
        """The same; None after a silence of ``notice``: call again to wait on."""
        decoder = self._decoder
        frame = decoder.next_frame()
        while frame is None:
            n = self._receive(self.scratch, 0)
            if not n:
                return None
            frame = decoder.next_frame(self.scratch[:n])
            if frame is None and limit is not None:  # it comes in pieces
                limit.remaining(self._phase)
        return frame

    def take(self, view: memoryview) -> bool:
        """Fill ``view`` with the next bytes of the body of the last frame, if all of them have come already."""
        return self._decoder.take_all(view)

    def receive_body(self, view: memoryview, limit: Limit | None = None) -> None:
        """Fill ``view`` with the next bytes of the body of the last frame.

        Raises TooSlow soon after ``limit``, also for a peer that sends a byte now and then.
        """
        done = 0
        while done < len(view):
            done = self.receive_body_or_late(view, done, limit)

    def receive_body_or_late(self, view: memoryview, done: int, limit: Limit | None = None) -> int:
        """Go on to fill ``view`` from byte ``done``; -> where it came to.

        That is less than all after a silence of ``notice``: call again to wait on.
        """
        if self._decoder.buffered:
            done += self._decoder.take(view[done:])
        while done < len(view):
            n = self._receive(view[done:], socket.MSG_WAITALL)
            if not n:
                break
            done += n
            if limit is not None and done < len(view):
                limit.remaining(f"{self._phase}, with {len(view) - done:,} bytes left,")
        return done

    def accept_answer(self, frame: wire.Frame, due: wire.Type) -> wire.Frame:
        """A frame that has come, if it is of the type that is due. Raises the error that an ERROR frame names."""
        if frame.type is due:
            return frame
        if frame.type is not wire.Type.ERROR:
            raise ProtocolError(f"{self.peer}: a {frame.type.name} frame where an answer was due")
        raise wire.decode_error(frame.header(), self.peer)

    def send_error(self, error: DistfsError) -> None:
        """Answer a request with an error."""
        self.send(wire.encode_error(error, self.features))

    def send_file(self, fd: int, offset: int, length: int, limit: Limit) -> None:
        """A run of a file, straight from the page cache. The file must be that long.

        Raises TooSlow soon after ``limit``, also for a peer that takes a byte now and then: the kernel would
        wait anew for each few pages of a long run, so it is given short ones, and looks up every second.
        """
        while length:
            if isinstance(self.sock, TlsSocket):
                piece = os.pread(fd, min(length, _SEALED_PIECE), offset)
                if not piece:
                    raise NodeUnavailable(f"{self.peer}: the fragment was cut short while it was sent")
                self.send(piece, limit=limit)
                offset, length = offset + len(piece), length - len(piece)
                continue
            left = limit.remaining(f"{self.peer}: send, with {length:,} bytes left,")
            self.set_send_stall(min(left, _LOOK_UP_S))
            try:
                sent = os.sendfile(self.sock.fileno(), fd, offset, min(length, _FILE_PIECE))
            except BlockingIOError:
                continue  # not a byte: until the limit it may pause
            except OSError as e:
                raise NodeUnavailable(f"{self.peer}: send failed: {e.strerror or e}") from e
            if not sent:
                raise NodeUnavailable(f"{self.peer}: the fragment was cut short while it was sent")
            offset, length = offset + sent, length - sent

    def count_silence(self, seconds: float) -> None:
        """Nothing came for so long more. Raises TooSlow when that reaches the stall limit."""
        self._silent += seconds
        if self._silent >= self._stall - _CLOSE_S:
            raise TooSlow(
                f"{self._phase}: receive made no progress for {self._silent:.1f} s, "
                f"the limit is {self._stall:.1f} s"
            )

    @property
    def _phase(self) -> str:
        return self._between if self.heard else self._first

    def interrupt(self) -> None:
        """From any thread: whoever sends or receives here fails at once, and this connection is of no more use."""
        with self._closing, contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._closing:
            self.sock.close()

    def _receive(self, view: memoryview, flags: int) -> int:
        """How many bytes came; 0: none for as long as ``notice``, which is less than the stall limit."""
        waited = 0.0
        while True:
            try:
                n = self.sock.recv_into(view, 0, flags)
                break
            except BlockingIOError:
                seconds = self._timeouts[_RECEIVE]
                waited += seconds
                self.count_silence(seconds)
                if waited >= self._notice - _CLOSE_S:
                    self._bound(_RECEIVE, self._stall - self._silent)
                    return 0
                self._set_timeout(_RECEIVE, min(self._notice - waited, self._stall - self._silent))
            except OSError as e:
                raise NodeUnavailable(f"{self.peer}: receive failed: {e.strerror or e}") from e
        if not n:
            raise NodeUnavailable(f"{self.peer}: closed the connection")
        self.heard, self._silent = True, 0.0
        return n
