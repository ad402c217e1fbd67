"""``distfs serve``: one service on one port, of one process or of several that share it.

Of several, each is what the one would be, with its part of what is configured. The parent that supervises them opens
the port and then only waits (``process.siblings``).
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from uuid import uuid4, uuid5

from distfs.access.failures import Failures
from distfs.alerting.beside import Beside
from distfs.alerting.rules import check_names
from distfs.alerting.worker import EVERY_S, Alerts, Lead
from distfs.config.processes import count_of, part_of
from distfs.config.reach import check_reach
from distfs.config.settings import Config
from distfs.deadline import Deadline
from distfs.errors import Busy, ConfigError, OtherSettings, OutcomeUnknown, Unavailable
from distfs.host.server import Server, listen
from distfs.host.shared import Shared
from distfs.http_app import create_app
from distfs.local.reload import Reload, applied
from distfs.log_store import log_store
from distfs.model import url_here
from distfs.process import descriptors, output, parent_watch
from distfs.process.notice_board import NoticeBoard
from distfs.process.shared_table import SharedTable
from distfs.process.siblings import Hooks, Sibling, Siblings
from distfs.process.signals import on_stop
from distfs.process.terminal import Terminal
from distfs.process.threads import start
from distfs.routes.metrics import looked_at
from distfs.services import Services
from distfs.telemetry import metrics
from distfs.telemetry.logs import flush_log, setup_logging
from distfs.tls.contexts import https
from distfs.together import Together
from distfs.upkeep.copies import Copies
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.runner import Upkeep
from distfs.upkeep.step import Worker

log = logging.getLogger("distfs.serve")

_AGREE_LIMIT_S = 5.0
#: Of how many that died before it, itself counted, a process gives back what they were promised.
_LIVES = 16


@dataclass
class Settings:
    """What a service goes by."""

    config: Config  # with what flags say
    as_read: Config  # the same without
    read: Callable[[], Config]  # that anew; or ConfigError

    def reload(self) -> None:
        """For a process that is started later: what the others apply."""
        try:
            latest = self.read()
        except ConfigError:  # they say so
            return
        self.config, self.as_read = applied(self.config, latest), applied(self.as_read, latest)


def serve(settings: Settings, *, exit_with_parent: bool) -> int:
    """Writes its URL on standard output when it listens; SIGTERM and SIGINT end it, running requests first; the
    second one does not wait for them. SIGHUP reads the configuration anew. -> the exit code."""
    check_reach(settings.config)
    check_names(settings.config.alerting.ignore)
    descriptors.raise_limit()
    count = count_of(settings.config)
    metrics.share(count)
    if count == 1:
        _serve(settings, exit_with_parent=exit_with_parent)
        return output.DONE
    setup_logging(settings.config.log, file="service")  # in the thread there is
    listener = listen(settings.config.http)
    scheme = "https" if https(settings.config.tls) else "http"  # what is wrong with it is said once
    host, port = listener.getsockname()[:2]
    url = url_here(host, port, scheme)
    terminal, service = Terminal(), uuid4()
    table, paces, board = SharedTable(count), SharedTable(count), NoticeBoard(count)
    failures = Failures()

    def work(sibling: Sibling) -> int:
        for each in (table, paces):
            each.mine(sibling.number)
        metrics.mine(sibling.number)
        lives = [uuid5(service, f"{sibling.number} {life}") for life in range(sibling.life + 1)]
        before = tuple(lives[-_LIVES:-1])
        together = Together(
            sibling.number, count, settings.config, table, paces, board, failures, lives[-1], before
        )
        part = replace(settings, config=part_of(settings.config, count))
        return output.command("distfs", lambda: _serve_beside_others(part, listener, sibling, together))

    def forget(number: int) -> None:
        for each in (table, paces, board):
            each.clear(number)
        metrics.forget(number)

    hooks = Hooks(
        ready=lambda: output.announce(url),
        reload=settings.reload,
        hung_up=lambda: terminal.hung_up,
        stop=listener.close,
        died=forget,
    )
    return Siblings("service", count, work, hooks).run(exit_with_parent=exit_with_parent)


def _serve_beside_others(
    settings: Settings, listener: socket.socket, sibling: Sibling, together: Together
) -> int:
    try:
        _serve(settings, listener=listener, sibling=sibling, together=together)
    finally:
        flush_log()
    return output.DONE


def _serve(
    settings: Settings,
    *,
    exit_with_parent: bool = False,
    listener: socket.socket | None = None,
    sibling: Sibling | None = None,
    together: Together | None = None,
) -> None:
    config = settings.config
    setup_logging(config.log, aside=True, file="service", store=log_store(config, forgets=True))
    app = create_app(config, together)
    services = app.services
    services.audit.open()
    if sibling is None or (sibling.life == 0 and sibling.number == 0):
        _agree(services)
    if together is not None and together.before:
        start(services.admission.forget_dead, "forget", together.before)
    shared = None if sibling is None else Shared(lambda: not sibling.all_stop, sibling.others_work)
    server = Server(app, config.http, services.pool, listener, shared, services.https)
    lead = Lead()
    more: dict[str, Callable[[UpkeepDB], Worker]] = {
        Alerts.name: partial(_alerts, services, lead),
        Copies.name: lambda db: Copies(db, services.meta, services.uploader, config),
    }
    parts = services.directory, services.pool, services.damage, services.agreement.require
    upkeep = Upkeep(config, *parts, more)
    on_stop(server.drain)
    Reload(settings.read, settings.as_read, services).on_signal(hung_up=server.drain)
    if exit_with_parent:
        parent_watch.exit_with_parent()
    if sibling is None:
        output.announce(url_here(*server.address, "https" if services.https else "http"))
    else:
        sibling.begin()
    if config.metrics.enabled:
        services.history.begin()
    if together is not None:
        together.keep_saying(services.status)
    stopping = threading.Event()
    if sibling is None or sibling.number == 0:  # one of them, and its successors
        upkeep.start()
        start(_beside(services, lead, server.address).run, "alerts", stopping)
    try:
        server.run()
    finally:
        stopping.set()
        upkeep.close()
        app.close()
        flush_log()


def _alerts(services: Services, lead: Lead, db: UpkeepDB) -> Alerts:
    config = services.config
    silence = 4 * max(EVERY_S, config.upkeep.interval)
    return Alerts(db, config.alerting, lambda: looked_at(services), lead=lead, silence=silence)


def _beside(services: Services, lead: Lead, address: tuple[str, int]) -> Beside:
    place = f"{socket.gethostname()}:{address[1]}"
    config, meta = services.config, services.meta
    return Beside(config.alerting, lambda: looked_at(services), lambda: meta.is_there, lead, place)


def _agree(services: Services) -> None:
    """Raises OtherSettings. Without MetaDB it is asked later, before anything is done by them."""
    try:
        services.agreement.require(Deadline(_AGREE_LIMIT_S))
    except OtherSettings:
        services.close()
        raise
    except (Unavailable, Busy, OutcomeUnknown):
        pass
