"""The cluster's keys as a node keeps them in its folder, so that it can start while MetaDB is away."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from pathlib import Path

from distfs.formats.hello import MOST_KEYS, Key
from distfs.storage.disk.home import NO_WRITES, write_durably

log = logging.getLogger("distfs.disk")

NAME = "cluster.key"
_MOST_BYTES = 1024


class NodeKeys:
    """Of a folder that is locked. ``known``: the newest first; empty: MetaDB has to be asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.known = _read(folder / NAME)

    def keep(self, keys: tuple[Key, ...]) -> None:
        """These hold from now on. On a disk that takes no writes they hold until the node ends. Raises OSError."""
        if not keys or keys == self.known:
            return
        self.known = keys
        try:
            write_durably(self._folder, NAME, "".join(f"{key.secret.hex()}\n" for key in keys), 0o600)
        except OSError as e:
            if e.errno not in NO_WRITES:
                raise


def _read(path: Path) -> tuple[Key, ...]:
    """Nothing of a damaged file: MetaDB has what it held."""
    try:
        with open(path, encoding="ascii") as file:
            _shut(path, os.fstat(file.fileno()))
            keys = tuple(Key(bytes.fromhex(line)) for line in file.read(_MOST_BYTES).split("\n")[:-1])
            if not 1 <= len(keys) <= MOST_KEYS:
                raise ValueError
            return keys
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is damaged"
        log.warning("%s cannot be used: %s; MetaDB is asked for the cluster's keys", path, why)
        return ()


def _shut(path: Path, status: os.stat_result) -> None:
    """What others may have read is no secret."""
    if stat.S_IMODE(status.st_mode) & 0o077:
        log.warning(
            "%s was open to others, and is not any more: if somebody may have read it, `distfs cluster-key rotate`",
            path,
        )
        with contextlib.suppress(OSError):
            path.chmod(0o600)
