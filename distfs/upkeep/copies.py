"""Copies of MetaDB that are kept in the cluster itself, each day, for when MetaDB is lost.

A copy is a file like others, so repair, drain and scrub look after it; but its id is of a range that no upload gets
(``model.is_copy``), by which nodes tell it without a MetaDB, and no client is told of it. Beside the newest copy
there is a list of what was deleted since: the disks still have the fragments of that, and it must not come back.

Neither the cluster's key nor what signs links is in it: whoever has a node's disk has some files, and must not get
all by these. Ids of files are in it, and of a file whose visibility is ``link`` the id is all that it takes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from uuid import UUID

from distfs.body.source import Source
from distfs.config.settings import Config
from distfs.deadline import Deadline
from distfs.errors import DistfsError
from distfs.meta import MetaDB
from distfs.model import copied_at, copy_id
from distfs.process.threads import start
from distfs.recovery.db import RecoveryDB
from distfs.transfer.upload import Uploader
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.step import Pace, Step, paced

log = logging.getLogger("distfs.upkeep")

COPY_TYPE = "application/vnd.distfs.metadb"
_LIST_EVERY_S = 60.0
_LOOK_AGAIN_S, _LOOK_S = 0.5, 1.0
_ID = 16  # bytes of each in a list of deletions


def unfinished() -> DistfsError:
    return DistfsError("a copy of MetaDB was not finished, by a bug")


class Copies:
    """A step looks what is due. A copy is made by a thread beside, since it may take minutes; a process that is
    killed meanwhile has committed nothing."""

    name = "copies"

    def __init__(
        self,
        db: UpkeepDB,
        meta: MetaDB,
        uploader: Uploader,
        config: Config,
        list_every: float = _LIST_EVERY_S,
    ) -> None:
        """``meta``, ``uploader``: the service's own."""
        self._upkeep, self._db, self._meta, self._uploader = db, RecoveryDB(meta), meta, uploader
        self._every, self._keep = config.metadb.backup_every, config.metadb.backup_keep
        self._limit, self._policy = config.upkeep.upload_ttl, config.storage.policies["default"]
        self._list_every, self._looked = list_every, float("-inf")
        self._making: threading.Thread | None = None
        self._error: DistfsError | None = None
        self._detail: dict[str, object] = {}

    def step(self, deadline: Deadline) -> Step:
        if self._making is not None and self._making.is_alive():
            return Step(Pace.THROTTLED, self._detail, _LOOK_AGAIN_S)
        self._making, error, self._error = None, self._error, None
        if error is not None:
            raise error
        if not self._every or time.monotonic() - self._looked < min(_LOOK_S, self._list_every):
            return paced(0.0, False, self._detail)
        self._looked = time.monotonic()
        if self._db.is_begun(deadline):  # what is half made anew is not worth a copy
            return paced(0.0, False, {})
        kept, now, age = self._db.copies(deadline)
        copies = [id for id, _ in kept if not copied_at(id)[1]]
        lists = [(id, name) for id, name in kept if copied_at(id)[1]]
        since = copied_at(copies[0])[0] if copies else now - age
        self._detail = {"copies": len(copies), "newest_s": round(now - since) if copies else None}
        if surplus := copies[self._keep :] + [id for id, _ in lists[1:]]:
            self._drop(surplus[-1], deadline)
            return paced(0.0, True, self._detail)
        if now - since >= self._every:
            self._error = unfinished()
            self._making = start(self._make, "metadb-copy", copy_id(now))
            return Step(Pace.THROTTLED, self._detail, _LOOK_AGAIN_S)
        if copies:
            self._list_deletions(lists, since, now, deadline)
        return paced(0.0, False, self._detail)

    def _make(self, id: UUID) -> None:
        """A whole copy, committed; or nothing of it."""
        try:
            piped = _Piped(self._meta)
            with piped.read() as source:
                self._store(id, f"metadb {copied_at(id)[0]:.0f}", source, piped.check)
            self._db.forget_purged(copied_at(id)[0], Deadline(self._limit))
            self._error = None
            log.info("a copy of MetaDB is kept in the cluster, as file %s", id)
        except DistfsError as e:
            self._error = e
        except OSError as e:
            self._error = DistfsError(f"a copy of MetaDB was not made: {e.strerror}")

    def _list_deletions(
        self, lists: list[tuple[UUID, str]], since: float, now: float, deadline: Deadline
    ) -> None:
        """One that is of the same deletions is as good as a new one; its name has how many."""
        count, last = self._db.deleted_since(since, deadline)
        listed_at, listed = (copied_at(lists[0][0])[0], lists[0][1]) if lists else (0.0, "deleted 0")
        if listed_at < since:
            listed = "deleted 0"
        same = f"deleted {count}" == listed and last <= listed_at
        if same or now - listed_at < self._list_every:
            return
        ids = b"".join(id.bytes for id in self._db.deleted_ids(since, deadline)) or bytes(
            _ID
        )  # none, but a file
        self._store(copy_id(now, deletions=True), f"deleted {count}", io.BytesIO(ids))

    def _store(self, id: UUID, name: str, source: Source, check: Callable[[], object] = bool) -> None:
        """``check``: called before the commit."""
        with self._uploader.begin(Deadline(self._limit)) as session:
            session.add(source, name=name, content_type=COPY_TYPE, policy=self._policy, id=id)
            check()
            session.commit()

    def _drop(self, id: UUID, deadline: Deadline) -> None:
        with contextlib.suppress(DistfsError):  # somebody was quicker
            self._meta.delete_file(id, deadline)
        self._upkeep.empty_trash(id, deadline)


class _Piped:
    """A copy that is written by one thread and read by another, with a pipe's few bytes between."""

    def __init__(self, meta: MetaDB) -> None:
        self._meta = meta
        self._error: DistfsError | None = unfinished()
        self._read, self._write = os.pipe()
        self._thread = start(self._run, "metadb-copy-rows")

    def _run(self) -> None:
        try:
            with open(self._write, "wb", buffering=1 << 20) as out:
                self._meta.copy_to(out.write, secrets=False)
            self._error = None
        except DistfsError as e:
            self._error = e
        except OSError as e:  # nobody reads any more: he knows why
            self._error = DistfsError(f"a copy of MetaDB was not written: {e.strerror}")

    @contextlib.contextmanager
    def read(self) -> Iterator[io.BufferedReader]:
        with open(self._read, "rb") as source:
            yield source

    def check(self) -> None:
        """When all was read. Raises what kept it from being whole."""
        self._thread.join()
        if self._error is not None:
            raise self._error
