"""What can be wrong with the web site: ports, name, certificate, and what a subscriber would say to it."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from clr_client.doctor.finding import Finding, Findings, Result, ok, problem, skipped, warning
from clr_client.errors import Trouble
from clr_client.vcsp.checking import check
from clr_client.web import caddy, certificate, health
from clr_client.web.certificate import REMEDY, SOON_EXPIRED
from clr_client.web.config import certificate_files, internal_root, subscription_url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clr_client.doctor.case import Case
    from clr_client.vcsp.checking import CheckReport

SHOWN = 5
CONNECT_SECONDS = 8.0
LOOK_SECONDS = 60.0

TAKEN = Trouble(
    "port {port} ({what}) is taken by another program",
    "Stop that program, or give this site another port: {variable}=…, and publish that one in the compose file",
)
NOT_ALLOWED = Trouble(
    "uid {uid} may not listen on port {port} ({what})",
    "Give the container the capability NET_BIND_SERVICE, or choose a port from 1024 on: {variable}=…",
)
NOT_SERVED = Trouble(
    "`clr run` is running, and its web server does not listen on port {port} ({what})",
    "Its log says why: docker logs clr-client",
)
UNKNOWN_NAME = Trouble(
    "TLS_NAME={name} has no address: {reason}",
    "Have {name} entered in the DNS with this host's address; subscribers and Let's Encrypt look there",
)
ELSEWHERE = Trouble(
    "TLS_NAME={name} is {addresses}, none of which is this host's",
    "Correct the DNS entry, unless a router or load balancer leads from there to this host",
)
LOOPBACK = Trouble(
    "TLS_NAME={name} is {addresses} here, which means this host itself wherever it is asked",
    "Have {name} entered in the DNS with this host's address; look at /etc/hosts too",
)
NO_CERTIFICATE = Trouble(
    "there is no certificate for {name} yet, so HTTPS does not work",
    "Let's Encrypt must reach this site under {name} on port 80 or 443 from the Internet; the log says why it could not"
    " (docker logs clr-client). Without that: TLS_CUSTOM_CERT=true or TLS_INTERNAL=true",
)
NOT_FROM_HERE = Trouble(
    "{url} cannot be reached from here: {reason}",
    "From another machine it may be: try it in a browser there; if it cannot, look at the ports that the compose file"
    " publishes, and at firewalls",
)
REFUSES = Trouble(
    "a subscriber of {url} would say {said}",
    "More of it: docker exec clr-client clr check {url}; and clr sync mends files",
)
REMARKS = Trouble(
    "a subscriber of {url} would notice: {said}", "It works; more of it: docker exec clr-client clr check {url}"
)


def running(case: Case) -> Findings:
    """Whether `clr run` is at work and alive."""
    case.served = caddy.ports(case.settings)
    if not case.is_running:
        return [skipped("`clr run` is not running here, so the web site is not served from here now")]
    if (age := health.silence(health.heartbeat(case.settings))) > health.STALE:
        return [problem(health.HANGS, seconds=f"{age:.0f}")]
    return [ok("`clr run` is alive")]


def ports(case: Case) -> Iterator[Finding]:
    """Whether the site's ports are its own, or free for it."""
    settings = case.settings
    wanted = {settings.http_port: ("HTTP", "HTTP_PORT")}
    if settings.tls_name:
        wanted[settings.https_port] = ("HTTPS", "HTTPS_PORT")
    if settings.metrics_port:
        wanted[settings.metrics_port] = ("metrics", "METRICS_PORT")
    for port, (what, variable) in wanted.items():
        known = {"port": port, "what": what, "variable": variable}
        if port in case.served:
            yield ok(f"port {port} ({what}) is served by this site")
        elif (hindrance := _hindrance(port)) == errno.EADDRINUSE:
            yield problem(TAKEN, **known)
        elif hindrance:
            yield problem(NOT_ALLOWED, uid=os.geteuid(), **known)
        elif case.is_running:
            yield problem(NOT_SERVED, **known)
        else:
            yield ok(f"port {port} ({what}) is free for this site")


def _hindrance(port: int) -> int:
    """Why nobody can listen on a port here, as an errno; 0 when one can."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        with socket.create_server(("", port), family=family, dualstack_ipv6=family == socket.AF_INET6):
            return 0
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES, errno.EPERM):
            return error.errno
        raise


def dns(case: Case) -> Findings:
    """Whether the site's name leads here."""
    name = case.settings.tls_name
    if not name:
        return [ok("not needed: without TLS_NAME the library is served over HTTP, by whatever name")]
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return [problem(UNKNOWN_NAME, name=name, reason=getattr(error, "strerror", None) or error)]
    addresses = tuple(dict.fromkeys(str(address[0]) for *_, address in found))
    known = {"name": name, "addresses": ", ".join(addresses)}
    if all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses):
        return [warning(LOOPBACK, **known)]
    if any(map(_is_own, addresses)):
        return [ok(f"{name} is {known['addresses']}, an address of this host")]
    if case.in_container:
        return [ok(f"{name} is {known['addresses']}; whether that is this host cannot be told inside of a container")]
    return [warning(ELSEWHERE, **known)]


def _is_own(address: str) -> bool:
    """Whether this host has an address: nobody can bind another's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def pair(case: Case) -> Findings:
    """The certificate: against its key, the name, the clock and its chain."""
    settings, now = case.settings, datetime.now(UTC)
    if not settings.tls_name:
        return [ok("not needed: without TLS_NAME the library is served over HTTP")]
    files = certificate_files(settings)
    if files is None and not case.is_running:
        return [skipped("Caddy gets the certificate when `clr run` starts")]
    if files is None:
        return [problem(NO_CERTIFICATE, name=settings.tls_name)]
    if settings.tls_custom_cert:
        return list(_own_pair(case, now))
    found = certificate.describe(*files)
    if found.not_after - now < certificate.SOON and not settings.tls_internal:
        return [warning(SOON_EXPIRED, time=f"{found.not_after:%Y-%m-%d %H:%M}")]
    return [ok(f"Caddy has one for {settings.tls_name}, valid until {found.not_after:%Y-%m-%d}, SHA-1 {found.sha1}")]


def _own_pair(case: Case, now: datetime) -> Iterator[Finding]:
    folder, name = case.settings.clr_certs_dir, case.settings.tls_name
    loaded = certificate.load_pair(folder, name, now)
    told = [(text, certificate.OTHER_NAME.remedy) for text in loaded.warnings]
    told += [(text, REMEDY) for text in [loaded.expiry(now)] if text]
    told += [trouble for trouble in [certificate.chain_trouble(folder)] if trouble]
    yield from (Finding(Result.WARNING, text, remedy) for text, remedy in told)
    if not told:
        found = certificate.describe(*(folder / file for file in certificate.NAMES))
        yield ok(f"cert.pem is for {name}, valid until {found.not_after:%Y-%m-%d}, SHA-1 {found.sha1}")


def subscriber(case: Case) -> Findings:
    """What a subscriber would say, with all content's headers read."""
    settings = case.settings
    port = settings.https_port if settings.tls_name else settings.http_port
    if port not in case.served:
        return [skipped("the library is not served from here now")]
    if case.store.current_number() is None:
        return [skipped("nothing is published yet; the first sync does that")]
    url = subscription_url(settings, "localhost")
    try:
        socket.create_connection((settings.tls_name or "localhost", port), CONNECT_SECONDS).close()
    except OSError as error:
        return [warning(NOT_FROM_HERE, url=url, reason=error.strerror or error)]
    files = certificate_files(settings)
    until = time.monotonic() + LOOK_SECONDS

    def stop_in_time(_done: int, _total: int, _what: str) -> None:
        if time.monotonic() > until:
            raise _EnoughSeen

    try:
        report = check(
            url,
            password=settings.library_password or None,
            ca_file=internal_root(settings) if settings.tls_internal else None,
            thumbprint=certificate.describe(*files).sha256 if files else None,
            timeout=10.0,
            on_progress=stop_in_time,
        )
    except _EnoughSeen:
        return [skipped(f"the library is too large to be looked at in {LOOK_SECONDS:.0f} s; ask: clr check {url}")]
    return [*_said(report, url)]


class _EnoughSeen(Exception):  # noqa: N818 - nothing went wrong
    pass


def _said(report: CheckReport, url: str) -> Iterator[Finding]:
    for found in report.problems[:SHOWN]:
        make = problem if found.severity == "error" else warning
        yield make(REFUSES if found.severity == "error" else REMARKS, url=url, said=found)
    if not report.problems:
        yield ok(f"{report.probe}: {report.library}, version {report.version}, {report.items} items; it is {url}")
