"""What it costs to know who asks: a token and a link beside nobody; and what strangers learn and can disturb.

4 KiB GETs with a token, by a link and without either, in turns; how long a 404 takes for a hidden file and for
none; and what becomes of a user's requests while others show as many wrong tokens as the machine has time for.
"""

from __future__ import annotations

import random
import statistics
import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID, uuid4

from bench import small, wrk
from bench.kinds import Kind, show
from bench.parts import Parts
from bench.report import Goal, Options, judge
from bench.targets import workspace
from distfs.access.db import TokenDB
from distfs.access.link import Link, seal
from distfs.access.terms import read_terms
from distfs.access.token import new_token
from distfs.config.settings import MetaDBConfig
from distfs.deadline import Deadline
from distfs.errors import Corrupt
from distfs.meta import MetaDB

TOKEN_GOAL, LINK_GOAL = 1.05, 1.03  # CPU of the service with one, to without
TOLD_APART_GOAL = 0.53  # how often who times two 404s names the hidden file; 0.5: by chance
_FILES, _WRONG, _STRANGERS = 200, 20_000, 64
_ASK_S, _BEGIN_S, _WARM_UP = 30.0, 1.0, 200


@dataclass(frozen=True, slots=True)
class Found:
    """CPU of the service as a share of what it is without, a 404's likeness, and a user beside strangers."""

    token: float
    link: float
    told_apart: float
    wrong_per_s: float
    alone_ms: float
    beside_ms: float
    beside_longest_ms: float
    failed: int


class _User:
    """Who has a token, over one connection."""

    def __init__(self, url: str, token: str, address: str = "127.0.0.1") -> None:
        self._connection = HTTPConnection(urlsplit(url).netloc, timeout=60, source_address=(address, 0))
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes, float]:
        """-> status, body, milliseconds."""
        began = time.perf_counter()
        self._connection.request(method, path, body, self._headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read(), (time.perf_counter() - began) * 1e3

    def close(self) -> None:
        self._connection.close()


def run(options: Options, cleanup: ExitStack) -> Found:
    """Raises ConfigError without wrk, Corrupt on an answer that is not what was asked for, GoalMissed."""
    wrk.needed()
    folder = cleanup.enter_context(workspace(options.work))
    parts = cleanup.enter_context(Parts.running(folder / "parts", mutual=False))
    with closing(MetaDB(MetaDBConfig(url=parts.metadb))) as meta:
        tokens = TokenDB(meta)
        asked = [{"owner": owner, "scopes": ["upload", "download"]} for owner in ("one", "another")]
        (id, mine), (_, anothers) = (tokens.create(read_terms(each), Deadline(_ASK_S)) for each in asked)
        [maker] = [each.token for each in tokens.since(0, Deadline(_ASK_S)) if each.token.id == id]
    guarded = {"DISTFS_AUTH_MODE": "on"}
    kinds = [
        Kind(name, parts.serve(name, environ), parts, parts.ca)
        for name, environ in (("nobody", {}), ("a token", guarded), ("a link", guarded))
    ]
    url = kinds[1].url
    with closing(_User(url, mine)) as user:
        ids = [_stored(user) for _ in range(_FILES)]
    key, end = maker.link_keys[0][0], int(time.time()) + 86400
    links = [f"/download/{each}?link={seal(Link(id, end, UUID(each)), key)}" for each in ids]
    plain = small.listed(folder / "paths", [f"/download/{each}" for each in ids])
    ways = (plain, [*plain, mine], small.listed(folder / "links", links))
    for _ in range(options.runs):
        for kind, what in zip(kinds, ways, strict=True):
            kind.measure("4 KiB GET", "request", partial(_load, kind.url, what, options))
    show(options, kinds)
    told_apart = _told_apart(url, anothers, ids, options)
    return _judged(kinds, told_apart, _beside_strangers(url, mine, ids, folder, options))


def _load(url: str, what: Sequence[str], options: Options) -> float:
    found = wrk.load(url, options.connections, options.seconds, what)
    if found.failed:
        raise Corrupt(f"{found.failed} of {found.answers} requests failed")
    return found.answers


def _stored(user: _User) -> str:
    status, body, _ = user.ask("PUT", "/upload/x", random.randbytes(small.SIZE))
    if status != HTTPStatus.CREATED:
        raise Corrupt(f"an upload was answered {status}: {body.decode()}")
    return body.decode().strip()


# --- what a 404 tells ---------------------------------------------------------------------------------------


def _told_apart(url: str, token: str, hidden: Sequence[str], options: Options) -> float:
    """How often the slower, or the quicker, of two 404s is the hidden file's: 0.5 when nothing can be told."""
    times: dict[bool, list[float]] = {True: [], False: []}
    none = [str(uuid4()) for _ in hidden]  # as often each: what is asked again is quicker
    with closing(_User(url, token)) as user:
        for number in range(options.runs * 2000):
            there = random.random() < 0.5
            status, _, ms = user.ask("GET", f"/download/{random.choice(hidden if there else none)}")
            if status != HTTPStatus.NOT_FOUND:
                raise Corrupt(f"a file of somebody else was answered {status}")
            if number >= _WARM_UP:
                times[there].append(ms)
    others = sorted(times[False])
    below = sum((bisect_left(others, ms) + bisect_right(others, ms)) / 2 for ms in times[True])
    slower = below / (len(others) * len(times[True]))
    halves = {name: statistics.median(times[each]) for name, each in (("hidden", True), ("none", False))}
    print(
        f"\n404 of {sum(map(len, times.values()))}: "
        + ", ".join(f"{n} {ms:.3f} ms" for n, ms in halves.items())
    )
    return max(slower, 1 - slower)


# --- strangers with wrong tokens ------------------------------------------------------------------------------


def _beside_strangers(
    url: str, token: str, ids: Sequence[str], folder: Path, options: Options
) -> tuple[float, list[float], list[float], int]:
    """-> wrong tokens a second; a user's milliseconds alone, and beside them; and how many of those failed."""
    wrong = small.listed(folder / "wrong", [new_token() for _ in range(_WRONG)])[1]
    seconds = max(5, 2 * options.seconds)
    alone, _ = _asks(url, token, ids, seconds)
    with ThreadPoolExecutor(1) as aside:
        strangers = aside.submit(wrk.load, f"{url}/files", _STRANGERS, seconds, ["wrong", wrong])
        time.sleep(_BEGIN_S)
        beside, failed = _asks(url, token, ids, seconds - 2 * _BEGIN_S)
        load = strangers.result()
    if load.refused != load.answers:
        raise Corrupt("a token that nobody made was let in")
    return load.answers / load.seconds, alone, beside, failed


def _asks(url: str, token: str, ids: Sequence[str], seconds: float) -> tuple[list[float], int]:
    """A user who asks for one file after another, from another address than the strangers."""
    end, times, failed = time.monotonic() + seconds, [], 0
    with closing(_User(url, token, "127.0.0.2")) as user:
        while time.monotonic() < end:
            status, _, ms = user.ask("GET", f"/download/{random.choice(ids)}")
            times.append(ms)
            failed += status != HTTPStatus.OK
    return times, failed


def _judged(
    kinds: Sequence[Kind], told_apart: float, beside: tuple[float, list[float], list[float], int]
) -> Found:
    nobody, *others = (kind.figures["4 KiB GET"].cpu["service"] for kind in kinds)
    token, link = (statistics.median(a / b for a, b in zip(each, nobody, strict=True)) for each in others)
    wrong, alone, among, failed = beside
    found = Found(
        token,
        link,
        told_apart,
        wrong,
        statistics.median(alone),
        statistics.median(among),
        max(among),
        failed,
    )
    print(
        f"wrong tokens {wrong:,.0f}/s over {_STRANGERS} connections; a user's GET {found.alone_ms:.1f} ms alone, "
        f"{found.beside_ms:.1f} beside them (longest {found.beside_longest_ms:.0f}), {failed} of {len(among)} failed"
    )
    goals = [
        Goal("CPU with a token, to without", found.token, TOKEN_GOAL, least=False),
        Goal("CPU with a link, to without", found.link, LINK_GOAL, least=False),
        Goal("a hidden file's 404 told from none", told_apart, TOLD_APART_GOAL, least=False, digits=3),
        Goal("requests of a user that failed beside wrong tokens", float(failed), 0, least=False, digits=0),
    ]
    judge(goals, found)
    return found
