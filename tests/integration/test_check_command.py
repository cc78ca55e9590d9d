"""`clr check` as a person types it, against a site with a certificate that nobody signed and a password."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result
from clr_client.cli import main
from support.libraries import content, library, write_site
from support.webservers import caddy, certificate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    root = tmp_path / "site"
    write_site(root, library(content("tools", {"a.bin": b"a"})), {"tools": {"a.bin": b"a"}})
    with caddy(root, tmp_path, certificate=certificate(tmp_path / "tls")) as top:
        yield f"{top}/lib.json"


def check(*words: str) -> Result:
    return CliRunner().invoke(main, ["check", *words])


def test_a_password_goes_to_an_unknown_certificate_only_when_its_thumbprint_is_given(url: str, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("secret\n")
    refused = check(url, "--password-file", str(password))
    assert refused.exit_code == 4
    assert "CERTIFICATE_ERROR" in refused.output
    shown = check(url, "--thumbprint").output
    sha256, sha1 = (re.search(rf"{name} thumbprint: ([0-9A-F:]+)", shown) for name in ("SHA-256", "SHA-1"))
    assert sha256 is not None
    assert sha1 is not None
    pinned = check(url, "--password-file", str(password), "--pin", sha256[1])
    assert pinned.exit_code == 0, pinned.output
    assert f"-thumbprint {sha1[1]}" in pinned.output
    assert "secret" not in pinned.output
    assert check(url, "--pin", "00:" * 31 + "00").exit_code == 4
