"""GET of 1 MiB with one of three nodes 200 ms late, beside a healthy cluster; every node behind a proxy."""

from __future__ import annotations

import http.client
import json
from contextlib import ExitStack, closing
from random import Random
from typing import Any

from bench import requests
from bench.report import Options, table
from bench.requests import Latencies
from bench.targets import Distfs, set_environment, workspace
from distfs.config.settings import MIB
from distfs.errors import Unavailable
from distfs.model import Address
from tests.faults.proxy import Proxy

FILES, ROUNDS = 30, 40  # each file is read so often
DELAY_S = 0.2
GOAL = 2.0  # times the p99 of the healthy cluster


def run(options: Options, cleanup: ExitStack) -> dict[str, Any]:
    """Figures of both, and what the service counted."""
    folder = cleanup.enter_context(workspace(options.work))
    distfs = cleanup.enter_context(Distfs.running(folder))
    proxies = [cleanup.enter_context(Proxy(node)) for node in _nodes(distfs)]
    ports = {str(proxy.node.port): proxy.address.port for proxy in proxies}
    with set_environment({"BENCH_PROXIES": json.dumps(ports)}):
        url = cleanup.enter_context(distfs.service("bench.proxied"))
    contents = [Random(n).randbytes(MIB) for n in range(FILES)]
    uuids, _ = requests.put(url, contents, 1)
    wanted = list(zip(uuids, contents, strict=True))
    requests.get(url, wanted * 5, 1)  # the past that lateness is judged by
    healthy = requests.get(url, wanted * ROUNDS, 1)
    proxies[0].down.delay = DELAY_S
    late = requests.get(url, wanted * ROUNDS, 1)
    proxies[0].heal()
    counted = _status(url)["nodes"]["hedging"]
    _print(healthy, late, counted)
    return {"healthy": healthy, "one node late": late, "counted": counted}


def _nodes(distfs: Distfs) -> list[Address]:
    """Where the nodes listen, as the service knows it once it has written to all of them."""
    url = f"http://127.0.0.1:{distfs.port}"
    for _ in range(20):
        requests.put(url, [b"x"] * 5, 1)
        nodes = _status(url)["nodes"]["nodes"].values()
        if len(nodes) >= 3:
            return [Address.parse(node["address"]) for node in nodes]
    raise Unavailable("not every node was written to")


def _status(url: str) -> Any:
    with closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)) as connection:
        connection.request("GET", "/status")
        return json.loads(connection.getresponse().read())


def _print(healthy: Latencies, late: Latencies, counted: dict[str, int]) -> None:
    print(f"\nGET of 1 MiB, {healthy.count} requests one after another, from the first late one on")
    table(
        [
            ["", *requests.HEADINGS],
            ["healthy", *healthy.row()],
            [f"one of three nodes {DELAY_S * 1e3:.0f} ms late", *late.row()],
        ]
    )
    ratio = late.p99_ms / healthy.p99_ms
    print(f"  p99 is {ratio:.1f} times that of the healthy cluster; the goal is at most {GOAL:.0f}")
    print(f"  {counted['hedged']} of {counted['reads']} reads were asked twice, {counted['won']} of them won")
