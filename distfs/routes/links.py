"""Signed links: made for a file, or for files to come, and what they bind who uses them to."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from uuid import UUID

from werkzeug.wrappers import Response

from distfs.access.db import Token, TokenDB
from distfs.access.link import Link
from distfs.access.link_db import LinkDB, for_upload
from distfs.access.link_terms import read_download, read_upload
from distfs.access.uses import Uses
from distfs.deadline import Deadline
from distfs.errors import Forbidden, OutcomeUnknown, Refused
from distfs.model import File
from distfs.routes.messages import Answer, CountedBytes, Request, as_json, asked_page, text
from distfs.routes.ranges import Span
from distfs.routes.seen import the_file
from distfs.services import Services

Chunks = Iterable[bytes | memoryview]

#: Of an answer to who came by a link: a cache would not look at its end.
UNCOUNTED = {"Cache-Control": "private, no-cache"}


def share(services: Services, request: Request, uuid: str) -> Answer:
    """A JSON object with what the link is to be -> 201, and a URL that downloads the file."""
    deadline = services.answer_deadline(request.hang_up)
    file = the_file(services, request, uuid, deadline)
    asked = read_download(request.json_object() if request.has_body else {})
    token = _maker(request)
    link = asked.link(token.id, file.id, file.size, time.time())
    request.changed = [str(file.id)]
    return _made(services, request, token, link, f"download/{file.id}", asked.downloads)


def invite(services: Services, request: Request) -> Answer:
    """The same for uploads: whose they are then is who makes the link."""
    asked = read_upload(request.json_object() if request.has_body else {})
    token = _maker(request)
    link = for_upload(asked, token, services.config.storage.policies, time.time())
    return _made(services, request, token, link, "upload", asked.files)


def list_links(services: Services, request: Request) -> Answer:
    """Those of the asker's owner that have not expired, of all owners for an administrator; in pages, as files."""
    after, limit = asked_page(request, "link")
    deadline = services.answer_deadline(request.hang_up)
    found = LinkDB(services.meta).listed(after, limit, deadline, request.actor.seen_by)
    following = str(found[-1].id) if len(found) == limit else None
    return as_json({"links": [each.entry() for each in found], "next": following})


def revoke(services: Services, request: Request) -> Response:
    """A JSON object with the ``link``, its URL, what follows ``link=``, or its id: from now on it opens nothing."""
    asked = request.json_object()
    if asked.keys() != {"link"} or not isinstance(asked["link"], str):
        raise Refused('revoking a link takes {"link": its URL or its id}, and nothing else')
    deadline = services.answer_deadline(request.hang_up)
    tokens = services.door.tokens
    sealed = LinkDB(services.meta).named(asked["link"], lambda id: tokens.find(id, deadline), deadline)
    if sealed is None:
        raise Refused("this is no link: give its whole URL, or its id, which `GET /links` shows")
    maker = services.door.judge_link(request.actor, sealed, deadline)
    TokenDB(services.meta).revoke_link(sealed, maker, deadline)
    request.changed = [str(UUID(bytes=sealed.id))]
    return Response(status=204)


def _maker(request: Request) -> Token:
    """Whoever was let in here has one."""
    if request.actor.token is None:
        raise Forbidden("a link is made with a token: send one")
    return request.actor.token


def _made(services: Services, request: Request, token: Token, link: Link, path: str, uses: int) -> Answer:
    """``uses``: how often it may be used; 0: any number."""
    made = LinkDB(services.meta).make(token, link, uses, services.answer_deadline(request.hang_up))
    id = str(UUID(bytes=made.id))
    if not request.changed:
        request.changed = [id]
    request.change = f"link {id}"
    url = f"{request.url}{path}?link={made.text}"
    if request.wants_json:
        ends = datetime.fromtimestamp(link.expires, UTC).isoformat()
        answer = as_json({"id": id, "url": url, "expires_at": ends, "uses": uses or None}, 201)
    else:
        answer = text(f"{url}\n", 201)
    answer.headers["Cache-Control"] = "no-store"  # it opens what it is for
    return answer


# --- used by downloads ------------------------------------------------------------------------------


def tag_of_part(request: Request, file: File) -> str:
    """What stands for the file's digest in an answer to who may have a part of it only: by the digest he could try
    what the rest may be. Empty: he may have all."""
    link, token = request.actor.link, request.actor.token
    if link is None or link.span is None or token is None:
        return ""
    key, _ = token.link_keys[0]
    return hmac.digest(key, b"distfs tag of a part\0" + file.sha256, "sha256").hex()


def bound(services: Services, request: Request, link: Link, spans: Sequence[Span]) -> dict[str, str]:
    """Headers of an answer to who came by a link. ``spans``: the bytes that are asked for.

    Raises Forbidden for bytes that it is not for; for HEAD, which is not counted, when no use is left.
    """
    if request.method == "GET":
        for span in spans:
            link.check_span(span.start, span.stop - 1)
    if link.uses is None:
        return UNCOUNTED
    if request.method == "HEAD":
        deadline = services.answer_deadline(request.hang_up)
        Uses(services.meta).require_left(link.uses, deadline)
    # Each answer with bytes counts, so nobody is told that it could be had in pieces; who asks for one gets it.
    return {"Cache-Control": "no-store", "Accept-Ranges": "none"}


def counted(services: Services, request: Request, send: Callable[[], Chunks]) -> Chunks:
    """The bytes that ``send`` gives, of which the first is here already; a link's use is taken before, and given back
    when none of them was sent. Raises what ``send`` does; Forbidden when no use is left."""
    link = request.actor.link
    if link is None or link.uses is None:
        return send()
    uses, id = Uses(services.meta), link.uses
    use = uses.take(id, services.answer_deadline(request.hang_up))

    def give_back() -> None:
        uses.give_back(id, use, services.answer_deadline(None))

    try:
        return _Counted(send(), give_back)
    except BaseException:
        give_back()
        raise


class _Counted(CountedBytes[bytes | memoryview]):
    """An answer's bytes, and what is done when it ends before one of them was sent."""

    def __init__(self, body: Chunks, give_back: Callable[[], None]) -> None:
        super().__init__(body)
        self._give_back = give_back

    def close(self) -> None:
        try:
            super().close()
        finally:
            if not (self.sent or self.ended):
                self._give_back()


# --- used by uploads --------------------------------------------------------------------------------


def counted_upload(services: Services, request: Request, deadline: Deadline) -> AbstractContextManager[None]:
    """A link's use is taken, and given back when nothing was stored. Entering raises Forbidden when none is left."""
    link = request.actor.link
    return _UNCOUNTED if link is None or link.uses is None else _counted(services, link.uses, deadline)


_UNCOUNTED = nullcontext()


@contextmanager
def _counted(services: Services, of: UUID, deadline: Deadline) -> Iterator[None]:
    uses = Uses(services.meta)
    use = uses.take(of, deadline)
    try:
        yield
    except OutcomeUnknown:
        raise  # it may be stored
    except BaseException:
        uses.give_back(of, use, services.answer_deadline(None))
        raise


def check_number(request: Request, before: int) -> None:
    """Of a form with one more file than ``before``. Raises Forbidden."""
    if before and request.actor.link is not None:
        raise Forbidden(
            "this link takes one file a request: send the others by themselves; nothing was stored"
        )
