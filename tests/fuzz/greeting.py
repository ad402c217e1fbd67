"""How a connection to a storage node begins: whatever one of the messages is, nobody agrees to what was not said."""

from __future__ import annotations

from uuid import UUID

from distfs.errors import ProtocolError
from distfs.formats import hello
from distfs.formats.hello import Asker, Key, Kind

_CLUSTER, _NODE, _KEY = UUID(int=1), UUID(int=2), Key(bytes(range(32)))
_NONCES = b"a" * hello.NONCE_SIZE, b"b" * hello.NONCE_SIZE
#: In the order in which they are said.
KINDS = (Kind.HELLO, Kind.CHALLENGE, Kind.PROOF, Kind.WELCOME)


def conversation(replaced: Kind | None = None, by: bytes = b"") -> tuple[list[bytes], bool]:
    """-> what each side said, and whether both agreed. Of the message that is ``replaced`` the other side hears
    something else. Raises ProtocolError."""

    def heard(kind: Kind, message: bytes) -> bytes:
        said.append(message)
        return by if kind is replaced else message

    said: list[bytes] = []
    asker = Asker([_KEY], _CLUSTER, _NODE, _NONCES[0])
    node = hello.Answerer([_KEY], _CLUSTER, _NODE, _NONCES[1])
    challenge = node.challenge(heard(Kind.HELLO, asker.hello))
    proof = asker.prove(heard(Kind.CHALLENGE, challenge))
    welcome, theirs = node.welcome(heard(Kind.PROOF, proof))
    ours = asker.accept(heard(Kind.WELCOME, welcome))
    return said, ours == theirs


SAID, _AGREED = conversation()
SEEDS = tuple(bytes([number]) + message for number, message in enumerate(SAID))


def greeting(data: bytes) -> None:
    """The first byte says which message is replaced by the rest."""
    which = data[0] % len(KINDS) if data else 0
    by = data[1:]
    try:
        _, agreed = conversation(KINDS[which], by)
    except ProtocolError:
        agreed = False
    assert agreed == (by == SAID[which]), "what was really said is believed, and nothing else"
