"""What it costs to be observed: logs and metrics on beside off, in turns; and lines of the log kept in MetaDB."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack, closing

from bench import curl, noise, wrk
from bench.curl import Content
from bench.kinds import Figure, Kind, show
from bench.parts import Parts
from bench.report import Options
from bench.targets import need_room, workspace
from distfs.config.settings import LogConfig, MetaDBConfig
from distfs.log_store import LogStore

#: So many lines a second are to cost a tenth of a core.
LINES_A_SECOND = 5000
_OFF = {"DISTFS_LOG_LEVEL": "ERROR", "DISTFS_LOG_DIR": "off", "DISTFS_METRICS_ENABLED": "false"}


def run(options: Options, cleanup: ExitStack) -> dict[str, object]:
    """Raises ConfigError without wrk, Corrupt on a wrong byte."""
    wrk.needed()
    folder = cleanup.enter_context(workspace(options.work))
    size = options.mb * 10**6
    need_room(folder, 2 * (options.runs + 1) * 2 * size)
    large = folder / "large.bin"
    content = Content(size, noise.write_file(large, size))
    parts = cleanup.enter_context(Parts.running(folder / "parts", mutual=False))
    on = {"DISTFS_LOG_DIR": str(folder / "logs")}
    kinds = [Kind(name, parts.serve(name, env), parts, parts.ca) for name, env in (("off", _OFF), ("on", on))]
    for kind in kinds:
        stored = curl.put(f"{kind.url}/upload/x", large)
        curl.fetch(f"{kind.url}/download/{stored}", size).expect(content, kind.name)
    for turn in range(options.runs):
        for kind in kinds if turn % 2 else reversed(kinds):
            kind.measure_large(large, options)
            kind.measure_small(folder, options)
    show(options, kinds)
    store = _store(parts.metadb, float(options.seconds))
    print(
        f"log.store: {LINES_A_SECOND} lines/s take {store:.0%} of a core, MetaDB's own not counted; goal: 10%"
    )
    figures: dict[str, dict[str, Figure]] = {kind.name: kind.figures for kind in kinds}
    return {**figures, "store_cores": store}


def _store(metadb: str, seconds: float) -> float:
    """Cores that it takes of the process that logs. Raises nothing: what is dropped is said."""
    lines = [_line(number) for number in range(LINES_A_SECOND)]
    with closing(LogStore(MetaDBConfig(url=metadb), LogConfig(store="metadb"))) as store:
        store.write(lines[0])
        store.flush()
        began, used = time.perf_counter(), time.process_time()
        for second in range(max(2, int(seconds))):
            for tenth in range(10):
                step = LINES_A_SECOND // 10
                store.write("".join(lines[tenth * step : (tenth + 1) * step]))
                time.sleep(max(0.0, began + second + (tenth + 1) / 10 - time.perf_counter()))
        store.flush()
        cores = (time.process_time() - used) / (time.perf_counter() - began)
        if store.dropped:
            print(f"log.store: {store.dropped} lines were dropped: {store.why}")
    return cores


def _line(number: int) -> str:
    said = {"part": "service", "time": "2026-01-31T12:00:00.123Z", "level": "INFO", "event": "request"}
    said |= {"request_id": f"{number:016x}", "logger": "distfs.access", "message": "request", "method": "GET"}
    return json.dumps({**said, "path": f"/download/{number:036d}", "status": 200, "sent": 4096}) + "\n"
