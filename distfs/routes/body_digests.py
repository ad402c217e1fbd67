"""An upload's body against what its client says it is, before and behind it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

from distfs.body.source import Source
from distfs.errors import Refused
from distfs.headers import digests
from distfs.routes.messages import Request


class BodyDigests:
    """Made from a request's headers, asked at its body's end. Raises Refused for what it cannot read."""

    def __init__(self, request: Request) -> None:
        environ = request.environ
        says = "HTTP_REPR_DIGEST" in environ or "HTTP_CONTENT_DIGEST" in environ
        self._claims = list(digests.stated(request.headers.get)) if says else []
        self._trailers: Callable[[], Mapping[str, str]] = environ.get("distfs.trailers", dict)
        self._hashes: dict[str, hashlib._Hash] = {}
        if says or "HTTP_TRAILER" in environ:
            names = {claim.algorithm for claim in self._claims}
            if digests.announced(environ.get("HTTP_TRAILER", "")):
                names = set(digests.ALGORITHMS)
            self._hashes = {name: digests.ALGORITHMS[name]() for name in names}

    def watch(self, source: Source, *, free: str = "") -> Source:
        """``source``, with its bytes taken into account. ``free``: an algorithm that somebody else does anyway."""
        self._hashes.pop(free, None)
        return _Watched(source, self) if self._hashes else source

    def update(self, data: memoryview) -> None:
        for each in self._hashes.values():
            each.update(data)

    def check(self, known: Mapping[str, bytes]) -> None:
        """``known``: digests by others. Raises Refused when the client has said another, or one that nobody took."""
        trailers = self._trailers()
        if not (self._claims or trailers):
            return
        found = {name: each.digest() for name, each in self._hashes.items()} | dict(known)
        claims = [*self._claims, *digests.stated(lambda name: trailers.get(name.lower()))]
        for header, algorithm, digest in claims:
            if algorithm not in found:
                raise Refused(
                    f"{algorithm} came behind the body unannounced: send `Trailer: {header}` before it; "
                    "nothing was stored"
                )
            if found[algorithm] != digest:
                raise Refused(
                    f"the {algorithm} of the bytes that came is {found[algorithm].hex()}, not what the request's "
                    f"{header} says: nothing was stored, send them again"
                )


class _Watched:
    def __init__(self, source: Source, digests: BodyDigests) -> None:
        self._source, self._digests = source, digests

    def readinto(self, view: memoryview) -> int:
        count = self._source.readinto(view)
        self._digests.update(view[:count])
        return count
