"""``distfs serve`` whose deadlines look at no clock: what deadlines are compared with.

``python -m bench.unbounded serve --port 0``. The limits that the kernel keeps for a socket stay.
"""

from __future__ import annotations

import sys

from distfs import cli
from distfs.deadline import Deadline
from distfs.peers.link import WaitBudget

_AGES = 3600.0  # seconds left, whenever it is asked


def main() -> int:
    for name, unlimited in {
        "remaining": lambda self, phase="": _AGES,
        "bound": lambda self, seconds, phase="": min(seconds, _AGES),
        "sooner": lambda self, seconds: self,
    }.items():
        setattr(Deadline, name, unlimited)
    for name, unlimited in {
        "spend": lambda self, seconds: None,
        "waiting": lambda self, size: self,
        "__enter__": lambda self: self,
        "__exit__": lambda self, *exc: None,
        "remaining": lambda self, phase: _AGES,
    }.items():
        setattr(WaitBudget, name, unlimited)
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
