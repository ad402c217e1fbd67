"""``distfs fsck``: MetaDB against the nodes, both ways. Changes nothing but the notes by which repair acts."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from distfs.commands.display import Progress, counted, duration, fragments_in_words
from distfs.commands.fsck_node import Finding, NodeCheck, NodeFindings, kept_by
from distfs.commands.operator import Operator
from distfs.commands.readable import is_readable
from distfs.errors import Busy, ProtocolError, Unavailable
from distfs.model import FragmentId, Node
from distfs.process.output import DONE, FAILED, NOT_TOLD, tell
from distfs.process.threads import Threads
from distfs.upkeep.model import MoveTask, ShortFile

#: Nodes that are asked at the same time.
_AT_ONCE = 16
#: How many findings of a kind are printed for people; JSON has them all.
_SHOWN = 20

_KINDS = "missing", "corrupt", "newer", "unknown"

ALL_THERE, NOT_ALL_THERE = DONE, FAILED


@dataclass(frozen=True, slots=True)
class NotAsked:
    """A node that could not be asked, or not to the end: of its fragments nothing is said."""

    node: Node
    reason: str
    fragments: int  # that MetaDB says it keeps


@dataclass
class Findings:
    """What all walks found together."""

    nodes: list[NodeFindings] = field(default_factory=list)
    unkept: list[Finding] = field(default_factory=list)  # kept by nobody, or by a node nobody knows
    not_asked: list[NotAsked] = field(default_factory=list)
    unreadable: list[ShortFile] = field(default_factory=list)  # of what was found on the nodes that answered
    noted: int = 0

    @property
    def missing(self) -> list[Finding]:
        return self.unkept + [finding for node in self.nodes for finding in node.missing]

    @property
    def corrupt(self) -> list[Finding]:
        return [finding for node in self.nodes for finding in node.corrupt]

    @property
    def newer(self) -> list[Finding]:
        return [finding for node in self.nodes for finding in node.newer]

    @property
    def unknown(self) -> list[Finding]:
        return [finding for node in self.nodes for finding in node.unknown]

    @property
    def recent(self) -> int:
        return sum(node.recent for node in self.nodes)

    @property
    def checked(self) -> int:
        return sum(node.checked for node in self.nodes)

    @property
    def exit_code(self) -> int:
        """What is wrong for certain weighs more than what could not be told."""
        if self.missing or self.corrupt:
            return NOT_ALL_THERE
        if self.newer or any(left_out.fragments for left_out in self.not_asked):
            return NOT_TOLD
        return NOT_ALL_THERE if self.unreadable else ALL_THERE


def fsck(operator: Operator, *, deep: bool, note: bool, as_json: bool) -> int:
    """-> 0: every fragment is where it belongs; 1: some are missing or corrupt; 3: it could not be told of all.

    Deleted files count as long as they can be undeleted.
    """
    nodes = operator.nodes()
    findings = Findings()
    nobody = [0, *operator.db.unknown_nodes(operator.deadline())]
    for node in nobody:
        findings.unkept.extend(_unkept(operator, node))
    _Walks(operator, nodes, findings, deep=deep).run()
    silent = [left_out.node.id for left_out in findings.not_asked]
    bad = [finding.fragment for finding in (*findings.missing, *findings.corrupt)]
    short = operator.db.short_files([*nobody, *silent], bad, operator.walk())
    findings.unreadable = [file for file in short if not (deep and _heals(operator, file))]
    if note:
        _note(operator, findings)
    tell(json.dumps(_entry(findings, deep), indent=2) if as_json else _text(findings, deep))
    return findings.exit_code


class _Walks:
    """The walks over all nodes, several at once, with one progress for all."""

    def __init__(self, operator: Operator, nodes: Sequence[Node], findings: Findings, *, deep: bool) -> None:
        self._operator, self._findings, self._deep = operator, findings, deep
        upkeep = operator.config.upkeep
        self._young = upkeep.upload_ttl + upkeep.sweep_margin
        self._due = {node: operator.db.fragments_left(node.id, operator.walk()) for node in nodes}
        self._progress = Progress("checking")
        self._lock = threading.Lock()
        self._done = 0

    def run(self) -> None:
        try:
            with Threads(_AT_ONCE, thread_name_prefix="fsck") as executor:
                for walk in [executor.submit(self._walk, node) for node in self._due]:
                    walk.result()
        finally:
            self._progress.end()
        self._findings.nodes.sort(key=lambda found: found.node.id)
        self._findings.not_asked.sort(key=lambda left_out: left_out.node.id)

    def _walk(self, node: Node) -> None:
        found = NodeFindings(node)
        self._findings.nodes.append(found)
        try:
            NodeCheck(self._operator, found, deep=self._deep, young=self._young, advanced=self._advance).run()
        except (Unavailable, Busy, ProtocolError) as e:
            self._findings.not_asked.append(NotAsked(node, str(e), self._due[node]))

    def _advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._progress.show(self._done, sum(self._due.values()))


def _heals(operator: Operator, short: ShortFile) -> bool:
    """Whether a file is read whole all the same."""
    return not short.trashed and is_readable(operator, short.id)


def _unkept(operator: Operator, node: int) -> Iterator[Finding]:
    """Fragments that MetaDB itself says are nowhere: kept by nobody (0), or by a node that is not known."""
    reason = f"kept by node {node}, which nobody knows" if node else "nobody keeps it"
    for task in kept_by(operator, node):
        # The rows of a file whose end has begun may stay for a while; nobody misses anything of it.
        if not task.trashed or operator.db.is_kept(task.fragment, node, operator.deadline()):
            yield from _places(task, node, reason)


def _places(task: MoveTask, node: int, reason: str) -> Iterator[Finding]:
    for index, holder in enumerate(task.piece.nodes):
        if holder == node:
            yield Finding.of(task, FragmentId(task.piece.id, index), node, reason)


def _note(operator: Operator, findings: Findings) -> None:
    """Let repair know. What nobody keeps it knows already."""
    for finding in (finding for node in findings.nodes for finding in (*node.missing, *node.corrupt)):
        fragment = finding.fragment
        findings.noted += operator.db.note_damage(
            fragment.slice, fragment.index, finding.node, f"fsck: {finding.reason}", operator.deadline()
        )


# --- telling it ------------------------------------------------------------------------------------------


def _text(findings: Findings, deep: bool) -> str:
    asked = len(findings.nodes) - len(findings.not_asked)
    how = "every byte read" if deep else "by name only; --deep reads every byte"
    lines = [f"checked {counted(findings.checked, 'fragment')} on {counted(asked, 'node')} ({how})"]
    for kind in _KINDS:
        lines += _lines(kind, getattr(findings, kind))
    if findings.recent:
        lines.append(
            f"recent: {counted(findings.recent, 'fragment')} of uploads or moves that may be under way"
        )
    for left_out in findings.not_asked:
        node = left_out.node
        silent = "" if node.alive else f", silent for {duration(node.heartbeat_age)}"
        lines.append(
            f"cannot be told: {fragments_in_words(left_out.fragments)} on node {node.id} ({node.address}{silent}): "
            f"{left_out.reason}"
        )
    lines += _unreadable(findings, deep)
    if findings.noted:
        lines.append(f"noted {counted(findings.noted, 'fragment')} for repair")
    if findings.exit_code == ALL_THERE:
        lines.append("every fragment is where it belongs")
    return "\n".join(lines)


def _lines(kind: str, findings: Sequence[Finding]) -> list[str]:
    if not findings:
        return []
    lines = [f"{kind}: {counted(len(findings), 'fragment')}"]
    for finding in findings[:_SHOWN]:
        where = f" on node {finding.node}" if finding.node else ""
        kind_of_file = "deleted file" if finding.deleted else "file"
        of = f" of {kind_of_file} {finding.file} ({finding.name})" if finding.file else ""
        lines.append(f"  {finding.fragment}{where}{of}: {finding.reason}")
    if len(findings) > _SHOWN:
        lines.append(f"  and {len(findings) - _SHOWN:,} more: --json has them all")
    return lines


def _unreadable(findings: Findings, deep: bool) -> list[str]:
    """The files that are lost, or will be unless the nodes that did not answer come back."""
    files = findings.unreadable
    if not files:
        return []
    elsewhere = "" if deep else "; whether what is left elsewhere gives them back is told by --deep"
    lines = [
        f"unreadable: {counted(len(files), 'file')} with too few fragments on the nodes that answer{elsewhere}"
    ]
    for file in files[:_SHOWN]:
        kind = "deleted file" if file.trashed else "file"
        lines.append(f"  {kind} {file.id} ({file.name}): {counted(file.slices, 'slice')}")
    if len(files) > _SHOWN:
        lines.append(f"  and {len(files) - _SHOWN:,} more: --json has them all")
    return lines


def _entry(findings: Findings, deep: bool) -> dict[str, object]:
    return {
        "deep": deep,
        "checked": findings.checked,
        **{kind: [_fragment(f) for f in getattr(findings, kind)] for kind in _KINDS},
        "recent": findings.recent,
        "not_asked": [
            {
                "node": left_out.node.id,
                "address": str(left_out.node.address),
                "reason": left_out.reason,
                "fragments": left_out.fragments,
            }
            for left_out in findings.not_asked
        ],
        "unreadable": [
            {"file": str(file.id), "name": file.name, "deleted": file.trashed, "slices": file.slices}
            for file in findings.unreadable
        ],
        "noted": findings.noted,
        "exit_code": findings.exit_code,
    }


def _fragment(finding: Finding) -> dict[str, object]:
    return {
        "slice": str(finding.fragment.slice),
        "index": finding.fragment.index,
        "node": finding.node,
        "file": str(finding.file) if finding.file else None,
        "name": finding.name,
        "deleted": finding.deleted,
        "reason": finding.reason,
    }
