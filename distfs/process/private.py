"""What a process makes is its own account's: files 0600, folders 0700, whatever the umask it was started with."""

from __future__ import annotations

import contextlib
import os
import shlex
from pathlib import Path

_OPEN = 0o066  # others may list it, or write to it; to pass through, to what is closed itself, is nothing


def keep_private() -> None:
    """From now on, and in every process that this one starts."""
    os.umask(0o077)


def make_folder(folder: Path) -> None:
    """With those above it. One made by root may be passed through: PostgreSQL, which refuses to be root, has its own
    folder below. Raises OSError."""
    with contextlib.suppress(FileExistsError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700)
        if os.geteuid() == 0:
            folder.chmod(0o711)
        return
    folder.mkdir(exist_ok=True)  # raises for what is no folder


def open_to_others(folder: Path) -> str:
    """That it is, on one line; empty: it is not, or cannot be told."""
    with contextlib.suppress(OSError):
        if folder.stat().st_mode & _OPEN:
            return f"data folder {folder} is open to others on this machine: chmod go-rw {shlex.quote(str(folder))}"
    return ""
