"""cert.pem and key.pem of TLS_CUSTOM_CERT, tried out before Caddy gets them.

The pair does a handshake with itself in memory, with OpenSSL on both sides: what is refused here a subscriber would
refuse too, and nothing parses certificates by hand.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from clr_client.errors import WebServerError

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("cert.pem", "key.pem")
SOON = timedelta(days=21)
NO_CHECK_TIME = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python has no name for
REMEDY = "Put a working pair there; it is picked up within seconds, without a restart"


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate with its chain and its key, both PEM, and what is to be said about them."""

    certificate: str
    key: str = field(repr=False)
    not_after: datetime
    warnings: tuple[str, ...] = ()

    def expiry(self, now: datetime) -> str:
        """A warning when the certificate ends soon or has ended, else an empty text."""
        if now >= self.not_after:
            return f"the certificate expired on {self.not_after:%Y-%m-%d %H:%M} UTC; subscribers may refuse this site"
        if self.not_after - now < SOON:
            return f"the certificate expires on {self.not_after:%Y-%m-%d %H:%M} UTC; replace it before"
        return ""


@dataclass(frozen=True, slots=True)
class Described:
    """What is to be known of a certificate; thumbprints as vSphere shows them, SHA-256 and SHA-1."""

    not_after: datetime
    sha256: str
    sha1: str


def describe(certificate: Path, key: Path) -> Described:
    """Describe the first certificate of a PEM file; its key has to be there, since nothing here parses certificates.

    :raises WebServerError: missing, unreadable, or not a pair.
    """
    text = _read(certificate)
    found = _handshake((certificate, key), text)
    der = ssl.PEM_cert_to_DER_cert(_leaf(text))
    prints = (hashlib.new(name, der, usedforsecurity=False).hexdigest() for name in ("sha256", "sha1"))
    sha256, sha1 = (":".join(text[at : at + 2] for at in range(0, len(text), 2)).upper() for text in prints)
    return Described(_time(found["notAfter"]), sha256, sha1)


def load_pair(folder: Path, name: str, now: datetime) -> Pair:
    """Read and try the pair in ``folder``; blocking.

    :param name: the site's name. A certificate for another one gives a warning: vSphere, which pins certificates, may
        still accept it.
    :param now: aware; outside the certificate's time the pair is refused.
    :raises WebServerError: missing, unreadable, not a pair, or outside its time: one line that names the file.
    """
    certificate, key = (_read(folder / file) for file in NAMES)
    if "ENCRYPTED" in key:
        raise WebServerError(
            f"{folder / NAMES[1]} is encrypted", "Remove its passphrase: openssl pkey -in … -out key.pem"
        )
    files = folder / NAMES[0], folder / NAMES[1]
    described = _handshake(files, certificate)
    begins, ends = (_time(described[name]) for name in ("notBefore", "notAfter"))
    if now >= ends:
        raise WebServerError(f"{folder / NAMES[0]} expired on {ends:%Y-%m-%d %H:%M} UTC", REMEDY)
    if now < begins:
        text = (
            f"{folder / NAMES[0]} is not valid before {begins:%Y-%m-%d %H:%M} UTC; the clock here is at {now:%Y-%m-%d}"
        )
        raise WebServerError(text, REMEDY)
    warnings = []
    if not _names(files, certificate, name):
        known = ", ".join(value for _, value in described.get("subjectAltName", ())) or "no name at all"
        warnings.append(f"{folder / NAMES[0]} is not for TLS_NAME={name} but for {known}; it is used all the same")
    return Pair(certificate, key, ends, tuple(warnings))


def stamp(folder: Path) -> tuple[tuple[int, ...] | None, ...]:
    """What changes when one of the files is replaced; links, as Kubernetes makes them, are followed."""
    found: list[tuple[int, ...] | None] = []
    for file in NAMES:
        try:
            status = (folder / file).stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(found)


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        raise WebServerError(f"{path} is missing, and TLS_CUSTOM_CERT=true needs it", REMEDY) from None
    except OSError as error:
        raise WebServerError(f"{path} cannot be read ({error.strerror}, uid {os.geteuid()})", REMEDY) from None
    if "-----BEGIN " not in text:
        raise WebServerError(f"{path} is not in PEM form (no BEGIN line)", REMEDY)
    return text


def _handshake(files: tuple[Path, Path], certificate: str) -> dict[str, Any]:
    """Connect the pair with itself at any time and under any name, and describe the certificate."""
    try:
        server, client = _contexts(files, certificate)
        client.check_hostname = False
        client.verify_flags |= NO_CHECK_TIME
        return _connect(server, client, None)
    except ssl.SSLError as error:
        cert, key = files
        reason = (error.reason or str(error)).replace("_", " ").lower()
        if "values mismatch" in reason:
            raise WebServerError(f"{key.name} does not belong to {cert.name} in {cert.parent}", REMEDY) from None
        raise WebServerError(f"{cert.name} and {key.name} in {cert.parent} cannot be used ({reason})", REMEDY) from None


def _names(files: tuple[Path, Path], certificate: str, name: str) -> bool:
    server, client = _contexts(files, certificate)
    client.verify_flags |= NO_CHECK_TIME
    try:
        _connect(server, client, name)
    except ssl.SSLCertVerificationError:
        return False
    return True


def _leaf(certificate: str) -> str:
    text = certificate[certificate.index("-----BEGIN ") :].split("-----END CERTIFICATE-----")[0]
    return f"{text}-----END CERTIFICATE-----\n"


def _contexts(files: tuple[Path, Path], certificate: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in (server, client):
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # not stricter than Caddy
    server.load_cert_chain(*files, password="")
    client.load_verify_locations(cadata=_leaf(certificate))
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return server, client


def _connect(server: ssl.SSLContext, client: ssl.SSLContext, name: str | None) -> dict[str, Any]:
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(back, there, server_hostname=name),
        server.wrap_bio(there, back, server_side=True),
    ]
    waiting = list(ends)
    while waiting:
        for end in tuple(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
    return dict(ends[0].getpeercert() or {})


def _time(text: str) -> datetime:
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(text), UTC)
