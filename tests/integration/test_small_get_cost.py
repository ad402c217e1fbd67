"""What a small download costs the thread that serves it: functions of Python are most of it."""

from __future__ import annotations

import http.client
import threading
from itertools import pairwise
from types import FrameType

from tests.contract.samples import random_bytes
from tests.service import TestService, listening

DATA = random_bytes(4096)


def test_a_small_download_takes_few_calls(service: TestService) -> None:
    """The usual one, of many on one connection. One that comes upon something that is due takes more."""
    uuid = service.ask("PUT", "/upload/x", DATA).text.strip()
    calls, at_request = 0, []

    def note(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        if event == "call" and threading.current_thread().name.startswith("worker"):
            calls += 1
            if frame.f_code.co_qualname == "Connection._next":
                at_request.append(calls)

    threading.setprofile(note)
    try:
        with listening(service.app, service.config) as (host, port):
            connection = http.client.HTTPConnection(host, port)
            for _ in range(20):
                connection.request("GET", f"/download/{uuid}")
                assert connection.getresponse().read() == DATA
            connection.close()
    finally:
        threading.setprofile(None)
    took = [after - before for before, after in pairwise(at_request)]
    assert took
    assert min(took) <= 110
