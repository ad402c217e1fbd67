"""One in between that only listens: forwards TCP to an address and keeps all that passed, both ways."""

from __future__ import annotations

import socket
import threading
from types import TracebackType


class Recorder:
    """``seen``: every byte, in the order it came."""

    def __init__(self, host: str, port: int) -> None:
        self._to = host, port
        self.seen = bytearray()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self._listener.getsockname()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sock in (self._listener, *self._open):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has ended
        for thread in self._threads:
            thread.join()
        for sock in (self._listener, *self._open):
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                one, _ = self._listener.accept()
            except OSError:
                return
            other = socket.create_connection(self._to)
            self._open += one, other
            for source, target in ((one, other), (other, one)):
                thread = threading.Thread(target=self._forward, args=(source, target))
                self._threads.append(thread)
                thread.start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                self.seen += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # one of them hung up

    def read(self, *secrets: bytes) -> list[bytes]:
        """Those that could be read on the way."""
        return [each for each in secrets if each in self.seen]
