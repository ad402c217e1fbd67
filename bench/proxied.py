"""A service that reaches each storage node through a proxy: ``python -m bench.proxied serve ...``.

``BENCH_PROXIES`` says where: ``{"9001": 40001}`` for a node's port and its proxy's.
"""

from __future__ import annotations

import json
import os
import sys

from distfs import cli
from distfs.wire_socket import WireSocket

_PORTS: dict[str, int] = json.loads(os.environ["BENCH_PROXIES"])
_connect = WireSocket.connect


def _through_proxy(host: str, port: int, peer: str, timeout: float, stall: float) -> WireSocket:
    return _connect(host, _PORTS[str(port)], peer, timeout, stall)


if __name__ == "__main__":
    WireSocket.connect = _through_proxy  # type: ignore[method-assign]
    sys.exit(cli.main())
