"""A prepared statement, run by one message out and, mostly, one piece in.

pg8000 has prepared it, knows its types, and hears of all that is no row. It would write six times and read twice for
each message, and make text of what is none.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any
from uuid import UUID

from distfs.metadb.answers import Answers
from distfs.metadb.db_socket import Stream
from distfs.metadb.driver import (
    EXECUTE_MSG,
    SYNC_MSG,
    Connection,
    Context,
    DatabaseError,
    InterfaceError,
    make_params,
)

_MESSAGE = struct.Struct("!ci")  # its kind, and its length without the former
_LENGTH = struct.Struct("!i")
_COUNTS = struct.Struct("!HH")
_NULL = _LENGTH.pack(-1)
_ROW, _READY = b"D", b"Z"
_OF_NO_INTEREST = frozenset((b"2", b"C"))  # a statement was bound; a command is complete

_PLAIN = UUID, int  # are written as Python writes them
_TEXT, _BINARY = 0, 1
_TEXTS = 25, 1043  # OIDs: text, varchar
_INTEGERS = 20, 21, 23
_ARRAY_HEAD, _HAS_NULLS = (
    20,
    7,
)  # of an array with one dimension: how many, has nulls, of what, length, lower bound


class Statement:
    """Of one connection."""

    def __init__(self, connection: Connection, sql: str, *, once: bool = False) -> None:
        """``once``: it is run once, and closed then. Raises as the driver does."""
        self.once = once
        self._connection, self._prepared = connection, connection.prepare(sql)
        self._stream: Stream = connection._sock
        self._names: tuple[str, ...] = self._prepared.make_vals(_Itself())
        # Of its message, what is always the same. Parameters go as text.
        self._head = b"\0" + self._prepared.name_bin + _COUNTS.pack(_TEXT, len(self._names))
        oids = [column["type_oid"] for column in self._prepared.cols or ()]
        formats = [_BINARY if oid in _BINARY_READERS else _TEXT for oid in oids]
        self._tail = struct.pack(f"!H{len(oids)}H", len(oids), *formats) + EXECUTE_MSG + SYNC_MSG
        self._after = _LENGTH.size + _COUNTS.size // 2 * (
            1 + len(oids)
        )  # bytes: its own length, and the formats
        self._readers = [self._reader(*of) for of in zip(oids, self._prepared.input_funcs, strict=True)]

    def close(self) -> None:
        """The server forgets it. Raises as the driver does."""
        self._prepared.close()

    def _reader(self, oid: int, driver: Callable[[str], Any]) -> Callable[[bytes], Any]:
        """Of a column's values; ``driver``: pg8000's."""
        encoding = self._connection._client_encoding

        def text(data: bytes) -> Any:
            return str(data, encoding)

        if oid in _INTEGERS:
            return int
        if oid in _TEXTS:
            return text
        return _BINARY_READERS.get(oid) or (lambda data: driver(str(data, encoding)))

    def ask_again(self, params: Mapping[str, Any], answers: Answers) -> Sequence[Sequence[Any]] | None:
        """What ``answers`` has for an answer that comes at once. None: it is to be waited for, or another: ``run``
        goes on, as ``asked``."""
        data = self._stream.ask_soon(self._message(params))
        if data is None:
            return None
        if (known := answers.known(params, data)) is None:
            self._stream.put_back(data)
        return known

    def _message(self, params: Mapping[str, Any]) -> bytes:
        asked = self._head
        for name in self._names:
            value = params[name]
            if type(value) is UUID:
                digits = b"%032x" % value.int
                asked += b"\0\0\0\x24%b-%b-%b-%b-%b" % (
                    *(digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]),
                )
            elif value is None:
                asked += _NULL
            else:
                text = value if type(value) is str else self._as_text(value)
                data = text.encode(self._connection._client_encoding)
                asked += _LENGTH.pack(len(data)) + data
        whole: bytes = _MESSAGE.pack(b"B", len(asked) + self._after) + asked + self._tail
        return whole

    def run(
        self,
        params: Mapping[str, Any],
        left: float = 0.0,
        answers: Answers | None = None,
        *,
        asked: bool = False,
    ) -> Sequence[Sequence[Any]]:
        """-> its rows, or what ``answers`` has for them. ``left``: seconds that it may take; 0: nobody has looked.
        ``asked``: by ``ask_again``.

        Raises as the driver does.
        """
        try:
            data = self._stream.receive() if asked else self._stream.ask(self._message(params), left)
        except OSError as e:
            raise InterfaceError("network error") from e
        if not data:
            raise InterfaceError("network error")
        if answers is not None and (known := answers.known(params, data)) is not None:
            return known
        rows: list[list[Any]] = []
        context = Context(self._prepared.statement)
        try:
            alone = self._receive(data, rows, context)
        except InterfaceError as e:
            if context.error is not None and is_last(context.error):  # it said why, and hung up
                raise context.error from e
            raise
        if context.error is not None:
            raise context.error
        return rows if answers is None else answers.made(params, rows, data if alone else None)

    def _as_text(self, value: Any) -> str:
        if isinstance(value, _PLAIN):
            return str(value)
        [text] = make_params(self._connection.py_types, (value,))
        return str(text)

    def _receive(self, data: bytes, rows: list[list[Any]], context: Context) -> bool:
        """All that comes until the server is ready for the next one; whether ``data``, its beginning, was all, and
        says nothing but rows: of its settings, for example, which this connection has to hear of."""
        at, ready, alone = 0, False, True
        while not ready or at < len(data):
            end, body = 0, at + _MESSAGE.size
            if body <= len(data):
                kind, length = _MESSAGE.unpack_from(data, at)
                end = at + 1 + length
            if not end or end > len(data):  # more of it is to come
                data, at, alone = data[at:] + self._more(end - len(data)), 0, False
                continue
            at = end
            if kind == _ROW:
                rows.append(_row(data, body, self._readers))
            elif kind not in _OF_NO_INTEREST:
                self._connection.message_types[kind](data[body:end], context)
                ready = ready or kind == _READY
                alone = alone and kind == _READY
        return alone

    def _more(self, least: int) -> bytes:
        """What comes, and at least so many bytes: those of a large row are joined once, not with each piece."""
        pieces: list[bytes] = []
        while least > 0 or not pieces:
            try:
                piece = self._stream.receive()
            except OSError as e:
                raise InterfaceError("network error") from e
            if not piece:
                raise InterfaceError("network error")
            pieces.append(piece)
            least -= len(piece)
        return b"".join(pieces)


class _Itself(dict[str, str]):
    """Parameters of which each is its own name."""

    def __missing__(self, name: str) -> str:
        return name


def is_last(error: DatabaseError) -> bool:
    """Whether the server says nothing more after this error: it ends the connection."""
    fields = error.args[0] if error.args else None
    return isinstance(fields, dict) and fields.get("V") in ("FATAL", "PANIC")


def _row(data: bytes, at: int, readers: Sequence[Callable[[bytes], Any]]) -> list[Any]:
    """The values of a row that begins at ``at``."""
    row: list[Any] = []
    at += 2  # how many there are
    for reader in readers:
        [length] = _LENGTH.unpack_from(data, at)
        at += 4
        if length < 0:
            row.append(None)
        else:
            end = at + length
            row.append(reader(data[at:end]))
            at = end
    return row


def _uuid(data: bytes) -> UUID:
    return UUID(int=int.from_bytes(data))


def _integers(data: bytes) -> list[int | None]:
    """Of an array with at most one dimension."""
    values: list[int | None] = []
    at, end = _ARRAY_HEAD, len(data)
    if not data[_HAS_NULLS]:
        return list(_with_lengths((end - at) // 8).unpack_from(data, at)) if at < end else []
    while at < end:
        [length] = _LENGTH.unpack_from(data, at)
        values.append(_LENGTH.unpack_from(data, at + 4)[0] if length > 0 else None)
        at += 4 + max(0, length)
    return values


@lru_cache(maxsize=64)
def _with_lengths(count: int) -> struct.Struct:
    return struct.Struct("!" + count * "4xi")


#: By OID, what comes as the server keeps it: uuid, bytea, integer[].
_BINARY_READERS: dict[int, Callable[[bytes], Any]] = {2950: _uuid, 17: bytes, 1007: _integers}
