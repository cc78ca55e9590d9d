"""How the server starts, what it checks and prints, how its health is told, and how it ends."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from support.server import SERVER, Server, wait_until

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    folder.mkdir()
    (folder / "file").write_bytes(b"content")
    return folder


def entrypoint(server: Server, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SERVER / "entrypoint.sh")],
        env=server.environment | changes,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("SYNCER_UID", "root", "1 to 4294967294"),
        ("SYNCER_UID", "0", "1 to 4294967294"),
        ("SYNCER_UID", "-5", "1 to 4294967294"),
        ("SYNCER_UID", "031337", "1 to 4294967294"),
        ("SYNCER_UID", "99999999999999999999", "1 to 4294967294"),
        ("SYNCER_GID", "4294967295", "1 to 4294967294"),
        ("SYNCER_GID", "1:x:0:", "1 to 4294967294"),
        ("SYNC_MAX_SESSIONS", "0", "1 to 10000"),
        ("SYNC_MAX_SESSIONS", "many", "1 to 10000"),
        ("SYNC_MAX_SESSIONS", "10001", "1 to 10000"),
        ("TZ", "Europe/Atlantis", "TZ database"),
        ("TZ", "../../../etc/passwd", "TZ database"),
        ("TZ", "/etc/passwd", "TZ database"),
        ("CLR_ACCOUNT", "nobody-of-this-name", "account"),
    ],
)
def test_a_bad_value_ends_the_start_with_one_line_that_says_what_is_allowed(
    name: str, value: str, allowed: str, library: Path, tmp_path: Path
) -> None:
    ended = entrypoint(Server(library, tmp_path / "s"), **{name: value})
    assert ended.returncode == 3
    assert ended.stderr.count("\n") == 1
    assert f"{name}={value}" in ended.stderr
    assert allowed in ended.stderr


@pytest.mark.parametrize(
    ("name", "value"), [("SYNCER_UID", "1"), ("SYNC_MAX_SESSIONS", "10000"), ("TZ", ""), ("TZ", "America/Chicago")]
)
def test_a_good_value_at_the_edge_is_taken(name: str, value: str, library: Path, tmp_path: Path) -> None:
    with Server(library, tmp_path / "s", environment={name: value}):
        pass


def test_host_keys_are_made_once_with_safe_modes_and_stay_the_same(library: Path, tmp_path: Path) -> None:
    server = Server(library, tmp_path / "s", fresh_host_keys=True)
    with server:
        first = server.host_key_fingerprints
        for kind in ("ed25519", "rsa"):
            assert (server.host_key_folder / f"ssh_host_{kind}_key").stat().st_mode & 0o777 == 0o600
        assert server.log_text().count("host key: made") == 2
        bits = subprocess.run(
            ["ssh-keygen", "-lf", str(server.host_key_folder / "ssh_host_rsa_key")],
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(bits.stdout.split()[0]) >= 3072
    files = {file: file.read_bytes() for file in server.host_key_folder.iterdir()}
    assert len(files) == 4
    # Another container on the same volume.
    shutil.rmtree(server.run_folder)
    server.log.unlink()
    with server:
        assert "host key: made" not in server.log_text()
        assert server.host_key_fingerprints == first
        scan = subprocess.run(
            ["ssh-keyscan", "-p", str(server.port), "127.0.0.1"], capture_output=True, text=True, check=True
        )
        seen = subprocess.run(["ssh-keygen", "-lf", "-"], input=scan.stdout, capture_output=True, text=True, check=True)
        assert {line.split()[1] for line in seen.stdout.splitlines()} == set(first)
    assert {file: file.read_bytes() for file in server.host_key_folder.iterdir()} == files


def test_the_line_that_a_client_can_pin_is_printed_at_every_start(library: Path, tmp_path: Path) -> None:
    server = Server(library, tmp_path / "s")
    for _start in range(2):
        with server:
            for fingerprint in server.host_key_fingerprints:
                assert re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}", fingerprint)
                assert f"SYNC_HOST_KEY={fingerprint}\n" in server.log_text()
        server.log.unlink()


def test_a_host_key_that_is_damaged_ends_the_start_and_is_named(library: Path, tmp_path: Path) -> None:
    server = Server(library, tmp_path / "s")
    file = server.host_key_folder / "ssh_host_rsa_key"
    file.write_text("not a key")
    ended = entrypoint(server)
    assert ended.returncode == 3
    assert str(file) in ended.stderr
    assert file.read_text() == "not a key"


@pytest.mark.parametrize("folder", ["keys", "host-keys"])
def test_a_missing_mount_is_named(folder: str, library: Path, tmp_path: Path) -> None:
    server = Server(library, tmp_path / "s")
    shutil.rmtree(server.workdir / folder)
    ended = entrypoint(server)
    assert ended.returncode == 3
    assert ended.stderr.count("\n") == 1
    assert str(server.workdir / folder) in ended.stderr


def health(server: Server) -> tuple[int, str]:
    answer = subprocess.run(
        [str(SERVER / "healthcheck")], env=server.environment, capture_output=True, text=True, timeout=20, check=False
    )
    assert answer.stderr == ""
    assert answer.stdout.count("\n") <= 1
    return answer.returncode, answer.stdout


def test_a_library_that_is_missing_or_empty_is_warned_about_and_unhealthy(library: Path, tmp_path: Path) -> None:
    server = Server(library, tmp_path / "s")
    shutil.rmtree(library)
    with server:
        assert f"warning: the library {library} does not exist" in server.log_text()
        assert health(server) == (1, f"the library {library} does not exist\n")
        client = subprocess.run(server.rsync("--list-only", "host:"), capture_output=True, text=True, check=False)
        assert client.returncode != 0
        line = r' failed exit=1 seconds=\d+ sent=\d+ received=\d+ reason="the library is missing,'
        wait_until(lambda: re.search(line, server.log_text()))
        library.mkdir()
        (library / ".hidden").touch()
        (library / "lost+found").mkdir()
        code, text = health(server)
        assert code == 1
        assert "is empty" in text
        (library / "template").mkdir()
        assert health(server) == (0, "")
    shutil.rmtree(library)
    library.mkdir()
    server.log.unlink()
    with server:
        assert f"warning: the library {library} is empty" in server.log_text()


def test_the_healthcheck_leaves_no_lines_in_the_log(library: Path, tmp_path: Path) -> None:
    with Server(library, tmp_path / "s") as server:
        wait_until(lambda: "Server listening on" in server.log_text())
        before = server.log_text()
        for _visit in range(10):
            assert health(server) == (0, "")
        subprocess.run(server.rsync("host:file", str(tmp_path)), check=True)
        wait_until(lambda: " end exit=0 " in server.log_text())
        accepted, start, end = server.log_text()[len(before) :].splitlines()
        assert accepted.startswith("Accepted publickey for ")
        assert start.endswith(" start")
        assert " end exit=0 " in end


def test_the_healthcheck_says_when_sshd_does_not_answer(library: Path, tmp_path: Path) -> None:
    server = Server(library, tmp_path / "s")
    assert health(server) == (1, f"nothing listens on port {server.port}\n")
    with socket.create_server(("127.0.0.1", server.port)) as silent:
        assert health(server) == (1, f"sshd does not answer on port {server.port}\n")
        silent.accept()[0].close()
    with socket.create_server(("127.0.0.1", server.port)) as other:
        process = subprocess.Popen(
            [str(SERVER / "healthcheck")], env=server.environment, stdout=subprocess.PIPE, text=True
        )
        connection, _address = other.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n")
            assert "not sshd" in process.communicate(timeout=10)[0]
        assert process.returncode == 1


def test_sigterm_ends_it_within_two_seconds_with_a_running_transfer(library: Path, tmp_path: Path) -> None:
    with (library / "big").open("wb") as big:
        big.truncate(300_000_000)
    with Server(library, tmp_path / "s") as server:
        argv = server.rsync("--bwlimit=1m", "--whole-file", "host:big", str(tmp_path / "out"))
        client = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: list(tmp_path.glob(".out.*")), what="the transfer's first bytes")
            assert server.process is not None
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(timeout=5) == 0
            assert time.monotonic() - began < 2
            assert "stopping" in server.log_text()
        finally:
            client.terminate()
            client.wait()


def test_it_ends_with_a_nonzero_code_when_sshd_does(library: Path, tmp_path: Path) -> None:
    server = Server(library, tmp_path / "s")
    with socket.create_server(("127.0.0.1", server.port)):
        ended = entrypoint(server)
    assert ended.returncode == 1
    assert "Address already in use" in ended.stdout
    assert "sshd ended with exit code" in ended.stdout


@pytest.mark.parametrize(
    ("version", "package", "warned"),
    [
        ("3.5.0", "3.5.0+ds1-1", False),
        ("3.10.0", "3.10.0-1", False),
        ("3.4.1", "3.4.1+ds1-5", True),
        ("3.4.1", "3.4.1+ds1-5+deb13u3", True),
        ("v3.2.7", "3.2.7-1ubuntu1.4", True),
        ("3.2.7", "3.2.7-1ubuntu1", True),
        ("3.4.3", None, True),
    ],
)
def test_an_rsync_without_the_fixes_of_3_5_is_warned_about(
    version: str, package: str | None, warned: bool, library: Path, tmp_path: Path
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    answers = {
        "rsync": f"echo 'rsync  version {version}  protocol version 32'",
        "dpkg-query": f"printf %s '{package}'" if package else "exit 1",
    }
    for name, answer in answers.items():
        (programs / name).write_text(f"#!/bin/sh\n{answer}\n")
        (programs / name).chmod(0o755)
    server = Server(library, tmp_path / "s")
    server.environment["PATH"] = f"{programs}:{server.environment['PATH']}"
    with server:
        assert f"rsync {version} " in server.log_text()
        assert ("CVE-2026-53783" in server.log_text()) is warned
        assert ("use 3.5.0 or newer" in server.log_text()) is warned


def test_paths_with_spaces_and_quotes_are_served(tmp_path: Path) -> None:
    library = tmp_path / 'it\'s a "library"'
    library.mkdir()
    (library / "file").write_bytes(b"content")
    with Server(library, tmp_path / "s") as server:
        subprocess.run(server.rsync("host:file", str(tmp_path / "out")), check=True)
    assert (tmp_path / "out").read_bytes() == b"content"
