"""``distfs nodes``: who keeps fragments, how much room there is, who is away."""

from __future__ import annotations

import json
from collections.abc import Sequence

from distfs.commands.display import counted, duration, leaving_in_words, size, table
from distfs.commands.operator import Operator
from distfs.commands.status import unreachable
from distfs.model import Node, Strangers
from distfs.process.output import tell
from distfs.upkeep.model import Leaving

_HEADS = ("ID", "ADDRESS", "ZONE", "STATE", "FREE", "USED", "CAPACITY", "LAST SEEN", "UUID")


def show_nodes(operator: Operator, *, as_json: bool) -> int:
    """A line a node. The exit code is 0."""
    if as_json:
        tell(json.dumps(entries(operator), indent=2))
        return 0
    nodes, leaving, away = _known(operator)
    strangers = operator.meta.strangers(operator.deadline())
    if nodes:
        tell(table(_HEADS, [_row(node, leaving.get(node.id), node.id in away) for node in nodes]))
        if silent := [node.id for node in nodes if node.unreachable or (node.alive and node.id in away)]:
            tell(
                f"unreachable: {named_nodes(silent)} tells MetaDB it is there, and answers no service: "
                "`distfs doctor` says why, such as a certificate that was revoked"
            )
        for met in strangers:
            tell(strangers_in_words(met))
    else:
        tell(
            "no storage node has registered yet: python -m distfs.storage_server --init --port PORT --data DIR"
        )
    return 0


def entries(operator: Operator) -> list[dict[str, object]]:
    """The same for programs."""
    nodes, leaving, away = _known(operator)
    strangers = {met.node: _met(met) for met in operator.meta.strangers(operator.deadline())}
    return [
        _entry(node, leaving.get(node.id))
        | {"unreachable": node.unreachable or node.id in away, "strangers": strangers.get(node.id)}
        for node in nodes
    ]


def strangers_in_words(met: Strangers) -> str:
    """Whom a node has refused."""
    return (
        f"node {met.node} refused {counted(met.count, 'connection')} within an hour, the last "
        f"{duration(met.seconds_ago)} ago from {met.address}: who came could not prove to be of this cluster, or is "
        f"of a release that the node does not understand; `distfs logs --node {met.node}` says which"
    )


def _met(met: Strangers) -> dict[str, object]:
    return {"refused": met.count, "from": met.address, "seconds_ago": round(met.seconds_ago, 1)}


def _known(operator: Operator) -> tuple[list[Node], dict[int, Leaving], set[int]]:
    """Every node, what is left on those that drain, and which do not answer."""
    nodes = operator.nodes()
    leaving = {n.id: operator.db.leaving(n.id, operator.walk()) for n in nodes if n.state == "draining"}
    return nodes, leaving, unreachable(operator.db.workers(operator.deadline()))


def state_of(node: Node, leaving: Leaving | None, away: bool = False) -> str:
    """In words. ``leaving``: of a node that is draining; ``away``: it does not answer."""
    words = ["unreachable, given up"] if node.unreachable else [] if node.alive else ["down"]
    if leaving is not None:
        words.append(leaving_in_words(leaving))
    elif node.alive and not (away and node.state == "active"):
        words.append({"active": "up"}.get(node.state, node.state))
    if node.alive and away:
        words.append("unreachable")
    return ", ".join(words)


def named_nodes(ids: Sequence[int]) -> str:
    """``[1, 2]`` -> ``nodes 1, 2``."""
    return ("node " if len(ids) == 1 else "nodes ") + ", ".join(map(str, ids))


def _row(node: Node, leaving: Leaving | None, away: bool) -> tuple[str, ...]:
    sizes = size(node.free), size(node.used), size(node.capacity)
    seen = f"{duration(node.heartbeat_age)} ago"
    return (
        str(node.id),
        str(node.address),
        node.zone or "-",
        state_of(node, leaving, away),
        *sizes,
        seen,
        str(node.uuid),
    )


def _entry(node: Node, leaving: Leaving | None) -> dict[str, object]:
    entry: dict[str, object] = {
        "id": node.id,
        "uuid": str(node.uuid),
        "address": str(node.address),
        "zone": node.zone,
        "state": node.state,
        "alive": node.alive,
        "free": node.free,
        "used": node.used,
        "capacity": node.capacity,
        "seconds_since_seen": round(node.heartbeat_age, 1),
    }
    if leaving is None:
        return entry
    return entry | {"fragments_left": leaving.fragments, "safe_to_unplug": leaving.safe}
