"""How a connection ends."""

from __future__ import annotations

import enum
import struct

#: With this, closing a socket resets the connection: nobody takes it for the end of an answer.
RESET = struct.pack("ii", 1, 0)


class Ending(enum.Enum):
    LINGER = enum.auto()  # no more is sent; what comes is thrown away, within bounds
    CUT = enum.auto()  # at once
    CLOSE = enum.auto()  # the client has closed it, and nothing is under way
