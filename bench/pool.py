"""What keeping connections to nodes is worth: two services on one cluster, one that keeps none, in turns."""

from __future__ import annotations

from contextlib import ExitStack
from random import Random

from bench import requests
from bench.report import Options, table
from bench.requests import Latencies
from bench.targets import Distfs, set_environment, workspace
from distfs.config.settings import KIB, MIB

SIZES = {"4 KiB": 4 * KIB, "1 MiB": MIB}
BATCH = {4 * KIB: 400, MIB: 100}  # requests in a turn
CLIENTS = 4


def run(options: Options, cleanup: ExitStack) -> dict[str, dict[str, list[Latencies]]]:
    """PUT and GET of both sizes, as many turns as ``--runs`` says."""
    folder = cleanup.enter_context(workspace(options.work))
    distfs = cleanup.enter_context(Distfs.running(folder))
    with set_environment({"DISTFS_PEERS_CONNECTIONS": "0"}):
        off = cleanup.enter_context(distfs.service("distfs"))
    services = {"pool off": off, "pool on": f"http://127.0.0.1:{distfs.port}"}
    results: dict[str, dict[str, list[Latencies]]] = {}
    for name, size in SIZES.items():
        for _ in range(options.runs):
            for which, url in services.items():
                contents = [Random(n).randbytes(size) for n in range(BATCH[size])]
                uuids, put = requests.put(url, contents, CLIENTS)
                get = requests.get(url, list(zip(uuids, contents, strict=True)), CLIENTS)
                for verb, found in (("PUT", put), ("GET", get)):
                    results.setdefault(f"{verb} {name}", {}).setdefault(which, []).append(found)
    _print(results)
    return results


def _print(results: dict[str, dict[str, list[Latencies]]]) -> None:
    print(f"\n{CLIENTS} clients, the best turn of each")
    rows = [["", *requests.HEADINGS]]
    for name, both in results.items():
        for which, turns in both.items():
            rows.append([f"{name}, {which}", *max(turns, key=lambda turn: turn.rate).row()])
    table(rows)
