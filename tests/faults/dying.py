"""A part of distfs that kills itself with -9 at one exact step: ``python -m tests.faults.dying STEP MODULE ...``.

The step is the call of one method of the store, the uploader or MetaDB; it dies at the first such call after
the file ``die`` appears in its working folder. Everything else is the real process.
"""

from __future__ import annotations

import functools
import itertools
import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distfs.disk.store import DiskStore, DiskWriter
from distfs.meta import MetaDB
from distfs.node.client import NodeClient
from distfs.node.transfer import RemoteWriter
from distfs.slice_upload import SliceUpload
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.maker import FragmentMaker
from distfs.upload import Uploader

#: step -> (class, method, whether it dies before the method runs, which call)
STEPS: dict[str, tuple[type, str, bool, int]] = {
    "node-mid-slice": (DiskWriter, "receive_cell", False, 2),
    "node-before-rename": (DiskStore, "publish", True, 1),
    "node-after-rename": (DiskStore, "publish", False, 1),
    "service-headers-in": (Uploader, "begin", True, 1),
    "service-mid-slice": (SliceUpload, "write", False, 3),
    "service-before-commit": (MetaDB, "commit_files", True, 1),
    "service-after-commit": (MetaDB, "commit_files", False, 1),
    "upkeep-mid-slice": (RemoteWriter, "write_cell", False, 3),
    "upkeep-made": (FragmentMaker, "confirm", False, 2),
    "upkeep-switched": (UpkeepDB, "move_fragment", False, 2),
    "upkeep-put-aside": (NodeClient, "quarantine", False, 2),
    "upkeep-deleted": (NodeClient, "delete", False, 2),
    "upkeep-before-drop": (UpkeepDB, "drop_trash", True, 1),
    "upkeep-before-discard": (NodeClient, "discard", True, 1),
    "keeper-put-aside": (DiskStore, "quarantine", False, 1),
    "keeper-before-discard": (DiskStore, "discard", True, 1),
    "keeper-deleted": (DiskStore, "delete", False, 1),
}


def _arm(step: str) -> None:
    cls, name, before, which = STEPS[step]
    original: Callable[..., Any] = getattr(cls, name)
    numbers = itertools.count(1)  # calls may overlap: each has its own

    @functools.wraps(original)
    def dying(*args: Any, **kwargs: Any) -> Any:
        dies = Path("die").exists() and next(numbers) == which
        if before and dies:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(cls, name, dying)


if __name__ == "__main__":
    _arm(sys.argv[1])
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
