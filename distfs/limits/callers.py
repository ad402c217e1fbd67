"""How much each caller has of a service, so that none has all of it.

Uploads of those that a row of ``callers.rules`` with a ``max_uploads`` is about are counted together. Everything else
is counted by address, in IPv6 a /64: one may have ``callers.address_share`` of what there is. Pure counting: of who
has nothing, nothing is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, partial
from typing import NamedTuple

from distfs.config.callers import Caller, parse_address, whose_is
from distfs.config.settings import CallerRule, CallersConfig, HttpConfig
from distfs.errors import TooMany
from distfs.limits.tally import Held, Tally
from distfs.quantity import compared, counted

#: Addresses of which it is known what they are counted by, and their longest.
_KNOWN, _LONGEST = 1024, 64


class _Place(NamedTuple):
    """By what somebody is counted."""

    who: str
    transfers: Held
    shares: bool  # it has its share of what there is, not all


class Callers:
    """Counts. Thread-safe. ``config`` may be replaced at any time."""

    def __init__(self, config: CallersConfig, http: HttpConfig, tally: Tally | None = None) -> None:
        """``http``: of the whole service, whose ``tally`` is."""
        self.config, self._http = config, http
        self.tally = tally or Tally()
        self._known = config, _places(config)

    # --- connections: of whoever is at their other end ------------------------------------------------

    def connect(self, address: str) -> None:
        """One more connection, until ``disconnect``. Raises TooMany."""
        at = self._at(address)
        most = self._share(self._http.max_connections, at)
        held = Held("connections", at.who)
        if (has := self.tally.take(held, 1, most)) is not None:
            raise _too_many(held.who, counted(has, "connection"), "close some")

    def disconnect(self, address: str) -> None:
        self.tally.give_back(Held("connections", self._at(address).who), 1)

    # --- requests --------------------------------------------------------------------------------

    def download(self, caller: Caller) -> AbstractContextManager[None]:
        """A request that sends a file, for as long as it lasts. Entering raises TooMany."""
        at = self._place(caller)
        most = self._share(self._http.threads, at)
        return _Holding(self.tally, at.transfers, 1, most, partial(_too_many_transfers, at.who))

    def upload(self, caller: Caller) -> AbstractContextManager[None]:
        """A request that brings files, for as long as it lasts. Entering raises TooMany."""
        rule = self.config.rule(caller)
        if rule is None:
            return self.download(caller)
        return self._held_by_rule(rule) if rule.max_uploads else self._counted_for(rule, caller)

    @contextmanager
    def _counted_for(self, rule: CallerRule, caller: Caller) -> Iterator[None]:
        """A rule that has no limit."""
        with self._held_by_rule(rule), self.download(caller):
            yield

    def check(self, caller: Caller) -> None:
        """What ``upload`` would say of who a rule is about. Raises TooMany."""
        rule = self.config.rule(caller)
        if rule is not None and rule.max_uploads:
            has = self.tally.total(Held("uploads by rule", str(rule.match)))
            if has >= rule.max_uploads:
                raise self._too_many_by_rule(rule)

    @contextmanager
    def large_upload(self, caller: Caller, size: int) -> Iterator[None]:
        """Of ``size`` declared bytes (0: not said), from its header to its answer. Raises TooMany."""
        rule = self.config.rule(caller)
        if rule is not None and rule.max_uploads:
            self.check(caller)
            yield
            return
        at = self._place(caller)
        uploads, declared = Held("large uploads", at.who), Held("declared bytes", at.who)
        most = self._share(self._http.max_bytes_in_flight, at)

        def one_more(has: int) -> TooMany:
            return _too_many(uploads.who, counted(has, "large upload"), "try again when one has ended")

        def so_many_bytes(has: int) -> TooMany:
            running, more, limit = compared(has, size, most)
            return TooMany(
                f"uploads of {running} from {declared.who} run already, {more} more would pass the {limit} that "
                "one address may have (callers.address_share): try again when one has ended"
            )

        with (
            _Holding(self.tally, uploads, 1, self._share(self._http.max_uploads, at), one_more),
            _Holding(self.tally, declared, size, most, so_many_bytes),
        ):
            yield

    def whose(self, caller: Caller) -> str:
        """The address that has its share of what is promised to uploads; empty: it has what there is."""
        rule, at = self.config.rule(caller), self._place(caller)
        return at.who if at.shares and not (rule is not None and rule.max_uploads) else ""

    def _place(self, caller: Caller) -> _Place:
        if not self.config.trusted_proxies:
            return self._at(caller.address)
        return self._at(str(self.config.identify(caller).address or ""))

    def _at(self, address: str) -> _Place:
        """Who is at an address; it is remembered for as long as the configuration is the same."""
        config, places = self._known
        if config is not self.config:
            config, places = self._known = self.config, _places(self.config)
        return places(address[:_LONGEST])

    def _share(self, whole: int, place: _Place) -> int:
        """Of what there is, for one address; 0: as much as it likes."""
        return max(1, int(whole * self.config.address_share)) if whole and place.shares else 0

    # --- rules -------------------------------------------------------------------------------------

    def _held_by_rule(self, rule: CallerRule) -> AbstractContextManager[None]:
        held = Held("uploads by rule", str(rule.match))
        return _Holding(self.tally, held, 1, rule.max_uploads, lambda _: self._too_many_by_rule(rule))

    def _too_many_by_rule(self, rule: CallerRule) -> TooMany:
        return TooMany(
            f"{self._names().get(str(rule.match), 'you')} may have {counted(rule.max_uploads, 'upload')} at once "
            "(callers.rules), and has: try again when one has ended"
        )

    def by_rule(self) -> dict[str, int]:
        """Uploads in flight of those that rules are about, by whom each matches."""
        names, found = self._names(), Counter[str]()
        for of in {**names, **self.tally.of("uploads by rule")}:
            found[names.get(of, "a rule of before")] += self.tally.total(Held("uploads by rule", of))
        return {name: count for name, count in found.items() if count}

    def _names(self) -> dict[str, str]:
        """What anybody may read of each rule, by whom it matches."""
        return {str(rule.match): _shown(number, rule) for number, rule in enumerate(self.config.rules, 1)}


class _Holding:
    """``amount`` more of something, until ``with`` ends."""

    __slots__ = ("_amount", "_held", "_most", "_refusal", "_tally")

    def __init__(
        self, tally: Tally, held: Held, amount: int, most: int, refusal: Callable[[int], TooMany]
    ) -> None:
        """``refusal``: raised on entering when that would be more than ``most``; it is told what is held already."""
        self._tally, self._held, self._amount = tally, held, amount
        self._most, self._refusal = most, refusal

    def __enter__(self) -> None:
        if (has := self._tally.take(self._held, self._amount, self._most)) is not None:
            raise self._refusal(has)

    def __exit__(self, *exc: object) -> None:
        self._tally.give_back(self._held, self._amount)


class Ahead:
    """The bytes that are promised to one upload and did not come yet, counted with all others of its address."""

    def __init__(self, tally: Tally, whose: str) -> None:
        """``whose``: the address; empty: it is not counted."""
        self.bytes = 0
        self._tally, self._held = tally, Held("bytes ahead", whose)

    def take(self, size: int, most: Callable[[], int]) -> bool:
        """They are ``size``, if its address then has ``most`` or less, or nothing else is promised to it."""
        if not self._held.who:
            return True
        self.are(0)
        taken = self._tally.take(self._held, size, 1) is None or (
            self._tally.take(self._held, size, max(1, most())) is None
        )
        self.bytes = size if taken else 0
        return taken

    def are(self, size: int) -> None:
        """They are ``size`` now, whatever its address may have."""
        more = max(0, size) - self.bytes
        if not self._held.who or not more:
            return
        if more > 0:
            self._tally.take(self._held, more, 0)
        else:
            self._tally.give_back(self._held, -more)
        self.bytes += more


def _places(config: CallersConfig) -> Callable[[str], _Place]:
    """By what each address is counted."""

    @lru_cache(maxsize=_KNOWN)
    def place(address: str) -> _Place:
        at = parse_address(address)
        who, shares = whose_is(at), bool(config.address_share) and not config.is_exempt(at)
        return _Place(who, Held("transfers", who), shares)

    return place


def _too_many_transfers(who: str, has: int) -> TooMany:
    return _too_many(who, counted(has, "transfer"), "try again when one has ended")


def _too_many(who: str, has: str, remedy: str) -> TooMany:
    return TooMany(f"{who} has {has}, as many as one address may have (callers.address_share): {remedy}")


def _shown(number: int, rule: CallerRule) -> str:
    """A rule for anybody to read: the value of a header that tells callers apart is as good as a password."""
    return f"{rule.match.header} (rule {number})" if rule.match.header else str(rule.match)
