"""What all connections of a host share: settings, memory, an app's word on what it has not seen, and who has them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from distfs.config.settings import HttpConfig
from distfs.host.request_body import Memory, PutAside
from distfs.host.workers import Workers

#: A client that still sends when its answer is complete is read for so long before the close: closing with unread
#: bytes would reset the connection, and take the answer from it.
LINGER_SECONDS = 5.0

#: How long a request may wait for a thread, or only for its turn, before it is told to come again.
WAIT_LIMIT_S, TURN_LIMIT_S = 20.0, 60.0

#: How long nothing is read of a connection the first time that the app wants it so, and at most.
REST_FIRST_S, REST_MOST_S = 1.0, 8.0

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
        self.scheme = "http"
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
        self.workers: Workers[Any] = Workers(http.threads)
        self.shortest = min(LINGER_SECONDS, http.client_stall_timeout, http.idle_timeout)
        self.cut, self._cutter = os.pipe()  # readable once nobody is to wait for a client any more

    def end_waits(self) -> None:
        """Nobody waits for a client from now on."""
        os.close(self._cutter)

    @property
    def service_stops(self) -> bool:
        """Whether all of the service stops, not only this process of several."""
        return self.draining

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
    def serve(self, connection: Any, *, in_line: bool = False) -> None:
        """A request is ready on it: a worker has it from now on, or gets it when it is its turn. From any thread.

        ``in_line``: whatever it is, it waits as others do.
        """
