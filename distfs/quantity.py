"""Quantities as people read them, in messages and tables."""

from __future__ import annotations


def size(count: float) -> str:
    """``1536`` -> ``1.5 KiB``."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while abs(count) >= 1024 and len(units) > 1:
        count /= 1024
        units.pop(0)
    if units[0] == "bytes":
        return f"{count:.0f} byte{'' if round(count) == 1 else 's'}"
    return f"{count:.1f} {units[0]}"


def exactly(seconds: float) -> str:
    """A time as it is configured, to the second: ``604800`` -> ``7d``; ``90`` -> ``90s``."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds and seconds % unit == 0:
            return f"{seconds / unit:.0f}{name}"
    return f"{seconds:.10g}s"


def counted(count: int, noun: str) -> str:
    """``1, "slice"`` -> ``1 slice``; ``1200, "slice"`` -> ``1,200 slices``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def compared(*counts: int) -> tuple[str, ...]:
    """Sizes that are told beside each other: as ``size``, or to the byte where different ones would read the same."""
    short = tuple(map(size, counts))
    if len(set(short)) == len(set(counts)):
        return short
    return tuple(counted(count, "byte") for count in counts)
