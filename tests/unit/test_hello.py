"""How a connection begins, sans-IO: two of one cluster agree; whatever else is said, by anybody, is refused."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distfs import __version__
from distfs.errors import ProtocolError
from distfs.formats import hello
from distfs.formats.hello import REFUSED, SIZES, Agreed, Answerer, Asker, Key, Keys, Kind, Reason, Unwelcome

CLUSTER, NODE = uuid4(), uuid4()
OLD, NEW, FOREIGN = (Key(bytes([n]) * 32) for n in (1, 2, 3))
nonces = st.binary(min_size=32, max_size=32)


def talk(
    asker: Asker, answerer: Answerer, change: Callable[[Kind, bytes], bytes] = lambda _, message: message
) -> tuple[Agreed, Agreed]:
    """What each side takes to be agreed. ``change``: what somebody on the way makes of each message."""
    challenge = answerer.challenge(change(Kind.HELLO, asker.hello))
    proof = asker.prove(change(Kind.CHALLENGE, challenge))
    welcome, there = answerer.welcome(change(Kind.PROOF, proof))
    return asker.accept(change(Kind.WELCOME, welcome)), there


def pair(
    ours: Keys = (NEW,), theirs: Keys = (NEW,), cluster: UUID = CLUSTER, node: UUID = NODE, n: int = 0
) -> tuple[Asker, Answerer]:
    return Asker(ours, CLUSTER, NODE, bytes([n]) * 32), Answerer(theirs, cluster, node, bytes([n + 100]) * 32)


def reason(act: Callable[[], object]) -> Reason:
    with pytest.raises(Unwelcome) as refused:
        act()
    return refused.value.reason


@given(nonces, nonces)
def test_two_of_one_cluster_agree(one: bytes, other: bytes) -> None:
    here, there = talk(Asker((NEW,), CLUSTER, NODE, one), Answerer((NEW,), CLUSTER, NODE, other))
    assert here == there == Agreed(hello.HIGHEST, hello.FEATURES, hello.Role.SERVICE, NEW.id)


@pytest.mark.parametrize(
    ("ours", "theirs", "counts"),
    [
        ((OLD,), (OLD,), OLD),
        ((OLD,), (NEW, OLD), OLD),
        ((NEW, OLD), (OLD,), OLD),
        ((NEW, OLD), (NEW, OLD), NEW),
        ((NEW, OLD), (NEW,), NEW),
        ((NEW,), (NEW, OLD), NEW),
    ],
)
def test_at_every_step_of_a_rotation_the_newest_that_both_have_counts(
    ours: Keys, theirs: Keys, counts: Key
) -> None:
    here, there = talk(*pair(ours, theirs))
    assert here.key == there.key == counts.id


def test_who_is_of_another_cluster_or_means_another_node_is_refused() -> None:
    assert reason(lambda: talk(*pair((FOREIGN,)))) is Reason.KEY
    assert reason(lambda: talk(*pair((OLD,)))) is Reason.KEY
    assert reason(lambda: talk(*pair(cluster=uuid4()))) is Reason.PROOF
    assert reason(lambda: talk(*pair(node=uuid4()))) is Reason.PROOF
    with pytest.raises(ProtocolError, match="no cluster key"):
        pair(())


def test_a_key_that_only_has_the_same_id_is_not_the_key() -> None:
    forged = Key(FOREIGN.secret)
    object.__setattr__(forged, "id", NEW.id)
    assert reason(lambda: talk(*pair((forged,)))) is Reason.PROOF
    asker, _ = pair()
    _, impostor = pair((forged,), (forged,))
    proof = asker.prove(impostor.challenge(asker.hello))
    with pytest.raises(Unwelcome):
        impostor.welcome(proof)


@given(st.sampled_from(list(Kind)[:4]), st.data())
def test_no_bit_can_be_changed_on_the_way(kind: Kind, data: st.DataObject) -> None:
    """Versions, features, roles, key ids, nonces, reserved bytes, MACs: a downgrade is one of these."""
    bit = data.draw(st.integers(0, SIZES[kind] * 8 - 1))

    def flip(at: Kind, message: bytes) -> bytes:
        if at is not kind:
            return message
        changed = bytearray(message)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    with pytest.raises(ProtocolError):
        talk(*pair((NEW, OLD), (NEW, OLD)), change=flip)


@given(st.sampled_from(list(Kind)[:4]), st.binary(max_size=200))
def test_any_bytes_in_the_place_of_a_message_are_refused(kind: Kind, noise: bytes) -> None:
    with pytest.raises(ProtocolError):
        talk(*pair(), change=lambda at, message: noise if at is kind else message)


@given(st.sampled_from(list(Kind)[:4]), st.integers(0, 100))
def test_messages_that_are_cut_are_refused(kind: Kind, size: int) -> None:
    kept = min(size, SIZES[kind] - 1)
    with pytest.raises(ProtocolError):
        talk(*pair(), change=lambda at, message: message[:kept] if at is kind else message)


def test_what_was_recorded_is_worth_nothing_again() -> None:
    said: dict[Kind, bytes] = {}
    talk(*pair(), change=said.setdefault)
    _, again = pair(n=1)
    again.challenge(said[Kind.HELLO])
    assert reason(lambda: again.welcome(said[Kind.PROOF])) is Reason.PROOF
    asker, answerer = pair(n=2)
    asker.prove(answerer.challenge(asker.hello))
    with pytest.raises(ProtocolError, match="not proved"):
        asker.accept(said[Kind.WELCOME])


def test_what_one_said_oneself_is_no_proof() -> None:
    """A service is shown its own MAC; a node that of another node, or of itself, on a second connection."""
    asker, answerer = pair()
    proof = asker.prove(answerer.challenge(asker.hello))
    welcome, _ = answerer.welcome(proof)
    with pytest.raises(ProtocolError, match="not proved"):
        asker.accept(welcome[:-32] + proof[-32:])
    for n in (0, 1):
        _, other = pair(n=n)
        other.challenge(asker.hello)
        assert reason(lambda: other.welcome(proof[:-32] + welcome[-32:])) is Reason.PROOF  # noqa: B023
    with pytest.raises(ProtocolError):
        pair()[0].prove(asker.hello)


def with_fields(message: bytes, at: int, value: bytes) -> bytes:
    return message[:at] + value + message[at + len(value) :]


VERSIONS, FEATURES, RESERVED, ROLE = hello.HEAD_SIZE, hello.HEAD_SIZE + 4, hello.HEAD_SIZE + 8, 6


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        # Versions, and no feature: who knows of none is not told why.
        (VERSIONS, b"\xff\xff\xff\xff\0\0\0\0", Reason.VERSION),
        (VERSIONS, b"\0\0\0\1\0\0\0\0", Reason.VERSION),
        (VERSIONS, b"\0\3\0\2", Reason.FORM),
        (RESERVED, b"\1", Reason.FORM),
        (RESERVED + 7, b"\1", Reason.FORM),
        (ROLE, b"\0", Reason.FORM),
        (ROLE, b"\x09", Reason.FORM),
        (ROLE + 1, b"\1", Reason.FORM),
        (4, bytes([Kind.PROOF]), Reason.FORM),
        (5, b"\2", Reason.FORM),
        (0, b"HTTP", Reason.FORM),
    ],
)
def test_a_hello_that_this_release_cannot_mean_is_refused(at: int, value: bytes, why: Reason) -> None:
    asker, answerer = pair()
    assert reason(lambda: answerer.challenge(with_fields(asker.hello, at, value))) is why


def test_a_later_release_that_speaks_this_version_too_is_welcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its features those that both know hold; its range of versions is its own."""
    asker, answerer = pair()
    later = with_fields(asker.hello, VERSIONS + 2, b"\0\x09")
    later = with_fields(later, FEATURES, b"\xff\xff\xff\xff")
    asker.hello = later
    asker._transcript = CLUSTER.bytes + NODE.bytes + later
    here, there = talk(asker, answerer)
    assert here == there
    assert (there.version, there.features) == (hello.HIGHEST, hello.FEATURES)


def test_the_bytes_on_the_wire_have_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hello, "FEATURES", 0)
    asker = Asker((NEW, OLD), UUID(int=1), UUID(int=2), bytes(range(32)))
    answerer = Answerer((NEW,), UUID(int=1), UUID(int=2), bytes(range(32, 64)))
    said: dict[Kind, bytes] = {}
    talk(asker, answerer, change=said.setdefault)
    assert (
        "\n".join(each.hex() for each in said.values())
        == """\
44465348010101000002000200000000000000000000000075877bb41d393b5f72cd6e8422c407fb000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f
4446534802010000202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f
44465348030100007da3c0976dd11002d21cd7a8bc516900a8fc939913dd9754d119ec37b4c5a4d1
4446534804010000000200000000000073cc37d85f342235f41398ffa74ddbc4fdd50e352ed9e26debe93eebbbdc8606"""
    )
    assert REFUSED.hex() == "4446534805010000"
    assert {kind.name: size for kind, size in SIZES.items()} == {
        "HELLO": 72, "CHALLENGE": 40, "PROOF": 40, "WELCOME": 48, "REFUSED": 8, "NAME": 80,
    }  # fmt: skip


def speaking(ours: tuple[int, int], theirs: tuple[int, int]) -> tuple[Asker, Answerer]:
    asker = Asker((NEW,), CLUSTER, NODE, bytes(32), speaks=ours)
    return asker, Answerer((NEW,), CLUSTER, NODE, b"\1" * 32, theirs)


@pytest.mark.parametrize(
    ("ours", "theirs", "used"),
    [((2, 2), (2, 5), 2), ((2, 4), (3, 5), 4), ((1, 9), (2, 5), 5), ((3, 3), (3, 3), 3)],
)
def test_the_newest_version_that_both_speak_is_used(
    ours: tuple[int, int], theirs: tuple[int, int], used: int
) -> None:
    asker, answerer = speaking(ours, theirs)
    here, there = talk(asker, answerer)
    assert here == there
    assert here.version == used
    assert asker.named(answerer.name()) == __version__


@pytest.mark.parametrize(("ours", "theirs"), [((2, 2), (3, 4)), ((5, 6), (3, 4))])
def test_without_a_version_in_common_both_are_told_both(
    ours: tuple[int, int], theirs: tuple[int, int]
) -> None:
    asker, answerer = speaking(ours, theirs)
    here, there = talk(asker, answerer)
    assert here.version == there.version == 0
    with pytest.raises(ProtocolError) as refused:
        asker.named(answerer.name())
    both = [f"{a} to {b}" if a != b else f"wire version {a}" for a, b in (ours, theirs)]
    for words in (*both, f"it is distfs {__version__}", "upgrade the older one"):
        assert words in str(refused.value)
    assert all(str(version) in answerer.no_version for version in (*ours, *theirs))


def test_a_name_that_is_not_the_nodes_is_refused() -> None:
    asker, answerer = pair()
    talk(asker, answerer)
    name = answerer.name()
    for at in range(len(name)):
        with pytest.raises(ProtocolError):
            asker.named(with_fields(name, at, bytes([name[at] ^ 1])))
    with pytest.raises(ProtocolError):
        asker.named(name[:-1])
    assert hello.name_of(b"1.2\x1b[31m\xff\0\0") == "1.2?[31m?"


def test_a_key_is_shown_by_its_id_alone() -> None:
    key = Key(b"\xab" * 32)
    for text in (repr(key), str(key), f"{key}", repr((key,)), repr(Asker((key,), CLUSTER, NODE, bytes(32)))):
        assert "ab" * 4 not in text.replace(key.id.hex(), "")
        assert "\\xab" not in text
    assert str(key) == key.id.hex()
    with pytest.raises(ValueError, match="32 bytes"):
        Key(b"short")
