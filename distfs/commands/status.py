"""``distfs status``: what is kept, how safe it is, what upkeep has before it and how long that may take."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn
from uuid import uuid4

from distfs.commands.display import counted, duration, leaving_in_words, size, table
from distfs.commands.operator import Operator
from distfs.commands.running_service import as_url, ask_service, configured_url, in_words
from distfs.errors import DistfsError
from distfs.limits.db import ReservationDB
from distfs.limits.refusal import full
from distfs.process.output import DONE, NOT_TOLD, USAGE, OutputLost, complain, tell
from distfs.upkeep.model import Backlog, ClusterStatus, Leaving, WorkerState

#: Workers show a result that does not change every half minute; one that is silent for longer does not run.
WORKER_SILENCE_S = 100.0


def show_status(operator: Operator, services: Sequence[str], *, as_json: bool, check: bool = False) -> int:
    """Everything at a glance, ``services`` (URLs; none: the configured one) included.

    -> 0; NOT_TOLD when a service that was named does not answer; ``check``: what ``verdict`` says.
    """
    text, code = told(operator, services, as_json=as_json, check=check)
    tell(text)
    return code


def watch_status(operator: Operator, services: Sequence[str], every: float) -> NoReturn:
    """The same, over and over, in the place of the one before where that is a terminal. Ctrl-C ends it.

    What cannot be told for a while is said, and tried again.
    """
    anew = "\x1b[H\x1b[2J" if sys.stdout.isatty() else ""
    while True:
        try:
            text, _ = told(operator, services, check=True)
        except DistfsError as e:
            if type(e) is DistfsError:
                raise
            text = f"distfs: {e}"
        tell(f"{anew}{time.strftime('%H:%M:%S')}\n{text}\n")
        time.sleep(every)


def told(
    operator: Operator, services: Sequence[str], *, as_json: bool = False, check: bool = False
) -> tuple[str, int]:
    """What ``show_status`` tells, and its exit code."""
    status = operator.db.status(operator.walk())
    backlog = _backlog(operator, status)
    drains = _drains(operator, status)
    config = operator.config
    answers = [
        ask_service(as_url(url, config), config.tls.ca) for url in services or [configured_url(config)]
    ]
    found = verdict(status, answers, _full(operator))
    asked_in_vain = bool(services) and any("error" in each for each in answers)
    code = found.code if check else NOT_TOLD if asked_in_vain else DONE
    strangers = operator.meta.strangers(operator.deadline())
    if as_json:
        entry = _entry(status, backlog, drains) | {"strangers": [asdict(met) for met in strangers]}
        return json.dumps(entry | {"services": answers, "check": asdict(found)}, indent=2), code
    lines = [
        ("files", f"{counted(status.files, 'file')}, {_bytes(status.bytes, status.stored)}"),
        (
            "trash",
            f"{counted(status.trash_files, 'file')}, {_bytes(status.trash_bytes, status.trash_stored)}",
        ),
        ("nodes", _nodes(status)),
        ("slices", _slices(status.slices)),
        ("damage", f"{counted(status.damaged, 'fragment')} known to be corrupt or missing"),
        ("to repair", to_repair(backlog, status.workers)),
    ]
    if strangers:
        refused = ", ".join(f"{met.count} by node {met.node}" for met in strangers)
        lines.append(("strangers", f"{refused} within an hour: `distfs nodes` says from where"))
    lines += [(worker.name, left) for worker in status.workers if (left := _round_left(worker))]
    lines += [(f"node {drain.node}", drain.in_words()) for drain in drains]
    said = [f"{name:10} {text}" for name, text in lines]
    said += [_workers(status.workers), *("\n" + in_words(each) for each in answers)]
    if check:
        said.append("\ncheck: " + ("; ".join(found.reasons) or "all is well"))
    return "\n".join(said), code


def _backlog(operator: Operator, status: ClusterStatus) -> Backlog:
    """What repair has before it. Often that is all that is lacking, which was counted already."""
    delay, down_after = operator.config.upkeep.repair_delay, operator.config.node.down_after
    places = operator.db.hurt_places(delay, operator.deadline())
    if places == operator.db.hurt_places(down_after, operator.deadline(), stopped=True):
        return status.lacking
    return operator.db.backlog(delay, operator.walk())


def to_repair(backlog: Backlog, workers: Sequence[WorkerState]) -> str:
    """Repair's queue, with an estimate from the rate that was observed last."""
    if not backlog.slices:
        return "nothing"
    text = f"{counted(backlog.fragments, 'fragment')} of {counted(backlog.slices, 'slice')}, {size(backlog.bytes)}"
    rate = _rate_of("repair", workers)
    if rate and backlog.slices > backlog.hopeless:
        text += f"; about {duration(backlog.bytes / rate)} at {size(rate)}/s"
    if backlog.hopeless:
        text += f"; {counted(backlog.hopeless, 'slice')} cannot be: too few fragments are left"
    return text


def _round_left(worker: WorkerState) -> str:
    """What a worker has before it of a round that runs, and how long that may take; empty: it tells of none."""
    left = _figure(worker, "bytes_left")
    if not left or not is_running(worker):
        return ""
    seconds = _seconds_left(worker)
    about = f"; about {duration(seconds)} at {size(_figure(worker, 'bytes_per_second'))}/s" if seconds else ""
    return f"{size(left)} left of its round{about}"


def _rate_of(name: str, workers: Sequence[WorkerState]) -> float:
    """Bytes a second that a worker moved or read lately; 0: none."""
    return next((_figure(w, "bytes_per_second") for w in workers if w.name == name), 0.0)


def _seconds_left(worker: WorkerState) -> float | None:
    """Of a round that runs; None: there is none, or nothing moves."""
    left, rate = _figure(worker, "bytes_left"), _figure(worker, "bytes_per_second")
    return left / rate if left and rate and is_running(worker) else None


def _figure(worker: WorkerState, key: str) -> float:
    value = worker.detail.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


WELL, DEGRADED, LOST = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Verdict:
    """How well the cluster is, for ``--check``: WELL, DEGRADED, LOST or NOT_TOLD, as plugins of monitors say it."""

    code: int
    reasons: tuple[str, ...]


def verdict(status: ClusterStatus, services: Sequence[Mapping[str, Any]], full: str = "") -> Verdict:
    """What is lost weighs more than what cannot be told, and that more than what is lacking.

    ``full``: why the cluster takes no more bytes.
    """
    lost, unknown, degraded = [], [], []
    if gone := sum(count for left, count in status.slices.items() if left < 0):
        lost.append(
            f"{counted(gone, 'slice')} with too few fragments where they belong: `distfs fsck --deep` tells whether "
            "what is left elsewhere gives them back"
        )
    unknown += [
        f"service {each['url']} tells nothing: {each['error']}" for each in services if "error" in each
    ]
    away = unreachable(status.workers)
    for node in status.nodes:
        if not node.alive or node.id in away:
            degraded.append(
                f"node {node.id} is {'unreachable' if node.unreachable or node.alive else 'down'}"
            )
        elif node.state == "readonly":
            degraded.append(f"node {node.id} is {node.state}")
    if status.lacking.slices:
        degraded.append(f"{counted(status.lacking.slices, 'slice')} have fewer fragments than they should")
    if status.damaged:
        degraded.append(f"{counted(status.damaged, 'fragment')} known to be corrupt or missing")
    if full:
        degraded.append(f"the cluster is full: {full}")
    if not any(map(is_running, status.workers)):
        degraded.append("no service does the upkeep")
    code = LOST if lost else NOT_TOLD if unknown else DEGRADED if degraded else WELL
    return Verdict(code, (*lost, *unknown, *degraded))


def _full(operator: Operator) -> str:
    """Why the cluster takes no more bytes; empty: it does."""
    db = ReservationDB(operator.meta, uuid4())
    return full(
        db.state(operator.deadline()),
        lambda: db.trash(operator.deadline()),
        operator.config.storage,
        gives_way=operator.config.upkeep.trash_gives_way,
        settles_after=db.settles_after,
    )


def or_not_told(act: Callable[[], int]) -> int:
    """For ``--check``, which has no code to spare: whatever keeps it from telling is NOT_TOLD, a wrong flag too."""
    try:
        return act()
    except SystemExit as e:
        raise SystemExit(NOT_TOLD if e.code == USAGE else e.code) from None
    except OutputLost as e:
        complain(f"distfs: standard output: {e}")
    except DistfsError as e:
        if type(e) is DistfsError:
            raise
        complain(f"distfs: {e}")
    return NOT_TOLD


@dataclass(frozen=True, slots=True)
class _Drain:
    """A node that is to become empty."""

    node: int
    leaving: Leaving
    rate: float  # bytes a second that leave draining nodes
    seconds: float | None  # until it is empty; None: nobody can tell

    def in_words(self) -> str:
        about = f"; about {duration(self.seconds)} at {size(self.rate)}/s" if self.seconds is not None else ""
        return leaving_in_words(self.leaving) + about


def _drains(operator: Operator, status: ClusterStatus) -> list[_Drain]:
    """The worker empties one node after the other. One that is down is repair's."""
    rate = _rate_of("rebalance", list(filter(is_running, status.workers)))
    drains, before = [], 0
    for node in status.nodes:
        if node.state != "draining":
            continue
        left, seconds = operator.db.leaving(node.id, operator.walk()), None
        if left.fragments and rate and node.alive:
            before += operator.db.bytes_kept(node.id, operator.walk())
            seconds = before / rate
        drains.append(_Drain(node.id, left, rate, seconds))
    return drains


def unreachable(workers: Sequence[WorkerState]) -> set[int]:
    """Ids of nodes that heartbeat, and do not answer the service that leads scrub."""
    told = (w.detail.get("unreachable") for w in workers if w.name == "scrub" and is_running(w))
    return {int(id) for ids in told if isinstance(ids, list) for id in ids}


def is_running(worker: WorkerState) -> bool:
    """Whether some service runs this worker at all."""
    return worker.age < WORKER_SILENCE_S


def _nodes(status: ClusterStatus) -> str:
    counts: dict[str, int] = {}
    away = unreachable(status.workers)
    for node in status.nodes:
        state = ("up" if node.state == "active" else node.state) if node.alive else "down"
        if node.unreachable or (node.alive and node.id in away):
            state = "unreachable"
        counts[state] = counts.get(state, 0) + 1
    room = sum({node.disk_key: node.free for node in status.nodes if node.writable}.values())
    return (
        ", ".join(f"{n} {state}" for state, n in sorted(counts.items(), reverse=True))
        + f"; {size(room)} free"
    )


def _slices(slices: Mapping[int, int]) -> str:
    """``{-1: 1, 0: 2, 1: 9}`` in words, the worst first."""
    total = counted(sum(slices.values()), "slice")
    parts = [
        f"{count:,} with too few fragments where they belong"
        if left < 0
        else f"{count:,} with {left} to spare"
        for left, count in sorted(slices.items())
    ]
    return f"{total}: {', '.join(parts)}" if parts else total


def _workers(workers: Sequence[WorkerState]) -> str:
    if not workers:
        return "upkeep     has not run yet: a service does it (`distfs serve`, upkeep.enabled)"
    rows = []
    for worker in workers:
        state = worker.state if is_running(worker) else "not running"
        detail = ", ".join(_said(key, value) for key, value in worker.detail.items() if key != "told")
        rows.append(
            (worker.name, state, f"{duration(worker.age)} ago", f"{worker.host}:{worker.pid}", detail)
        )
    return "\n" + table(("WORKER", "STATE", "LAST SEEN", "PROCESS", "DETAIL"), rows)


def _said(key: str, value: object) -> str:
    if key == "bytes_left" and isinstance(value, int | float):
        return f"{size(value)} left"
    if key == "bytes_per_second" and isinstance(value, int | float):
        return f"{size(value)}/s"
    if key == "burning" and isinstance(value, list):
        return f"{len(value)} burning: `distfs alerts`" if value else "none"
    return f"{key} {value}"


def _bytes(plain: int, stored: int) -> str:
    return size(plain) if plain == stored else f"{size(plain)}, compressed to {size(stored)}"


def _entry(status: ClusterStatus, backlog: Backlog, drains: Sequence[_Drain]) -> dict[str, object]:
    rate = _rate_of("repair", status.workers)
    return {
        "files": status.files,
        "bytes": status.bytes,
        "stored": status.stored,
        "trash": {"files": status.trash_files, "bytes": status.trash_bytes, "stored": status.trash_stored},
        "nodes": {"known": len(status.nodes), "up": sum(node.alive for node in status.nodes)},
        "slices_by_redundancy_left": {str(left): count for left, count in status.slices.items()},
        "damaged_fragments": status.damaged,
        "to_repair": asdict(backlog) | {"seconds_left": round(backlog.bytes / rate) if rate else None},
        "draining": {str(drain.node): drain.leaving.fragments for drain in drains},
        "safe_to_unplug": [drain.node for drain in drains if drain.leaving.safe],
        "drain_seconds_left": {str(drain.node): _rounded(drain.seconds) for drain in drains},
        "workers": [
            asdict(each) | {"seconds_left": _rounded(_seconds_left(each))} for each in status.workers
        ],
    }


def _rounded(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds)
