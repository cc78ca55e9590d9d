"""HTTPS as the compose file's comments offer it: a certificate of the site's own, or of Caddy's own CA."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import ssl
from typing import TYPE_CHECKING

import pytest
from support.engine import run
from support.server import wait_until
from support.templates import fake_template

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.engine import Pair

NAME = "library.example.test"
CUSTOM = {"TLS_NAME": NAME, "TLS_CUSTOM_CERT": "true"}


def make_certificate(folder: Path, name: str = NAME) -> str:
    """Put a self-signed cert.pem and key.pem into ``folder``; return the certificate's SHA-256."""
    new = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"]
    names = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    run("openssl", "req", *new, *names, "-keyout", folder / "key.new", "-out", folder / "cert.new")
    (folder / "key.new").replace(folder / "key.pem")
    (folder / "cert.new").replace(folder / "cert.pem")
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert((folder / "cert.pem").read_text())).hexdigest()


def get(pair: Pair, path: str, authority: Path) -> tuple[int, str]:
    """GET over HTTPS, trusting ``authority`` alone; return the status and the SHA-256 of the certificate shown."""
    context = ssl.create_default_context(cafile=authority)
    with socket.create_connection(("127.0.0.1", pair.https_port), timeout=20) as plain:
        connection = http.client.HTTPSConnection(NAME, timeout=20)
        with context.wrap_socket(plain, server_hostname=NAME) as secure:
            connection.sock = secure
            connection.request("GET", path)
            shown = secure.getpeercert(binary_form=True)
            assert shown is not None
            return connection.getresponse().status, hashlib.sha256(shown).hexdigest()


def serves(pair: Pair, authority: Path) -> tuple[int, str] | None:
    """Like get of lib.json; None while nothing answers as it should."""
    try:
        return get(pair, "/lib.json", authority)
    except OSError:
        return None


def test_a_custom_certificate_that_only_root_can_read_is_served_and_its_renewal_too(
    make_pair: Callable[..., Pair],
) -> None:
    pair = make_pair(environment=CUSTOM)
    fake_template(pair.templates / "one")
    certs = pair.client_data / "certs"
    first = make_certificate(certs)
    (certs / "key.pem").chmod(0o600)

    pair.up()
    pair.wait_runs(1)
    assert get(pair, "/lib.json", certs / "cert.pem") == (200, first)
    assert "cannot read key.pem" in pair.logs("client")
    pair.wait_healthy()

    second = make_certificate(certs)
    (certs / "key.pem").chmod(0o600)
    wait_until(lambda: serves(pair, certs / "cert.pem") == (200, second), 90, "the renewed certificate")
    assert pair.inspect("client")["RestartCount"] == 0


def test_a_custom_certificate_of_the_account_is_read_where_it_lies(make_pair: Callable[..., Pair]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files to another account")
    pair = make_pair(environment=CUSTOM)
    fake_template(pair.templates / "one")
    certs = pair.client_data / "certs"
    first = make_certificate(certs)
    os.chown(certs / "key.pem", 31337, 31337)

    pair.up()
    pair.wait_runs(1)

    assert get(pair, "/lib.json", certs / "cert.pem") == (200, first)
    assert "cannot read key.pem" not in pair.logs("client")


def test_a_missing_certificate_is_named_in_the_log(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(environment=CUSTOM)
    fake_template(pair.templates / "one")

    pair.up("client")

    wait_until(lambda: "cert.pem" in pair.logs("client"), 60, "a line about cert.pem")


def test_caddys_own_authority_survives_a_new_container(make_pair: Callable[..., Pair], tmp_path: Path) -> None:
    pair = make_pair(environment={"TLS_NAME": NAME, "TLS_INTERNAL": "true"})
    fake_template(pair.templates / "one")
    pair.up()
    pair.wait_runs(1)
    root = wait_until(lambda: next(iter((pair.client_data / "caddy").rglob("root.crt")), None), 60, "root.crt")
    kept = tmp_path / "root.crt"
    kept.write_bytes(root.read_bytes())
    wait_until(lambda: serves(pair, kept), 60, "HTTPS by Caddy's own CA")

    pair.down()
    pair.up()

    assert wait_until(lambda: serves(pair, kept), 60, "HTTPS by the same CA")[0] == 200
    pair.wait_healthy()
