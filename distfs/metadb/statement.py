"""A prepared statement, run by one message out and, mostly, one piece in.

pg8000 has prepared it, knows its types, and hears of all that is no row. It would write six times and read twice for
each message.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

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
_MOST = 64 << 10  # bytes received at once


class Statement:
    """Of one connection."""

    def __init__(self, connection: Connection, sql: str) -> None:
        """Raises as the driver does."""
        self._connection, self._prepared = connection, connection.prepare(sql)

    def run(self, params: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """-> its rows. Raises as the driver does."""
        connection, prepared = self._connection, self._prepared
        encoding = connection._client_encoding
        values = make_params(connection.py_types, prepared.make_vals(params))
        bind = bytearray(b"\0" + prepared.name_bin + _COUNTS.pack(0, len(values)))
        for value in values:
            if value is None:
                bind += _NULL
            else:
                data = value.encode(encoding)
                bind += _LENGTH.pack(len(data)) + data
        bind += b"\0\0"  # every column as text
        try:
            connection._usock.sendall(
                _MESSAGE.pack(b"B", len(bind) + _LENGTH.size) + bind + EXECUTE_MSG + SYNC_MSG
            )
        except OSError as e:
            raise InterfaceError("network error") from e
        context = Context(prepared.statement, columns=prepared.cols, input_funcs=prepared.input_funcs)
        try:
            self._receive(context, encoding)
        except InterfaceError as e:
            if context.error is not None and is_last(context.error):  # it said why, and hung up
                raise context.error from e
            raise
        if context.error is not None:
            raise context.error
        rows: Sequence[Sequence[Any]] = context.rows
        return rows

    def _receive(self, context: Context, encoding: str) -> None:
        """All that comes until the server is ready for the next one."""
        data, at, ready = b"", 0, False
        while not ready or at < len(data):
            end = 0
            if at + _MESSAGE.size <= len(data):
                kind, length = _MESSAGE.unpack_from(data, at)
                end = at + 1 + length
            if not end or end > len(data):  # more of it is to come
                data, at = data[at:] + self._more(end - len(data)), 0
                continue
            body = data[at + _MESSAGE.size : end]
            at = end
            if kind == b"D":
                context.rows.append(_row(body, context.input_funcs, encoding))
            else:
                self._connection.message_types[kind](body, context)
                ready = ready or kind == b"Z"

    def _more(self, least: int) -> bytes:
        """What comes, and at least so many bytes: those of a large row are joined once, not with each piece."""
        pieces: list[bytes] = []
        while least > 0 or not pieces:
            try:
                piece: bytes | None = self._connection._sock.read1(_MOST)
            except OSError as e:
                raise InterfaceError("network error") from e
            if not piece:
                raise InterfaceError("network error")
            pieces.append(piece)
            least -= len(piece)
        return b"".join(pieces)


def is_last(error: DatabaseError) -> bool:
    """Whether the server says nothing more after this error: it ends the connection."""
    fields = error.args[0] if error.args else None
    return isinstance(fields, dict) and fields.get("V") in ("FATAL", "PANIC")


def _row(body: bytes, functions: Sequence[Any], encoding: str) -> list[Any]:
    row: list[Any] = []
    at = 2
    for function in functions:
        [length] = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size
        if length < 0:
            row.append(None)
        else:
            row.append(function(str(body[at : at + length], encoding)))
            at += length
    return row
