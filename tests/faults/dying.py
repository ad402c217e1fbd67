"""A part of distfs that kills itself with -9 at one exact step: ``python -m tests.faults.dying NAME MODULE ...``.

The step is the call of one method of the store, the uploader or MetaDB; ``die_at`` says which, and the process
called so dies at the first such call from then on. Everything else is the real process.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faults.ledger import FaultMetNobody

#: What runs the processes of a cluster, for ``Cluster``.
MODULE = "tests.faults.dying"

#: step -> (class, method, whether it dies before the method runs, which call). Of nodes: node-, keeper-.
STEPS: dict[str, tuple[str, str, bool, int]] = {
    "node-mid-slice": ("distfs.storage.disk.store:DiskWriter", "receive_cell", False, 2),
    "node-before-rename": ("distfs.storage.disk.store:DiskStore", "publish", True, 1),
    "node-after-rename": ("distfs.storage.disk.store:DiskStore", "publish", False, 1),
    "service-headers-in": ("distfs.transfer.upload:Uploader", "begin", True, 1),
    "service-mid-slice": ("distfs.transfer.slice_upload:SliceUpload", "write", False, 3),
    "service-before-commit": ("distfs.meta:MetaDB", "commit_files", True, 1),
    "service-after-commit": ("distfs.meta:MetaDB", "commit_files", False, 1),
    "upkeep-mid-slice": ("distfs.peers.remote_fragment:RemoteWriter", "write_cell", False, 3),
    "upkeep-made": ("distfs.upkeep.maker:FragmentMaker", "confirm", False, 2),
    "upkeep-switched": ("distfs.upkeep.db:UpkeepDB", "move_fragment", False, 2),
    "upkeep-put-aside": ("distfs.peers.client:NodeClient", "quarantine", False, 2),
    "upkeep-before-drop": ("distfs.upkeep.db:UpkeepDB", "drop_trash", True, 1),
    "upkeep-before-discard": ("distfs.peers.client:NodeClient", "discard", True, 1),
    "keeper-put-aside": ("distfs.storage.disk.store:DiskStore", "quarantine", False, 1),
    "keeper-before-discard": ("distfs.storage.disk.store:DiskStore", "discard", True, 1),
}


def of_node(step: str) -> bool:
    """Whether it is a storage node that comes to the step."""
    return step.startswith(("node", "keeper"))


@contextmanager
def die_at(step: str, folder: Path, name: str) -> Iterator[None]:
    """In the body the process called ``name`` dies when it comes to the step. Raises FaultMetNobody if not."""
    mark, fresh, died = (folder / f"{name}.{suffix}" for suffix in ("die", "die.new", "died"))
    died.unlink(missing_ok=True)
    fresh.write_text(step)
    fresh.replace(mark)
    try:
        yield
    finally:
        mark.unlink()
    if not died.exists():
        raise FaultMetNobody(f"{name} never came to {step}")


def _arm(step: str, mark: Path) -> None:
    place, name, before, which = STEPS[step]
    module, _, of = place.partition(":")
    cls = getattr(importlib.import_module(module), of)
    original: Callable[..., Any] = getattr(cls, name)
    numbers = itertools.count(1)  # calls may overlap: each has its own

    def die() -> None:
        mark.with_suffix(".died").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(original)
    def dying(*args: Any, **kwargs: Any) -> Any:
        dies = mark.exists() and mark.read_text() == step and next(numbers) == which
        if before and dies:
            die()
        result = original(*args, **kwargs)
        if dies:
            die()
        return result

    setattr(cls, name, dying)


if __name__ == "__main__":
    mark, is_node = Path(f"{sys.argv[1]}.die"), sys.argv[2] == "distfs.storage_server"
    for each in STEPS:
        if of_node(each) == is_node:
            _arm(each, mark)
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
