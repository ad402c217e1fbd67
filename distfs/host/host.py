"""What all connections of a host share: settings, memory, an app's word on what it has not seen, and who has them."""

from __future__ import annotations

import os
import queue
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from distfs.config.settings import HttpConfig
from distfs.deadline import Scope
from distfs.errors import Busy, DistfsError
from distfs.host.request_body import Memory, PutAside

#: A client that still sends when its answer is complete is read for so long before the close: closing with unread
#: bytes would reset the connection, and take the answer from it.
LINGER_SECONDS = 5.0

#: So many requests go to MetaDB and nodes at once; the others of a burst wait for their turn, so long at most, before
#: time limits begin. Who waits for his client has no turn, so that slow clients keep none.
TURNS, TURN_LIMIT_S = 64, 60.0
#: How long a request may wait for a worker before it is told to come again.
WAIT_LIMIT_S = 20.0
_TURN_LOOK_S = 1.0  # how often it is looked whether who waits for his turn still does

#: An app's word against a body before any of it came: from whom, its headers by name, bytes (0: not said).
CheckBody = Callable[[str, Callable[[str], str | None], int], None]
#: An app's word on a large body: to be entered at its head, which may raise, and left at its answer.
AdmitBody = Callable[[str, Callable[[str], str | None], int], AbstractContextManager[None]]
#: An app's word for the access log on whom a request is from: address, its headers by name -> facts.
Who = Callable[[str, Callable[[str], str | None]], dict[str, str]]


class Host(ABC):
    """A connection knows it as this, and asks it for the next step."""

    def __init__(self, app: Any, http: HttpConfig, port: int, memory: Memory, put_aside: PutAside) -> None:
        self.app, self.http, self.memory, self.put_aside = app, http, memory, put_aside
        self.name, self.port = http.host or "localhost", str(port)
        self.closing = self.draining = False
        self.answers_at_once: Callable[[str], bool] = getattr(app, "answers_at_once", lambda path: False)
        self.answers_while_draining: Callable[[str], bool] = getattr(
            app, "answers_while_draining", lambda path: False
        )
        self.check_body: CheckBody = getattr(app, "check_body", lambda address, header, size: None)
        self.admit_body: AdmitBody = getattr(app, "admit_body", lambda address, header, size: nullcontext())
        self.connected: Callable[[str], None] = getattr(app, "connected", lambda address: None)
        self.disconnected: Callable[[str], None] = getattr(app, "disconnected", lambda address: None)
        self.who: Who = getattr(app, "who", lambda address, header: {"client": address or "-"})
        self.paces_bodies: Callable[[], bool] = getattr(app, "paces_bodies", lambda: False)
        self._turns: queue.SimpleQueue[None] = (
            queue.SimpleQueue()
        )  # those nobody has; a semaphore takes ten times as long
        for _ in range(TURNS):
            self._turns.put(None)
        self.shortest = min(LINGER_SECONDS, http.client_stall_timeout, http.idle_timeout)
        self.cut, self._cutter = os.pipe()  # readable once nobody is to wait for a client any more

    def take_turn(self, hang_up: Scope | None) -> DistfsError | None:
        """Wait for one of TURNS, until ``end_turn``; -> why there is none."""
        give_up = time.monotonic() + TURN_LIMIT_S
        while True:
            try:
                return self._turns.get(timeout=_TURN_LOOK_S)
            except queue.Empty:
                if hang_up is not None and isinstance(hang_up.reason, DistfsError):
                    return hang_up.reason
                if time.monotonic() >= give_up:
                    return Busy("too many requests at once: try again soon")

    def end_turn(self) -> None:
        self._turns.put(None)

    def end_waits(self) -> None:
        """Nobody waits for a client from now on."""
        os.close(self._cutter)

    @property
    def service_stops(self) -> bool:
        """Whether all of the service stops, not only this process of several."""
        return self.draining

    @property
    @abstractmethod
    def others_wait(self) -> bool:
        """Whether a request waits for a worker."""

    @abstractmethod
    def arm(self, connection: Any) -> None:
        """The loop has it: tell when something comes, or when the socket takes what is unsent. From any thread."""

    @abstractmethod
    def close(self, connection: Any) -> None:
        """Now. In the loop's thread."""

    @abstractmethod
    def close_soon(self, connection: Any) -> None:
        """From any thread."""

    @abstractmethod
    def serve(self, connection: Any) -> None:
        """A request is ready on it: a worker has it from now on, or gets it when one is free. From any thread."""
