"""Who may not see a file learns nothing of it by how long the answer takes: it is made by the same steps."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from uuid import uuid4

import pytest
from werkzeug.test import EnvironBuilder

from tests.integration.guarded import User, alice, bob, service
from tests.service import TestService

__all__ = ["alice", "bob", "service"]

#: Where a call was made, and of what.
Steps = Counter[tuple[str, int, str]]
#: A pair that a clock came between, such as that of the tokens, is counted again.
TRIES = 5


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PATCH"])
def test_not_one_call_is_another(service: TestService, alice: User, bob: User, method: str) -> None:
    """Of Python or of C."""
    pairs = []
    for _ in range(TRIES):
        hidden, none = (steps_to_404(service, bob, id, method) for id in (alice.put(), str(uuid4())))
        assert min(hidden.total(), none.total()) > 100, "they were counted"
        pairs.append((hidden, none))
    assert any(hidden == none for hidden, none in pairs), pairs[-1][0] - pairs[-1][1]


def steps_to_404(service: TestService, who: User, id: str, method: str) -> Steps:
    found: Steps = Counter()
    place = f"/download/{id}" if method in ("GET", "HEAD") else f"/files/{id}"
    environ = EnvironBuilder(place, method=method, data=b"{}" if method == "PATCH" else None).get_environ()
    environ |= {"HTTP_AUTHORIZATION": f"Bearer {who.token}", "REMOTE_ADDR": "127.0.0.1"}
    said: list[str] = []

    def start(status: str, headers: object, exc_info: object = None) -> Callable[[bytes], object]:
        said.append(status)
        return lambda _: None

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            found[frame.f_code.co_filename, 0, frame.f_code.co_qualname] += 1
        elif event == "c_call":
            found[frame.f_code.co_filename, frame.f_lineno, getattr(argument, "__qualname__", "")] += 1

    who.ask("GET", "/files")  # MetaDB is asked for tokens by that one
    sys.setprofile(note)
    try:
        answer = service.app(environ, start)
        b"".join(answer)
    finally:
        sys.setprofile(None)
    answer.close()  # type: ignore[attr-defined]
    assert said == ["404 Not Found"]
    return found
