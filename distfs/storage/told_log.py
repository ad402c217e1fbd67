"""What a node tells of its own log, to a service that an administrator asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from distfs.errors import Refused, Unavailable
from distfs.process.descriptors import in_words
from distfs.telemetry import log_query, log_search
from distfs.telemetry.log_query import OwnFiles

_PIECE = 128 << 10


def pieces(
    files: OwnFiles | None, wanted: object, between: Callable[[], object]
) -> Iterator[tuple[bytes, bool]]:
    """Bytes of its lines, in order of time, and whether there are more. ``between`` is called now and then.

    Raises Refused, Unavailable, and what ``between`` raises.
    """
    if files is None:
        raise Unavailable("this node writes no files of its log: set log.dir for it")
    if not isinstance(wanted, dict):
        raise Refused("the request does not say which lines are wanted")
    try:
        asked = log_query.asked({str(name): str(value) for name, value in wanted.items()})
    except ValueError as e:  # one of another release may know more, and is not to blame
        raise Refused(f"the request wants lines that cannot be: {e}") from e
    held = b""
    try:
        for _, text, _ in log_search.search([files.folder], asked, part=files.part, between=between):
            held += text + b"\n"
            while len(held) >= _PIECE:
                yield held[:_PIECE], True
                held = held[_PIECE:]
    except OSError as e:
        raise Unavailable(f"the log of this node cannot be read: {in_words(e)}") from e
    yield held, False
