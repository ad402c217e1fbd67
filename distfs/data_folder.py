"""The folder of one ``distfs up``: whose it is at the moment, and which cluster's for good.

Two small files say who uses it: ``up.lock`` is held by the one ``up`` that may; ``parts.lock`` is held by it and
inherited by its children, so that an ``up`` that follows a killed one waits until the last of its children is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from uuid import UUID

from distfs.deadline import Deadline
from distfs.disk.home import read_identity
from distfs.errors import ConfigError
from distfs.meta import MetaDB
from distfs.supervisor import Stopped, say

METADB_VARIABLE = "DISTFS_METADB_URL"

_LEFTOVER_LIMIT_S = 40.0  # for the children of a killed `up` to be gone
_LOOK_EVERY_S = 0.1


@contextlib.contextmanager
def held(data: Path, stopping: threading.Event) -> Iterator[int]:
    """The folder for this ``up`` alone; -> the descriptor its children inherit. Raises ConfigError."""
    with contextlib.ExitStack() as stack:
        try:
            data.mkdir(parents=True, exist_ok=True)
            ours = stack.enter_context((data / "up.lock").open("a"))
            parts = stack.enter_context((data / "parts.lock").open("w"))
        except OSError as e:
            raise ConfigError(
                f"cannot write to the data folder {data}: {e.strerror}; choose another with --data"
            ) from e
        if not _locked(ours.fileno()):
            pid = (data / "up.lock").read_text().strip()
            how = f"stop it (kill {pid})" if pid.isdecimal() else "stop it"
            raise ConfigError(f"another `distfs up` uses {data}: {how}, or choose another folder with --data")
        with contextlib.suppress(OSError):  # of a full disk: it is only for who is told to stop this one
            os.truncate(ours.fileno(), 0)
            os.write(ours.fileno(), f"{os.getpid()}\n".encode())
        give_up = time.monotonic() + _LEFTOVER_LIMIT_S
        waiting = False
        while not _locked(parts.fileno()):
            if not waiting:
                say("waiting for what the last `distfs up` left running to stop")
            waiting = True
            if time.monotonic() > give_up:
                raise ConfigError(f"processes of an earlier `distfs up` still use {data}: stop them first")
            if stopping.wait(_LOOK_EVERY_S):
                raise Stopped
        yield parts.fileno()


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def cluster_in(data: Path) -> UUID | None:
    """The cluster that the storage nodes in a data folder are of; None: there are none yet."""
    for folder in sorted(data.glob("node*")):
        with contextlib.suppress(
            ConfigError
        ):  # what cannot be read says nothing; the node itself will say why
            known = read_identity(folder)
            if known is not None and known.cluster is not None:  # one that never ran has none
                return known.cluster
    return None


def check_may_join(data: Path, meta: MetaDB, deadline: Deadline) -> None:
    """For an ``up`` that was not told to join a cluster of elsewhere. Raises ConfigError when it would.

    A MetaDB without a cluster, or with one that never had a node, is nobody's yet: a new folder may have it.
    """
    ours, theirs = cluster_in(data), meta.known_cluster(deadline)
    if ours is not None:
        _check_same(data, ours, theirs and theirs.id, meta, "choose another folder with --data")
    elif theirs is not None and theirs.has_nodes and not meta.is_in(data):
        raise ConfigError(
            f"the MetaDB {meta.place} is of a cluster with storage nodes elsewhere, none in {data}: "
            f"{_remedy(os.environ)}, or join that cluster with --join"
        )


def check_is_meant(
    data: Path, meta: MetaDB, deadline: Deadline, *, url: str | None, config: str | None
) -> None:
    """For a command: raises ConfigError when the data folder here is another cluster's than MetaDB.

    Unless the command's own flags, ``url`` or ``config``, say which MetaDB is meant: the environment, and a file
    that lies about, say it to whoever comes by.
    """
    if url or (config and METADB_VARIABLE not in os.environ):
        return
    if (ours := cluster_in(data)) is not None and (theirs := meta.known_cluster(deadline)) is not None:
        _check_same(data, ours, theirs.id, meta, "say that you mean that MetaDB with --metadb")


def _check_same(data: Path, ours: UUID, theirs: UUID | None, meta: MetaDB, otherwise: str) -> None:
    if ours == theirs:
        return
    whose = f"is of cluster {theirs}" if theirs else "is empty"
    raise ConfigError(
        f"the storage nodes in {data} are of cluster {ours}, and the MetaDB {meta.place} {whose}: "
        f"{_remedy(os.environ)}, or {otherwise}"
    )


def _remedy(environ: Mapping[str, str]) -> str:
    return f"unset {METADB_VARIABLE}" if METADB_VARIABLE in environ else "correct metadb.url"
