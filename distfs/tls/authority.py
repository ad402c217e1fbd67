"""A cluster's own certificate authority, as files of one folder: made once, and what it signs, renews and revokes.

Needs the package cryptography; to speak TLS, nothing does. Each file is written under a name of its own, durably, and
renamed, so there is never half of one; ``ca.crt`` comes last and is what makes the folder an authority's.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from distfs.errors import ConfigError
from distfs.tls.identity import CA_DAYS, LEAF_DAYS, cluster_of, cluster_uri, node_uri, service_uri

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as e:
    raise ConfigError("who signs certificates needs an extra: pip install 'distfs[tls]'") from e

#: Clocks of a cluster may differ by so much.
_BEFORE = timedelta(hours=1)
#: With less than this share of its time left, a certificate is renewed.
_RENEW_SHARE = 1 / 3


def _now() -> datetime:
    return datetime.now(UTC)


_Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Shown:
    """One certificate of the folder."""

    file: str
    subject: str
    names: tuple[str, ...]
    fingerprint: str  # SHA-256
    expires: datetime
    revoked: bool


class Authority:
    """One that is there. ``cluster``: whose."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError where there is none, or half of one."""
        self.folder = folder
        there = _there(folder)
        if not there:
            raise ConfigError(f"{folder} is no authority's: make one with `distfs tls init {folder}`")
        _check_whole(folder, there)
        self._certificate = _read(folder / "ca.crt")
        key = _read_key(folder / "ca.key")
        if _public(key.public_key()) != _public(self._certificate.public_key()):
            raise ConfigError(
                f"{folder}: ca.key is not the key of ca.crt: restore the one that belongs to the other"
            )
        self._key = key
        cluster = cluster_of(_names(self._certificate))
        if cluster is None:
            raise ConfigError(f"{folder}/ca.crt names no cluster: it was not made by `distfs tls init`")
        self.cluster: UUID = cluster
        self._crl = _read_crl(folder / "crl.pem")

    @classmethod
    def make(cls, folder: Path, cluster: UUID, days: int = CA_DAYS) -> Authority:
        """Raises ConfigError where there is one, whole or half."""
        there = _there(folder)
        if there:
            _check_whole(folder, there)
            raise ConfigError(
                f"{folder} has an authority already: nothing was changed; `distfs tls show {folder}`"
            )
        _private_folder(folder)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"distfs {cluster}")])
        usage = _usage(key_cert_sign=True, crl_sign=True)
        builder = (
            _builder(name, name, key.public_key(), key.public_key(), timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(cluster_uri(cluster))]), False
            )
        )
        certificate = builder.sign(key, hashes.SHA256())
        _write(folder / "ca.key", _pem_of(key), private=True)
        _write(folder / "crl.pem", _revoked(certificate, key, []))
        _write(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM))
        return cls(folder)

    def sign_node(self, node: UUID, hosts: Iterable[str], days: int = LEAF_DAYS) -> Path:
        """-> the certificate; its key is beside it."""
        return self._sign(f"node-{node}", node_uri(self.cluster, node), hosts, days)

    def sign_service(self, name: str, hosts: Iterable[str], days: int = LEAF_DAYS) -> Path:
        """The same; ``name``: of its files."""
        taken = name in ("", "ca", "crl") or name.startswith((".", "node-"))
        if taken or not set(name) <= _NAME:
            raise ConfigError(f"--as {name!r}: choose another name of letters, digits, . - and _")
        return self._sign(name, service_uri(self.cluster), hosts, days)

    def _sign(self, name: str, uri: str, hosts: Iterable[str], days: int) -> Path:
        cert, key_file = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        names = [x509.UniformResourceIdentifier(uri), *map(_host, hosts)]
        if cert.exists() and not self._is_revoked(_read(cert)):
            raise ConfigError(
                f"{cert} is there already: nothing was changed; `distfs tls renew {self.folder}` signs it anew, "
                f"and after `distfs tls revoke {self.folder} {name}` this makes another, with another key"
            )
        if key_file.exists() and not cert.exists():
            raise ConfigError(f"{key_file} has no certificate: remove it, and say the same again")
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._certify(name, key.public_key(), names, timedelta(days=days))
        _write(key_file, _pem_of(key), private=True)
        _write(cert, certificate)
        return cert

    def _certify(
        self, name: str, key: ec.EllipticCurvePublicKey, names: Iterable[x509.GeneralName], lasts: timedelta
    ) -> bytes:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        mine = self._certificate
        ends = min(lasts, mine.not_valid_after_utc - _now())
        return (
            _builder(subject, mine.subject, key, self._key.public_key(), ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(both), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )

    def renew(self, *, all: bool = False) -> list[Path]:
        """What comes to its end, or ``all``, for as long again, with its key and names; -> what was. What is revoked
        stays so."""
        done, now = [], _now()
        for path, old in self._leaves():
            lasts = old.not_valid_after_utc - old.not_valid_before_utc
            due = old.not_valid_after_utc - now < lasts * _RENEW_SHARE
            if (all or due) and not self._is_revoked(old):
                key = old.public_key()
                if not isinstance(key, ec.EllipticCurvePublicKey):
                    continue
                names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
                self._keep(old)
                _write(path, self._certify(path.stem, key, names, lasts - _BEFORE))
                done.append(path)
        return done

    def revoke(self, name: str) -> None:
        """The certificate of a file, ``node-UUID`` or ``service``, and all that its key had before: whoever has the
        key has those as well. They are believed by nobody who has the new list. Raises ConfigError."""
        path = self.folder / f"{name.removesuffix('.crt')}.crt"
        found = dict(self._leaves()).get(path)
        if found is None:
            raise ConfigError(f"{path} is no certificate of this authority: `distfs tls show {self.folder}`")
        key = _public(found.public_key())
        before = [old for old in self._replaced() if _public(old.public_key()) == key]
        serials = {each.serial_number for each in (found, *before) if not self._is_revoked(each)}
        if serials:
            self._write_list([*self._crl, *map(_entry, serials)])

    def _keep(self, old: x509.Certificate) -> None:
        """What is about to be replaced: it is believed until it ends, so it must be known to whoever revokes it."""
        kept = {
            each.serial_number: each for each in (*self._replaced(), old) if each.not_valid_after_utc > _now()
        }
        pem = [each.public_bytes(serialization.Encoding.PEM) for each in kept.values()]
        _write(self.folder / _REPLACED, b"".join(pem))

    def _replaced(self) -> list[x509.Certificate]:
        path = self.folder / _REPLACED
        pem = _bytes(path) if path.exists() else b""
        try:
            return x509.load_pem_x509_certificates(pem) if pem else []
        except ValueError as e:
            raise ConfigError(
                f"{path} has something else than certificates: restore it from your backup"
            ) from e

    def _write_list(self, entries: list[x509.RevokedCertificate]) -> None:
        path = self.folder / "crl.pem"
        _write(path, _revoked(self._certificate, self._key, entries))
        self._crl = _read_crl(path)

    def show(self) -> list[Shown]:
        """All of them, the authority's own first."""
        rows = [(self.folder / "ca.crt", self._certificate), *self._leaves()]
        return [
            Shown(
                path.name,
                found.subject.rfc4514_string(),
                _names(found),
                found.fingerprint(hashes.SHA256()).hex(":"),
                found.not_valid_after_utc,
                self._is_revoked(found),
            )
            for path, found in rows
        ]

    def _leaves(self) -> Iterator[tuple[Path, x509.Certificate]]:
        """Those of ours; others may lie beside them."""
        for path in sorted(self.folder.glob("*.crt")):
            if path.name == "ca.crt":
                continue
            found = _read(path)
            with contextlib.suppress(InvalidSignature, ValueError, TypeError):
                found.verify_directly_issued_by(self._certificate)
                yield path, found

    def _is_revoked(self, certificate: x509.Certificate) -> bool:
        return self._crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None


#: Certificates that were signed anew, and have not ended.
_REPLACED = "replaced.pem"
_NAME = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")


#: What every authority has.
_PARTS = frozenset(("ca.crt", "ca.key", "crl.pem"))


def _there(folder: Path) -> set[str]:
    return {name for name in _PARTS if (folder / name).exists()}


def _check_whole(folder: Path, there: set[str]) -> None:
    """Raises ConfigError for half of an authority: nobody writes over it."""
    missing = sorted(_PARTS - there)
    if not missing:
        return
    if "ca.crt" not in there:  # it comes last: nothing was signed by it
        raise ConfigError(
            f"{folder} is half written: {', '.join(missing)} not there, so it never signed anything: "
            f"remove {', '.join(sorted(there))} there, and run `distfs tls init {folder}` again"
        )
    raise ConfigError(f"{folder} has lost {', '.join(missing)}: restore that from your backup of it")


def _host(name: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    try:
        return x509.DNSName(name.encode("idna").decode("ascii"))
    except ValueError as e:
        raise ConfigError(f"{name!r} is no name of a host, and no address") from e


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(each.value) for each in found)


def _usage(**uses: bool) -> x509.KeyUsage:
    every = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign "
        "crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**(dict.fromkeys(every.split(), False) | uses))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuers: ec.EllipticCurvePublicKey,
    lasts: timedelta,
) -> x509.CertificateBuilder:
    now = _now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + lasts)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuers), critical=False)
    )


def _entry(serial: int) -> x509.RevokedCertificate:
    builder = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_now())
    return builder.build()


def _revoked(certificate: x509.Certificate, key: _Key, entries: list[x509.RevokedCertificate]) -> bytes:
    """A list that holds as long as the authority: who has no newer one must not stop."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(certificate.subject)
        .last_update(_now() - _BEFORE)
        .next_update(certificate.not_valid_after_utc)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(x509.CRLNumber(len(entries)), critical=False)
    )
    for entry in entries:
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _pem_of(key: _Key) -> bytes:
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, pkcs8, plain)


def _public(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return b""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.DER, form)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from e


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_bytes(path))
    except ValueError as e:
        raise ConfigError(f"{path} is no certificate: restore it, or move it away") from e


def _read_key(path: Path) -> _Key:
    try:
        key = serialization.load_pem_private_key(_bytes(path), None)
    except (ValueError, TypeError) as e:
        raise ConfigError(f"{path} is no key: restore it from your backup") from e
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is not a key that `distfs tls init` made")
    return key


def _read_crl(path: Path) -> x509.CertificateRevocationList:
    try:
        return x509.load_pem_x509_crl(_bytes(path))
    except ValueError as e:
        raise ConfigError(f"{path} is no list of what is revoked: restore it from your backup") from e


def _private_folder(folder: Path) -> None:
    """0700, whatever the umask."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise ConfigError(f"{folder} holds other files: name an empty folder, or one that is not there")
        folder.chmod(0o700)
    except OSError as e:
        raise ConfigError(f"cannot make {folder}: {e.strerror}") from e


def _write(path: Path, data: bytes, *, private: bool = False) -> None:
    """Durably, and whole or not at all. Only its owner may read what is ``private``."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(fd, "wb") as file:
                os.fchmod(file.fileno(), 0o600 if private else 0o644)  # whatever the umask
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as e:
        raise ConfigError(f"cannot write {path}: {e.strerror}") from e
