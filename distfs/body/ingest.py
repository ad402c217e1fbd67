"""Request body -> files: forms and raw bodies, chunked or not, under any WSGI server.

Everything here is a Source in front of a Source; nothing is kept of a file but a delimiter's worth of
bytes. What a client calls its file is data: it is cleaned for display, bounded and stored, and never
becomes part of a path.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from distfs.body.multipart import FormLimits, MultipartReader, boundary_of
from distfs.body.source import Source
from distfs.errors import BodyCutShort, ClientGone, DistfsError, Refused, TooLarge, Unsupported
from distfs.headers import lengths, media_type
from distfs.headers.form_part import PartHead
from distfs.model import MAX_NAME_BYTES
from distfs.quantity import counted
from distfs.quantity import size as readable

#: The form field files come in.
FILE_FIELD = "file"
REMEDY = "curl -F file=@NAME URL/upload"

#: The form field that says how to keep the files; it must come before them.
POLICY_FIELD = "policy"

UNNAMED = "file"

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class IncomingFile:
    """One file on its way in; itself a Source of its bytes. ``size`` None: not known before its end."""

    def __init__(
        self,
        source: Source,
        name: str,
        content_type: str,
        *,
        max_size: int,
        fields: Mapping[str, str] | None = None,
        size: int | None = None,
        announced: int | None = None,
    ) -> None:
        """``announced``: the most it will have, where ``size`` is not known. Raises TooLarge, before anything is read
        where one of the two tells."""
        self.name = clean_name(name)
        self.content_type = str(media_type.read(content_type))
        self.fields: Mapping[str, str] = fields or {}  # the form's fields before this file
        self.size = size
        self._source = source
        self._max_size = max_size
        self._received = 0
        if max(size or 0, announced or 0) > max_size:
            raise self._too_large()

    def readinto(self, view: memoryview) -> int:
        """As Source says. Raises TooLarge once more than ``max_size`` bytes came."""
        count = self._source.readinto(view)
        self._received += count
        if self._received > self._max_size:
            raise self._too_large()
        return count

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"the file is larger than the {readable(self._max_size)} that are taken (http.max_file_size, or "
            "the limit of this token, link or caller): send a smaller one"
        )


def files_in_form(
    source: Source, content_type: str, limits: FormLimits, size: int | None = None
) -> Iterator[IncomingFile]:
    """The files of a form as they arrive, in order; when it is exhausted the body was read to its end.

    Read each file to its end before asking for the next. A file input left empty in a browser (no name
    and no bytes) is no file. Raises Refused, TooLarge, BodyCutShort with the remedy; Refused at once, before
    anything is read, when the body is no form. ``size``: of the body; None: nobody knows.
    """
    return _files(MultipartReader(source, boundary_of(content_type), limits, size), limits)


def _files(reader: MultipartReader, limits: FormLimits) -> Iterator[IncomingFile]:
    fields: dict[str, str] = {}
    found = empty_inputs = 0
    while head := reader.next_part():
        is_file = head.filename is not None or (head.name == FILE_FIELD and head.content_type is not None)
        if not is_file:
            if head.name == FILE_FIELD:
                raise Refused(f"the form field 'file' holds text and not a file: {REMEDY} (with the @)")
            if head.name == POLICY_FIELD and found:
                raise Refused(f"the form field {POLICY_FIELD!r} comes after a file: send it before the files")
            fields[head.name] = reader.read_field()
        elif head.filename == "" and reader.is_empty():
            empty_inputs += 1
        else:
            found += 1
            yield _file_of_part(reader, head, dict(fields), limits)
    if not found:
        raise _no_file(fields, empty_inputs)


def _file_of_part(
    reader: MultipartReader, head: PartHead, fields: Mapping[str, str], limits: FormLimits
) -> IncomingFile:
    if head.name != FILE_FIELD:
        raise Refused(f"the file is in the form field {head.name[:60]!r}; it belongs in 'file': {REMEDY}")
    name, kind = head.filename or "", head.content_type or ""
    return IncomingFile(reader, name, kind, max_size=limits.max_file_size, fields=fields)


def _no_file(fields: Mapping[str, str], empty_inputs: int) -> Refused:
    if empty_inputs:
        return Refused(f"no file was chosen in the form: {REMEDY}")
    if fields:
        names = ", ".join(repr(name[:60]) for name in list(fields)[:5])
        return Refused(f"the form has no file, only the fields {names}: {REMEDY}")
    return Refused(f"the form is empty: {REMEDY}")


def clean_name(name: str) -> str:
    """A file's name as it is kept: any text, with ``_`` for each control character; none: ``file``.

    Raises Refused when it is longer than MAX_NAME_BYTES of UTF-8.
    """
    name = _CONTROL.sub("_", name.encode("utf-8", "replace").decode()) or UNNAMED
    if len(name.encode()) > MAX_NAME_BYTES:
        raise Refused(
            f"the file's name is longer than {counted(MAX_NAME_BYTES, 'byte')}: send it under a shorter one"
        )
    return name


# --- wsgi.input -----------------------------------------------------------------------------------


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def declared_size(environ: Mapping[str, Any]) -> int | None:
    """The body's Content-Length in bytes; None: not declared (chunked, or no body). Raises Refused."""
    text = environ.get("CONTENT_LENGTH") or ""
    if not text or is_chunked(environ):
        return None
    size = lengths.content_length(text)
    if size is None:
        raise Refused("Content-Length is not a whole number of bytes: let the client set it itself")
    return size


def announced_size(environ: Mapping[str, Any]) -> int | None:
    """What a client says that a chunked body has, in ``X-Upload-Length`` or ``Upload-Length``; it may have less.

    Raises Refused.
    """
    text = environ.get("HTTP_X_UPLOAD_LENGTH") or environ.get("HTTP_UPLOAD_LENGTH") or ""
    if not text:
        return None
    size = lengths.number(text)
    if size is None:
        raise Refused("X-Upload-Length is not a whole number")
    return size


def is_chunked(environ: Mapping[str, Any]) -> bool:
    """Whether the body came in chunks. waitress has put these together and declares the sum instead."""
    return str(environ.get("HTTP_TRANSFER_ENCODING", "")).strip().lower() not in ("", "identity")


def source_of(environ: Mapping[str, Any]) -> Source:
    """The request's body as a Source: distfs's own server gives one, any other a file to read from."""
    stream = environ["wsgi.input"]
    if is_chunked(environ) and environ["HTTP_TRANSFER_ENCODING"].strip().lower() != "chunked":
        raise Unsupported("the only Transfer-Encoding taken is one `chunked`")  # some servers pass on any
    if environ.get("distfs.writes_views"):
        own: Source = stream
        return own
    size = declared_size(environ)
    if size is None and not is_chunked(environ):
        size = 0  # RFC 9112, 6.3; some servers would read on until the client hangs up
    elif size is None and not environ.get("wsgi.input_terminated"):
        raise Refused("this server does not take chunked bodies: send a Content-Length")
    return _ReadSource(stream, size)


class _ReadSource:
    """A Source over ``wsgi.input.read``. ``size`` None: the server itself ends the stream with the body."""

    def __init__(self, stream: _Readable, size: int | None) -> None:
        self._stream = stream
        self._left = size

    def readinto(self, view: memoryview) -> int:
        filled = 0
        while wanted := len(view) - filled if self._left is None else min(len(view) - filled, self._left):
            data = self._read(wanted)
            if not data:
                if self._left:
                    raise BodyCutShort(
                        f"the body ended {counted(self._left, 'byte')} before its Content-Length"
                    )
                break
            view[filled : filled + len(data)] = data
            filled += len(data)
            if self._left is not None:
                self._left -= len(data)
        return filled

    def _read(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except OSError as e:
            if e.errno is None and not isinstance(e, TimeoutError):  # the host's own word, not the system's
                raise BodyCutShort(f"the connection closed before the body's end: {e}") from e
            raise ClientGone(f"the connection was lost while the body was read: {e}") from e
        except DistfsError:
            raise
        except Exception as e:  # the host's edge: each server has its own classes for a bad body
            raise Refused(f"the body is not framed as HTTP asks: {e}") from e
