"""What the routes need, built once a process from the configuration. Nothing connects before it is asked."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from distfs.access.db import TokenDB
from distfs.access.directory import Tokens
from distfs.access.door import Door
from distfs.agreement import Agreement
from distfs.audit import AuditLog
from distfs.config.settings import Config, StorageConfig
from distfs.deadline import Deadline, Scope
from distfs.formats.coding import code_for
from distfs.formats.compression import check_installed
from distfs.limits.bandwidth import Bandwidth
from distfs.limits.callers import Callers
from distfs.limits.db import ReservationDB
from distfs.limits.gate import Gate
from distfs.limits.promises import Admission
from distfs.limits.tally import SharedTally, Tally
from distfs.meta import MetaDB
from distfs.peers.directory import NodeDirectory
from distfs.readiness import Readiness
from distfs.telemetry.history import History
from distfs.telemetry.logs import log_dropped
from distfs.tls.contexts import FromFiles, Peers, https, peers, soon_over
from distfs.together import Together
from distfs.transfer.blocks import BlockPool
from distfs.transfer.download import Downloader
from distfs.transfer.placement import Placement
from distfs.transfer.upload import Uploader
from distfs.upkeep.damage import DamageNotes
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.facts import Facts, Finder, Inventory, finders


@dataclass(frozen=True)
class Services:
    """The parts of a running service. Thread-safe, all of them."""

    config: Config
    meta: MetaDB
    pool: BlockPool
    directory: NodeDirectory
    uploader: Uploader
    downloader: Downloader
    admission: Admission
    bandwidth: Bandwidth
    damage: DamageNotes
    agreement: Agreement
    readiness: Readiness
    door: Door
    facts: Finder[Facts]
    inventory: Finder[Inventory]
    history: History
    together: Together | None  # with other processes of this service
    audit: AuditLog
    https: FromFiles[ssl.SSLContext] | None  # None: plain HTTP
    peers: Peers | None  # None: no TLS to the nodes

    # ``hang_up``: cancelled when the client is gone; None: nobody tells.

    def answer_deadline(self, hang_up: Scope | None) -> Deadline:
        """For a request that moves no file."""
        return Deadline(self.config.peers.base_timeout, scope=hang_up)

    def transfer_deadline(self, size: int | None, hang_up: Scope | None) -> Deadline:
        """For a request that moves ``size`` bytes to or from a client; None: as many as are allowed.

        Generous, since a client may be slow: one that stops is noticed sooner, by the server's stall limit,
        and so is a node, by its own.
        """
        if size is None:
            return Deadline(self._transfer_seconds(size), scope=hang_up)
        return Deadline(
            self.config.peers.base_timeout + size / self.config.http.client_min_rate, scope=hang_up
        )

    def upload_deadline(self, size: int | None, hang_up: Scope | None) -> Deadline:
        """The same for an upload: the orphan sweep takes fragments that are older for nobody's."""
        seconds = min(self._transfer_seconds(size), self.config.upkeep.upload_ttl)
        return Deadline(seconds, scope=hang_up)

    def _transfer_seconds(self, size: int | None) -> float:
        http, peers = self.config.http, self.config.peers
        most = http.max_file_size + http.max_form_overhead if size is None else size
        return peers.base_timeout + most / http.client_min_rate

    def status(self) -> dict[str, Any]:
        """What this process holds, in bytes, and how it finds the nodes; what is counted together, of all."""
        return {
            "memory": asdict(self.pool.usage()),
            "uploads": self.admission.usage(),
            "uploads_by_rule": self.admission.callers.by_rule(),
            "waiting_for_bandwidth": {
                "in": self.bandwidth.waiting("in"),
                "out": self.bandwidth.waiting("out"),
            },
            "nodes": self.directory.snapshot(),
            "audit": self.audit.usage(),
            "auth": self.door.usage(),
            "log": {"dropped": log_dropped()},
            "metadb": {"connections": self.meta.connections()},
            "threads": threading.active_count(),
        }

    @property
    def of_all(self) -> Config:
        """What all processes of this service have together."""
        return self.config if self.together is None else self.together.config

    def status_of_all(self) -> Mapping[str, Any]:
        """The same of all processes of this service."""
        return self.status() if self.together is None else self.together.status(self.status())

    @property
    def troubles(self) -> list[str]:
        """Certificates that were replaced by what cannot be used, so that those of before go on; that end soon."""
        broken = [each.trouble for each in (self.https, self.peers) if each is not None and each.trouble]
        return broken + soon_over(self.certificates)

    @property
    def certificates(self) -> list[str]:
        """The files of those that it shows others."""
        shown = [pair.cert for pair in self.config.tls.certificates] if self.https else []
        return shown + ([self.config.tls.cert] if self.peers else [])

    def reconfigure(self, config: Config) -> None:
        """Apply what of another configuration can change while requests run."""
        self.bandwidth.configure(config.bandwidth, config.callers)
        self.admission.callers.config = config.callers
        for each in (self.https, self.peers):
            if each is not None:
                each.look()

    def close(self) -> None:
        """Let go of every thread and connection."""
        self.bandwidth.close()
        self.damage.close()
        self.uploader.close()
        self.admission.close()
        self.directory.close()
        self.meta.close()
        self.audit.close()


def audit_log(config: Config) -> AuditLog:
    """As it is configured."""
    path = Path(config.audit_file) if config.audit_file else None
    return AuditLog(path, config.audit.max_size, required=config.audit.required)


def _lookers(meta: MetaDB, directory: NodeDirectory) -> tuple[Finder[Facts], Finder[Inventory], History]:
    """Who looks at the cluster for those that measure it."""
    facts, inventory = finders(meta, UpkeepDB(meta))

    def known(watched: bool) -> tuple[int | None, Mapping[str, int] | None]:
        nodes, counted = directory.seen(), inventory.last() if watched else inventory.known()
        slices = None if counted is None else {str(left): n for left, n in counted.status.slices.items()}
        return sum(node.alive for node in nodes) if nodes else None, slices

    return facts, inventory, History(known)


def _check_installed(storage: StorageConfig) -> None:
    """What is needed and not there is said now, not to the first who uploads. Raises ConfigError."""
    for policy in storage.policies.values():
        code_for(policy)
    check_installed(storage.compressions)


def build(config: Config, together: Together | None = None) -> Services:
    """The services of one process; ``together``: of one of several, whose part ``config`` is. Raises ConfigError for
    what cannot work."""
    http, tally, service = config.http, Tally(), uuid4()
    if together is not None:
        http, tally, service = together.config.http, SharedTally(together.table), together.service
    meta = MetaDB(config.metadb, config.node.down_after)
    secure = peers(config.tls)
    directory = NodeDirectory(meta, config.peers, secure)
    storage = config.storage
    _check_installed(storage)
    pool = BlockPool(storage.block_size, storage.memory_budget // storage.block_size)
    uploader = Uploader(meta, directory, Placement(), pool, storage, config.http.threads)
    gate = Gate(http.max_uploads, http.max_bytes_in_flight, tally)
    admission = Admission(
        ReservationDB(meta, service),
        gate,
        storage,
        config.http,
        Callers(config.callers, http, tally),
        trash_gives_way=config.upkeep.trash_gives_way,
    )
    damage = DamageNotes(UpkeepDB(meta))
    downloader = Downloader(directory, pool, damage, meta.file)
    bandwidth = Bandwidth(config.bandwidth, config.callers, table=together.paces if together else None)
    agreement = Agreement(meta, config)
    return Services(
        config,
        meta,
        pool,
        directory,
        uploader,
        downloader,
        admission,
        bandwidth,
        damage,
        agreement,
        Readiness(meta, agreement, directory, admission, storage),
        Door(
            config.auth,
            Tokens(TokenDB(meta), config.auth.token_grace, bandwidth.pace),
            together.failures if together else None,
        ),
        *_lookers(meta, directory),
        together,
        audit_log(config),
        https(config.tls),
        secure,
    )
