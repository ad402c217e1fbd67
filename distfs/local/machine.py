"""What of this machine keeps distfs from doing well: disks, limits, memory. A finding names the line that mends it.

Everything is read from the system anew, and nothing is changed.
"""

from __future__ import annotations

import os
import resource
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from distfs.config.settings import Config
from distfs.metadb import embedded_postgres
from distfs.metadb.ballast import shares_disk
from distfs.process import control_groups
from distfs.process.descriptors import raise_limit
from distfs.process.private import open_to_others
from distfs.quantity import size
from distfs.storage.disk.space import space

#: A disk with less than this share of its bytes free is filling up.
_LITTLE_ROOM = 0.1
#: Descriptors of a service beside those of its clients: nodes, MetaDB, the files of its log.
_OWN_DESCRIPTORS = 600
#: Threads of a service beside those of its requests.
_OWN_THREADS = 100
#: What a part needs beside the blocks of its transfers.
_OWN_MEMORY = 64 << 20

_IN_MEMORY = ("tmpfs", "ramfs")
_REMOTE = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs")


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"  # worth knowing, and nothing is wrong
    WARN = "warn"  # it works, and will not for ever
    BAD = "bad"  # something does not work, or will lose data


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``remedy``: what to type or to write; empty: nothing has to be done."""

    level: Level
    about: str
    what: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo (proc(5))."""

    device: str  # major:minor
    point: str
    kind: str
    options: frozenset[str]  # of the mount, and of the file system


def examine(config: Config) -> Iterator[Finding]:
    """Everything of this machine that a part of distfs with this configuration stands on."""
    folders = folders_of(config)
    mounts = mounted()
    yield from _disks(folders, mounts, config)
    yield from _limits(config)
    yield from _memory(config)


def folders_of(config: Config) -> list[Path]:
    """Where data is kept here: of ``distfs up`` MetaDB and each node, else the node's folder, if it is there."""
    data = Path(config.local.data)
    found = sorted(path for path in data.glob("node*") if path.is_dir())
    metadb = embedded_postgres.folder_of(config.metadb.url)
    if metadb is not None and metadb.is_dir():
        found.insert(0, metadb)
    alone = Path(config.node.data)
    return found if alone in found or not alone.is_dir() else [*found, alone]


# --- disks ------------------------------------------------------------------------------------------------


def mounted(table: Path = Path("/proc/self/mountinfo")) -> dict[str, Mount]:
    """By device; of several mounts of one device the last. Empty where the system does not tell."""
    try:
        lines = table.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return {}
    return {mount.device: mount for mount in map(_mount, lines)}


def _mount(line: str) -> Mount:
    own, _, system = line.partition(" - ")
    _, _, device, _, point, options, *_ = own.split(" ")
    kind, _, of_system = system.split(" ")[:3]
    return Mount(device, _unescaped(point), kind, frozenset([*options.split(","), *of_system.split(",")]))


def _unescaped(point: str) -> str:
    r"""proc(5) writes blanks as ``\040``."""
    parts = point.split("\\")
    return parts[0] + "".join(chr(int(part[:3], 8)) + part[3:] for part in parts[1:])


def _disks(folders: Sequence[Path], mounts: dict[str, Mount], config: Config) -> Iterator[Finding]:
    if not folders:
        yield Finding(Level.NOTE, "disk", f"{config.local.data} has no data yet: `distfs up` makes it")
    nodes: dict[str, list[Path]] = {}
    for folder in folders:
        yield from _disk(folder, mounts, config)
        if folder.name.startswith("node"):
            nodes.setdefault(_device(folder), []).append(folder)
        if warning := open_to_others(folder):
            what, _, remedy = warning.partition(": ")
            yield Finding(Level.WARN, "disk", what, remedy)
    for together in nodes.values():
        if len(together) > 1:
            names = ", ".join(folder.name for folder in together)
            yield Finding(
                Level.NOTE,
                "disk",
                f"{names} are on one disk: if it dies, every copy on it does",
                "for redundancy give each node a disk, or a machine, of its own",
            )


def _disk(folder: Path, mounts: dict[str, Mount], config: Config) -> Iterator[Finding]:
    try:
        room = space(folder, config.node, shares_disk(embedded_postgres.folder_of(config.metadb.url), folder))
    except OSError as e:
        yield Finding(
            Level.BAD,
            "disk",
            f"{folder}: {e.strerror}",
            "run it as the user whose data it is, or mount the disk",
        )
        return
    mount = mounts.get(_device(folder))
    wrong = list(mounted_wrong(folder, mount)) if mount else []
    yield from wrong
    if room.out_of_files:
        yield Finding(
            Level.BAD, "disk", f"{folder}: {room.out_of_files}", "delete files that are not distfs's"
        )
    elif not room.free:
        yield Finding(
            Level.BAD,
            "disk",
            f"{folder}: {size(room.left)} are free, and {size(room.reserve)} are kept in reserve: it takes no bytes",
            "delete files and `distfs trash empty`, or add a node on another disk",
        )
    elif room.free < room.capacity * _LITTLE_ROOM:
        yield Finding(
            Level.WARN,
            "disk",
            f"{folder}: {size(room.free)} of {size(room.capacity)} are free",
            "add a node on another disk, or delete files",
        )
    elif not wrong:
        kind = f", {mount.kind}" if mount else ""
        yield Finding(
            Level.OK, "disk", f"{folder}: {size(room.free)} of {size(room.capacity)} are free{kind}"
        )


def mounted_wrong(folder: Path, mount: Mount) -> Iterator[Finding]:
    """What of the way a disk is mounted endangers the data in a folder on it."""
    point = shlex.quote(mount.point)
    if "ro" in mount.options:
        yield Finding(
            Level.BAD,
            "disk",
            f"{folder} is on {mount.point}, which is mounted read-only: a disk that failed is, too (see dmesg)",
            f"mount -o remount,rw {point}",
        )
    if mount.options & {"nobarrier", "barrier=0"}:
        yield Finding(
            Level.BAD,
            "disk",
            f"{folder} is on {mount.point}, mounted without barriers: what was stored is lost with the power",
            f"mount -o remount,barrier=1 {point}, and in /etc/fstab",
        )
    if mount.kind in _IN_MEMORY:
        yield Finding(
            Level.WARN,
            "disk",
            f"{folder} is in memory ({mount.kind} at {mount.point}): all of it is gone when the machine restarts",
            "keep data on a disk: `distfs up --data DIR`, or node.data",
        )
    if mount.kind in _REMOTE:
        yield Finding(
            Level.WARN,
            "disk",
            f"{folder} is on {mount.kind} at {mount.point}: whether what is stored is durable is up to its server",
            "run the storage node where the disk is",
        )


def _device(folder: Path) -> str:
    device = folder.stat().st_dev
    return f"{os.major(device)}:{os.minor(device)}"


# --- limits and memory ------------------------------------------------------------------------------------


def _limits(config: Config) -> Iterator[Finding]:
    may = raise_limit()
    wanted = config.http.max_connections + _OWN_DESCRIPTORS
    if may != resource.RLIM_INFINITY and may < wanted:
        yield Finding(
            Level.WARN,
            "limits",
            f"a process may have {may:,} files and sockets open, and http.max_connections is "
            f"{config.http.max_connections:,}",
            f"raise `ulimit -n` to {wanted} (systemd: LimitNOFILE={wanted}), or lower http.max_connections",
        )
    else:
        yield Finding(Level.OK, "limits", f"{may:,} files and sockets a process")
    wanted = config.http.threads + _OWN_THREADS
    for what, most, remedy in _thread_limits():
        if most < wanted:
            yield Finding(
                Level.WARN,
                "limits",
                f"{what} is {most:,}, and http.threads is {config.http.threads:,}",
                f"{remedy.format(wanted)}, or lower http.threads",
            )


def _thread_limits() -> Iterator[tuple[str, int, str]]:
    """What bounds the threads of a process here: what it is called, how many, how to raise it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if hard != resource.RLIM_INFINITY and os.geteuid() != 0:  # root has no such limit
        yield "`ulimit -Hu`, of all processes of this user,", hard, "raise it to {} (systemd: LimitNPROC={})"
    if (most := _number(Path("/proc/sys/kernel/threads-max"))) is not None:
        yield "kernel.threads-max", most, "sysctl kernel.threads-max={}"
    if (most := control_groups.most_tasks()) is not None:
        yield "pids.max of the control group", most, "raise it to {} (systemd: TasksMax={})"


def _memory(config: Config) -> Iterator[Finding]:
    wanted = config.storage.memory_budget + _OWN_MEMORY
    if (most := control_groups.most_memory()) is not None and most < wanted:
        yield Finding(
            Level.WARN,
            "memory",
            f"the control group may use {size(most)}, and storage.memory_budget is "
            f"{size(config.storage.memory_budget)}",
            f"set storage.memory_budget to {max(most // 2 >> 20, 16)}MiB, or raise memory.max",
        )
        return
    available = next((kib << 10 for name, kib in _meminfo() if name == "MemAvailable"), None)
    if available is None:
        return
    if available < wanted:
        yield Finding(
            Level.WARN,
            "memory",
            f"{size(available)} are available, and storage.memory_budget is {size(config.storage.memory_budget)}",
            f"set storage.memory_budget to {max(available // 2 >> 20, 16)}MiB, or stop other programs",
        )
    else:
        yield Finding(Level.OK, "memory", f"{size(available)} are available")


def _meminfo() -> Iterator[tuple[str, int]]:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return
    for line in lines:
        name, _, rest = line.partition(":")
        yield name, int(rest.split()[0])


def _number(path: Path) -> int | None:
    """The number that a file holds; None: it holds none, such as ``max``, or is not there."""
    try:
        text = path.read_text("ascii").strip()
    except (OSError, ValueError):
        return None
    return int(text) if text.isdecimal() else None


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """The worst of each subject first; subjects as they came."""
    found = list(findings)
    subjects = list(dict.fromkeys(each.about for each in found))
    weight = list(Level)
    return sorted(found, key=lambda each: (subjects.index(each.about), -weight.index(each.level)))


def is_wrong(finding: Finding) -> bool:
    """Whether somebody has to do something."""
    return finding.level in (Level.WARN, Level.BAD)
