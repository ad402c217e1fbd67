"""The folder of one ``distfs up``: whose it is at the moment, and which cluster's for good.

Two small files say who uses it: ``up.lock`` is held by the one ``up`` that may; ``parts.lock`` is held by it and
inherited by its children, so that an ``up`` that follows a killed one waits until the last of its children is gone.
The first is a lock of fcntl(2), of which the kernel tells whose it is: no file says so that could be of yesterday.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shlex
import signal
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

from distfs.deadline import Deadline
from distfs.errors import ConfigError, Refused
from distfs.local.supervisor import Stopped, say
from distfs.meta import MetaDB
from distfs.process.private import make_folder, open_to_others
from distfs.storage.disk.home import read_identity

METADB_VARIABLE = "DISTFS_METADB_URL"

_LEFTOVER_LIMIT_S = 40.0  # for the children of a killed `up` to be gone
_LOOK_EVERY_S = 0.1


@contextlib.contextmanager
def held(data: Path, stopping: threading.Event) -> Iterator[int]:
    """The folder for this ``up`` alone; -> the descriptor its children inherit. Raises ConfigError."""
    with contextlib.ExitStack() as stack:
        try:
            make_folder(data)
            ours = stack.enter_context((data / "up.lock").open("ab"))
            parts = stack.enter_context((data / "parts.lock").open("ab"))
        except OSError as e:
            raise ConfigError(
                f"cannot write to the data folder {data}: {e.strerror}; choose another with --data"
            ) from e
        if warning := open_to_others(data):
            say(warning)
        if not _ours(ours.fileno()):
            raise ConfigError(
                f"another `distfs up` {_named(_holder(ours.fileno()))} uses {data}: stop it with "
                f"`distfs down --data {shlex.quote(str(data))}`, or choose another folder with --data"
            )
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


def end(data: Path, seconds: float) -> int | None:
    """Stop the ``up`` that uses the folder, and wait until it and the last of its children are gone.

    -> which process it was; None: there was none. ``seconds``: how long it may take. Raises ConfigError for a
    folder that never was an ``up``'s, Refused when it cannot be stopped.
    """
    with contextlib.ExitStack() as stack:
        try:
            ours = stack.enter_context((data / "up.lock").open("rb"))
            parts = stack.enter_context((data / "parts.lock").open("rb"))
        except OSError as e:
            raise ConfigError(
                f"{data} is no data folder of a `distfs up` that could be stopped: {e.strerror}; "
                "name the right one with --data"
            ) from e
        pid = _holder(ours.fileno())
        if pid is not None:
            _stop(pid, ours.fileno(), seconds)
        give_up = time.monotonic() + _LEFTOVER_LIMIT_S
        while not _locked(parts.fileno()):
            if time.monotonic() > give_up:
                raise Refused(f"parts of a `distfs up` that was killed still use {data}: stop them by hand")
            time.sleep(_LOOK_EVERY_S)
    return pid


def _stop(pid: int, lock: int, seconds: float) -> None:
    """SIGTERM to the process that holds ``lock``, and to no other that gets its number. Raises Refused."""
    if pid <= 0:
        raise Refused("the `distfs up` there runs in another container or on another machine: stop it there")
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if _holder(lock) != pid:
            return
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], seconds)[0]:
            raise Refused(
                f"`distfs up` {_named(pid)} was told to stop and did not within {seconds:.0f} s: "
                f"`kill -KILL {pid}` ends it, and its parts with it"
            )
    except ProcessLookupError:
        return
    except PermissionError as e:
        raise Refused(f"`distfs up` {_named(pid)} is another user's: stop it as that user, or root") from e
    finally:
        os.close(process)


def _named(pid: int | None) -> str:
    return f"(process {pid})" if pid and pid > 0 else "(elsewhere)"


_FLOCK = "hhqqi4x"  # struct flock of fcntl(2): type, whence, start, length, pid


def _holder(descriptor: int) -> int | None:
    """Whose the lock of ``_ours`` is; not more than 0: of one who is not seen from here; None: nobody's."""
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else int(pid)


def _ours(descriptor: int) -> bool:
    """This process has it now, and none of its children."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


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
            f"{_remedy()}, or join that cluster with --join"
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
    lost = (
        ""
        if theirs
        else "; one that was lost comes back from your backup, or by `distfs metadb restore --from-nodes`, "
        "and if there is no copy by `distfs metadb rebuild --from-nodes`"
    )
    raise ConfigError(
        f"the storage nodes in {data} are of cluster {ours}, and the MetaDB {meta.place} {whose}: "
        f"{_remedy()}, or {otherwise}{lost}"
    )


def _remedy() -> str:
    return f"unset {METADB_VARIABLE}" if METADB_VARIABLE in os.environ else "correct metadb.url"
