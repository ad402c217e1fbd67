"""Whose folder it is: a node's is made on purpose, remembers the file system it lies on, and is used nowhere else.

A disk that is not mounted leaves its mount point behind, on the disk above it. Whatever is found there, nothing or
what was once made there by mistake, is not this node's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from uuid import UUID, uuid4

from distfs.errors import ConfigError, NotHome
from distfs.storage.disk.tree import fsync_folder, make_folder

_FORMAT = 1
_SECRET, _SECRET_BYTES = "secret", 32
IDENTITY = "node.json"
#: What a folder may hold before it is made a node's: a file system's own, and what is left of an earlier try.
_NOTHING = {"lost+found", "lock", "tmp"}
_GET_UUID = 0x80111500  # FS_IOC_GETFSUUID: one byte of length, 16 of UUID; Linux 6.9 and later
_BY_UUID = Path("/dev/disk/by-uuid")


class Place(NamedTuple):
    """Where a folder lies. Device numbers are no part of it: they change from one start of a machine to the next."""

    filesystem: str  # its UUID; empty: it cannot be told
    below: str  # the folder's path below where the file system is mounted; '.' for just there


class Identity(NamedTuple):
    """Whose folder it is."""

    node: UUID
    cluster: UUID | None  # None until its first start
    place: Place | None  # None: made by a release that did not look


def read_identity(folder: Path) -> Identity | None:
    """What a node's folder says it is; None when it is none. Raises ConfigError when it cannot be told."""
    path = folder / IDENTITY
    try:
        known = json.loads(path.read_text())
        node, version, of = UUID(known["node"]), known["format"], known["cluster"]
        cluster = None if of is None else UUID(of)
        place = Place(str(known["filesystem"]), str(known["below"])) if "below" in known else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ConfigError(
            f"{path} is damaged: restore it; or, if it is lost, move {folder} away, and make a new node's with "
            f"`distfs node init --data {quoted(folder)}`"
        ) from e
    if version != _FORMAT:
        raise ConfigError(f"{path}: folder format {version}, this distfs reads {_FORMAT}")
    return Identity(node, cluster, place)


def quoted(folder: Path) -> str:
    """A folder in a command, as a shell takes it."""
    return shlex.quote(str(folder))


def require_identity(folder: Path) -> Identity:
    """What a node's folder says it is. Raises NotHome, ConfigError."""
    known = read_identity(folder)
    if known is None:
        raise NotHome(
            f"data folder {folder} is no storage node's: is its disk mounted? Only if it is to be a new node's, "
            f"run `distfs node init --data {quoted(folder)}`"
        )
    return known


def make_home(folder: Path) -> Identity:
    """Make a missing or empty folder a new node's; one that is a node's already belongs where it is from now on.

    The only place that makes one, and only when an operator has said so. Raises ConfigError.
    """
    with writable(folder):
        if read_identity(folder) is None:
            _require_empty(folder)  # nothing of ours is left in a folder that is somebody else's
        make_folder(folder / "tmp")
        fd = lock(folder)
        try:
            known = read_identity(folder)
            if known is None:
                _require_empty(folder)
                known = Identity(uuid4(), None, None)
            home = known._replace(place=place_of(folder))
            _write(folder, home)
            return home
        finally:
            os.close(fd)


def _require_empty(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if foreign := sorted(set(os.listdir(folder)) - _NOTHING):
            raise ConfigError(
                f"data folder {folder} is not empty, it holds {foreign[0]!r}: name an empty one with --data"
            )


def enter(folder: Path, cluster: UUID) -> UUID:
    """Check that a locked folder is a node's, of ``cluster``, and where it belongs; -> the node.

    What was not known of it before is remembered. Raises NotHome, ConfigError.
    """
    known = require_identity(folder)
    if known.cluster not in (None, cluster):
        raise ConfigError(
            f"data folder {folder} belongs to cluster {known.cluster}, not to {cluster}: "
            "name another with --data, or another MetaDB with --metadb"
        )
    here = place_of(folder)
    if why := elsewhere(folder, known, here):
        raise NotHome(why)
    if known.place is not None and not here.filesystem:
        here = here._replace(filesystem=known.place.filesystem)
    if known != (home := Identity(known.node, cluster, here)):
        try:
            _write(folder, home)
        except OSError:  # a disk that takes no writes is no reason not to serve what is on it
            if known.cluster is None:
                raise
    return known.node


#: A disk that takes no writes now: what is on it is served all the same, and deletes make room.
NO_WRITES = (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO)


def secret(folder: Path) -> bytes | None:
    """What only this node knows, made when there is none; None: there is none, and the disk takes no writes.

    Raises ConfigError, OSError.
    """
    path = folder / _SECRET
    with contextlib.suppress(FileNotFoundError):
        try:
            known = bytes.fromhex(path.read_text("ascii"))
        except ValueError:
            known = b""
        if len(known) != _SECRET_BYTES:
            raise ConfigError(
                f"{path} is damaged: restore it, or remove it and run `distfs trust` with the node's id or address"
            )
        return known
    fresh = secrets.token_bytes(_SECRET_BYTES)
    try:
        write_durably(folder, _SECRET, fresh.hex() + "\n", 0o600)
    except OSError as e:
        if e.errno in NO_WRITES:
            return None
        raise
    return fresh


def elsewhere(folder: Path, known: Identity, here: Place | None = None) -> str:
    """Why a node's folder does not lie where it belongs, in words; empty: it does, as far as can be told."""
    then, here = known.place, here or place_of(folder)
    if then is None:
        return ""
    if then.filesystem and here.filesystem:
        moved = then.filesystem != here.filesystem
    else:
        moved = then.below != here.below and (then.below == "." or here.below.endswith(f"/{then.below}"))
    if not moved:
        return ""
    return (
        f"data folder {folder} is not on the file system it was made on: is its disk mounted? Only if it was moved "
        f"on purpose, run `distfs node init --data {quoted(folder)}`"
    )


def place_of(folder: Path) -> Place:
    """Where a folder lies. Raises OSError."""
    folder = folder.resolve()
    device = folder.stat().st_dev
    top = folder
    while top != top.parent and top.parent.stat().st_dev == device:
        top = top.parent
    return Place(_filesystem(folder, device), str(folder.relative_to(top)))


def _filesystem(folder: Path, device: int) -> str:
    """The UUID of a file system, as the kernel or udev tells it; empty when neither does."""
    answer = bytearray(17)
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _GET_UUID, answer)
        finally:
            os.close(fd)
    if answer[0] == 16:
        return answer[1:].hex() if any(answer[1:]) else ""
    with contextlib.suppress(OSError, ValueError):
        for name in os.listdir(_BY_UUID):
            if (_BY_UUID / name).stat().st_rdev == device:
                return UUID(name).hex
    return ""


@contextlib.contextmanager
def writable(folder: Path) -> Iterator[None]:
    """The one place where what a data folder refuses becomes words for an operator."""
    try:
        yield
    except OSError as e:
        raise ConfigError(f"data folder {folder}: {e.strerror}; name a writable one with --data") from e


def lock(folder: Path) -> int:
    """-> the descriptor that keeps every other process off the folder. Raises ConfigError, OSError."""
    fd = os.open(folder / "lock", os.O_CREAT | os.O_RDONLY, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise ConfigError(
            f"data folder {folder} is in use by another storage node: stop that one, or name another with --data"
        ) from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _write(folder: Path, home: Identity) -> None:
    """Durably, whole or not at all."""
    place = home.place._asdict() if home.place else {}
    cluster = str(home.cluster) if home.cluster else None
    text = json.dumps({"node": str(home.node), "cluster": cluster, "format": _FORMAT, **place}) + "\n"
    write_durably(folder, IDENTITY, text, 0o644)


def write_durably(folder: Path, name: str, text: str, mode: int) -> None:
    """A file of a node's folder, whole or not at all. Raises OSError."""
    fresh = folder / "tmp" / name
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    fresh.rename(folder / name)
    fsync_folder(folder)
