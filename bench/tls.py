"""What TLS costs: HTTPS beside HTTP, and mutual TLS to the nodes beside none, in turns; rates and CPU time."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

from bench import curl, noise, wrk
from bench.curl import Content
from bench.kinds import Figure, Kind, show
from bench.parts import Parts
from bench.report import Options
from bench.targets import need_room, set_environment, workspace

MIB = 1 << 20
CONNECTIONS = 16
_HANDSHAKES = 200


def run(options: Options, cleanup: ExitStack) -> dict[str, dict[str, Figure]]:
    """Raises ConfigError without wrk, Corrupt on a wrong byte."""
    wrk.needed()
    folder = cleanup.enter_context(workspace(options.work))
    size = options.mb * 10**6
    count = max(CONNECTIONS, size // MIB // 4)
    need_room(folder, 2 * 4 * (options.runs + 1) * (size + count * MIB))
    large, medium = folder / "large.bin", folder / "medium.bin"
    contents = [
        Content(length, noise.write_file(path, length)) for path, length in ((large, size), (medium, MIB))
    ]
    kinds = _kinds(folder, cleanup)
    for kind in kinds:
        with set_environment({"CURL_CA_BUNDLE": kind.ca}):
            stored = curl.put(f"{kind.url}/upload/x", large)
            curl.fetch(f"{kind.url}/download/{stored}", size).expect(contents[0], kind.name)
    for _ in range(options.runs):
        for kind in kinds:
            with set_environment({"CURL_CA_BUNDLE": kind.ca}):
                _turn(kind, large, medium, count, options, folder)
    show(options, kinds)
    return {kind.name: kind.figures for kind in kinds}


def _kinds(folder: Path, cleanup: ExitStack) -> list[Kind]:
    plain = cleanup.enter_context(Parts.running(folder / "plain", mutual=False))
    mutual = cleanup.enter_context(Parts.running(folder / "mutual", mutual=True))
    return [
        Kind(name, parts.serve(name, parts.https if https else {}), parts, parts.ca)
        for name, parts, https in (
            ("HTTP", plain, False),
            ("HTTPS", plain, True),
            ("HTTP, mutual TLS", mutual, False),
            ("HTTPS, mutual TLS", mutual, True),
        )
    ]


def _turn(kind: Kind, large: Path, medium: Path, count: int, options: Options, folder: Path) -> None:
    url = kind.url
    stored: list[str] = []

    def upload_many() -> float:
        stored[:] = curl.put_many(f"{url}/upload/x", medium, count, CONNECTIONS)
        return count

    def download_many() -> float:
        curl.discard_many([f"{url}/download/{uuid}" for uuid in stored], MIB, CONNECTIONS)
        return count

    kind.measure_large(large, options)
    kind.measure("1 MiB up", "file", upload_many)
    kind.measure("1 MiB down", "file", download_many)
    kind.measure_small(folder, options)
    kind.measure("connections", "one", lambda: _handshakes(kind))


def _handshakes(kind: Kind) -> float:
    """Connections of one request each, one after another; none takes up the session of another."""
    for _ in range(_HANDSHAKES):
        with closing(kind.connection()) as connection:
            connection.request("GET", "/healthz")
            connection.getresponse().read()
    return _HANDSHAKES
