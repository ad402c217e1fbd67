"""Files in: forms by POST, raw bodies by PUT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from werkzeug.wrappers import Response

from distfs.admission import Promise
from distfs.config import CallerRule
from distfs.deadline import Deadline
from distfs.errors import Refused
from distfs.ingest import (
    POLICY_FIELD,
    FormLimits,
    announced_size,
    declared_size,
    files_in_form,
    is_chunked,
    raw_file,
)
from distfs.model import Policy
from distfs.routes.messages import Request, created
from distfs.services import Services

POLICY_HEADER = "X-Distfs-Policy"


def post_form(services: Services, request: Request) -> Response:
    """Store every file of a form, or none of them."""
    rule = services.admission.callers.rule(request.caller)
    limits = FormLimits(services.admission.largest(rule), services.config.http.max_form_overhead)
    size = declared_size(request.environ)
    deadline = services.transfer_deadline(size)
    body = services.bandwidth.incoming(request.body, request.caller, deadline, size)
    incoming = files_in_form(body, request.headers.get("Content-Type", ""), limits)
    _refuse_encoded(request)
    policy = _policy(services, request)  # a name nobody knows is refused before anything is read
    with (
        _admitted(services, request, policy, rule, deadline) as promise,
        services.uploader.begin(deadline) as session,
    ):
        for file in incoming:
            promise.use(policy := _policy(services, request, file.fields))
            session.add(
                promise.watch(file),
                name=file.name,
                content_type=file.content_type,
                policy=policy,
                size_hint=file.size,
            )
        files = session.commit()
        promise.keep()
    return created(request, files)


def put_raw(services: Services, request: Request, name: str = "") -> Response:
    """Store the body as one file."""
    _refuse_encoded(request)
    policy = _policy(services, request)
    if "Content-Range" in request.headers:
        raise Refused("an upload cannot be resumed (Content-Range): send the file as a whole")
    size = declared_size(request.environ)
    content_type = request.headers.get("Content-Type", "")
    deadline = services.transfer_deadline(size)
    body = services.bandwidth.incoming(request.body, request.caller, deadline, size)
    rule = services.admission.callers.rule(request.caller)
    file = raw_file(body, name, content_type, size, services.admission.largest(rule))
    with (
        _admitted(services, request, policy, rule, deadline) as promise,
        services.uploader.begin(deadline) as session,
    ):
        session.add(
            promise.watch(file),
            name=file.name,
            content_type=file.content_type,
            policy=policy,
            size_hint=size,
        )
        files = session.commit()
        promise.keep()
    return created(request, files)


@contextmanager
def _admitted(
    services: Services, request: Request, policy: Policy, rule: CallerRule | None, deadline: Deadline
) -> Iterator[Promise]:
    """Room for the body, found before any of it is read; given back at the end, whatever that is."""
    environ, http, admission = request.environ, services.config.http, services.admission
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
