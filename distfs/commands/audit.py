"""``distfs audit verify``: whether an audit log is as it was written, and if not, which line."""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from distfs import audit
from distfs.audit import Head, Line
from distfs.config.settings import AuthMode, Config
from distfs.errors import DistfsError, NotFound, Refused
from distfs.process.output import DONE, FAILED, NOT_TOLD, complain, tell
from distfs.quantity import counted
from distfs.services import audit_log

#: Flags that name what a command is about.
_OBJECTS = ("uuid", "node", "id", "owner")
#: No line is longer.
_MOST_LINE = audit.TAIL


@dataclass
class Report:
    """What was found in one file."""

    path: Path
    lines: int = 0
    first: Head | None = None
    last: Head | None = None
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass
class _Chain:
    """Where a chain is, file by file."""

    n: int = 0
    hash: str = audit.NOTHING
    gaps: set[int] = field(default_factory=set)  # numbers that were passed over, of the last MOST_GAPS
    begun: bool = False


def verify(paths: Sequence[Path], holds: str = "") -> list[Report]:
    """In the order in which they were written, chain by chain. ``holds``: a hash that one of the lines is to have.

    Raises OSError.
    """
    by_chain: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    empty = []
    for path in dict.fromkeys(paths):
        first = next((line for line in map(audit.read, _lines(path)) if line is not None), None)
        if first is None:
            empty.append(path)
        else:
            by_chain[first.head.log].append((first.head.n, path))
    reports = [_of_none(path) for path in empty]
    found = not holds
    for name in sorted(by_chain):
        chain = _Chain()
        for _, path in sorted(by_chain[name]):
            report = Report(path)
            for number, line in _read(path, report):
                found = found or line.head.hash == holds
                _follow(chain, report, number, line)
            if chain.gaps:
                report.wrong.append(f"{_numbers(chain.gaps)} {_are(chain.gaps)} missing")
                chain.gaps.clear()
            reports.append(report)
    if not found:
        reports[-1].wrong.append(f"no line has the hash {holds}: lines were removed, or made anew")
    return reports


def _of_none(path: Path) -> Report:
    report = Report(path)
    for _ in _read(path, report):
        pass
    if not report.wrong:
        report.notes.append("it is empty")
    return report


def _lines(path: Path) -> Iterator[bytes]:
    """With what there is behind the last line break."""
    with path.open("rb") as file:
        while text := file.readline(_MOST_LINE + 1):
            yield text.removesuffix(b"\n")


def _read(path: Path, report: Report) -> Iterator[tuple[int, Line]]:
    """The lines and their places in the file, from 1 on; what is none is in the report."""
    torn: list[bytes] = []
    begins = 0
    for number, text in enumerate(_lines(path), 1):
        report.lines = number
        line = audit.read(text)
        if line is None:
            begins = begins if torn else number
            torn.append(text)
            continue
        if torn:
            _explain(report, begins, torn, line)
            torn = []
        yield number, line
    if torn and len(torn) == 1 and not _ends_whole(path):
        report.notes.append(
            f"line {begins} is cut short, by a kill or a full disk; a service that goes on with it says so"
        )
    elif torn:
        report.wrong.append(f"what is from line {begins} on is none of an audit log: it was changed or added")


def _explain(report: Report, begins: int, torn: list[bytes], line: Line) -> None:
    """What is no line was cut short, if the line behind it says just that."""
    said = line.entry.get("cut_short")
    if line.entry.get("action") == audit.OPEN and said == audit.cut_short(b"\n".join(torn)):
        report.notes.append(f"line {begins} was cut short, by a kill or a full disk, as the next one says")
    else:
        report.wrong.append(f"line {begins} is none of an audit log: it was changed or added")


def _follow(chain: _Chain, report: Report, number: int, line: Line) -> None:
    head = line.head
    report.first = report.first or head
    if not line.whole:
        report.wrong.append(f"line {number} (number {head.n}) was changed: its hash is of another text")
    if not chain.begun:
        chain.begun = True
        if head.n != 1:
            report.notes.append(
                f"it goes on at number {head.n}, after {line.entry.get('after') or 'a file'} whose last hash is "
                f"{line.prev}: that was not given"
            )
            chain.n, chain.hash = head.n - 1, line.prev
    if report.last is not None and head.log != report.last.log:
        report.wrong.append(f"line {number} is of another log, {head.log}: what is before it was put there")
        chain.n, chain.hash = head.n - 1, line.prev
    _place(chain, report, number, line)
    report.last = head


def _place(chain: _Chain, report: Report, number: int, line: Line) -> None:
    head, follows = line.head, chain.n + 1
    if head.n < follows:
        if head.n in chain.gaps:
            chain.gaps.discard(head.n)
            report.wrong.append(
                f"line {number} (number {head.n}) was moved: it stands behind number {chain.n}"
            )
        else:
            report.wrong.append(f"line {number} was added: number {head.n} is there already")
        return
    if head.n > follows:
        missing = range(follows, head.n)
        if len(missing) > 1000:
            report.wrong.append(f"numbers {follows} to {head.n - 1} are missing before line {number}")
        else:
            chain.gaps.update(missing)
    elif line.prev != chain.hash:
        report.wrong.append(
            f"line {number} (number {head.n}) does not go on from the one before: one of the two was made anew"
        )
    chain.n, chain.hash = head.n, head.hash


def _numbers(gaps: set[int]) -> str:
    low, high = min(gaps), max(gaps)
    if len(gaps) == high - low + 1:
        return f"number {low}" if low == high else f"numbers {low} to {high}"
    return "numbers " + ", ".join(map(str, sorted(gaps)[:20]))


def _are(gaps: set[int]) -> str:
    return "is" if len(gaps) == 1 else "are"


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def audited(config: Config, given: argparse.Namespace, act: Callable[[], int | None]) -> int:
    """Do what an operator's command does, and note it if it changes something. -> its exit code."""
    log = audit_log(_as_served(config))
    if not (log.on and _changes(given)):
        return act() or DONE
    action = f"command {given.command} {getattr(given, 'what', '')}".rstrip()

    def entry() -> dict[str, object]:
        """When it is done: it may know only then what it was about."""
        what = next((named for each in _OBJECTS if (named := getattr(given, each, None))), "")
        change = getattr(given, "change", "")
        return {"who": audit.user(), "action": action, "object": what} | (
            {"change": change} if change else {}
        )

    with closing(log):
        log.check()
        try:
            code = act() or DONE
        except DistfsError as e:
            log.write(
                entry() | {"outcome": "deny" if isinstance(e, Refused | NotFound) else "fail", "why": str(e)}
            )
            raise
        except BaseException as e:
            log.write(entry() | {"outcome": "fail", "why": type(e).__name__})
            raise
        log.write(entry() | {"outcome": "allow" if code == DONE else "fail", "why": "", "exit_code": code})
        return code


def _as_served(config: Config) -> Config:
    """Where a service has begun a log of its own accord, commands go on with it, whether or not they are told that
    its auth is on: it may have been told so by its environment alone."""
    if config.audit.file != "auto" or config.audit_file:
        return config
    served = replace(config, auth=replace(config.auth, mode=AuthMode("on")))
    there = bool(served.audit_file) and Path(served.audit_file).is_file()
    return served if there else config


def _changes(given: argparse.Namespace) -> bool:
    """Whether the command, with these flags, changes anything."""
    shown = (
        ("dry_run", True),  # drain, rebalance
        ("what", "list"),  # trash
        ("what", "show-id"),  # cluster-key
        ("adopt", False),  # settings
        ("now", False),  # repair
    )
    return getattr(given, "changes", True) and not any(
        getattr(given, flag, None) == value for flag, value in shown
    )


def show(paths: Sequence[Path], *, holds: str, as_json: bool) -> int:
    """-> 0: all is as it was written; 1: it is not; 3: a file cannot be read."""
    try:
        reports = verify(paths, holds)
    except OSError as e:
        complain(f"distfs: {e.filename} cannot be read: {e.strerror}")
        return NOT_TOLD
    if as_json:
        tell(json.dumps([_entry(report) for report in reports], indent=2))
    else:
        for report in reports:
            tell("\n".join(_in_words(report)))
    return FAILED if any(report.wrong for report in reports) else DONE


def _in_words(report: Report) -> Iterator[str]:
    what = counted(report.lines, "line")
    if report.first and report.last:
        what += f", numbers {report.first.n} to {report.last.n}, last hash {report.last.hash}"
    yield f"{report.path}: {what}: {'WRONG' if report.wrong else 'as it was written'}"
    yield from (f"  wrong: {each}" for each in report.wrong)
    yield from (f"  note: {each}" for each in report.notes)


def _entry(report: Report) -> dict[str, object]:
    return {
        "file": str(report.path),
        "lines": report.lines,
        "last_number": report.last.n if report.last else None,
        "last_hash": report.last.hash if report.last else None,
        "wrong": report.wrong,
        "notes": report.notes,
    }
