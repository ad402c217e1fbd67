"""What a dry run prints: from where to where fragments would move, how full the nodes are before and after."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from distfs.commands.display import counted, duration, size, table
from distfs.commands.nodes import state_of
from distfs.commands.operator import Operator
from distfs.model import Node
from distfs.upkeep.decisions import Move, Stay, after_moves, fullness


@dataclass
class Amount:
    """So many fragments with so many bytes in all."""

    fragments: int = 0
    bytes: int = 0

    def add(self, fragment_size: int) -> None:
        self.fragments += 1
        self.bytes += fragment_size

    def __str__(self) -> str:
        return f"{counted(self.fragments, 'fragment')}, {size(self.bytes)}"


class Plan:
    """Moves added up by source and target, so that it is small however many there are."""

    def __init__(self, operator: Operator) -> None:
        """Of the cluster as it is now."""
        self.nodes = operator.nodes()
        self.leaving = {  # each draining node
            n.id: operator.db.leaving(n.id, operator.walk()) for n in self.nodes if n.state == "draining"
        }
        self._rate = float(operator.config.upkeep.rebalance_rate)
        self.all = Amount()  # of what would move
        self.spread = Amount()  # of that, to spread slices over zones
        self._pairs: dict[tuple[int, int], Amount] = defaultdict(Amount)  # by source and target
        self.stays: dict[str, Amount] = defaultdict(Amount)  # what nobody can take, by the reason

    def add(self, step: Move | Stay) -> None:
        if isinstance(step, Stay):
            self.stays[step.reason].add(step.size)
        else:
            self._pairs[step.source, step.target].add(step.size)
            self.all.add(step.size)
            if step.spreads:
                self.spread.add(step.size)

    @property
    def count(self) -> int:
        """Of all fragments that were added."""
        return self.all.fragments + sum(amount.fragments for amount in self.stays.values())

    @property
    def seconds(self) -> float | None:
        """That the moves take at least; None: no rate holds them back."""
        return self.all.bytes / self._rate if self._rate > 0 else None

    def in_words(self) -> str:
        """Ends without a line break."""
        nodes = [self._node_row(*each) for each in self._before_and_after()]
        text = table(("ID", "ADDRESS", "STATE", "FULL", "THEN"), nodes)
        if not self._pairs:
            return text
        pairs = [
            (str(source), str(target), f"{moved.fragments:,}", size(moved.bytes))
            for (source, target), moved in sorted(self._pairs.items())
        ]
        zones = f", of that {self.spread} out of crowded zones" if self.spread.fragments else ""
        return (
            f"{table(('FROM', 'TO', 'FRAGMENTS', 'BYTES'), pairs)}\n\n{text}\n\n{self.all} to move{zones}: "
            f"{self._time()} (upkeep.rebalance_rate)"
        )

    def entry(self) -> dict[str, object]:
        """The same for programs."""
        return {
            "moves": [
                {"source": source, "target": target, "fragments": moved.fragments, "bytes": moved.bytes}
                for (source, target), moved in sorted(self._pairs.items())
            ],
            "fragments": self.all.fragments,
            "bytes": self.all.bytes,
            "fragments_to_spread": self.spread.fragments,
            "bytes_to_spread": self.spread.bytes,
            "bytes_per_second": self._rate or None,
            "seconds": None if self.seconds is None else round(self.seconds, 1),
            "nodes": [
                {
                    "id": node.id,
                    "address": str(node.address),
                    "state": node.state,
                    "alive": node.alive,
                    "fullness": round(fullness(node), 4),
                    "fullness_then": round(fullness(then), 4),
                }
                for node, then in self._before_and_after()
            ],
        }

    def _time(self) -> str:
        if self.seconds is None:
            return "as fast as it goes"
        return f"at least {duration(self.seconds)} at {size(self._rate)}/s"

    def _before_and_after(self) -> Sequence[tuple[Node, Node]]:
        moved = {pair: amount.bytes for pair, amount in self._pairs.items()}
        return list(zip(self.nodes, after_moves(self.nodes, moved), strict=True))

    def _node_row(self, node: Node, then: Node) -> tuple[str, ...]:
        state = state_of(node, self.leaving.get(node.id))
        return str(node.id), str(node.address), state, f"{fullness(node):.1%}", f"{fullness(then):.1%}"
