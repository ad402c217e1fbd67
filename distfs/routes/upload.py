"""Files in: forms by POST, raw bodies by PUT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from werkzeug.exceptions import MethodNotAllowed

from distfs.body.decoded import CODINGS, DecodedSource
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
from distfs.errors import Encoded, Forbidden, LengthRequired, OverQuota, Refused, Unsupported
from distfs.formats.compression import REMEDY, library
from distfs.headers import fields as header_fields
from distfs.headers import media_type
from distfs.limits.promises import Promise
from distfs.model import COMPRESSIONS, NOBODYS, Compression, NewFile, Ownership, Policy
from distfs.quantity import compared
from distfs.routes import traced
from distfs.routes.body_digests import BodyDigests
from distfs.routes.conditions import check_nothing_there, has_conditions
from distfs.routes.file_facts import created
from distfs.routes.links import check_number, counted_upload
from distfs.routes.messages import Answer, Request
from distfs.routes.seen import read_visibility
from distfs.routes.upload_page import form, told
from distfs.services import Services
from distfs.telemetry import tracing
from distfs.transfer.upload import UploadSession

#: How the files of a body are found in it. Refuses at once what cannot have any.
Files = Callable[[Source], Iterator[IncomingFile]]


def get_form(services: Services, request: Request) -> Answer:
    """For a browser that came by a link: nobody else needs one. Raises MethodNotAllowed."""
    link = request.actor.link
    if link is None:
        raise MethodNotAllowed(["POST", "PUT"])
    return form(request, link, _largest(services, request))


def post_form(services: Services, request: Request) -> Answer:
    """Store every file of a form, or none of them."""
    largest = _largest(services, request)
    limits = FormLimits(largest, services.config.http.max_form_overhead)
    kind, size = request.environ.get("CONTENT_TYPE", ""), declared_size(request.environ)
    coding = _coding(request)
    if not coding:
        return _store(services, request, lambda body: files_in_form(body, kind, limits, size), largest, size)
    if not _decodes(request):
        raise Encoded(f"the form is sent in {coding}: send it with ?decode=1, or without Content-Encoding")

    def the_files(body: Source) -> Iterator[IncomingFile]:
        return files_in_form(DecodedSource(body, coding), kind, limits, None)

    return _store(services, request, the_files, largest, size, unpacks=True)


def put_raw(services: Services, request: Request, name: str = "") -> Answer:
    """Store the body as one file."""
    if "HTTP_CONTENT_RANGE" in request.environ:
        raise Refused("an upload cannot be resumed (Content-Range): send the file as a whole")
    if not request.environ.get("CONTENT_LENGTH") and not is_chunked(request.environ):
        raise LengthRequired("the body's length is not known: send a Content-Length, or chunks")
    content_type = request.environ.get("CONTENT_TYPE", "")
    if content_type and media_type.announces_form(content_type) and not request.flag("raw"):
        raise Refused(
            "the body is a form, and PUT keeps a body as it is: send it by POST, curl -F file=@NAME URL/upload; "
            "a file that is a saved form, with ?raw=1"
        )
    size, announced = declared_size(request.environ), announced_size(request.environ)
    largest = _largest(services, request)

    coding = _coding(request)
    unpacks = bool(coding) and _decodes(request)

    def the_body(body: Source) -> Iterator[IncomingFile]:
        source, length = (DecodedSource(body, coding), None) if unpacks else (body, size)
        file = IncomingFile(source, name, content_type, max_size=largest, size=length, announced=announced)
        return iter([file])

    return _store(services, request, the_body, largest, size, is_the_file=not unpacks, unpacks=unpacks)


def _store(
    services: Services,
    request: Request,
    files_in: Files,
    largest: int,
    size: int | None,
    *,
    is_the_file: bool = False,
    unpacks: bool = False,
) -> Answer:
    """Keep all files of the body, or none. ``size``: its Content-Length; ``is_the_file``: it is one, and no more;
    ``unpacks``: what is kept has other bytes, nobody knows how many."""
    if has_conditions(request.environ):
        check_nothing_there(request.headers)
    digests, known, collect = BodyDigests(request), {}, request.environ.get("distfs.collect")
    # A name nobody knows is refused before anything is read.
    policy, how = _policy(services, request), _compression(services, request)
    own, environ = None if unpacks else size, request.environ
    announced = announced_size(environ) if own is None and (unpacks or is_chunked(environ)) else own
    deadline = services.upload_deadline(size, request.hang_up)
    _check_quota(services, request, announced, deadline)
    services.agreement.require(deadline)  # by another upload_ttl than the sweep's, an upload is garbage
    # Closed by whatever ends it: who fails in its middle has a place among those served no longer.
    with (
        counted_upload(services, request, deadline),
        services.bandwidth.incoming(request.body, request.caller, deadline, size) as paced,
        traced.receiving(paced) as body,
    ):
        incoming = files_in(digests.watch(body, free="sha-256" if is_the_file else ""))
        with (
            _counted(services, request, announced),
            _room(services, request, policy, deadline, largest, own, announced) as promise,
            services.uploader.begin(deadline, collect, own, _whose(request)) as session,
        ):
            for number, file in enumerate(incoming):
                check_number(request, number)
                if file.fields:
                    promise.use(policy := _policy(services, request, file.fields))
                    how = _compression(services, request, file.fields)
                stored = _add(session, promise, file, policy, how)
                known = {"sha-256": stored.sha256} if is_the_file else {}
            digests.check(known)
            files = session.commit()
            promise.keep()
    answer = created(request, files)
    return told(request, files) or answer


def _add(
    session: UploadSession, promise: Promise, file: IncomingFile, policy: Policy, how: Compression
) -> NewFile:
    return session.add(
        promise.watch(file),
        name=file.name,
        content_type=file.content_type,
        policy=policy,
        compression=how,
        size_hint=file.size,
    )


def _whose(request: Request) -> Ownership:
    """Whose the files are, and who may read them: ``?visibility=`` or a header, by default only the owner."""
    visibility = request.argument("visibility") or request.environ.get("HTTP_X_DISTFS_VISIBILITY")
    token = request.actor.token
    if request.actor.link and visibility not in (None, NOBODYS.visibility):
        raise Forbidden("what comes by a link is private to who made it: send no visibility")
    readers = read_visibility(visibility) if visibility else NOBODYS.visibility
    request.change = "" if readers == NOBODYS.visibility else f"visibility {readers}"
    return Ownership(
        request.actor.owner,
        readers,
        token.quota if token else 0,
    )


def _check_quota(services: Services, request: Request, announced: int | None, deadline: Deadline) -> None:
    """Before a large body is read for nothing; how it is in the end is found at the commit. Raises OverQuota."""
    token, http = request.actor.token, services.config.http
    if token is None or not token.quota or announced is None or announced <= http.stream_threshold:
        return
    used = services.door.tokens.owned(token.owner, deadline)
    if used + announced - http.max_form_overhead > token.quota:
        has, more, most = compared(used, announced, token.quota)
        raise OverQuota(
            f"the files of this owner have {has} of {most} that they may, and no room for {more} more: delete some"
        )


def _largest(services: Services, request: Request) -> int:
    """Bytes a file of this caller may have."""
    largest = services.admission.callers.largest(request.caller)
    link = request.actor.link
    return min(largest, link.max_size) if link and link.max_size else largest


def _counted(services: Services, request: Request, announced: int | None) -> AbstractContextManager[None]:
    """The upload, for as long as it lasts; a large one as such, unless our own server has done so already."""
    admission, caller = services.admission, request.caller
    large = announced is None or announced > services.config.http.stream_threshold
    if not large or request.environ.get("distfs.admitted"):
        return admission.callers.upload(caller)
    return _both(admission.callers.upload(caller), admission.large(caller, announced or 0))


@contextmanager
def _both(first: AbstractContextManager[None], second: AbstractContextManager[None]) -> Iterator[None]:
    with first, second:
        yield


def _room(
    services: Services,
    request: Request,
    policy: Policy,
    deadline: Deadline,
    largest: int,
    size: int | None,
    announced: int | None,
) -> Promise:
    """Room for the body, found before any of it is read. ``size``: its Content-Length."""
    admission, caller = services.admission, request.caller
    declared = size is not None
    small = size is not None and size <= admission.storage.block_size  # it has come before more is promised
    whose = () if small else admission.callers.whose(caller)
    with tracing.span("admit"):
        return admission.admit(announced, policy, deadline, declared=declared, largest=largest, whose=whose)


def _coding(request: Request) -> str:
    """The one in which the body is sent; empty: none. Raises Encoded, Unsupported."""
    said = request.environ.get("HTTP_CONTENT_ENCODING")
    codings = [each for each in header_fields.elements(said.lower()) if each != "identity"] if said else []
    if not codings:
        return ""
    coding = codings[0].removeprefix("x-")  # RFC 9110, 8.4.1.3
    if len(codings) > 1 or coding not in CODINGS:
        named = ", ".join(codings)[:40]
        raise Encoded(
            f"the body has the Content-Encoding {named!r}, and only {' or '.join(CODINGS)} is taken: send it without"
        )
    if coding == "zstd" and library() is None and _decodes(request):
        raise Unsupported(f"this service cannot unpack zstd: its operator can {REMEDY}")
    return coding


def _decodes(request: Request) -> bool:
    """Whether a body that is sent compressed is to be kept unpacked. Raises Refused."""
    return request.flag("decode")


def _policy_name(request: Request, fields: Mapping[str, str] | None) -> str | None:
    """The one that is asked for."""
    of_form = (fields or {}).get(POLICY_FIELD)
    return of_form or request.argument("policy") or request.environ.get("HTTP_X_DISTFS_POLICY")


def _compression(
    services: Services, request: Request, fields: Mapping[str, str] | None = None
) -> Compression:
    """How this file is compressed: by ``?compression=``, or as its policy says. The level is the operator's: a high
    one takes a second of a processor for a megabyte. Raises Refused."""
    link, storage = request.actor.link, services.config.storage
    name = link.policy if link is not None else _policy_name(request, fields)
    usual = storage.compression_of(name or "default")
    if (asked := request.argument("compression")) is None:
        return usual
    if asked not in COMPRESSIONS:
        raise Refused(f"?compression={asked[:40]}: it is one of {', '.join(COMPRESSIONS)}")
    if asked == "zstd" and library() is None:
        raise Unsupported(f"this service cannot compress: its operator can {REMEDY}")
    return replace(usual, mode=asked)


def _policy(services: Services, request: Request, fields: Mapping[str, str] | None = None) -> Policy:
    """How this file is to be kept: by the form's field ``policy``, ``?policy=`` or a header, in this order.

    A name of ``storage.policies``. Raises Refused for another, naming those there are; Forbidden for one that is not
    for the token.
    """
    named = _policy_name(request, fields)
    known, token, link = services.config.storage.policies, request.actor.token, request.actor.link
    if link is not None:
        if named and named != (link.policy or "default"):
            raise Forbidden("who made this link has said how its files are kept: name no policy")
        named = link.policy
    if token is not None and not token.allows(named or ""):
        raise Forbidden(
            f"this token's uploads may have the policies {', '.join(sorted(token.policies))}: name one of them"
        )
    if not named:
        return services.config.storage.policy
    if named not in known:
        there_are = ", ".join(f"{name} ({policy})" for name, policy in known.items())
        raise Refused(f"there is no policy {named[:60]!r}; there are: {there_are}")
    return known[named]
