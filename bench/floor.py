"""The floor: how fast this machine moves files through plain Python sockets, with distfs's checks and fsyncs.

    upload    curl -T -> relay: 1 MiB blocks, xxh3 of each, sha256 of the whole
                         -> both storage processes: xxh3 again, 4 MiB O_DIRECT writes, fsync, rename
    download  curl <- relay: xxh3 of each block <- first storage process: sendfile

No framework, no metadata, one file, no errors handled: what is left is the work that durability and checks
cost anyway, so distfs's speed divided by the floor's says what distfs itself costs. Each process listens on a
free port of 127.0.0.1, prints it as its first line and runs until its standard input ends:

    python -m bench.floor storage FOLDER
    python -m bench.floor relay STORAGE_PORT STORAGE_PORT
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import xxhash

from distfs.process.parent_watch import exit_with_parent

BLOCK, WRITE, SLICE = 1 << 20, 4 << 20, 32 << 20
WINDOW = 32  # blocks between the client and the storage processes, at most
WRITE_BUFFERS = 3  # a storage connection receives into one while the others are written
SECTOR = 4096  # what O_DIRECT wants lengths to be multiples of
PUT, GET = 1, 2
REQUEST = struct.Struct("<BQQ")  # verb, offset, length
ACKNOWLEDGED = b"K"


def receive_exactly(connection: socket.socket, view: memoryview) -> None:
    """Fills ``view``. Raises ConnectionError when the peer closes first."""
    got = 0
    while got < len(view):
        count = connection.recv_into(view[got:])
        if not count:
            raise ConnectionError("peer closed")
        got += count


def serve(handle: Callable[[socket.socket], None], count: int = 1) -> None:
    """A thread a connection, for ever, in ``count`` processes. A peer that closes ends its thread quietly."""

    def attend(connection: socket.socket) -> None:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                handle(connection)
            except ConnectionError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        for _ in range(count - 1):
            if not os.fork():
                exit_with_parent()
                break
        while True:
            threading.Thread(target=attend, args=listener.accept()[:1], daemon=True).start()


# --- the storage process --------------------------------------------------------------------------


class SliceFile:
    """One slice being written. ``finish`` makes it durable and then visible under its name."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.left = path, size
        self._part = path.with_suffix(".part")
        try:
            self._fd = os.open(self._part, os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
        except OSError:  # tmpfs and a few others have no O_DIRECT
            self._fd = os.open(self._part, os.O_CREAT | os.O_WRONLY)
        os.posix_fallocate(self._fd, 0, size)

    def write(self, view: memoryview) -> None:
        if len(view) % SECTOR:  # the tail
            fcntl.fcntl(self._fd, fcntl.F_SETFL, 0)
        os.write(self._fd, view)
        self.left -= len(view)

    def finish(self) -> None:
        os.fsync(self._fd)
        os.close(self._fd)
        self._part.rename(self.path)


class Storage:
    """Keeps one file as a row of slice files: PUT writes a slice, GET sends a range of the whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def handle(self, connection: socket.socket) -> None:
        free: SimpleQueue[mmap.mmap] = SimpleQueue()
        full: SimpleQueue[tuple[SliceFile, mmap.mmap, int] | None] = SimpleQueue()
        for _ in range(WRITE_BUFFERS):
            free.put(mmap.mmap(-1, WRITE))  # page-aligned, as O_DIRECT wants it

        def write() -> None:
            while (item := full.get()) is not None:
                file, buffer, count = item
                file.write(memoryview(buffer)[:count])
                free.put(buffer)
                if not file.left:
                    file.finish()
                    connection.sendall(ACKNOWLEDGED)

        threading.Thread(target=write, daemon=True).start()
        head = bytearray(REQUEST.size)
        try:
            while True:
                receive_exactly(connection, memoryview(head))
                verb, offset, length = REQUEST.unpack(head)
                if verb == GET:
                    self._send(connection, offset, length)
                    continue
                file = SliceFile(self._slice(offset), length)
                for at in range(0, length, WRITE):
                    buffer, count = free.get(), min(WRITE, length - at)
                    self._receive(connection, memoryview(buffer)[:count])
                    full.put((file, buffer, count))
        finally:
            full.put(None)

    def _slice(self, offset: int) -> Path:
        return self.folder / f"{offset // SLICE:06d}"

    @staticmethod
    def _receive(connection: socket.socket, view: memoryview) -> None:
        for at in range(0, len(view), BLOCK):
            block = view[at : at + BLOCK]
            receive_exactly(connection, block)
            xxhash.xxh3_64_intdigest(block)

    def _send(self, connection: socket.socket, offset: int, length: int) -> None:
        stop = offset + length
        while offset < stop:
            with self._slice(offset).open("rb") as file:
                end = min(stop, (offset // SLICE + 1) * SLICE)
                while offset < end:
                    offset += os.sendfile(connection.fileno(), file.fileno(), offset % SLICE, end - offset)


# --- the relay ------------------------------------------------------------------------------------


class Block:
    """A reused buffer that several threads read; the last one to let go returns it to its pool."""

    def __init__(self, pool: SimpleQueue[Block], lock: threading.Lock) -> None:
        self.buffer = memoryview(bytearray(BLOCK))
        self.view = self.buffer
        self._pool, self._lock, self._readers = pool, lock, 0

    def give(self, lines: list[SimpleQueue[Block]]) -> None:
        self._readers = len(lines)
        for line in lines:
            line.put(self)

    def release(self) -> None:
        with self._lock:
            self._readers -= 1
            last = not self._readers
        if last:
            self._pool.put(self)


class Head(NamedTuple):
    """What the relay needs of an HTTP request's head, and the body bytes that came along with it."""

    method: bytes
    fields: dict[bytes, bytes]
    rest: bytes


def read_head(client: socket.socket) -> Head:
    head = b""
    while b"\r\n\r\n" not in head:
        more = client.recv(65536)
        if not more:
            raise ConnectionError("peer closed")
        head += more
    head, _, rest = head.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    pairs = (line.partition(b":") for line in lines)
    return Head(first.split()[0], {name.lower(): value.strip() for name, _, value in pairs}, rest)


class Relay:
    """PUT stores the body in every storage process and answers its sha256; GET sends the last body stored."""

    def __init__(self, storage_ports: list[int]) -> None:
        self.storage_ports = storage_ports
        self.size = 0  # of the last file stored
        self._pool: SimpleQueue[Block] = SimpleQueue()  # one upload at a time, so one pool
        lock = threading.Lock()
        for _ in range(WINDOW):
            self._pool.put(Block(self._pool, lock))

    def handle(self, client: socket.socket) -> None:
        head = read_head(client)
        if head.method == b"GET":
            client.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % self.size)
            self._download(client)
            return
        if b"expect" in head.fields:
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.size = int(head.fields[b"content-length"])
        digest = self._upload(client, head.rest, self.size)
        client.sendall(b"HTTP/1.1 201 Created\r\nConnection: close\r\nContent-Length: 64\r\n\r\n")
        client.sendall(digest.encode())

    def _upload(self, client: socket.socket, rest: bytes, size: int) -> str:
        sha256 = hashlib.sha256()
        lines: list[SimpleQueue[Block]] = [SimpleQueue() for _ in range(len(self.storage_ports) + 1)]

        def send(port: int, line: SimpleQueue[Block]) -> None:
            with self._storage(port) as storage:
                for at, block in _blocks(line, size):
                    if at % SLICE == 0:
                        storage.sendall(REQUEST.pack(PUT, at, min(SLICE, size - at)))
                    storage.sendall(block)
                receive_exactly(storage, memoryview(bytearray(-(-size // SLICE))))  # every slice acknowledged

        def digest(line: SimpleQueue[Block]) -> None:
            for _, block in _blocks(line, size):
                sha256.update(block)

        threads = [
            threading.Thread(target=send, args=pair) for pair in zip(self.storage_ports, lines, strict=False)
        ]
        threads.append(threading.Thread(target=digest, args=(lines[-1],)))
        for thread in threads:
            thread.start()
        self._receive(client, rest, size, lines)
        for thread in threads:
            thread.join()
        return sha256.hexdigest()

    def _receive(
        self, client: socket.socket, rest: bytes, size: int, lines: list[SimpleQueue[Block]]
    ) -> None:
        for at in range(0, size, BLOCK):
            block = self._pool.get()
            block.view = block.buffer[: min(BLOCK, size - at)]
            first, rest = rest[: len(block.view)], rest[len(block.view) :]
            block.view[: len(first)] = first
            receive_exactly(client, block.view[len(first) :])
            xxhash.xxh3_64_intdigest(block.view)
            block.give(lines)

    def _download(self, client: socket.socket) -> None:
        buffer = memoryview(bytearray(BLOCK))
        with self._storage(self.storage_ports[0]) as storage:
            storage.sendall(REQUEST.pack(GET, 0, self.size))
            for at in range(0, self.size, BLOCK):
                block = buffer[: min(BLOCK, self.size - at)]
                receive_exactly(storage, block)
                xxhash.xxh3_64_intdigest(block)
                client.sendall(block)

    @staticmethod
    def _storage(port: int) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


def _blocks(line: SimpleQueue[Block], size: int) -> Iterator[tuple[int, memoryview]]:
    """The file's blocks in order with their offsets; a block is let go when the next one is asked for."""
    at = 0
    while at < size:
        block = line.get()
        count = len(block.view)
        yield at, block.view
        at += count
        block.release()


def main(role: str, *args: str) -> None:
    handlers: dict[str, Callable[[], Storage | Relay]] = {
        "storage": lambda: Storage(Path(args[0])),
        "relay": lambda: Relay([int(port) for port in args]),
    }
    exit_with_parent()
    serve(handlers[role]().handle)


if __name__ == "__main__":
    main(*sys.argv[1:])
