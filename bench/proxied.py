"""A service that reaches each storage node through a proxy: ``python -m bench.proxied serve ...``.

``BENCH_PROXIES`` says where: ``{"9001": 40001}`` for a node's port and its proxy's.
"""

from __future__ import annotations

import json
import os
import sys

from distfs import cli
from distfs.peers.greeting import NodeSocket

_PORTS: dict[str, int] = json.loads(os.environ["BENCH_PROXIES"])
_connect = NodeSocket.connect


def _through_proxy(host: str, port: int, peer: str, timeout: float, stall: float) -> NodeSocket:
    return _connect(host, _PORTS[str(port)], peer, timeout, stall)


if __name__ == "__main__":
    NodeSocket.connect = _through_proxy  # type: ignore[method-assign]
    sys.exit(cli.main())
