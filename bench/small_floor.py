"""The floor of small files: how many 4 KiB files a second this machine serves through plain Python.

The same parts as distfs, and nothing around them: a thread a connection with blocking sockets, a request parser of a
few lines, one prepared statement a request on a real PostgreSQL, two storage processes, every byte checked, fsync
before the acknowledgement. Errors are not handled, so distfs's rate divided by this one's says what distfs costs.

    GET /hello   4 KiB from memory: the parser and the socket alone
    GET /UUID    SELECT -> one storage process: open, pread -> xxh3 checked -> answered with the sha-256
    PUT /put     both storage processes write a file: fsync, rename, fsync of its folder; sha-256 and xxh3 meanwhile;
                 then one INSERT, committed; 201 with the UUID
    PUT /pack    the same, but each storage process appends to one file and shares an fdatasync among all who wait

Each process prints the port of 127.0.0.1 it listens on and runs until its standard input ends:

    python -m bench.small_floor storage FOLDER
    python -m bench.small_floor service POSTGRES_SOCKET_FOLDER STORAGE_PORT STORAGE_PORT
    python -m bench.small_floor services ... (the same: two processes on one port)
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import NamedTuple
from uuid import UUID, uuid4

import xxhash
from pg8000.native import Connection

from bench.floor import receive_exactly, serve
from distfs.process.parent_watch import exit_with_parent

SIZE = 4096  # what /hello answers with
MOST = 1 << 16  # bytes of a file
REQUEST = struct.Struct("<B16sI")  # verb, id, length
GET, PUT, PACK = 1, 2, 3
DONE = b"K"
TABLE = "CREATE TABLE file (id uuid PRIMARY KEY, name text, size bigint, sha256 bytea, checksum bigint, slices text)"
_FIND = "SELECT name, size, sha256, checksum, slices FROM file WHERE id = :id"
_ADD = "INSERT INTO file VALUES (:id, :name, :size, decode(:sha256, 'hex'), :checksum, :slices)"
_OK = (
    b'HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\nETag: "%s"\r\n'
    b"Accept-Ranges: bytes\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nX-Request-Id: 0123456789abcdef\r\n"
    b"Server: floor\r\n\r\n"
)
_CREATED = b"HTTP/1.1 201 Created\r\nContent-Length: 37\r\n\r\n%s\n"


# --- a storage process ----------------------------------------------------------------------------


class Pack:
    """One file that everybody appends to: whoever comes while it is synced shares the next fdatasync."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._changed = threading.Condition()
        self._waiting: list[tuple[bytes, threading.Event]] = []
        threading.Thread(target=self._write, daemon=True).start()

    def append(self, data: bytes) -> None:
        """Returns when it is on the disk."""
        durable = threading.Event()
        with self._changed:
            self._waiting.append((data, durable))
            self._changed.notify()
        durable.wait()

    def _write(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                batch, self._waiting = self._waiting, []
            os.writev(self._fd, [data for data, _ in batch])  # fewer than IOV_MAX: one a connection
            os.fdatasync(self._fd)
            for _, durable in batch:
                durable.set()


class Storage:
    """Keeps each file in a folder named after the first byte of its id."""

    def __init__(self, folder: Path) -> None:
        self._root = str(folder)
        self._pack = Pack(folder / "pack")
        for first in range(256):
            (folder / f"{first:02x}").mkdir()

    def handle(self, connection: socket.socket) -> None:
        head, view = bytearray(REQUEST.size), memoryview(bytearray(MOST))
        while True:
            receive_exactly(connection, memoryview(head))
            verb, id, length = REQUEST.unpack(head)
            if verb == GET:
                fd = os.open(f"{self._folder_of(id)}/{id.hex()}", os.O_RDONLY)
                data = os.pread(fd, MOST, 0)
                os.close(fd)
                connection.sendall(data)
                continue
            receive_exactly(connection, view[:length])
            if verb == PACK:
                self._pack.append(bytes(head) + view[:length])
            else:
                self._keep(self._folder_of(id), id.hex(), view[:length])
            connection.sendall(DONE)

    def _folder_of(self, id: bytes) -> str:
        return f"{self._root}/{id[0]:02x}"

    @staticmethod
    def _keep(folder: str, name: str, data: memoryview) -> None:
        part = f"{folder}/{name}.part"
        fd = os.open(part, os.O_WRONLY | os.O_CREAT)
        os.write(fd, data)
        os.fsync(fd)
        os.close(fd)
        os.rename(part, f"{folder}/{name}")  # noqa: PTH104 - a Path costs more than the call
        fd = os.open(folder, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


# --- the service ----------------------------------------------------------------------------------


class Request(NamedTuple):
    method: bytes
    target: bytes
    body: bytes


class Reader:
    """One request after another from a client's socket."""

    def __init__(self, client: socket.socket) -> None:
        self._client, self._got = client, b""

    def next(self) -> Request:
        """Raises ConnectionError when the client closes."""
        while b"\r\n\r\n" not in self._got:
            self._more()
        head, _, self._got = self._got.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        pairs = (line.partition(b":") for line in lines)
        fields = {name.lower(): value.strip() for name, _, value in pairs}
        size = int(fields.get(b"content-length", 0))
        while len(self._got) < size:
            self._more()
        body, self._got = self._got[:size], self._got[size:]
        method, target, _ = first.split(b" ")
        return Request(method, target, body)

    def _more(self) -> None:
        data = self._client.recv(MOST)
        if not data:
            raise ConnectionError("the client closed")
        self._got += data


class Peers:
    """A client's connections to PostgreSQL and to both storage processes."""

    def __init__(self, postgres: str, storage_ports: list[int]) -> None:
        database = connected_to(postgres)
        self.find, self.add = database.prepare(_FIND).run, database.prepare(_ADD).run
        self.storages = [_connected(port) for port in storage_ports]


class Service:
    """Who comes takes over the connections of a client that went, so that a short run measures requests."""

    def __init__(self, postgres: str, storage_ports: list[int]) -> None:
        self._where = postgres, storage_ports
        self._spare: list[Peers] = []

    def handle(self, client: socket.socket) -> None:
        peers = self._spare.pop() if self._spare else Peers(*self._where)
        view, reader = memoryview(bytearray(MOST)), Reader(client)
        while True:
            try:
                method, target, body = reader.next()
            except ConnectionError:
                self._spare.append(peers)
                raise
            if target == b"/hello":
                client.sendmsg([_OK % (SIZE, b"x"), view[:SIZE]])
            elif method == b"GET":
                size, sha256 = _load(peers, UUID(target[1:].decode()), view)
                client.sendmsg([_OK % (size, sha256.hex().encode()), view[:size]])
            else:
                id = uuid4()
                _store(peers, id, PACK if target == b"/pack" else PUT, body)
                client.sendall(_CREATED % str(id).encode())


def _load(peers: Peers, id: UUID, view: memoryview) -> tuple[int, bytes]:
    """A file's bytes into ``view``, checked -> how many, and their sha-256."""
    [(_, size, sha256, checksum, _)] = peers.find(id=id)
    storage = peers.storages[id.bytes[0] & 1]
    storage.sendall(REQUEST.pack(GET, id.bytes, 0))
    receive_exactly(storage, view[:size])
    if _checksum(view[:size]) != checksum:
        raise ValueError(f"{id} came back with wrong bytes")
    return size, sha256


def _store(peers: Peers, id: UUID, verb: int, body: bytes) -> None:
    """Returns when both have it on their disk, and the table its row."""
    for storage in peers.storages:
        storage.sendmsg([REQUEST.pack(verb, id.bytes, len(body)), body])
    sha256, checksum = hashlib.sha256(body).hexdigest(), _checksum(body)
    for storage in peers.storages:
        receive_exactly(storage, memoryview(bytearray(len(DONE))))
    slices = f"[[0, {id.hex}]]"
    peers.add(id=id, name="x", size=len(body), sha256=sha256, checksum=checksum, slices=slices)


def _checksum(data: bytes | memoryview) -> int:
    """xxh3, as the signed number that PostgreSQL keeps."""
    return int.from_bytes(xxhash.xxh3_64_digest(data), "big", signed=True)


def connected_to(socket_folder: str) -> Connection:
    """The embedded PostgreSQL that listens there."""
    return Connection("distfs", database="postgres", unix_sock=f"{socket_folder}/.s.PGSQL.5432")


def _connected(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def main(role: str, *args: str) -> None:
    exit_with_parent()
    if role == "storage":
        serve(Storage(Path(args[0])).handle)
    else:
        serve(Service(args[0], [int(port) for port in args[1:]]).handle, 2 if role == "services" else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
