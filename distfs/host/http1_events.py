"""The states of the parser of HTTP/1 requests, what it reads, and the events that come out of it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from distfs.errors import DistfsError
from distfs.host.head import Head


class State(enum.Enum):
    """What comes next."""

    __hash__ = object.__hash__  # Enum's own is a function in Python, and looked up for each event

    IDLE = "a request, or empty lines"
    HEAD = "the rest of a head"
    LENGTH = "data of a body whose length is known"
    SIZE = "a chunk's size"
    DATA = "a chunk's data"
    DATA_END = "the line end behind a chunk's data"
    TRAILER = "a trailer, or the empty line behind them"
    COMPLETE = "nothing: the end of the request is still to be told"
    DONE = "nothing, until next_request"
    LAST = "nothing: the connection ends after this request"
    FAILED = "nothing: what came is no request, and what follows is not to be trusted"


class Read(enum.Enum):
    """What was read, that another state follows."""

    __hash__ = object.__hash__

    FIRST_BYTE = enum.auto()
    HEAD_ALONE = enum.auto()
    HEAD_WITH_LENGTH = enum.auto()
    HEAD_WITH_CHUNKS = enum.auto()
    SIZE = enum.auto()
    LAST_SIZE = enum.auto()
    ALL_DATA = enum.auto()
    LINE_END = enum.auto()
    END = enum.auto()
    LAST_END = enum.auto()
    NEXT = enum.auto()


#: All there are; besides, FAILED follows whichever has a reader.
TRANSITIONS: Mapping[State, Mapping[Read, State]] = {
    State.IDLE: {Read.FIRST_BYTE: State.HEAD},
    State.HEAD: {
        Read.HEAD_ALONE: State.COMPLETE,
        Read.HEAD_WITH_LENGTH: State.LENGTH,
        Read.HEAD_WITH_CHUNKS: State.SIZE,
    },
    State.LENGTH: {Read.ALL_DATA: State.COMPLETE},
    State.SIZE: {Read.SIZE: State.DATA, Read.LAST_SIZE: State.TRAILER},
    State.DATA: {Read.ALL_DATA: State.DATA_END},
    State.DATA_END: {Read.LINE_END: State.SIZE},
    State.TRAILER: {Read.LINE_END: State.COMPLETE},
    State.COMPLETE: {Read.END: State.DONE, Read.LAST_END: State.LAST},
    State.DONE: {Read.NEXT: State.IDLE},
    State.LAST: {},
    State.FAILED: {},
}


class Pause(enum.Enum):
    """No event."""

    NEED_DATA = enum.auto()  # until more was received
    DONE = enum.auto()  # until next_request, or for good


@dataclass(frozen=True, slots=True)
class End:
    """The request is whole. ``trailers``: by names in small letters; several of a name are one, with commas."""

    trailers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Failed:
    """It is refused: ``error`` has status and text; ``head`` what was read of it. Each later event is this one."""

    error: DistfsError
    head: Head


@dataclass(frozen=True, slots=True)
class OtherProtocol:
    """What comes is ``name``, and no HTTP: an answer would say nothing to who sent it. As final as Failed."""

    name: str


Event = Head | memoryview | End | Failed | OtherProtocol | Pause
