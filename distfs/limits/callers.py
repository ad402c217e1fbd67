"""How much each caller has of a service, so that none has all of it.

Uploads of those that a row of ``callers.rules`` with a ``max_uploads`` is about are counted together. Everything else
is counted by address, in IPv6 a /64: one may have ``callers.address_share`` of what there is. Pure counting: of who
has nothing, nothing is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from ipaddress import IPv6Address, ip_network

from distfs.config.callers import Caller, IPAddress, parse_address
from distfs.config.settings import CallerRule, CallersConfig, HttpConfig
from distfs.errors import TooMany
from distfs.limits.tally import Held, Tally
from distfs.quantity import compared, counted

#: An address of IPv6 that nobody else has is a network of so many bits: who has it has all of its addresses.
_IPV6_BITS = 64


class Callers:
    """Counts. Thread-safe. ``config`` may be replaced at any time."""

    def __init__(self, config: CallersConfig, http: HttpConfig, tally: Tally | None = None) -> None:
        """``http``: of the whole service, whose ``tally`` is."""
        self.config, self._http = config, http
        self.tally = tally or Tally()

    # --- connections: of whoever is at their other end ------------------------------------------------

    def connect(self, address: str) -> None:
        """One more connection, until ``disconnect``. Raises TooMany."""
        at = parse_address(address)
        most = self._share(self._http.max_connections, at)
        held = Held("connections", _whose(at))
        if (has := self.tally.take(held, 1, most)) is not None:
            raise _too_many(held.who, counted(has, "connection"), "close some")

    def disconnect(self, address: str) -> None:
        self.tally.give_back(Held("connections", _whose(parse_address(address))), 1)

    # --- requests --------------------------------------------------------------------------------

    @contextmanager
    def download(self, caller: Caller) -> Iterator[None]:
        """A request that sends a file, for as long as it lasts. Raises TooMany."""
        with self._transfer(caller):
            yield

    @contextmanager
    def upload(self, caller: Caller) -> Iterator[None]:
        """A request that brings files, for as long as it lasts. Raises TooMany."""
        rule = self.config.rule(caller)
        if rule is None:
            with self._transfer(caller):
                yield
            return
        with ExitStack() as stack:
            stack.enter_context(self._held_by_rule(rule))
            if not rule.max_uploads:
                stack.enter_context(self._transfer(caller))
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
        at = self.config.identify(caller).address
        uploads, declared = Held("large uploads", _whose(at)), Held("declared bytes", _whose(at))
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
            self._holding(uploads, 1, self._share(self._http.max_uploads, at), one_more),
            self._holding(declared, size, most, so_many_bytes),
        ):
            yield

    def _transfer(self, caller: Caller) -> AbstractContextManager[None]:
        at = self.config.identify(caller).address
        held = Held("transfers", _whose(at))
        return self._holding(
            held,
            1,
            self._share(self._http.threads, at),
            lambda has: _too_many(held.who, counted(has, "transfer"), "try again when one has ended"),
        )

    @contextmanager
    def _holding(
        self, held: Held, amount: int, most: int, refusal: Callable[[int], TooMany]
    ) -> Iterator[None]:
        """``amount`` more, until ``with`` ends. Raises ``refusal``, which is told what is held already."""
        if (has := self.tally.take(held, amount, most)) is not None:
            raise refusal(has)
        try:
            yield
        finally:
            self.tally.give_back(held, amount)

    def whose(self, caller: Caller) -> str:
        """The address that has its share of what is promised to uploads; empty: it has what there is."""
        rule, at = self.config.rule(caller), self.config.identify(caller).address
        by_rule = rule is not None and rule.max_uploads
        return "" if by_rule or not self.config.address_share or self.config.is_exempt(at) else _whose(at)

    def _share(self, whole: int, address: IPAddress | None) -> int:
        """Of what there is, for one address; 0: as much as it likes."""
        share = self.config.address_share
        if not whole or not share or self.config.is_exempt(address):
            return 0
        return max(1, int(whole * share))

    # --- rules -------------------------------------------------------------------------------------

    def _held_by_rule(self, rule: CallerRule) -> AbstractContextManager[None]:
        held = Held("uploads by rule", str(rule.match))
        return self._holding(held, 1, rule.max_uploads, lambda _: self._too_many_by_rule(rule))

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


def _whose(address: IPAddress | None) -> str:
    """Who is counted as one."""
    if isinstance(address, IPv6Address):
        return str(ip_network((int(address), _IPV6_BITS), strict=False))
    return str(address or "a client without an address")


def _too_many(who: str, has: str, remedy: str) -> TooMany:
    return TooMany(f"{who} has {has}, as many as one address may have (callers.address_share): {remedy}")


def _shown(number: int, rule: CallerRule) -> str:
    """A rule for anybody to read: the value of a header that tells callers apart is as good as a password."""
    return f"{rule.match.header} (rule {number})" if rule.match.header else str(rule.match)
