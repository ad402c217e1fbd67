"""Files in: forms by POST, raw bodies by PUT."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from hashlib import sha256

from werkzeug.datastructures import Headers
from werkzeug.wrappers import Response

from distfs.admission.promises import Promise
from distfs.deadline import Deadline
from distfs.errors import LengthRequired, Refused
from distfs.ingest import (
    POLICY_FIELD,
    IncomingFile,
    announced_size,
    declared_size,
    files_in_form,
    is_chunked,
)
from distfs.model import Policy
from distfs.multipart import FormLimits
from distfs.routes.messages import Request, created
from distfs.services import Services
from distfs.source import Source

POLICY_HEADER = "X-Distfs-Policy"

_SHA256 = re.compile(r"(?:^|,)[ \t]*sha-256=:([^:]*):", re.IGNORECASE)


#: How the files of a body are found in it. Refuses at once what cannot have any.
Files = Callable[[Source], Iterator[IncomingFile]]


def post_form(services: Services, request: Request) -> Response:
    """Store every file of a form, or none of them."""
    limits = FormLimits(_largest(services, request), services.config.http.max_form_overhead)
    return _store(
        services,
        request,
        lambda body: files_in_form(body, request.headers.get("Content-Type", ""), limits),
    )


def put_raw(services: Services, request: Request, name: str = "") -> Response:
    """Store the body as one file."""
    if "Content-Range" in request.headers:
        raise Refused("an upload cannot be resumed (Content-Range): send the file as a whole")
    if not request.environ.get("CONTENT_LENGTH") and not is_chunked(request.environ):
        raise LengthRequired("the body's length is not known: send a Content-Length, or chunks")
    content_type = request.headers.get("Content-Type", "")
    size, announced = declared_size(request.environ), announced_size(request.environ)
    largest = _largest(services, request)

    def the_body(body: Source) -> Iterator[IncomingFile]:
        return iter(
            [IncomingFile(body, name, content_type, max_size=largest, size=size, announced=announced)]
        )

    return _store(services, request, the_body, stated_digest(request.headers))


def _store(services: Services, request: Request, files_in: Files, digest: bytes | None = None) -> Response:
    """Keep all files of the body, or none. ``digest``: the sha-256 that each of them must have."""
    _refuse_encoded(request)
    policy = _policy(services, request)  # a name nobody knows is refused before anything is read
    size = declared_size(request.environ)
    deadline = services.upload_deadline(size, request.hang_up)
    incoming = files_in(services.bandwidth.incoming(request.body, request.caller, deadline, size))
    with (
        _admitted(services, request, policy, deadline) as promise,
        services.uploader.begin(deadline) as session,
    ):
        for file in incoming:
            promise.use(policy := _policy(services, request, file.fields))
            stored = session.add(
                promise.watch(file),
                name=file.name,
                content_type=file.content_type,
                policy=policy,
                size_hint=file.size,
            )
            if digest not in (None, stored.sha256):
                raise Refused(
                    f"the sha-256 of the bytes that came is {stored.sha256.hex()}, not what the request's digest "
                    "says: nothing was stored, send the file again"
                )
        files = session.commit()
        promise.keep()
    return created(request, files)


def stated_digest(headers: Headers) -> bytes | None:
    """The sha-256 that a client says its file has (RFC 9530, in either header). Raises Refused."""
    for name in ("Repr-Digest", "Content-Digest"):
        if stated := _SHA256.search(headers.get(name, "")):
            try:
                digest = b64decode(stated[1], validate=True)
            except ValueError:
                digest = b""
            if len(digest) != sha256().digest_size:
                raise Refused(f"{name} has no sha-256 in it: it is sha-256=:BASE64:, of the 32 bytes")
            return digest
    return None


def _largest(services: Services, request: Request) -> int:
    """Bytes a file of this caller may have."""
    return services.admission.largest(services.admission.callers.rule(request.caller))


@contextmanager
def _admitted(services: Services, request: Request, policy: Policy, deadline: Deadline) -> Iterator[Promise]:
    """Room for the body, found before any of it is read; given back at the end, whatever that is."""
    environ, http, admission = request.environ, services.config.http, services.admission
    rule = admission.callers.rule(request.caller)
    size, declared = declared_size(environ), True
    if size is None and is_chunked(environ):
        size, declared = announced_size(environ), False
    large = size is None or size > http.stream_threshold
    with ExitStack() as stack:
        stack.enter_context(admission.counted(rule))
        if large and not environ.get("distfs.admitted"):  # our own server has counted it already
            stack.enter_context(admission.gate.enter(size or 0))
        largest = admission.largest(rule)
        yield stack.enter_context(admission.admit(size, policy, deadline, declared=declared, largest=largest))


def _refuse_encoded(request: Request) -> None:
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Refused(f"the body is {encoding[:20]!r} encoded; files are kept as they are: send it without")


def _policy(services: Services, request: Request, fields: Mapping[str, str] | None = None) -> Policy:
    """How this file is to be kept: by the form's field ``policy``, ``?policy=`` or a header, in this order.

    A name of ``storage.policies``. Raises Refused for another, naming those there are.
    """
    named = (
        (fields or {}).get(POLICY_FIELD) or request.args.get("policy") or request.headers.get(POLICY_HEADER)
    )
    known = services.config.storage.policies
    if not named:
        return services.config.storage.policy
    if named not in known:
        there_are = ", ".join(f"{name} ({policy})" for name, policy in known.items())
        raise Refused(f"there is no policy {named[:60]!r}; there are: {there_are}")
    return known[named]
