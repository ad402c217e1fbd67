"""``distfs tls``: the certificates of a cluster, from an authority of its own. Nothing of it is needed to run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from distfs.commands.display import table
from distfs.config.settings import Config
from distfs.deadline import Deadline
from distfs.errors import ConfigError, DistfsError
from distfs.meta import MetaDB
from distfs.process import output
from distfs.storage.disk.home import require_identity
from distfs.tls.identity import CA_DAYS, LEAF_DAYS

if TYPE_CHECKING:
    from distfs.tls.authority import Authority

_CODES = f"exit code: 0: done; 1: not done, for the reason on standard error; {output.COMMON_CODES}"
_CLUSTER_LIMIT_S = 10.0
#: By which a service is reached on its own machine.
_HERE = ("localhost", "127.0.0.1", "::1")

Given = argparse.Namespace
_Parsers = argparse._SubParsersAction


def add_tls(commands: _Parsers[output.Parser]) -> None:
    """What was parsed carries ``does``, what to do."""
    tls = commands.add_parser(
        "tls", help="make the certificates of a cluster, and an authority that signs them"
    )
    acts = tls.add_subparsers(required=True, metavar="ACT")
    init = _add(acts, "init", "make a certificate authority in a folder of its own", _init)
    init.add_argument("--cluster", type=UUID, metavar="UUID", help="whose (default: what MetaDB says)")
    init.add_argument("--metadb", metavar="URL", help="postgresql://... (metadb.url)")
    node = _add(acts, "node", "sign a certificate for a storage node", _node)
    node.add_argument("--node", type=UUID, metavar="UUID", help="which one, as `distfs nodes` shows it")
    node.add_argument("--data", metavar="FOLDER", type=Path, help="which one: the node's folder")
    service = _add(acts, "service", "sign a certificate for services, and for HTTPS", _service)
    service.add_argument(
        "--as", dest="name", default="service", metavar="NAME", help="of its files (%(default)s)"
    )
    for each in (node, service):
        each.add_argument(
            "--host", action="append", metavar="H", help="a name or address it is reached by; repeatable"
        )
    for each, what in ((init, CA_DAYS), (node, LEAF_DAYS), (service, LEAF_DAYS)):
        each.add_argument(
            "--days", type=_days, default=what, metavar="N", help="how long it holds (%(default)s)"
        )
    renew = _add(acts, "renew", "sign what comes to its end anew, with its key and names", _renew)
    renew.add_argument("--all", action="store_true", help="all of them, however long they hold")
    revoke = _add(acts, "revoke", "put a certificate on the list of those that nobody is to believe", _revoke)
    revoke.add_argument("name", metavar="NAME", help="node-UUID, service: as `distfs tls show` has it")
    _add(acts, "show", "list them: whose, names, fingerprints, how long they hold", _show)


def _add(
    acts: _Parsers[output.Parser], name: str, what: str, act: Callable[[Config, Given], None]
) -> output.Parser:
    parser = acts.add_parser(name, help=what, description=f"{what}.", epilog=_CODES)
    parser.add_argument(
        "folder", metavar="DIR", type=Path, help="the authority's; keep it where no service runs"
    )
    parser.add_argument("--config", metavar="FILE", help="default: ./config.yml, if there is one")
    parser.set_defaults(does=act, what=name, changes=name != "show")
    return parser


def _days(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 36500:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days from 1 to 36500")
    return int(text)


def _authority() -> type[Authority]:
    """Raises ConfigError, with what to install."""
    from distfs.tls.authority import Authority

    return Authority


def _init(config: Config, given: Given) -> None:
    kind = _authority()
    made = kind.make(given.folder, given.cluster or _cluster(config), given.days)
    output.tell(
        f"{made.folder} has an authority for cluster {made.cluster}. Keep ca.key where no service runs; "
        "ca.crt and crl.pem go to every part (tls.ca, tls.crl)"
    )


def _cluster(config: Config) -> UUID:
    meta = MetaDB(config.metadb)
    try:
        return meta.cluster_id(Deadline(_CLUSTER_LIMIT_S))
    except DistfsError as e:
        raise ConfigError(
            f"whose authority it is cannot be asked ({e}): start MetaDB, or add --cluster UUID"
        ) from e
    finally:
        meta.close()


def _node(config: Config, given: Given) -> None:
    authority = _authority()(given.folder)
    if (given.node is None) == (given.data is None):
        raise ConfigError("which node? Add --node UUID, or --data FOLDER where its folder is")
    node = given.node
    if given.data is not None:
        known = require_identity(given.data)
        if known.cluster not in (None, authority.cluster):
            raise ConfigError(f"{given.data} is a node's of cluster {known.cluster}, not {authority.cluster}")
        node = known.node
    _tell_signed(authority.sign_node(node, given.host or (), given.days))


def _service(config: Config, given: Given) -> None:
    authority = _authority()(given.folder)
    _tell_signed(authority.sign_service(given.name, given.host or _HERE, given.days))


def _tell_signed(cert: Path) -> None:
    output.tell(f"{cert} is signed; its key is {cert.with_suffix('.key')}, and belongs to that part alone")


def _renew(config: Config, given: Given) -> None:
    done = _authority()(given.folder).renew(all=given.all)
    names = ", ".join(path.name for path in done)
    output.tell(f"signed anew: {names}; they go where the old ones are" if done else "nothing is due: --all")


def _revoke(config: Config, given: Given) -> None:
    _authority()(given.folder).revoke(given.name)
    output.tell(
        f"{given.name} is revoked, as soon as {given.folder / 'crl.pem'} is where tls.crl of every part is"
    )


def _show(config: Config, given: Given) -> None:
    authority = _authority()(given.folder)
    now = datetime.now(UTC)
    rows: list[Sequence[str]] = []
    for each in authority.show():
        state = "revoked" if each.revoked else "expired" if each.expires < now else ""
        until = f"{each.expires:%Y-%m-%d} {state}".rstrip()
        rows.append((each.file, each.subject, until, " ".join(each.names), each.fingerprint))
    output.tell(table(("FILE", "SUBJECT", "UNTIL", "NAMES", "SHA-256"), rows))
