"""Which public keys the server lets in, and what it says about those that it does not."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from support.server import Server, descendants, make_key, wait_until


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    (folder / "template").mkdir(parents=True)
    (folder / "template" / "disk.vmdk").write_bytes(b"disk")
    return folder


def lists(server: Server, identity: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        server.rsync("--list-only", "-r", "host:", identity=identity),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def line_about(server: Server, file: str) -> str:
    lines = [line for line in server.log_text().splitlines() if line.startswith(f"key {file}:")]
    assert len(lines) == 1, server.log_text()
    return lines[0]


def test_every_pub_file_is_a_key_and_its_comment_is_the_site(library: Path, tmp_path: Path) -> None:
    berlin = make_key(tmp_path / "id_syncer", comment="berlin")
    tokyo = make_key(tmp_path / "tokyo", "-t", "rsa", "-b", "3072", comment="Tokyo, 2nd floor; \x1b[31m'\"$(id)")
    with Server(library, tmp_path / "s", keys=[berlin.with_suffix(".pub"), tokyo.with_suffix(".pub")]) as server:
        for identity in (berlin, tokyo):
            answer = lists(server, identity)
            assert answer.returncode == 0, answer.stderr
            assert "disk.vmdk" in answer.stdout
        wait_until(lambda: server.log_text().count(" end exit=0") == 2)
        assert "site=berlin " in server.log_text()
        assert "site=Tokyo__2nd_floor____31m____id_ " in server.log_text()
        assert "\x1b" not in server.log_text()


def test_a_key_without_a_comment_has_its_file_name_as_site(library: Path, tmp_path: Path) -> None:
    identity = make_key(tmp_path / "paris", comment="")
    with Server(library, tmp_path / "s", keys=[identity.with_suffix(".pub")]) as server:
        assert lists(server, identity).returncode == 0
        wait_until(lambda: "site=paris " in server.log_text())


def test_authorized_keys_are_outside_of_the_mount_and_allow_one_command_only(library: Path, tmp_path: Path) -> None:
    server = Server(library, tmp_path / "s")
    before = sorted(server.key_folder.iterdir())
    with server:
        assert sorted(server.key_folder.iterdir()) == before
        file = server.run_folder / "authorized_keys"
        assert file.stat().st_uid == os.getuid()
        assert file.stat().st_mode & 0o022 == 0
        for line in file.read_text().splitlines():
            assert line.startswith('restrict,command="')
            assert "serve-library" in line


def test_a_key_whose_file_is_removed_is_shut_out_without_a_restart_and_a_new_one_let_in(
    library: Path, tmp_path: Path
) -> None:
    old, new = (make_key(tmp_path / name, comment=name) for name in ("old", "new"))
    with Server(library, tmp_path / "s", keys=[old.with_suffix(".pub")]) as server:
        assert lists(server, old).returncode == 0
        assert "Permission denied" in lists(server, new).stderr
        (server.key_folder / "old.pub").unlink()
        (server.key_folder / "new.pub").write_bytes(new.with_suffix(".pub").read_bytes())
        wait_until(lambda: "accepted for site new" in server.log_text())
        assert "Permission denied" in lists(server, old).stderr
        assert lists(server, new).returncode == 0


def test_a_key_that_nobody_put_there_is_refused_and_its_fingerprint_logged(library: Path, tmp_path: Path) -> None:
    stranger = make_key(tmp_path / "stranger")
    with Server(library, tmp_path / "s") as server:
        answer = lists(server, stranger)
        assert answer.returncode in (12, 255)  # 12: rsync saw the closed pipe before ssh had ended
        assert "Permission denied (publickey)" in answer.stderr
        fingerprint = subprocess.run(
            ["ssh-keygen", "-lf", str(stranger)], capture_output=True, text=True, check=True
        ).stdout.split()[1]
        wait_until(lambda: fingerprint in server.log_text(), what=server.log_text())


def test_an_empty_folder_is_warned_about_and_the_server_runs(library: Path, tmp_path: Path) -> None:
    with Server(library, tmp_path / "s", keys=[]) as server:
        warnings = [line for line in server.log_text().splitlines() if "no usable key" in line]
        assert len(warnings) == 1
        assert str(server.key_folder) in warnings[0]


DSA = (
    "ssh-dss AAAAB3NzaC1kc3MAAACBAIhnJZ8GpnBhbmvJKvCMpTnDUWvBEvPPcOoeXqF7e+rGfKLOqBJcfHnRN4w8VjDpTxdVDXJQ7yQYH old@site"
)
FAULTS = {
    "empty": (b"", "no key"),
    "blank": (b"\n", "no key"),
    "comment": (b"# a comment alone\n", "no key"),
    "garbage": (b"\xff\xfe\x00\x1b[2Jhello\n", "not a public key"),
    "private": (
        b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n-----END OPENSSH PRIVATE KEY-----\n",
        "private key",
    ),
    "putty": (
        b"---- BEGIN SSH2 PUBLIC KEY ----\nAAAAC3NzaC1lZDI1NTE5\n---- END SSH2 PUBLIC KEY ----\n",
        "ssh-keygen -i",
    ),
    "dsa": (DSA.encode() + b"\n", "DSA"),
    "damaged": (b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOc site\n", "damaged"),
    "quoted": (b'ssh-ed25519 AAAA"\\ x\n', "damaged"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_key_file_is_named_with_its_reason_and_the_good_keys_work(
    fault: str, library: Path, tmp_path: Path
) -> None:
    content, reason = FAULTS[fault]
    server = Server(library, tmp_path / "s")
    (server.key_folder / "a bad one.pub").write_bytes(content)
    with server:
        line = line_about(server, "a bad one.pub")
        assert "NOT accepted" in line
        assert reason in line
        assert lists(server).returncode == 0
        assert "\x1b" not in server.log_text()
        assert len((server.run_folder / "authorized_keys").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "reason"), [(("-t", "rsa", "-b", "1024"), "1024 bits"), (("-t", "ecdsa"), "ecdsa-sha2-nistp256")]
)
def test_a_weak_kind_of_key_is_named_with_its_reason(
    options: tuple[str, ...], reason: str, library: Path, tmp_path: Path
) -> None:
    weak = make_key(tmp_path / "weak", *options)
    with Server(library, tmp_path / "s", keys=[weak.with_suffix(".pub")]) as server:
        line = line_about(server, "weak.pub")
        assert "NOT accepted" in line
        assert reason in line
        assert "Permission denied" in lists(server, weak).stderr


def test_options_in_front_of_a_key_cannot_widen_what_it_may_do(library: Path, tmp_path: Path) -> None:
    identity = make_key(tmp_path / "wide")
    key = identity.with_suffix(".pub").read_text()
    server = Server(library, tmp_path / "s")
    (server.key_folder / "wide.pub").write_text(f'command="/bin/sh",pty {key}')
    with server:
        line = line_about(server, "wide.pub")
        assert "NOT accepted" in line
        assert "options" in line
        assert "Permission denied" in lists(server, identity).stderr


def test_a_key_file_that_is_a_dangling_link_or_a_folder_is_named(library: Path, tmp_path: Path) -> None:
    server = Server(library, tmp_path / "s")
    (server.key_folder / "gone.pub").symlink_to("nowhere")
    (server.key_folder / "folder.pub").mkdir()
    with server:
        for file in ("gone.pub", "folder.pub"):
            assert "cannot be read" in line_about(server, file)
        assert lists(server).returncode == 0


def test_a_pipe_among_the_keys_is_named_and_holds_nobody_up(library: Path, tmp_path: Path) -> None:
    server = Server(library, tmp_path / "s")
    os.mkfifo(server.key_folder / "pipe.pub")
    with server:
        assert "cannot be read" in line_about(server, "pipe.pub")
        assert lists(server).returncode == 0


def test_nobody_is_let_in_when_the_keys_are_no_longer_looked_at(library: Path, tmp_path: Path) -> None:
    with Server(library, tmp_path / "s") as server:
        assert server.process is not None
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(server.process.pid)}
        (keeper,) = (pid for pid, command in commands.items() if b"/authorize-keys\0" in command)
        os.kill(keeper, signal.SIGKILL)
        assert server.process.wait(timeout=10) == 1
        assert "authorize-keys failed, so sshd is stopped" in server.log_text()
        assert "Connection refused" in lists(server).stderr


def test_windows_line_ends_and_a_missing_newline_do_no_harm_and_are_mentioned(library: Path, tmp_path: Path) -> None:
    first, second = (make_key(tmp_path / name, comment=name) for name in ("first", "second"))
    server = Server(library, tmp_path / "s", keys=[])
    key = first.with_suffix(".pub").read_bytes()
    (server.key_folder / "first.pub").write_bytes(key.replace(b"\n", b"\r\n"))
    (server.key_folder / "second.pub").write_bytes(second.with_suffix(".pub").read_bytes().rstrip(b"\n"))
    with server:
        assert "Windows line ends" in line_about(server, "first.pub")
        assert "no newline" in line_about(server, "second.pub")
        for identity in (first, second):
            assert lists(server, identity).returncode == 0


def test_several_keys_in_one_file_are_all_taken(library: Path, tmp_path: Path) -> None:
    identities = [make_key(tmp_path / name, comment=name) for name in ("one", "two")]
    server = Server(library, tmp_path / "s", keys=[])
    keys = [identity.with_suffix(".pub").read_text() for identity in identities]
    (server.key_folder / "sites.pub").write_text("# our sites\n\n" + "".join(keys))
    with server:
        for identity in identities:
            assert lists(server, identity).returncode == 0
