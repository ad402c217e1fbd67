"""Files in: forms by POST, raw bodies by PUT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

from distfs.body.ingest import (
    POLICY_FIELD,
    IncomingFile,
    announced_size,
    declared_size,
    files_in_form,
    is_chunked,
)
from distfs.body.multipart import FormLimits
from distfs.body.source import Source
from distfs.deadline import Deadline
from distfs.errors import Encoded, LengthRequired, Refused
from distfs.headers import fields as header_fields
from distfs.headers import media_type
from distfs.limits.promises import Promise
from distfs.model import Policy
from distfs.routes.body_digests import BodyDigests
from distfs.routes.conditions import check_nothing_there, has_conditions
from distfs.routes.file_facts import created
from distfs.routes.messages import Answer, Request
from distfs.services import Services

POLICY_HEADER = "X-Distfs-Policy"

#: How the files of a body are found in it. Refuses at once what cannot have any.
Files = Callable[[Source], Iterator[IncomingFile]]


def post_form(services: Services, request: Request) -> Answer:
    """Store every file of a form, or none of them."""
    limits = FormLimits(_largest(services, request), services.config.http.max_form_overhead)
    return _store(
        services,
        request,
        lambda body: files_in_form(body, request.headers.get("Content-Type", ""), limits),
        declared_size(request.environ),
    )


def put_raw(services: Services, request: Request, name: str = "") -> Answer:
    """Store the body as one file."""
    if "HTTP_CONTENT_RANGE" in request.environ:
        raise Refused("an upload cannot be resumed (Content-Range): send the file as a whole")
    if not request.environ.get("CONTENT_LENGTH") and not is_chunked(request.environ):
        raise LengthRequired("the body's length is not known: send a Content-Length, or chunks")
    content_type = request.environ.get("CONTENT_TYPE", "")
    if media_type.announces_form(content_type) and request.argument("raw") != "1":
        raise Refused(
            "the body is a form, and PUT keeps a body as it is: send it by POST, curl -F file=@NAME URL/upload; "
            "a file that is a saved form, with ?raw=1"
        )
    size, announced = declared_size(request.environ), announced_size(request.environ)
    largest = _largest(services, request)

    def the_body(body: Source) -> Iterator[IncomingFile]:
        return iter(
            [IncomingFile(body, name, content_type, max_size=largest, size=size, announced=announced)]
        )

    return _store(services, request, the_body, size, is_the_file=True)


def _store(
    services: Services, request: Request, files_in: Files, size: int | None, *, is_the_file: bool = False
) -> Answer:
    """Keep all files of the body, or none. ``size``: its Content-Length; ``is_the_file``: it has one, and nothing
    else."""
    _refuse_encoded(request)
    if has_conditions(request.environ):
        check_nothing_there(request.headers)
    digests, known = BodyDigests(request), {}
    policy = _policy(services, request)  # a name nobody knows is refused before anything is read
    deadline = services.upload_deadline(size, request.hang_up)
    services.agreement.require(deadline)  # by another upload_ttl than the sweep's, an upload is garbage
    with ExitStack() as stack:
        body = services.bandwidth.incoming(request.body, request.caller, deadline, size)
        stack.callback(body.close)  # who fails in its middle has a place among those served no longer
        incoming = files_in(digests.watch(body, free="sha-256" if is_the_file else ""))
        promise = _admitted(stack, services, request, policy, deadline, size)
        session = stack.enter_context(
            services.uploader.begin(deadline, request.environ.get("distfs.collect"), size)
        )
        for file in incoming:
            if file.fields:
                promise.use(policy := _policy(services, request, file.fields))
            stored = session.add(
                promise.watch(file),
                name=file.name,
                content_type=file.content_type,
                policy=policy,
                size_hint=file.size,
            )
            if is_the_file:
                known["sha-256"] = stored.sha256
        digests.check(known)
        files = session.commit()
        promise.keep()
    return created(request, files)


def _largest(services: Services, request: Request) -> int:
    """Bytes a file of this caller may have."""
    return services.admission.largest(request.caller)


def _admitted(
    stack: ExitStack,
    services: Services,
    request: Request,
    policy: Policy,
    deadline: Deadline,
    size: int | None,
) -> Promise:
    """Room for the body, found before any of it is read; given back with ``stack``. ``size``: its Content-Length."""
    environ, admission, caller = request.environ, services.admission, request.caller
    declared = True
    if size is None and is_chunked(environ):
        size, declared = announced_size(environ), False
    large = size is None or size > services.config.http.stream_threshold
    stack.enter_context(admission.callers.upload(caller))
    if large and not environ.get("distfs.admitted"):  # our own server has counted it already
        stack.enter_context(admission.large(caller, size or 0))
    largest, whose = admission.largest(caller), admission.callers.whose(caller)
    room = admission.admit(size, policy, deadline, declared=declared, largest=largest, whose=whose)
    return stack.enter_context(room)


def _refuse_encoded(request: Request) -> None:
    codings = header_fields.words(request.environ.get("HTTP_CONTENT_ENCODING", "")) - {"identity"}
    if codings:
        named = ", ".join(sorted(codings))[:40]
        raise Encoded(
            f"the body has the Content-Encoding {named!r}; files are kept as they are: send it without"
        )


def _policy(services: Services, request: Request, fields: Mapping[str, str] | None = None) -> Policy:
    """How this file is to be kept: by the form's field ``policy``, ``?policy=`` or a header, in this order.

    A name of ``storage.policies``. Raises Refused for another, naming those there are.
    """
    named = (
        (fields or {}).get(POLICY_FIELD) or request.argument("policy") or request.headers.get(POLICY_HEADER)
    )
    known = services.config.storage.policies
    if not named:
        return services.config.storage.policy
    if named not in known:
        there_are = ", ".join(f"{name} ({policy})" for name, policy in known.items())
        raise Refused(f"there is no policy {named[:60]!r}; there are: {there_are}")
    return known[named]
