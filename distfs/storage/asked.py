"""What a request in JSON may say, and to whom: what cannot be is refused."""

from __future__ import annotations

from typing import Any

from distfs.errors import ProtocolError

MAX_AGE_S = 1e10  # of a fragment, in a request


def count(header: dict[str, Any], key: str) -> int:
    value = header.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ProtocolError(f"the request's {key} is not a count: {value!r}")
    return value


def seconds(header: dict[str, Any], key: str) -> float:
    value = header.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < MAX_AGE_S:
        raise ProtocolError(f"the request's {key} is not a time in seconds: {value!r}")
    return float(value)


def stranger() -> ProtocolError:
    return ProtocolError(
        "this node is of another cluster than the request: is the service's MetaDB that of its nodes?"
    )


def astray() -> ProtocolError:
    return ProtocolError("the request is for another node than this one: has a port changed hands?")
