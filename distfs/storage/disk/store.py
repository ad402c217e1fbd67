"""Fragments on one disk: ``DATA/data/ab/cd/<slice-uuid>.<index>``, written so that an acknowledged one stays.

Durable write: temp file in the same file system, every cell's checksum verified as it arrives, length check,
fsync, rename, fsync of the folder, only then the acknowledgement (restic's local backend does the same). All but
small fragments are written in aligned buffers with O_DIRECT, big ones by a thread of their own (``disk.writer``).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import ParamSpec, TypeVar
from uuid import UUID, getnode

import xxhash

from distfs.config.settings import NodeConfig
from distfs.deadline import Deadline
from distfs.errors import ConfigError, Corrupt, DistfsError, Full, NodeUnavailable, NotFound
from distfs.formats.features import PLAIN, Extra
from distfs.formats.fragment import (
    ENTRY_SIZE,
    MAX_CELLS,
    MAX_FOOTER,
    MAX_HEADER,
    CellEntry,
    FragmentHeader,
    FragmentTable,
    Outline,
    checksum,
    pack_footer,
    pack_whole,
)
from distfs.fragment_store import (
    Page,
    StoreInfo,
    check_cell,
    check_counts,
    check_length,
    go_on,
)
from distfs.metadb.ballast import shares_disk
from distfs.model import Buffer, FragmentId
from distfs.storage.disk import home
from distfs.storage.disk.health import DiskHealth
from distfs.storage.disk.keys import NodeKeys
from distfs.storage.disk.reader import DiskReader, check_changeable, passes
from distfs.storage.disk.space import Space, space
from distfs.storage.disk.tree import FragmentTree, Translated, make_folder, page_of_both
from distfs.storage.disk.writer import BufferPool, Sink, append, give_up, open_sink, remove, write_new
from distfs.telemetry import tracing

log = logging.getLogger("distfs.disk")

_PROBE = 4096  # bytes
#: For so long a look at a disk's room is believed, and only while it has more than this: others write there, too.
_SPARE_S, _SCARCE, _SCARCE_FILES = 0.25, 1 << 30, 1 << 16

P = ParamSpec("P")
T = TypeVar("T")


@cache
def _machine() -> str:
    """Names the running system, and no other: of Linux what all its containers share."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return f"{getnode():012x}"


class DiskStore:
    """A FragmentStore over one folder, which it locks: a second process on it is refused."""

    def __init__(
        self, folder: str | Path, cluster: UUID, config: NodeConfig, metadb: Path | None = None
    ) -> None:
        """``metadb``: the folder of a MetaDB on this machine, which is left room on the same disk."""
        self.folder = Path(folder)
        self.cluster = cluster
        self._config, self._metadb = config, metadb
        self._spare, self._spare_until = 0, 0.0  # see _look_for_room
        self._shared: bool | None = None  # whether MetaDB is on the same disk; None: to be looked at
        self._root = str(folder)
        self._temp = self.folder / "tmp"
        self._temp_root = str(self._temp)
        self._identity = str(self.folder / home.IDENTITY)
        self._serial = itertools.count()
        renaming = threading.Lock()
        self._files = FragmentTree(self.folder / "data", renaming)
        self._aside = FragmentTree(self.folder / "quarantine", renaming)
        self._second = FragmentTree(
            self.folder / "quarantine2", renaming
        )  # aside, too; with one there or not
        self._buffers = BufferPool(config.write_buffer)
        self.health = DiskHealth(config.slow_write)
        home.require_identity(self.folder)  # nothing is made in a folder that is not a node's
        with contextlib.ExitStack() as undo, home.writable(self.folder):
            make_folder(self._temp)
            self._lock = home.lock(self.folder)
            undo.callback(os.close, self._lock)
            self.node = home.enter(self.folder, cluster)
            self.secret = home.secret(self.folder)
            self.keys = NodeKeys(self.folder)
            self._known: tuple[int, int] | None = None  # the file that said so last
            for left in self._temp.iterdir():
                left.unlink()
            undo.pop_all()

    def close(self) -> None:
        os.close(self._lock)

    @property
    def away(self) -> str:
        """Why the folder is not this node's any more, in words; empty: it is.

        A disk that is unmounted leaves an empty folder behind, on the disk below: what is not found there is
        not missing, and nothing must be written there. An identity that cannot be read says neither.
        """
        try:
            stat = os.stat(self._identity)  # noqa: PTH116 - a Path takes as long as the call
            if (stat.st_dev, stat.st_ino) == self._known:
                return ""
            known = home.read_identity(self.folder)
            moved = known is not None and home.elsewhere(self.folder, known)
        except (FileNotFoundError, NotADirectoryError):
            known = None
        except (OSError, ConfigError):
            return ""
        if known is not None and known.node == self.node:
            if not moved:
                self._known = stat.st_dev, stat.st_ino
            return moved or ""
        whose = "gone" if known is None else "another node's"  # services read this: no id of anybody
        return f"{self._identity} is {whose}: is its disk mounted?"

    def _check_home(self, doing: str, id: FragmentId | None = None) -> None:
        """Raises NodeUnavailable when it is away."""
        if away := self.away:
            raise NodeUnavailable(f"{Translated(doing, id).doing}: {away}")

    def _open(self, id: FragmentId, first: int, aside: bool = False) -> DiskReader:
        """What is not found in a folder that is away may well be there: raises NotFound, or NodeUnavailable."""
        try:
            return self._open_aside(id, first) if aside else DiskReader(self._files.where(id), id, first)
        except NotFound:
            self._check_home("read", id)
            raise

    def _open_aside(self, id: FragmentId, first: int) -> DiskReader:
        """Of two, the one whose cell ``first`` is good."""
        try:
            reader = DiskReader(self._aside.path(id), id, first)
        except (Corrupt, NotFound):
            if self._second.identity(id) is None:
                raise
        else:
            if self._second.identity(id) is None or reader.is_good(first):
                return reader
            reader.close()
        return DiskReader(self._second.path(id), id, first)

    # --- FragmentStore --------------------------------------------------------------------------

    def put(self, header: FragmentHeader, size_hint: int, deadline: Deadline) -> DiskWriter:
        id = header.id
        self._check_home("put", id)
        with self.writing("put", id):
            self._check_room(id, size_hint)
            return DiskWriter(self, header, size_hint)

    def keep(
        self,
        header: Outline,
        packed: bytes,
        entry: CellEntry,
        cell: Buffer,
        slice_size: int,
        last: bool,
        wanted: Callable[[], object] = go_on,
    ) -> None:
        """``put`` of a fragment of one small cell, all of it at once: it is durable when this returns.

        ``packed``: the header's bytes; ``wanted``: as ``commit`` has it. Raises what ``put`` and its writer raise,
        and leaves nothing then.
        """
        name = header.name
        check_counts(1, slice_size, header.block_size)
        check_cell(entry, checksum(cell), 0)
        data, temp = pack_whole(packed, entry, cell, slice_size, last), self.temp_path(name)
        try:
            began = time.monotonic()
            left = self._spare - len(data)
            if left < 0 or began > self._spare_until:
                left = self._look_for_room(name, len(data), began)
            self._spare = left
            self._in_temp(write_new, temp, data)
            if tracing.on:
                tracing.past("write and fsync", began, {})
            wanted()
            began = time.monotonic() if tracing.on else 0.0
            self.publish(temp, header, self._files.where_named(name))
            if began:
                tracing.past("publish", began, {})
        except OSError as e:
            remove(temp)
            raise _Writing(self.health, "put", header.id).translated(e) from e
        except BaseException:
            remove(temp)
            raise
        self.health.wrote()

    def _look_for_room(self, name: str, size: int, now: float) -> int:
        """Raises Full. -> so many bytes may be written for a moment without another look: none near the end."""
        room = self._check_room(name, size)
        plenty = room.files is None or room.files > _SCARCE_FILES
        self._spare_until = now + _SPARE_S
        return max(0, room.free - _SCARCE - size) if plenty else 0

    def _check_room(self, id: FragmentId | str, size: int) -> Space:
        room = self._space()
        free = room.free
        if size > free or free <= 0:
            raise Full(f"put {id}: {room.refusal(size)}")
        return room

    def get(
        self, id: FragmentId, first: int, count: int, deadline: Deadline, *, aside: bool = False
    ) -> DiskReader:
        return self._open(id, first, aside)

    def stat(self, id: FragmentId, deadline: Deadline) -> FragmentTable:
        with contextlib.closing(self._open(id, 0)) as reader:
            return reader.table

    def verify(
        self, id: FragmentId, deadline: Deadline, between: Callable[[], object] = go_on
    ) -> tuple[int, ...]:
        """``between`` is called before each cell: it may wait, to leave the disk to others."""
        with contextlib.closing(self._open(id, 0)) as reader:
            return reader.verify(deadline, between)

    def delete(self, id: FragmentId, deadline: Deadline) -> bool:
        self._check_home("delete", id)
        with Translated("delete", id):
            # First what is still being written: it finds no temp file to name, or has named it before ``remove``.
            with contextlib.suppress(FileNotFoundError):  # nothing is being written, or somebody removed it
                for temp in os.listdir(self._temp):
                    if temp.startswith(f"{id}."):
                        (self._temp / temp).unlink(missing_ok=True)
            return self._files.remove(id)

    def list(self, cursor: str, limit: int, deadline: Deadline) -> Page:
        self._check_home("list")
        with Translated("list"):
            return self._files.page(cursor, limit)

    def quarantine(self, id: FragmentId, min_age: float, deadline: Deadline) -> bool:
        self._check_home("quarantine", id)
        with Translated("quarantine", id):
            check_changeable(self.path(id), id)
            judged = self._files.identity(id)
            if judged and self._aside.identity(id) and not passes(self.path(id), id, deadline):
                good = any(passes(tree.path(id), id, deadline) for tree in self._trees_aside(id))
                return good and self._files.remove(id, min_age, judged)
            return self._files.move_to(self._aside, id, min_age)

    def release(self, id: FragmentId, deadline: Deadline) -> bool:
        self._check_home("release", id)
        trees = self._trees_aside(id)
        if not trees or self._files.identity(id):
            return False
        for tree in trees:
            if passes(tree.path(id), id, deadline):
                with Translated("release", id):
                    return tree.move_to(self._files, id, over=math.inf)
        raise Corrupt(f"fragment {id} stays in quarantine: cells of it fail their checksums")

    def discard(self, id: FragmentId, min_age: float, deadline: Deadline) -> bool:
        self._check_home("discard", id)
        with Translated("discard", id):
            trees = self._trees_aside(id)
            for tree in trees:
                check_changeable(tree.path(id), id)
            if len(trees) > 1:  # one step: a kill between two would leave less, or what nobody decided about
                return self._second.move_to(self._aside, id, over=min_age)
            return any(tree.remove(id, min_age) for tree in trees)

    def _trees_aside(self, id: FragmentId) -> Sequence[FragmentTree]:
        """Those that have one of that name: two, or either."""
        return [tree for tree in (self._aside, self._second) if tree.identity(id)]

    def list_quarantine(self, cursor: str, limit: int, deadline: Deadline) -> Page:
        """Of two of one name the first: when it is deleted, the age of the second begins anew."""
        self._check_home("list the quarantine")
        with Translated("list the quarantine"):
            return page_of_both(self._aside, self._second, cursor, limit)

    def info(self, deadline: Deadline) -> StoreInfo:
        if self.away:  # the room there is another disk's
            return StoreInfo(self.node, self.cluster, 0, 0, 0, "readonly", time.time())
        with Translated("info"):
            room = self._space()
            readonly = os.statvfs(self.folder).f_flag & os.ST_RDONLY
        state = "readonly" if readonly or self.health.trouble else "active"
        return StoreInfo(self.node, self.cluster, room.capacity, room.used, room.free, state, time.time())

    def disk(self) -> str:
        """Names the file system of the folder: the same for every process of this machine, until it restarts."""
        with Translated("disk"):
            return f"{_machine()}:{self.folder.stat().st_dev}"

    @property
    def trouble(self) -> str:
        """Why it takes no fragments, but for a disk that is just full; in words, empty: it does."""
        try:
            return self.health.trouble or self._space().out_of_files
        except OSError as e:
            return f"{self.folder}: {e.strerror}"

    def probe(self) -> None:
        """A small durable write, to see whether the disk takes it; ``health`` knows. Never raises."""
        path = self._temp / f"probe.{next(self._serial)}"
        self._known = self._shared = None  # what it says is read again, whatever file it is
        if away := self.away:
            self.health.lost(away)
            return
        self.health.probe_begins()
        try:
            make_folder(self._temp)
            with open(path, "wb", buffering=0) as file:
                file.write(bytes(_PROBE))
                os.fsync(file.fileno())
            path.unlink()
            self.health.probe_ended()
        except OSError as e:
            self.health.probe_failed(e)
            with contextlib.suppress(OSError):
                path.unlink()

    def writing(self, doing: str, id: FragmentId) -> Translated:
        """The disk's errors become ours, and ``health`` hears of them."""
        return _Writing(self.health, doing, id)

    # --- where things are -------------------------------------------------------------------------

    def path(self, id: FragmentId) -> Path:
        return self._files.path(id)

    def temp_path(self, id: FragmentId | str) -> str:
        return f"{self._temp_root}/{id}.{next(self._serial)}"

    def sink(self, path: str, size_hint: int) -> Sink:
        direct = self._config.direct_io == "auto" and size_hint >= self._config.direct_io_threshold
        buffers = self._buffers if direct else None
        return self._in_temp(open_sink, path, size_hint, buffers)

    def _in_temp(self, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``make`` a file in the folder of temp files."""
        try:
            return make(*args, **kwargs)
        except FileNotFoundError:  # somebody removed the folder; or the disk
            self._check_home("write")
            make_folder(self._temp)
            return make(*args, **kwargs)

    def publish(self, temp: str, of: FragmentHeader | Outline, path: str = "") -> None:
        """Give a finished, fsynced temp file its name, durably. Raises NodeUnavailable when it was deleted.

        The one it replaces is put aside: what is made anew in place may have been healed from it. Two are kept, whose
        good cells may be different ones; of more it is not.
        """
        if self.away:
            self._check_home("store", of.id)
        path = path or self._files.where(of.id)
        if os.access(path, os.F_OK) and Path(temp).exists():
            any(self._files.move_to(tree, of.id, over=math.inf) for tree in (self._aside, self._second))
        try:
            self._files.take_in_at(temp, path)
        except FileNotFoundError:
            raise NodeUnavailable(f"store {of.id}: deleted while it was written") from None

    def _space(self) -> Space:
        if self._shared is None:
            self._shared = shares_disk(self._metadb, self.folder)
        return space(self._root, self._config, self._shared)


class _Writing(Translated):
    """See ``DiskStore.writing``."""

    __slots__ = ("_health",)

    def __init__(self, health: DiskHealth, doing: str, id: FragmentId) -> None:
        super().__init__(doing, id)
        self._health = health

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, OSError):
            raise self.translated(error) from error

    def translated(self, error: OSError) -> DistfsError:
        if isinstance(error, FileNotFoundError):  # a folder of ours: no answer to who asks for a fragment
            return NodeUnavailable(f"{self.doing}: {error.strerror}: {error.filename}")
        self._health.failed(error)
        return self._ours(error)


class DiskWriter:
    """One fragment on its way to the disk. Cells are received straight into the buffers that are written."""

    def __init__(self, store: DiskStore, header: FragmentHeader, size_hint: int) -> None:
        self._store, self._header, self._id = store, header, header.id
        self._path = store.temp_path(self._id)
        # Header, table and footer are part of the file, and a cell is the k-th part of a block, rounded up: leave
        # room for all that, so that one allocation serves all.
        cells = size_hint * header.policy.k // header.block_size + 1
        room = size_hint + MAX_HEADER + cells * (ENTRY_SIZE + 1) + MAX_FOOTER if size_hint else 0
        self._entries: list[CellEntry] = []
        self._size = self._behind = 0  # bytes of cells; and of what follows them
        self._sink = store.sink(self._path, room)
        try:
            self._packed = header.pack(self._sink.alignment)
            append(self._sink, self._packed)
        except BaseException:
            self.abort()
            raise

    def write_cell(self, entry: CellEntry, data: memoryview) -> None:
        at = 0

        def copy(view: memoryview) -> None:
            nonlocal at
            view[:] = data[at : at + len(view)]
            at += len(view)

        check_length(entry, len(data), len(self._entries))
        self.receive_cell(entry, copy)

    def receive_cell(self, entry: CellEntry, fill: Callable[[memoryview], None]) -> None:
        """Append a cell whose bytes ``fill`` puts where told. Raises Corrupt if they fail their check."""
        if len(self._entries) >= MAX_CELLS:
            raise Corrupt(f"more than {MAX_CELLS} cells in a fragment")
        digest, left = xxhash.xxh3_64(), entry.length
        with self._store.writing("write", self._id):
            while left:
                view = self._sink.space(left)
                fill(view)
                digest.update(view)
                n = len(view)
                self._sink.advance(n)
                left -= n
        check_cell(entry, digest.intdigest(), len(self._entries))
        self._entries.append(entry)
        self._size += entry.length

    def finish(self, slice_size: int, last: bool, extra: Extra = PLAIN) -> None:
        check_counts(len(self._entries), slice_size, self._header.block_size)
        table = FragmentTable(tuple(self._entries), slice_size, last)
        packed = table.pack()
        behind = packed + pack_footer(table, packed, len(self._packed) + self._size, self._packed, extra)
        self._behind = len(behind)
        with self._store.writing("write", self._id):
            append(self._sink, behind)

    def commit(self, wanted: Callable[[], object] = go_on) -> None:
        """``wanted`` is called when the fragment is on the disk and has no name yet; what it raises undoes it."""
        expected = len(self._packed) + self._size + self._behind
        try:
            with self._store.writing("store", self._id):
                with tracing.span("write and fsync"):
                    written = self._sink.close()
                if written != expected:
                    raise NodeUnavailable(f"store {self._id}: {written} bytes on disk, {expected} expected")
                wanted()
                with tracing.span("publish"):
                    self._store.publish(self._path, self._header)
            self._store.health.wrote()
        except DistfsError:
            self.abort()
            raise

    def abort(self) -> None:
        give_up(self._sink, self._path)
