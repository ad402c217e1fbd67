"""Every setting there is, with its default, as frozen dataclasses: a section of the file each.

Values carry their unit as a type (``Bytes``, ``Seconds``). ``file`` reads them, ``rules`` says what
must hold between them; nothing else reads settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NewType

from distfs.config.callers import LOOPBACK, Caller, CallerMatch, Identity, IPAddress, Network, direct
from distfs.model import Compression, Policy

Secret = NewType("Secret", str)  # never shown
HostName = NewType("HostName", str)  # an address or a name; IPv6 without brackets
AllowedHost = NewType("AllowedHost", str)  # a HostName, *.name for all below it, or * for any
Origin = NewType("Origin", str)  # scheme://host[:port], as browsers send it
Bytes = NewType("Bytes", int)
Seconds = NewType("Seconds", float)
BytesPerSecond = NewType("BytesPerSecond", int)
Fraction = NewType("Fraction", float)
Portion = NewType("Portion", float)  # a fraction; or all
Weight = NewType("Weight", float)
Processes = NewType("Processes", int)  # AUTO: one a core
Words = NewType("Words", tuple[str, ...])
AuthMode = NewType("AuthMode", str)  # 'off', 'on' or 'open'
TlsMode = NewType("TlsMode", str)  # 'auto', 'off' or 'on'

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
AUTO, MOST_PROCESSES = Processes(0), 256


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """The service's HTTP side."""

    host: HostName = HostName("127.0.0.1")
    port: int = 8080  # 0: any free port
    allowed_hosts: tuple[
        AllowedHost, ...
    ] = ()  # what clients may call it, beside addresses and names of here
    cors_origins: tuple[Origin, ...] = ()  # whose pages may use it
    processes: Processes = Processes(1)  # that `distfs serve` runs on this port; AUTO: one a core
    threads: int = 4000  # requests served at once: a thread each, made when it is needed
    max_file_size: Bytes = Bytes(10 * 10**9)
    max_form_overhead: Bytes = Bytes(MIB)  # everything in a request body that is not file bytes
    stream_threshold: Bytes = Bytes(MIB)  # a larger body is a large upload
    spool_dir: str = ""  # of temp files for bodies that come slowly; empty: the system's temp folder
    max_header: Bytes = Bytes(64 * KIB)  # of a request, its first line and all headers
    max_header_line: Bytes = Bytes(64 * KIB)  # each of them
    max_header_lines: int = 256
    max_chunk_line: Bytes = Bytes(4 * KIB)  # a chunk's size and its extensions
    max_trailer: Bytes = Bytes(8 * KIB)  # all lines behind a chunked body
    max_connections: int = 12000
    idle_timeout: Seconds = Seconds(120)  # a kept-alive connection without a request
    client_stall_timeout: Seconds = Seconds(60)  # no byte from or to a client for this long ends it
    client_min_rate: BytesPerSecond = BytesPerSecond(16 * KIB)  # a whole transfer slower than this is ended
    max_uploads: int = 600  # larger than stream_threshold, at once; 0: no limit
    max_bytes_in_flight: Bytes = Bytes(10**12)  # declared by them together; 0: no limit
    drain_timeout: Seconds = Seconds(30)  # after SIGTERM, for the requests that run


@dataclass(frozen=True, slots=True)
class CallerRule:
    """What holds for the transfers of some callers: a row of ``callers.rules``, or a token's limits."""

    match: CallerMatch
    weight: Weight = Weight(1)  # of each of their transfers
    cap_in: BytesPerSecond = BytesPerSecond(0)  # of all of them together; 0: none of their own
    cap_out: BytesPerSecond = BytesPerSecond(0)
    max_file_size: Bytes = Bytes(0)  # of each file they upload; 0: http.max_file_size
    max_uploads: int = 0  # of all of them together, at once, to one service; 0: no limit of their own

    @property
    def paces(self) -> bool:
        """Whether it says how fast they are."""
        return bool(self.cap_in or self.cap_out or float(self.weight) != 1)

    def __str__(self) -> str:
        shares = f"weight {self.weight:g}, in {self.cap_in}, out {self.cap_out}"
        return f"{self.match}: {shares}, max_file_size {self.max_file_size}, max_uploads {self.max_uploads}"


@dataclass(frozen=True, slots=True)
class TokenCaller(Caller):
    """A caller who has shown a token: its limits are ``rule``."""

    rule: CallerRule


@dataclass(frozen=True, slots=True)
class CallersConfig:
    """Who may do what. SIGHUP reads it anew."""

    rules: tuple[CallerRule, ...] = ()  # the first that matches counts
    trusted_proxies: tuple[Network, ...] = ()  # whose X-Forwarded-For and other headers are believed
    address_share: Fraction = Fraction(
        0.5
    )  # what one address may have of what http allows in all; 0: all of it
    exempt: tuple[Network, ...] = LOOPBACK  # for whom that does not hold

    def identify(self, caller: Caller) -> Identity:
        """Whom our proxies let us believe that is."""
        return caller.identify(self.trusted_proxies) if self.trusted_proxies else direct(caller.address)

    def is_exempt(self, address: IPAddress | None) -> bool:
        """Whether it may have all there is; so may a proxy, since others are behind it."""
        return address is None or any(address in each for each in (*self.exempt, *self.trusted_proxies))

    def rule(self, caller: Caller) -> CallerRule | None:
        """The row about a caller."""
        if not self.rules:
            return None
        identity = self.identify(caller)
        return next((rule for rule in self.rules if identity.matches(rule.match)), None)

    def all_rules(self, caller: Caller) -> Sequence[CallerRule]:
        """What holds for a caller: its token's limits, and the row about it. Of two limits the narrower counts."""
        if not self.rules and not isinstance(caller, TokenCaller):
            return ()
        row = self.rule(caller)
        of_token = [caller.rule] if isinstance(caller, TokenCaller) else []
        return of_token if row is None else [*of_token, row]


@dataclass(frozen=True, slots=True)
class AuthConfig:
    """Who may use the service."""

    mode: AuthMode = AuthMode("off")  # off: everybody on this machine; on: who has a token; open: everybody
    token_grace: Seconds = Seconds(60)  # known tokens go on for so long while MetaDB is away


@dataclass(frozen=True, slots=True)
class Certificate:
    """A row of ``tls.certificates``: paths of PEM files."""

    cert: str  # with those between it and its authority's
    key: str


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """HTTPS, and TLS between service and node. The files are read anew when they change."""

    mode: TlsMode = TlsMode("auto")  # of HTTPS; nobody said: off, and on loopback alone
    certificates: tuple[Certificate, ...] = ()  # of HTTPS; the first, unless another has the name asked for
    ca: str = ""  # between service and node: whose certificates are believed; empty: no TLS there
    cert: str = ""  # this part's own
    key: str = ""
    crl: str = ""  # what ca has revoked


@dataclass(frozen=True, slots=True)
class AuditConfig:
    """Where it is written who changed what."""

    file: str = "auto"  # see Config.audit_file; 'off': nowhere
    max_size: Bytes = Bytes(100 * MIB)  # of a file; then it is put aside under the time
    required: bool = False  # what could not be written may not be changed


@dataclass(frozen=True, slots=True)
class BandwidthConfig:
    """How transfers share what the service may receive and send. SIGHUP reads it anew."""

    cap_in: BytesPerSecond = BytesPerSecond(0)  # file bytes of all uploads together; 0: no cap
    cap_out: BytesPerSecond = BytesPerSecond(0)  # of all downloads
    mode: str = "fair"  # or 'batch': few at a time, in bigger portions, in order


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """How files become slices, blocks and fragments."""

    policies: Mapping[str, Policy] = field(default_factory=lambda: {"default": Policy(1, 1)})
    compression: Compression = field(default_factory=Compression)  # of blocks
    policy_compression: Mapping[str, Compression] = field(default_factory=dict)  # of policies with their own
    min_saving: Fraction = Fraction(0.1)  # a block that saves less of its bytes is kept as it is
    min_redundancy: int = 1  # a degraded write needs k + this many fragments; never more than m asks
    slice_size: Bytes = Bytes(32 * MIB)
    block_size: Bytes = Bytes(MIB)
    parallel_slices: int = 2  # slices of one upload in flight
    window: Bytes = Bytes(24 * MIB)  # blocks of one upload in flight, at most
    memory_budget: Bytes = Bytes(512 * MIB)  # blocks in flight of all transfers together

    @property
    def policy(self) -> Policy:
        """The policy of an upload that names none."""
        return self.policies["default"]

    def compression_of(self, policy: str) -> Compression:
        """Of uploads by that policy, unless they name another."""
        return self.policy_compression.get(policy, self.compression)

    @property
    def compressions(self) -> Sequence[Compression]:
        """All that uploads have that name none."""
        return (self.compression, *self.policy_compression.values())

    @property
    def small_body(self) -> int:
        """Bytes of a body for which no room is promised in MetaDB: a file of a block, in a form."""
        return self.block_size + 4 * KIB

    def fewest(self, policy: Policy) -> int:
        """How many fragments of a slice must be safe, each on a node of its own, before it may be committed."""
        return policy.k + min(policy.m, self.min_redundancy)


@dataclass(frozen=True, slots=True)
class MetaDBConfig:
    """PostgreSQL."""

    url: str = field(default="embedded:./data/metadb", repr=False)  # or postgresql://user@host:port/database
    password: Secret = field(default=Secret(""), repr=False)  # where url has none
    password_file: str = ""  # that holds it, where neither has one
    pool_size: int = 8  # connections a service keeps for requests
    connect_timeout: Seconds = Seconds(2)
    statement_timeout: Seconds = Seconds(4)  # so that a MetaDB that hangs is a 503 within 5 s
    patience: Seconds = Seconds(15)  # a request waits so long for one that restarts
    backup_every: Seconds = Seconds(86400)  # a copy is kept in the cluster itself; 0: none
    backup_keep: int = 7  # such copies


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """A storage node."""

    host: HostName = HostName("127.0.0.1")
    port: int = 0  # 0: any free port; the node registers where it listens
    metrics_port: int = 0  # where Prometheus reads its /metrics; 0: nowhere
    advertise: str = ""  # host:port others reach it by; empty: where it listens
    data: str = "./data/node"
    zone: str = ""
    reserve: Fraction = Fraction(0.01)  # of the disk, kept free; with reserve_bytes, the smaller wins
    reserve_bytes: Bytes = Bytes(GIB)
    direct_io: str = "auto"  # 'auto': O_DIRECT where the file system takes it; 'off': never
    direct_io_threshold: Bytes = Bytes(256 * KIB)  # smaller fragments go through the page cache
    write_buffer: Bytes = Bytes(4 * MIB)  # aligned unit of a direct write
    slow_write: Seconds = Seconds(5)  # a disk whose small durable writes take longer gets no new fragments
    probe_interval: Seconds = Seconds(10)  # between two such writes, to see how it does
    heartbeat: Seconds = Seconds(2)
    down_after: Seconds = Seconds(10)  # of silence: no new fragments are placed there
    drain_timeout: Seconds = Seconds(20)  # after SIGTERM, for the transfers that run


@dataclass(frozen=True, slots=True)
class PeersConfig:
    """How services talk to nodes."""

    connections: int = 32  # idle connections a service keeps to each node
    max_connections: int = 128  # in all to each node; who needs one more waits its turn
    connection_idle: Seconds = Seconds(60)  # a connection unused for so long is not used again,
    connection_age: Seconds = Seconds(600)  # nor one as old as this
    connect_timeout: Seconds = Seconds(1)
    stall_timeout: Seconds = Seconds(10)  # no byte for this long ends a transfer, at either end
    patience: Seconds = Seconds(15)  # a transfer waits so long for nodes that restart
    base_timeout: Seconds = Seconds(20)  # a slice's bound is base_timeout + bytes / min_rate
    min_rate: BytesPerSecond = BytesPerSecond(MIB)
    hedge_min: Seconds = Seconds(0.05)  # a read later than its node's p95, and this, is asked elsewhere
    hedge_budget: Fraction = Fraction(0.05)  # extra reads, as a share of all reads, at most
    breaker_failures: int = 5  # failures in a row after which a node is left alone
    breaker_pause: Seconds = Seconds(5)  # before it is probed; doubles with every probe that fails


@dataclass(frozen=True, slots=True)
class UpkeepConfig:
    """What the service does beside serving: repair, scrub, sweeping, balancing."""

    enabled: bool = True
    interval: Seconds = Seconds(5)  # how soon an idle worker looks again
    repair_delay: Seconds = Seconds(600)  # of a node's silence before its fragments are made anew elsewhere
    repair_rate: BytesPerSecond = BytesPerSecond(100 * MIB)  # bytes written, at most; 0: as fast as it goes
    scrub_period: Seconds = Seconds(30 * 86400)  # every fragment is re-read at least so often ...
    scrub_rate: BytesPerSecond = BytesPerSecond(20 * MIB)  # ... a node, as far as this rate allows
    upload_ttl: Seconds = Seconds(86400)  # no upload takes longer; younger fragments are no orphans
    sweep_interval: Seconds = Seconds(3600)  # between two sweeps for orphans
    sweep_margin: Seconds = Seconds(3600)  # added to upload_ttl, for clocks that disagree
    quarantine_ttl: Seconds = Seconds(7 * 86400)  # what was put aside is kept for so long
    trash_ttl: Seconds = Seconds(7 * 86400)  # deleted files can be undeleted for so long
    trash_gives_way: bool = (
        True  # what was deleted first is erased before an upload is refused for want of room
    )
    rebalance_threshold: Fraction = Fraction(0.05)  # difference in fullness that is left alone
    rebalance_rate: BytesPerSecond = BytesPerSecond(50 * MIB)


@dataclass(frozen=True, slots=True)
class LocalConfig:
    """``distfs up``: everything on this machine."""

    data: str = "./data"
    nodes: int = 3


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What is logged, to stderr and to files."""

    level: str = "INFO"
    format: str = "text"  # or 'json': one object a line
    dir: str = "auto"  # each process's own files; 'auto': `distfs up`: logs in its data folder, else 'off'
    max_bytes: Bytes = Bytes(
        512 * MIB
    )  # of all files of the folder, and of all lines in MetaDB; the oldest go first
    keep_for: Seconds = Seconds(14 * 24 * 3600)
    store: str = "files"  # or 'metadb': those of all parts there, too
    syslog: str = "off"  # or 'journal', 'unix:/dev/log', 'udp://host:514': lines go there, too

    @property
    def elsewhere(self) -> bool:
        """Whether lines go anywhere but to standard error: a thread writes them."""
        return self.dir not in ("auto", "off") or self.syslog != "off" or self.store != "files"


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """``/metrics``, for Prometheus."""

    enabled: bool = True
    public: bool = False  # who may read them while auth is on: everybody, not administrators alone


@dataclass(frozen=True, slots=True)
class AlertingConfig:
    """Who is told what burns, besides the log."""

    webhook: Secret = field(default=Secret(""), repr=False)  # empty: none
    mail_to: str = ""
    mail_from: str = "distfs@localhost"
    smtp: Secret = field(default=Secret("smtp://127.0.0.1:25"), repr=False)
    ignore: Words = Words(())  # alerts that are none here


@dataclass(frozen=True, slots=True)
class TracingConfig:
    """Spans of what requests and upkeep do, for OpenTelemetry."""

    endpoint: str = field(default="", repr=False)  # where they are sent, by OTLP over HTTP; empty: nowhere
    ratio: Portion = Portion(0.01)  # of all traces that are sent, besides those that fail or are slow
    slow: Seconds = Seconds(1)
    service_name: str = "distfs"
    server_timing: bool = False  # record for Server-Timing alone, too


@dataclass(frozen=True, slots=True)
class Config:
    """All of it. Each part of distfs is handed the section it needs, not this."""

    http: HttpConfig = field(default_factory=HttpConfig)
    auth: AuthConfig = field(default_factory=AuthConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    bandwidth: BandwidthConfig = field(default_factory=BandwidthConfig)
    callers: CallersConfig = field(default_factory=CallersConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    metadb: MetaDBConfig = field(default_factory=MetaDBConfig)
    node: NodeConfig = field(default_factory=NodeConfig)
    peers: PeersConfig = field(default_factory=PeersConfig)
    upkeep: UpkeepConfig = field(default_factory=UpkeepConfig)
    local: LocalConfig = field(default_factory=LocalConfig)
    log: LogConfig = field(default_factory=LogConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    alerting: AlertingConfig = field(default_factory=AlertingConfig)
    tracing: TracingConfig = field(default_factory=TracingConfig)

    @property
    def log_dir_of_up(self) -> str:
        """Where the parts of `distfs up` write the files of their log; ``off``: nowhere."""
        return f"{self.local.data}/logs" if self.log.dir == "auto" else self.log.dir

    @property
    def audit_file(self) -> str:
        """Where the audit log is; empty: nowhere. Where nobody has a token, and all are 127.0.0.1, it would say
        nothing: so by itself it is only where there are tokens, in the folder of a cluster that has one."""
        if self.audit.file != "auto":
            return "" if self.audit.file == "off" else self.audit.file
        here = self.auth.mode == "on" and self.metadb.url.startswith("embedded:")
        return f"{self.local.data}/audit.log" if here else ""
