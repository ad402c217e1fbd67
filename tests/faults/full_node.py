"""A storage node whose disk fills up under its writes, whatever it told before: ``python -m tests.faults.full_node``.

From when the file ``full`` appears in its working folder on, every write fails with ENOSPC. Everything else is
the real process; its heartbeats still tell of all the room there was, as those of a moment ago would.
"""

from __future__ import annotations

import errno
import os
import runpy
from pathlib import Path

from distfs.storage.disk import writer as disk_writer


def _fill_up() -> None:
    write_all = disk_writer._write_all

    def write(fd: int, view: memoryview | bytes) -> None:
        if Path("full").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_all(fd, view)

    disk_writer._write_all = write


if __name__ == "__main__":
    _fill_up()
    runpy.run_module("distfs.storage_server", run_name="__main__", alter_sys=True)
