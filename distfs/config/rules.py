"""What must hold between settings. Each rule names the keys and the remedy."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from distfs.config.settings import (
    GIB,
    KIB,
    MIB,
    AlertingConfig,
    BandwidthConfig,
    CallersConfig,
    Config,
    HttpConfig,
    LogConfig,
    StorageConfig,
    TlsConfig,
)
from distfs.errors import ConfigError

_Rules = Iterable[tuple[bool, str]]
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_SYSLOG = re.compile(r"off|journal|unix:/.+|udp://([\w.-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?")


def check_relations(c: Config) -> None:
    """Raises ConfigError for the first rule that is broken."""
    sections = (
        _http_rules(c.http),
        _tls_rules(c.tls),
        _bandwidth_rules(c.bandwidth),
        _caller_rules(c.callers),
        _storage_rules(c.storage),
        _other_rules(c),
        _alerting_rules(c.alerting),
        _log_rules(c.log),
        _process_rules(c),
    )
    for holds, message in itertools.chain(*sections):
        if not holds:
            raise ConfigError(f"config: {message}")


def _http_rules(http: HttpConfig) -> _Rules:
    yield 0 <= http.port < 65536, "http.port must be 0 (any free port) to 65535"
    yield http.threads >= 1, "http.threads must be at least 1"
    yield http.max_file_size > 0, "http.max_file_size must be more than 0"
    least = http.max_file_size + http.max_form_overhead
    enough = http.max_bytes_in_flight in (0, max(http.max_bytes_in_flight, least))
    yield enough, "http.max_bytes_in_flight must be 0 or at least http.max_file_size + http.max_form_overhead"
    yield http.max_header_line >= 256, "http.max_header_line must be at least 256 bytes"
    yield http.max_header >= http.max_header_line, "http.max_header must be at least http.max_header_line"
    yield http.max_header <= MIB, "http.max_header must be at most 1MiB"
    yield http.max_header_lines >= 8, "http.max_header_lines must be at least 8"
    yield http.max_chunk_line >= 32, "http.max_chunk_line must be at least 32 bytes"
    yield http.max_trailer >= 256, "http.max_trailer must be at least 256 bytes"
    yield http.max_connections >= 1, "http.max_connections must be at least 1"
    yield http.idle_timeout > 0, "http.idle_timeout must be more than 0"
    yield http.client_stall_timeout > 0, "http.client_stall_timeout must be more than 0"
    yield http.client_min_rate > 0, "http.client_min_rate must be more than 0"


def _tls_rules(tls: TlsConfig) -> _Rules:
    shown = tls.mode != "on" or bool(tls.certificates)
    yield shown, "tls.certificates must name a certificate and its key where tls.mode is on"
    peers = (tls.ca, tls.cert, tls.key)
    yield all(peers) or not any(peers), "tls.ca, tls.cert and tls.key go together: between service and node"
    yield bool(tls.ca) or not tls.crl, "tls.crl is of tls.ca, which is not there"


def _bandwidth_rules(bandwidth: BandwidthConfig) -> _Rules:
    yield bandwidth.mode in ("fair", "batch"), "bandwidth.mode must be 'fair' or 'batch'"


def _caller_rules(callers: CallersConfig) -> _Rules:
    for rule in callers.rules:
        believed = not rule.match.header or bool(callers.trusted_proxies)
        yield believed, f"callers.trusted_proxies must list who may say {rule.match} (callers.rules)"


def _storage_rules(storage: StorageConfig) -> _Rules:
    block = storage.block_size
    yield block >= 4 * KIB, "storage.block_size must be at least 4KiB"
    yield block <= 16 * MIB, "storage.block_size must be at most 16MiB"
    yield block % 4096 == 0, "storage.block_size must be a multiple of 4KiB"
    whole = storage.slice_size >= block and storage.slice_size % block == 0
    yield whole, "storage.slice_size must be a multiple of storage.block_size"
    yield storage.slice_size <= GIB, "storage.slice_size must be at most 1GiB"
    yield storage.window >= 4 * block, "storage.window must be at least four times storage.block_size"
    yield storage.memory_budget >= storage.window, "storage.memory_budget must be at least storage.window"
    most = max(1, *(policy.m for policy in storage.policies.values()))
    yield (
        storage.min_redundancy <= most,
        f"storage.min_redundancy must be at most {most}: no policy has more to lose",
    )
    unknown = sorted(storage.policy_compression.keys() - storage.policies.keys())
    yield (
        not unknown,
        f"storage.policy_compression names {', '.join(unknown)}, which storage.policies does not have",
    )
    yield storage.parallel_slices >= 1, "storage.parallel_slices must be at least 1"


def _process_rules(c: Config) -> _Rules:
    """Each process has its part of what a service may have."""
    count, each = c.http.processes, "times http.processes, since each has its part of it"
    yield (
        c.storage.memory_budget >= count * c.storage.window,
        f"storage.memory_budget must be at least storage.window {each}",
    )
    yield c.metadb.pool_size >= count, f"metadb.pool_size must be at least 1 {each}"
    yield c.http.max_connections >= count, f"http.max_connections must be at least 1 {each}"
    yield c.http.threads >= count, f"http.threads must be at least 1 {each}"
    yield c.peers.max_connections >= count, f"peers.max_connections must be at least 1 {each}"


def _other_rules(c: Config) -> _Rules:
    yield c.metadb.pool_size >= 1, "metadb.pool_size must be at least 1"
    yield c.metadb.connect_timeout > 0, "metadb.connect_timeout must be more than 0"
    yield c.metadb.statement_timeout > 0, "metadb.statement_timeout must be more than 0"
    yield c.metadb.backup_keep >= 1, "metadb.backup_keep must be at least 1"
    yield 0 <= c.node.port < 65536, "node.port must be 0 (any free port) to 65535"
    yield 0 <= c.node.metrics_port < 65536, "node.metrics_port must be 0 (none) to 65535"
    aligned = c.node.write_buffer >= 4096 and c.node.write_buffer % 4096 == 0
    yield aligned, "node.write_buffer must be a multiple of 4KiB"
    yield c.node.direct_io in ("auto", "off"), "node.direct_io must be 'auto' or 'off'"
    yield c.node.heartbeat > 0, "node.heartbeat must be more than 0"
    yield c.node.down_after > 2 * c.node.heartbeat, "node.down_after must be more than twice node.heartbeat"
    yield c.peers.connect_timeout > 0, "peers.connect_timeout must be more than 0"
    yield c.peers.stall_timeout > 0, "peers.stall_timeout must be more than 0"
    yield c.peers.base_timeout > 0, "peers.base_timeout must be more than 0"
    yield c.peers.min_rate > 0, "peers.min_rate must be more than 0"
    yield c.node.slow_write > 0, "node.slow_write must be more than 0"
    yield c.node.probe_interval > 0, "node.probe_interval must be more than 0"
    yield c.peers.max_connections >= 1, "peers.max_connections must be at least 1"
    yield c.peers.hedge_min > 0, "peers.hedge_min must be more than 0"
    yield c.peers.breaker_failures >= 1, "peers.breaker_failures must be at least 1"
    yield c.peers.breaker_pause > 0, "peers.breaker_pause must be more than 0"
    yield c.upkeep.interval > 0, "upkeep.interval must be more than 0"
    yield c.upkeep.scrub_period > 0, "upkeep.scrub_period must be more than 0"
    yield c.upkeep.sweep_interval > 0, "upkeep.sweep_interval must be more than 0"
    slow = c.upkeep.repair_delay >= c.node.down_after
    yield slow, "upkeep.repair_delay must be at least node.down_after: who is not down yet has lost nothing"
    yield (
        c.upkeep.quarantine_ttl > 0,
        "upkeep.quarantine_ttl must be more than 0: it is for mistakes",
    )
    yield c.upkeep.upload_ttl > 0, "upkeep.upload_ttl must be more than 0"
    yield c.audit.max_size >= MIB, "audit.max_size must be at least 1MiB"
    yield (
        bool(c.audit_file) or not c.audit.required,
        "audit.required needs audit.file: a path where distfs may write",
    )
    yield c.local.nodes >= 1, "local.nodes must be at least 1"
    yield (
        _is_endpoint(c.tracing.endpoint),
        "tracing.endpoint must be a URL, as http://127.0.0.1:4318, or empty",
    )
    yield bool(c.tracing.service_name), "tracing.service_name must not be empty"


def _alerting_rules(alerting: AlertingConfig) -> _Rules:
    yield (
        _is_endpoint(alerting.webhook) and alerting.webhook.isascii() and "@" not in alerting.webhook,
        "alerting.webhook must be a URL without a password, as http://127.0.0.1:9000/alerts, or empty",
    )
    yield (
        _is_server(alerting.smtp, "smtp", "smtps"),
        "alerting.smtp must be a URL, as smtp://user:password@mail.example:587 or smtps://mail.example",
    )
    yield (
        (alerting.mail_to + alerting.mail_from).isprintable(),
        "alerting.mail_to and alerting.mail_from must be one line",
    )


def _log_rules(log: LogConfig) -> _Rules:
    yield log.format in ("text", "json"), "log.format must be 'text' or 'json'"
    yield log.max_bytes >= MIB, "log.max_bytes must be at least 1MiB"
    yield log.store in ("files", "metadb"), "log.store must be 'files' or 'metadb'"
    yield bool(log.dir), "log.dir must be a folder, auto, or off"
    yield (
        _SYSLOG.fullmatch(log.syslog) is not None,
        "log.syslog must be off, journal, unix:/dev/log, or udp://host:514",
    )
    yield log.level.upper() in _LEVELS, f"log.level must be one of {', '.join(_LEVELS)}"


def _is_endpoint(url: str) -> bool:
    """Whether spans and alerts can be sent there."""
    return not url or _is_server(url, "http", "https")


def _is_server(url: str, *schemes: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
