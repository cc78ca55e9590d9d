"""Reading a library over HTTP as vSphere does: Basic authentication as ``vcsp``, certificates by CA or
thumbprint.

Nothing that a server answers is trusted: bodies are bounded, redirects are followed a few times and reported,
and the password goes to no other host and to no one who cannot prove who he is.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urljoin, urlsplit

from clr_client.errors import ProbeError
from clr_client.vcsp.rules import is_decimal, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

USER: Final = "vcsp"
"""The only user name that vSphere ever sends to a library."""

JSON_LIMIT: Final = 64 << 20
_CHUNK: Final = 1 << 20
_REDIRECTS: Final = 5
_SMALL_BODY_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True)
class Thumbprints:
    """What identifies a server's certificate: hexadecimal bytes with colons, as vSphere shows them."""

    sha256: str
    sha1: str

    def match(self, pinned: str) -> bool:
        """Whether ``pinned``, in any usual spelling, is one of the two."""
        plain = pinned.replace(":", "").replace(" ", "").upper()
        return plain in (self.sha256.replace(":", ""), self.sha1.replace(":", ""))


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer: final URL, status and headers (names in lower case)."""

    url: str
    status: int
    headers: Mapping[str, str]

    @property
    def length(self) -> int | None:
        """Content-Length in bytes; None when missing or no number."""
        value = self.headers.get("content-length", "")
        return int(value) if is_decimal(value) else None

    @property
    def encoding(self) -> str:
        """Content-Encoding; "" for plain content."""
        value = self.headers.get("content-encoding", "").strip().lower()
        return "" if value == "identity" else value


class Reader:
    """Connections to the server of one library; a context manager that closes them. Not for use by several
    threads.

    ``thumbprint`` pins the certificate and replaces every other check of it, as in vSphere. Without it the
    certificate has to lead to ``ca_file`` or, without that, to a CA of this machine; if it does not, reading
    goes on as long as there is no password to lose, and ``unverified`` says why vSphere will ask about it.

    Raises ProbeError, here and in every method, with the result that vSphere has for the failure.
    """

    def __init__(
        self,
        url: str,
        *,
        password: str | None = None,
        ca_file: Path | None = None,
        thumbprint: str | None = None,
        timeout: float = 30.0,
        follow_elsewhere: bool = True,
    ) -> None:
        """``timeout`` is in seconds and holds for every single answer.

        Without ``follow_elsewhere`` a redirect to another host, or away from HTTPS, is a failure.
        """
        self._origin = _origin(split_url(url))
        self._password = password
        self._pinned = thumbprint
        self._trust_strictly = ca_file is not None
        self._timeout = timeout
        self._follow_elsewhere = follow_elsewhere
        self._connections: dict[tuple[str, str, int], http.client.HTTPConnection] = {}
        self._leaves: dict[tuple[str, str, int], bytes] = {}
        self.unverified: str | None = None
        self._verifying = _verifying(ca_file) if ca_file else None

    def __enter__(self) -> Reader:
        """Nothing is connected yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        for connection in self._connections.values():
            connection.close()

    @property
    def thumbprints(self) -> Thumbprints | None:
        """Those of the library's own server, once it was reached over HTTPS."""
        leaf = self._leaves.get(self._origin)
        return None if leaf is None else _thumbprints(leaf)

    def fetch(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        limit: int = JSON_LIMIT,
        seconds: float | None = None,
    ) -> tuple[Answer, bytes]:
        """The whole answer, of at most ``limit`` bytes; the body has to arrive within ``seconds``, or five minutes."""
        seconds = _SMALL_BODY_SECONDS if seconds is None else seconds
        until = time.monotonic() + seconds
        body = bytearray()
        with self.open(url, method=method, headers=headers) as (answer, chunks):
            for chunk in chunks:
                body += chunk
                if len(body) > limit:
                    raise ProbeError("UNKNOWN_ERROR", f"{shown(url)} has more than {limit} bytes")
                if time.monotonic() > until:
                    raise ProbeError("TIMED_OUT", f"{shown(url)} did not arrive within {seconds:.0f} s")
        return answer, bytes(body)

    @contextlib.contextmanager
    def open(
        self, url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None
    ) -> Iterator[tuple[Answer, Iterator[bytes]]]:
        """The head of an answer and its body in pieces; a body not read to its end costs the connection."""
        for _ in range(_REDIRECTS + 1):
            with _translated(url):
                response, connection = self._request(method, url, dict(headers or {}))
            answer = Answer(url, response.status, {name.lower(): value for name, value in response.getheaders()})
            location = answer.headers.get("location")
            if answer.status not in (301, 302, 303, 307, 308) or location is None:
                break
            connection.close()
            try:
                target = urljoin(url, location)
            except ValueError as error:
                raise ProbeError("INVALID_URL", f"{shown(url)} redirects to {shown(location)}") from error
            if not self._follow_elsewhere and not self._is_same_host(_origin(split_url(target))):
                raise ProbeError("UNKNOWN_ERROR", f"{shown(url)} redirects elsewhere: to {shown(target)}")
            url = target
        else:
            raise ProbeError("UNKNOWN_ERROR", f"{shown(url)} redirects too often")
        try:
            yield answer, _chunks(response, url)
        finally:
            if not response.isclosed():
                connection.close()

    def _request(
        self, method: str, url: str, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, http.client.HTTPConnection]:
        parts = split_url(url)
        origin = _origin(parts)
        headers = {"Accept-Encoding": "gzip, deflate", "User-Agent": "clr-check", **headers}
        target = parts.path or "/"
        if parts.query:
            target += f"?{parts.query}"
        kept = self._connections.pop(origin, None)
        if kept is not None and kept.sock is None:  # closed after its last answer; only _connect may open one
            kept = None
        connection = kept or self._connect(origin)
        if self._password is not None and self._is_same_host(origin):
            pair = f"{USER}:{self._password}".encode()
            headers["Authorization"] = "Basic " + base64.b64encode(pair).decode()
        try:
            connection.request(method, target, headers=headers)
            response = connection.getresponse()
        except (ConnectionError, http.client.BadStatusLine):
            connection.close()
            if kept is None:
                raise
            return self._request(method, url, headers)  # the server had closed a kept connection: on a new one
        except BaseException:
            connection.close()
            raise
        self._connections[origin] = connection
        return response, connection

    def _is_same_host(self, origin: tuple[str, str, int]) -> bool:
        scheme, host, _ = origin
        return host == self._origin[1] and (scheme == "https" or self._origin[0] == "http")

    def _connect(self, origin: tuple[str, str, int]) -> http.client.HTTPConnection:
        scheme, host, port = origin
        if scheme == "http":
            connection = http.client.HTTPConnection(host, port, timeout=self._timeout)
            connection.connect()
            return connection
        expected = self._leaves.get(origin)
        failure: ssl.SSLCertVerificationError | None = None
        if self._pinned is None and expected is None:
            try:
                self._verifying = self._verifying or _verifying(None)
                return self._shake_hands(origin, self._verifying)
            except ssl.SSLCertVerificationError as error:
                failure = error
        connection = self._shake_hands(origin, _unverifying(), expected)
        try:
            self._judge(_thumbprints(self._leaves[origin]), failure)
        except ProbeError:
            connection.close()
            raise
        return connection

    def _judge(self, seen: Thumbprints, failure: ssl.SSLCertVerificationError | None) -> None:
        """Raises ProbeError unless a certificate that leads to no CA may be accepted."""
        if self._pinned is not None and not seen.match(self._pinned):
            text = f"The certificate has the thumbprint {seen.sha256}, not the one that was given"
            raise ProbeError("CERTIFICATE_ERROR", text)
        if failure is None:
            return
        reason = f"The certificate is not trusted: {failure.verify_message or failure.reason}"
        if self._trust_strictly:
            raise ProbeError("CERTIFICATE_ERROR", reason) from failure
        if self._password is not None:
            remedy = "The password was not sent. Name the CA file or the thumbprint of the server's certificate"
            raise ProbeError("CERTIFICATE_ERROR", reason, remedy) from failure
        self.unverified = reason

    def _shake_hands(
        self, origin: tuple[str, str, int], context: ssl.SSLContext, expected: bytes | None = None
    ) -> http.client.HTTPConnection:
        """A new connection; ``expected`` is the certificate that was accepted when the server was met."""
        _, host, port = origin
        connection = http.client.HTTPSConnection(host, port, timeout=self._timeout, context=context)
        connection.connect()
        sock = connection.sock
        leaf = sock.getpeercert(binary_form=True) if isinstance(sock, ssl.SSLSocket) else None
        if leaf is None or (expected is not None and leaf != expected):
            connection.close()
            raise ProbeError("CERTIFICATE_ERROR", "The server's certificate changed while it was read")
        self._leaves[origin] = leaf
        return connection


def folder_of(url: str) -> str:
    """What hrefs are relative to: ``url`` up to its last slash, without query."""
    return url.partition("?")[0].rpartition("/")[0] + "/"


def not_ready(answer: Answer, body: bytes) -> ProbeError | None:
    """The error for a 503 with the protocol's JSON, which says that the server prepares; None for others."""
    if answer.status != http.HTTPStatus.SERVICE_UNAVAILABLE:
        return None
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, dict) or "status" not in told:
        return None
    message = told.get("message")
    if message:
        return ProbeError("UNKNOWN_ERROR", f"The server says that it failed: {shown(message)}")
    progress = told.get("progress")
    known = progress if type(progress) is int and 0 <= progress <= 100 else 0
    text = f"The server has published nothing yet: {shown(told['status'])}, {known} %"
    return ProbeError("UNKNOWN_ERROR", text, "vSphere asks again until it has", progress=known)


def refusal(answer: Answer) -> ProbeError | None:
    """The error for an answer whose status is not 200; None for 200."""
    status = answer.status
    told = f"{shown(answer.url)} is answered with {status} {http.client.responses.get(status, '')}".rstrip()
    if status == http.HTTPStatus.OK:
        return None
    if status in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
        return ProbeError("INVALID_CREDENTIALS", told, f"The user is always {USER}; check the password")
    if status in (http.HTTPStatus.NOT_FOUND, http.HTTPStatus.GONE):
        return ProbeError("RESOURCE_NOT_FOUND", told)
    return ProbeError("UNKNOWN_ERROR", told)


def split_url(url: str) -> SplitResult:
    """The parts of a URL of HTTP or HTTPS. Raises ProbeError for what is none, and for one with a user name in it."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ProbeError("INVALID_URL", f"{shown(url)} is not a URL: {error}") from error
    plain = url.isascii() and url.isprintable() and " " not in url
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain or port == 0:
        raise ProbeError("INVALID_URL", f"{shown(url)} is not a URL", "It looks like https://host/lib.json")
    if "@" in parts.netloc:
        raise ProbeError("INVALID_URL", "The URL holds a user name", "Give the password separately")
    return parts


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _verifying(ca_file: Path | None) -> ssl.SSLContext:
    """For certificates that have to lead to ``ca_file``, or to a CA of this machine."""
    try:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except OSError as error:
        raise ProbeError("CERTIFICATE_ERROR", f"The CA file {ca_file} cannot be used: {error}") from error
    # Python 3.13 demands extensions that many private CAs leave out and that vSphere does not ask for.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _unverifying() -> ssl.SSLContext:
    """For certificates that a thumbprint identifies; whoever uses it compares the leaf."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _thumbprints(leaf: bytes) -> Thumbprints:
    return Thumbprints(
        _colons(hashlib.sha256(leaf).hexdigest()),
        _colons(hashlib.sha1(leaf, usedforsecurity=False).hexdigest()),
    )


def _colons(digest: str) -> str:
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2)).upper()


def _chunks(response: http.client.HTTPResponse, url: str) -> Iterator[bytes]:
    """The body as it arrives; ends early, without an error, when the server does: whoever counts notices."""
    left = response.length
    while left is None or left > 0:
        with _translated(url):
            try:
                chunk = response.read1(_CHUNK if left is None else min(_CHUNK, left))
            except http.client.IncompleteRead as error:
                chunk = error.partial
        if not chunk:
            return
        if left is not None:
            left -= len(chunk)
        yield chunk
    response.close()  # read to its end, so the connection can be kept; Python 3.11's read1 does not see that


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    """Failures of the network in the words of vSphere's probe."""
    try:
        yield
    except socket.gaierror as error:
        host = urlsplit(url).hostname
        raise ProbeError("HOST_NOT_FOUND", f"The host {shown(host)} is not known ({error.strerror})") from error
    except TimeoutError as error:
        raise ProbeError("TIMED_OUT", f"{shown(url)} did not answer in time") from error
    except ssl.SSLError as error:
        raise ProbeError("CERTIFICATE_ERROR", f"{shown(url)} does not offer TLS that works: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        raise ProbeError("UNKNOWN_ERROR", f"{shown(url)} cannot be read: {_reason(error)}") from error


def _reason(error: OSError | http.client.HTTPException) -> str:
    told = error.strerror if isinstance(error, OSError) else str(error)
    return shown(told) if told else type(error).__name__
