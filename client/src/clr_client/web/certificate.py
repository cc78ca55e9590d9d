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

from clr_client.errors import Trouble, WebServerError

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("cert.pem", "key.pem")
SOON = timedelta(days=21)
NO_CHECK_TIME = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python has no name for
REMEDY = "Put a working pair there; it is picked up within seconds, without a restart"
MISSING = Trouble("{file} is missing, and TLS_CUSTOM_CERT=true needs it", REMEDY)
UNREADABLE = Trouble("{file} cannot be read ({reason}, uid {uid})", REMEDY)
NO_PEM = Trouble("{file} is not in PEM form (no BEGIN line)", REMEDY)
ENCRYPTED = Trouble("{file} is encrypted", "Remove its passphrase: openssl pkey -in … -out key.pem")
NO_PAIR = Trouble("{key} does not belong to {certificate} in {folder}", REMEDY)
UNUSABLE = Trouble("{certificate} and {key} in {folder} cannot be used ({reason})", REMEDY)
EXPIRED = Trouble("{file} expired on {time} UTC", REMEDY)
TOO_EARLY = Trouble("{file} is not valid before {time} UTC; the clock here is at {now}", REMEDY)
OTHER_NAME = Trouble(
    "{file} is not for TLS_NAME={name} but for {known}; it is used all the same",
    "Get a certificate for the name in the subscribers' URL, or set TLS_NAME to one that it has",
)
SOON_EXPIRED = Trouble("the certificate expires on {time} UTC; replace it before", REMEDY)
NO_CHAIN = Trouble(
    "{file} holds one certificate, of the issuer {issuer}, and not the chain from there on",
    "If {issuer} is not itself a CA that the subscribers trust, append its certificate to {file}, and those above it",
)
BROKEN_CHAIN = Trouble(
    "the certificates in {file} do not form a chain ({reason})",
    "Order them: the site's own first, then each issuer's; leave out what belongs to others",
)


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
            return SOON_EXPIRED.told(time=f"{self.not_after:%Y-%m-%d %H:%M}")[0]
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
        raise WebServerError(*ENCRYPTED.told(file=folder / NAMES[1]))
    files = folder / NAMES[0], folder / NAMES[1]
    described = _handshake(files, certificate)
    begins, ends = (_time(described[name]) for name in ("notBefore", "notAfter"))
    if now >= ends:
        raise WebServerError(*EXPIRED.told(file=files[0], time=f"{ends:%Y-%m-%d %H:%M}"))
    if now < begins:
        told = TOO_EARLY.told(file=files[0], time=f"{begins:%Y-%m-%d %H:%M}", now=f"{now:%Y-%m-%d}")
        raise WebServerError(*told)
    warnings = []
    if not _names(files, certificate, name):
        known = ", ".join(value for _, value in described.get("subjectAltName", ())) or "no name at all"
        warnings.append(OTHER_NAME.told(file=files[0], name=name, known=known)[0])
    return Pair(certificate, key, ends, tuple(warnings))


def chain_trouble(folder: Path) -> tuple[str, str] | None:
    """Say what is to be said about the certificates that follow the site's own in cert.pem, with the remedy.

    Nothing when they lead from one to the next, or when it signed itself. The pair has to be a usable one.
    """
    files = folder / NAMES[0], folder / NAMES[1]
    text = _read(files[0])
    certificates = _certificates(text)
    described = _handshake(files, text)
    if described["issuer"] == described["subject"]:
        return None
    if len(certificates) == 1:
        issuer = next((value for part in described["issuer"] for name, value in part if name == "commonName"), "?")
        return NO_CHAIN.told(file=files[0], issuer=issuer)
    server, client = _contexts(files, certificates[-1])
    client.check_hostname = False
    client.verify_flags |= NO_CHECK_TIME
    try:
        _connect(server, client, None)
    except ssl.SSLCertVerificationError as error:
        return BROKEN_CHAIN.told(file=files[0], reason=error.verify_message)
    return None


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
        raise WebServerError(*MISSING.told(file=path)) from None
    except OSError as error:
        raise WebServerError(*UNREADABLE.told(file=path, reason=error.strerror, uid=os.geteuid())) from None
    if "-----BEGIN " not in text:
        raise WebServerError(*NO_PEM.told(file=path))
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
        names = {"certificate": cert.name, "key": key.name, "folder": cert.parent}
        if "values mismatch" in reason:
            raise WebServerError(*NO_PAIR.told(**names)) from None
        raise WebServerError(*UNUSABLE.told(reason=reason, **names)) from None


def _names(files: tuple[Path, Path], certificate: str, name: str) -> bool:
    server, client = _contexts(files, certificate)
    client.verify_flags |= NO_CHECK_TIME
    try:
        _connect(server, client, name)
    except ssl.SSLCertVerificationError:
        return False
    return True


def _leaf(certificate: str) -> str:
    return _certificates(certificate)[0]


def _certificates(text: str) -> list[str]:
    """The certificates of a PEM file, each as PEM; what stands between them is left out."""
    end = "-----END CERTIFICATE-----"
    parts = text[text.index("-----BEGIN ") :].split(end)[:-1] or [text]
    return [f"{part[part.index('-----BEGIN ') :]}{end}\n" for part in parts if "-----BEGIN " in part]


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
