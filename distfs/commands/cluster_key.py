"""``distfs cluster-key``: the key by which services and nodes know each other, changed while they go on."""

from __future__ import annotations

from distfs.commands.operator import Operator
from distfs.process.output import tell

WORDS = ("show-id", "rotate", "retire")


def show_ids(operator: Operator) -> int:
    """A line a key, the newest first; never a key itself. The exit code is 0."""
    for id, since, holders, nodes in operator.meta.read("cluster_key_ids", operator.deadline()):
        tell(f"{id}  since {since:%Y-%m-%d %H:%M:%S} UTC, taken by {holders} of {nodes} nodes")
    return 0


def rotate(operator: Operator) -> int:
    """Make a second key. Raises Refused when there are two."""
    [[id]] = operator.meta.write("rotate_cluster_key", operator.deadline())
    tell(
        f"the new key is {id}; nodes and services take it within seconds, and the old one, too, until you run "
        "`distfs cluster-key retire`"
    )
    return 0


def retire(operator: Operator, force: bool) -> int:
    """Let the new key alone count. Raises Refused while somebody may not have it, unless ``force``."""
    [[id]] = operator.meta.write("retire_cluster_key", operator.deadline(), force=force)
    tell(
        f"{id} is no key of this cluster any more; connections that began with it go on until they are closed"
    )
    return 0
