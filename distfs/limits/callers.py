"""How much each caller has of a service, so that none has all of it.

Uploads of those that a row of ``callers.rules`` with a ``max_uploads`` is about are counted together. Everything else
is counted by address, in IPv6 a /64, and by token: each may have ``callers.address_share`` of what there is, so
neither many addresses with one token nor many tokens at one address have all of it. Pure counting: of who has
nothing, nothing is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import lru_cache, partial
from typing import NamedTuple

from distfs.config.callers import Caller, parse_address, whose_is
from distfs.config.settings import CallerRule, CallersConfig, HttpConfig, TokenCaller
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
    kind: str = "address"


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
            raise _too_many(at, counted(has, "connection"), "close some")

    def disconnect(self, address: str) -> None:
        self.tally.give_back(Held("connections", self._at(address).who), 1)

    # --- requests --------------------------------------------------------------------------------

    def download(self, caller: Caller) -> AbstractContextManager[None]:
        """A request that sends a file, for as long as it lasts. Entering raises TooMany."""
        at = self._transfer(self._place(caller))
        if not isinstance(caller, TokenCaller):
            return at
        return _all([at, self._transfer(self._place_of_token(caller))])

    def upload(self, caller: Caller) -> AbstractContextManager[None]:
        """A request that brings files, for as long as it lasts. Entering raises TooMany."""
        if self.config.rule(caller) is None and not isinstance(caller, TokenCaller):
            return self.download(caller)
        held: list[AbstractContextManager[None]] = []
        for place, rule in self._counted_by(caller):
            if rule is not None and (rule.max_uploads or not rule.match.is_token):
                held.append(self._held_by_rule(rule))
            if rule is None or not rule.max_uploads:
                held.append(self._transfer(place))
        return _all(held)

    def check(self, caller: Caller) -> None:
        """What ``upload`` would say of who a rule is about. Raises TooMany."""
        for rule in self.config.all_rules(caller):
            if rule.max_uploads:
                has = self.tally.total(Held("uploads by rule", str(rule.match)))
                if has >= rule.max_uploads:
                    raise self._too_many_by_rule(rule)

    @contextmanager
    def large_upload(self, caller: Caller, size: int) -> Iterator[None]:
        """Of ``size`` declared bytes (0: not said), from its header to its answer. Raises TooMany."""
        self.check(caller)
        by_place = [place for place, rule in self._counted_by(caller) if rule is None or not rule.max_uploads]
        with _all([each for place in by_place for each in self._large_upload(place, size)]):
            yield

    def _large_upload(self, at: _Place, size: int) -> Iterator[AbstractContextManager[None]]:
        most = self._share(self._http.max_bytes_in_flight, at)

        def one_more(has: int) -> TooMany:
            return _too_many(at, counted(has, "large upload"), "try again when one has ended")

        def so_many_bytes(has: int) -> TooMany:
            running, more, limit = compared(has, size, most)
            return TooMany(
                f"uploads of {running} from {at.who} run already, {more} more would pass the {limit} that "
                f"one {at.kind} may have (callers.address_share): try again when one has ended"
            )

        uploads = self._share(self._http.max_uploads, at)
        yield _Holding(self.tally, Held("large uploads", at.who), 1, uploads, one_more)
        yield _Holding(self.tally, Held("declared bytes", at.who), size, most, so_many_bytes)

    def whose(self, caller: Caller) -> tuple[str, ...]:
        """The address and the token that have their share of what is promised to uploads; none: what there is."""
        return tuple(
            place.who
            for place, rule in self._counted_by(caller)
            if place.shares and (rule is None or not rule.max_uploads)
        )

    def largest(self, caller: Caller) -> int:
        """How many bytes a file of theirs may have."""
        most = self._http.max_file_size
        for rule in self.config.all_rules(caller):
            most = min(most, rule.max_file_size or most)
        return most

    def _counted_by(self, caller: Caller) -> list[tuple[_Place, CallerRule | None]]:
        """By its address and by its token, each with the rule about it."""
        found: list[tuple[_Place, CallerRule | None]] = [(self._place(caller), self.config.rule(caller))]
        if isinstance(caller, TokenCaller):
            found.append((self._place_of_token(caller), caller.rule))
        return found

    def _transfer(self, at: _Place) -> AbstractContextManager[None]:
        most = self._share(self._http.threads, at)
        return _Holding(self.tally, at.transfers, 1, most, partial(_too_many_transfers, at))

    def _place_of_token(self, caller: TokenCaller) -> _Place:
        """Wherever it comes from, also from where an address may have all there is."""
        who = str(caller.rule.match)
        return _Place(who, Held("transfers", who), bool(self.config.address_share), "token")

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
        name, of = self._names().get(str(rule.match), "you"), "callers.rules"
        if rule.match.is_token:
            name, of = str(rule.match), "its own limit"
        most = counted(rule.max_uploads, "upload")
        return TooMany(f"{name} may have {most} at once ({of}), and has: try again when one has ended")

    def by_rule(self) -> dict[str, int]:
        """Uploads in flight of those that rules are about, by whom each matches."""
        names, found = self._names(), Counter[str]()
        for of in {**names, **self.tally.of("uploads by rule")}:
            name = names.get(of) or (of if of.startswith("token ") else "a rule of before")
            found[name] += self.tally.total(Held("uploads by rule", of))
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
    """The bytes that are promised to one upload and did not come yet, counted with all others of its address, and
    with all others of its token."""

    def __init__(self, tally: Tally, whose: Sequence[str]) -> None:
        """``whose``: address and token, as far as they are counted."""
        self.bytes = 0
        self._tally, self._held = tally, [Held("bytes ahead", who) for who in whose]

    def take(self, size: int, most: Callable[[], int]) -> bool:
        """They are ``size``, if each of those then has ``most`` or less, or nothing else is promised to it."""
        if not self._held:
            return True
        self.are(0)
        for number, held in enumerate(self._held):
            if (
                self._tally.take(held, size, 1) is None
                or self._tally.take(held, size, max(1, most())) is None
            ):
                continue
            for taken in self._held[:number]:
                self._tally.give_back(taken, size)
            return False
        self.bytes = size
        return True

    def are(self, size: int) -> None:
        """They are ``size`` now, whatever anybody may have."""
        more = max(0, size) - self.bytes
        if not self._held or not more:
            return
        for held in self._held:
            if more > 0:
                self._tally.take(held, more, 0)
            else:
                self._tally.give_back(held, -more)
        self.bytes += more


def _places(config: CallersConfig) -> Callable[[str], _Place]:
    """By what each address is counted."""

    @lru_cache(maxsize=_KNOWN)
    def place(address: str) -> _Place:
        at = parse_address(address)
        who, shares = whose_is(at), bool(config.address_share) and not config.is_exempt(at)
        return _Place(who, Held("transfers", who), shares)

    return place


@contextmanager
def _all(held: Sequence[AbstractContextManager[None]]) -> Iterator[None]:
    with ExitStack() as stack:
        for each in held:
            stack.enter_context(each)
        yield


def _too_many_transfers(at: _Place, has: int) -> TooMany:
    return _too_many(at, counted(has, "transfer"), "try again when one has ended")


def _too_many(at: _Place, has: str, remedy: str) -> TooMany:
    return TooMany(f"{at.who} has {has}, as many as one {at.kind} may have (callers.address_share): {remedy}")


def _shown(number: int, rule: CallerRule) -> str:
    """A rule for anybody to read: the value of a header that tells callers apart is as good as a password."""
    return f"{rule.match.header} (rule {number})" if rule.match.header else str(rule.match)
