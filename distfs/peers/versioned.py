"""Stores whose program may be of another release than this one: what they lack is not asked of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from distfs.deadline import Deadline
from distfs.errors import Cancelled, DistfsError, NodeUnavailable
from distfs.formats import wire
from distfs.formats.features import PLAIN, Extra
from distfs.fragment_store import FragmentStore


class Versioned(ABC):
    """Its stores say so by inheriting."""

    @abstractmethod
    def features(self, deadline: Deadline) -> int:
        """What it knows of what we know (``wire.takes``, ``wire.Feature``); it is asked once, if nothing was said to
        it yet. Raises NodeUnavailable, TooSlow."""


def features_of(store: FragmentStore, deadline: Deadline) -> int:
    """The same of any store; one in this process knows all that we do."""
    return store.features(deadline) if isinstance(store, Versioned) else wire.FEATURES


def all_take(
    extra: Extra, nodes: Sequence[int], stores: Callable[[int, Deadline], FragmentStore], deadline: Deadline
) -> bool:
    """Whether fragments that have it may be sent to these nodes: not to one of an older release."""
    try:
        return all(wire.takes(features_of(stores(node, deadline), deadline), extra) for node in nodes)
    except Cancelled:
        raise
    except (DistfsError, MemoryError):  # it is met again by who sends to that node
        return False


def fitting(extra: Extra, store: FragmentStore, deadline: Deadline) -> Extra:
    """As much of ``extra`` as a store takes: one that is older does without what can be ignored. Raises
    NodeUnavailable when it cannot do without."""
    if extra == PLAIN:
        return PLAIN
    if wire.takes(agreed := features_of(store, deadline), extra):
        return extra
    if extra.features.incompat or extra.features.read_only or agreed & wire.Feature.EXTRA:
        raise NodeUnavailable("the node is of an older distfs, which does not know this format: upgrade it")
    return PLAIN
