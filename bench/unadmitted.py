"""``distfs serve`` that lets every upload in and promises nothing: what admission is compared with.

``python -m bench.unadmitted serve --port 0``
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from distfs import cli
from distfs.body.source import Source
from distfs.deadline import Deadline
from distfs.limits.promises import Admission, Promise
from distfs.model import Policy


class _LetIn(Promise):
    """Covers everything, watches nothing."""

    def cover(self, size: int) -> None:
        pass

    def use(self, policy: Policy) -> None:
        pass

    def watch(self, source: Source) -> Source:
        return source


def _admit(
    self: Admission,
    size: int | None,
    policy: Policy,
    deadline: Deadline,
    *,
    declared: bool = True,
    largest: int = 0,
    whose: str = "",
) -> Promise:
    return _LetIn(self, policy, size, deadline, whose, strict=not declared)


def main() -> int:
    wanted: Callable[..., Promise] = _admit
    Admission.admit = wanted  # type: ignore[method-assign]
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
