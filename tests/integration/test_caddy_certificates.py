"""HTTPS with an own certificate, with Caddy's own CA, and from an ACME server, with both Debians' Caddy."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import logging
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from clr_client.web import site as sites
from clr_client.web.certificate import describe
from clr_client.web.config import certificate_files, internal_root
from support import caddy
from support.caddy import make_pair, serial
from support.server import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.caddy import Web

NAME = "library.example.com"


@pytest.fixture(params=caddy.PROGRAMS)
def program(request: pytest.FixtureRequest) -> str:
    return caddy.program(request.param)


@pytest.fixture
def home() -> Iterator[Path]:
    with TemporaryDirectory(prefix="clr") as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites, "POLL", 0.1)


def shown(web: Web, name: str | None = NAME) -> str | None:
    """The serial number of the certificate that the site shows, None when there is no HTTPS."""
    try:
        with contextlib.closing(web.connect(tls=True, name=name)) as connection:
            assert isinstance(connection, ssl.SSLSocket)
            return serial(connection.getpeercert(binary_form=True) or b"")
    except ConnectionRefusedError:
        return None


def test_own_certificate_is_served_whatever_name_the_client_asks_for(home: Path, program: str) -> None:
    number = make_pair(home / "certs", NAME)
    with caddy.watching(home, program, NAME) as web:
        assert [shown(web, name) for name in (NAME, "other.example.com", None)] == [number] * 3
        answer = web.ask("/lib.json", tls=True, name=NAME)
        assert answer.status == 200
        assert web.ask("/.state.json", tls=True, name=NAME).status == 404


def test_plain_http_is_redirected_to_the_named_https_site(home: Path, program: str) -> None:
    make_pair(home / "certs", NAME)
    with caddy.watching(home, program, NAME) as web:
        for path in ("/lib.json", "/Tmpl%20one/?a=%20b", "/%2e%2e/x"):
            answer = web.ask(path, headers={"Host": "evil.example"})
            assert answer.status == 308
            assert answer.headers["location"] == f"https://{NAME}:{web.https}{path}"
        assert web.ask("/lib.json", "POST").status == 405


def test_old_versions_of_tls_are_refused(home: Path, program: str) -> None:
    make_pair(home / "certs", NAME)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with caddy.watching(home, program, NAME) as web, pytest.raises(ssl.SSLError):
        web.connect(tls=True, name=NAME, context=context)


def test_certificate_replaced_on_disk_is_used_without_dropping_a_download(home: Path, program: str) -> None:
    old = make_pair(home / "certs", NAME)
    with caddy.watching(home, program, NAME) as web:
        with (web.library / "items" / "u1" / "1" / "big.vmdk").open("wb") as file:
            file.truncate(64 << 20)
        with contextlib.closing(socket.socket()) as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            plain.connect(("127.0.0.1", web.https))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            download = context.wrap_socket(plain, server_hostname=NAME)
            download.sendall(b"GET /Tmpl%20one/big.vmdk HTTP/1.1\r\nHost: x\r\n\r\n")
            response = http.client.HTTPResponse(download)
            response.begin()
            count = len(response.read(4096))
            assert shown(web) == old

            new = make_pair(home / "certs", NAME)
            wait_until(lambda: shown(web) == new, what="the new certificate")

            while chunk := response.read(1 << 20):
                count += len(chunk)
            download.close()
        assert count == 64 << 20


def test_broken_replacement_leaves_the_old_certificate_in_use_and_says_so_once(
    home: Path, program: str, caplog: pytest.LogCaptureFixture
) -> None:
    old = make_pair(home / "certs", NAME)
    with caddy.watching(home, program, NAME) as web, caplog.at_level(logging.INFO):
        (home / "certs" / "cert.pem").write_text("-----BEGIN CERTIFICATE-----\nbroken\n-----END CERTIFICATE-----\n")
        wait_until(lambda: "the certificate in use stays" in caplog.text)
        web.run(web.site.refresh())
        assert shown(web) == old
        assert caplog.text.count("the certificate in use stays") == 1
        new = make_pair(home / "certs", NAME)
        wait_until(lambda: shown(web) == new, what="the mended certificate")


@pytest.mark.parametrize("fault", ["missing", "expired", "mismatch"])
def test_unusable_certificate_at_start_is_named_nothing_is_served_and_a_mended_one_is_picked_up(
    home: Path, program: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    certs = home / "certs"
    if fault == "expired":
        make_pair(certs, NAME, days=0)
    elif fault == "mismatch":
        make_pair(home / "others", NAME)
        make_pair(certs, NAME)
        shutil.copy(home / "others" / "key.pem", certs / "key.pem")
    reason = {
        "missing": f"{certs}/cert.pem is missing",
        "expired": f"{certs}/cert.pem expired on",
        "mismatch": f"key.pem does not belong to cert.pem in {certs}",
    }[fault]
    with caplog.at_level(logging.INFO), caddy.watching(home, program, NAME) as web:
        wait_until(lambda: reason in caplog.text)
        assert web.site.caddy.healthy
        assert shown(web) is None
        answer = web.ask("/lib.json")
        assert answer.status == 503
        assert b"version" not in answer.body
        assert caplog.text.count(reason) == 1
        number = make_pair(certs, NAME)
        wait_until(lambda: shown(web) == number, what="the mended certificate")
        assert web.ask("/lib.json").status == 308


def test_key_is_nowhere_but_in_its_file(home: Path, program: str, caplog: pytest.LogCaptureFixture) -> None:
    make_pair(home / "certs", NAME)
    key = (home / "certs" / "key.pem").read_text().splitlines()[1]
    with caplog.at_level(logging.DEBUG), caddy.watching(home, program, NAME, LOG_LEVEL="debug") as web:
        make_pair(home / "certs", NAME)
        web.run(web.site.refresh(force=True))
        assert web.ask("/lib.json", tls=True, name=NAME).status == 200
    assert key not in caplog.text
    found = [path for path in home.rglob("*") if path.is_file() and key in path.read_text(errors="replace")]
    assert found == []


@pytest.mark.parametrize("name", ["library.example.com", "127.0.0.1"])
def test_own_ca_serves_a_long_lived_certificate_that_its_root_vouches_for(
    home: Path, program: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), caddy.web(home, program, TLS_NAME=name, TLS_INTERNAL="true") as web:
        web.publish(1, {})
        root = internal_root(web.settings)
        assert str(root) in caplog.text
        wait_until(root.exists)

        def connect() -> ssl.SSLSocket | None:
            try:
                connection = web.connect(tls=True, name=name, context=ssl.create_default_context(cafile=str(root)))
            except ssl.SSLError as error:
                if isinstance(error, ssl.SSLCertVerificationError):
                    raise
                return None
            assert isinstance(connection, ssl.SSLSocket)
            return connection

        with contextlib.closing(wait_until(connect, what="a certificate")) as connection:
            certificate = connection.getpeercert() or {}
            der = connection.getpeercert(binary_form=True) or b""
        ends = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
        begins = ssl.cert_time_to_seconds(str(certificate["notBefore"]))
        assert ends - begins > 2 * 365 * 86400
        files = certificate_files(web.settings)
        assert files is not None
        assert describe(*files).not_after.timestamp() == ends
        assert describe(*files).sha1.replace(":", "").lower() == hashlib.sha1(der).hexdigest()
        asked = None if name[0].isdigit() else name
        assert web.ask("/lib.json", tls=True, name=asked).status == 200
        before = shown(web, asked)
        assert before == shown(web, None)
    with caddy.web(home, program, TLS_NAME=name, TLS_INTERNAL="true") as web:
        assert wait_until(lambda: shown(web, asked)) == before


def test_certificate_comes_from_an_acme_server_by_a_challenge_over_http(home: Path, program: str) -> None:
    """In name spaces of its own, because the protocol fixes the ports, and with an empty trust store to look into."""
    trusted = "/usr/local/share/ca-certificates"
    inside = f'mount -t tmpfs none {trusted} && "$@" && ls {trusted} >&2'
    unshare = ["unshare", "--map-root-user", "--net", "--mount", "sh", "-c", inside, "sh"]
    allowed = subprocess.run([*unshare, "true"], capture_output=True, text=True, check=False)
    if allowed.returncode:
        pytest.skip(f"name spaces are not allowed here: {allowed.stderr.strip()}")
    done = subprocess.run(
        [*unshare, sys.executable, "-m", "support.acme", program, str(home)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["status"] == 503
    assert told["described"] is True, "the status describes another certificate"
    assert "Caddy" not in done.stderr
    assert "Content_Library" not in done.stderr
