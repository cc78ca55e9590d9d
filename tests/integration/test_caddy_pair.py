"""cert.pem and key.pem are tried out before Caddy gets them, and what is wrong with them is said in one line."""

from __future__ import annotations

import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from clr_client.errors import WebServerError
from clr_client.web.certificate import load_pair, stamp
from support.caddy import make_pair

NAME = "library.example.com"
NOW = datetime.now(UTC) + timedelta(hours=12)  # later than any certificate that a test makes, however long they run


def openssl(*argv: str | Path) -> None:
    subprocess.run(["openssl", *map(str, argv)], check=True, capture_output=True)


def test_good_pair_is_taken_as_it_is(tmp_path: Path) -> None:
    make_pair(tmp_path, NAME, days=90)
    pair = load_pair(tmp_path, NAME, NOW)
    assert pair.certificate == (tmp_path / "cert.pem").read_text()
    assert pair.key == (tmp_path / "key.pem").read_text()
    assert abs(pair.not_after - NOW - timedelta(days=90)) < timedelta(days=1)
    assert pair.warnings == ()
    assert pair.key not in repr(pair)


def test_certificate_with_its_chain_and_comments_is_taken(tmp_path: Path) -> None:
    make_pair(tmp_path / "ca", "Some CA")
    make_pair(tmp_path, NAME)
    chain = "subject=CN = x\n" + (tmp_path / "cert.pem").read_text() + (tmp_path / "ca" / "cert.pem").read_text()
    (tmp_path / "cert.pem").write_text(chain)
    assert load_pair(tmp_path, NAME, NOW).certificate == chain


@pytest.mark.parametrize("bits", ["1024", "2048"])
def test_rsa_key_is_taken_as_caddy_takes_it(tmp_path: Path, bits: str) -> None:
    names = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}", "-days", "9", "-nodes"]
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    openssl("req", "-x509", "-newkey", f"rsa:{bits}", *names, "-keyout", key, "-out", certificate)
    assert load_pair(tmp_path, NAME, NOW).warnings == ()


@pytest.mark.parametrize(("certified", "name"), [("*.example.com", NAME), ("192.0.2.1", "192.0.2.1")])
def test_wildcard_and_address_certificates_fit(tmp_path: Path, certified: str, name: str) -> None:
    make_pair(tmp_path, certified)
    assert load_pair(tmp_path, name, NOW).warnings == ()


@pytest.mark.parametrize("other", ["other.example.com", "*.other.example.com", "192.0.2.1"])
def test_certificate_for_another_name_is_used_with_a_warning(tmp_path: Path, other: str) -> None:
    make_pair(tmp_path, other)
    (warning,) = load_pair(tmp_path, NAME, NOW).warnings
    assert f"is not for TLS_NAME={NAME} but for {other}" in warning


@pytest.mark.parametrize("file", ["cert.pem", "key.pem"])
def test_missing_file_is_named(tmp_path: Path, file: str) -> None:
    make_pair(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(WebServerError, match=f"{tmp_path}/{file} is missing"):
        load_pair(tmp_path, NAME, NOW)


def test_file_without_permission_is_named_with_the_uid() -> None:
    root = os.geteuid() == 0
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        make_pair(folder)
        (folder / "key.pem").chmod(0)
        if root:
            os.seteuid(65534)  # root reads everything
        try:
            with pytest.raises(
                WebServerError, match=rf"key\.pem cannot be read \(Permission denied, uid {os.geteuid()}\)"
            ):
                load_pair(folder, NAME, NOW)
        finally:
            if root:
                os.seteuid(0)


@pytest.mark.parametrize("file", ["cert.pem", "key.pem"])
def test_folder_in_place_of_a_file_is_named(tmp_path: Path, file: str) -> None:
    make_pair(tmp_path)
    (tmp_path / file).unlink()
    (tmp_path / file).mkdir()  # what a container engine makes of a missing file that is mounted
    with pytest.raises(WebServerError, match=rf"{file} cannot be read \(Is a directory"):
        load_pair(tmp_path, NAME, NOW)


def test_der_form_is_said_to_be_no_pem(tmp_path: Path) -> None:
    make_pair(tmp_path)
    openssl("x509", "-in", tmp_path / "cert.pem", "-outform", "der", "-out", tmp_path / "cert.der")
    (tmp_path / "cert.der").rename(tmp_path / "cert.pem")
    with pytest.raises(WebServerError, match="is not in PEM form"):
        load_pair(tmp_path, NAME, NOW)


def test_encrypted_key_is_refused_with_the_remedy_and_nobody_is_asked(tmp_path: Path) -> None:
    make_pair(tmp_path)
    openssl("pkey", "-in", tmp_path / "key.pem", "-aes256", "-passout", "pass:x", "-out", tmp_path / "locked.pem")
    (tmp_path / "locked.pem").rename(tmp_path / "key.pem")
    with pytest.raises(WebServerError, match=r"key\.pem is encrypted.*openssl pkey"):
        load_pair(tmp_path, NAME, NOW)


def test_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    make_pair(tmp_path)
    make_pair(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "key.pem", tmp_path / "key.pem")
    with pytest.raises(WebServerError, match=r"key\.pem does not belong to cert\.pem"):
        load_pair(tmp_path, NAME, NOW)


@pytest.mark.parametrize("file", ["cert.pem", "key.pem"])
def test_damaged_file_is_refused(tmp_path: Path, file: str) -> None:
    make_pair(tmp_path)
    text = (tmp_path / file).read_text()
    (tmp_path / file).write_text(text[: len(text) // 2])
    with pytest.raises(WebServerError, match="cannot be used") as caught:
        load_pair(tmp_path, NAME, NOW)
    assert "\n" not in str(caught.value)


def test_expired_and_not_yet_valid_pairs_are_refused_with_the_date(tmp_path: Path) -> None:
    make_pair(tmp_path, NAME, days=10)
    for now, text in [(timedelta(days=11), "expired on 20"), (-timedelta(days=1), "is not valid before 20")]:
        with pytest.raises(WebServerError, match=text):
            load_pair(tmp_path, NAME, NOW + now)


def test_end_of_a_certificate_is_announced(tmp_path: Path) -> None:
    make_pair(tmp_path, NAME, days=90)
    pair = load_pair(tmp_path, NAME, NOW)
    assert pair.expiry(NOW) == ""
    assert "expires on" in pair.expiry(NOW + timedelta(days=75))
    assert "expired on" in pair.expiry(NOW + timedelta(days=91))


def test_replaced_and_rewritten_files_are_noticed(tmp_path: Path) -> None:
    seen = {stamp(tmp_path)}
    make_pair(tmp_path)
    seen.add(stamp(tmp_path))
    make_pair(tmp_path)
    seen.add(stamp(tmp_path))
    (tmp_path / "key.pem").write_text("x")
    seen.add(stamp(tmp_path))
    assert len(seen) == 4
    assert stamp(tmp_path) in seen
