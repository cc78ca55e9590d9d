"""The container's root has SETUID, SETGID and SYS_CHROOT only: it cannot read or write what belongs to others."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to give files away and to drop capabilities")

CONTAINER = ["setpriv", "--bounding-set=-all,+setuid,+setgid,+sys_chroot", "--"]
SOMEBODY = 12345


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every account can reach, as pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        (Path(name) / "library" / "template").mkdir(parents=True)
        yield Path(name)


def give_away(folder: Path) -> None:
    for path in (folder, *folder.iterdir()):
        os.chown(path, SOMEBODY, SOMEBODY)
    folder.chmod(0o700)


def test_keys_and_host_keys_in_private_folders_of_another_user_are_used(folder: Path) -> None:
    server = Server(folder / "library", folder / "s", wrapper=CONTAINER)
    give_away(server.key_folder)
    give_away(server.host_key_folder)
    foreign = server.key_folder / "foreign.pub"
    foreign.write_text("root's own")
    foreign.chmod(0o600)
    with server:
        assert "key identity.pub: accepted for site" in server.log_text()
        assert "key foreign.pub: NOT accepted: cannot be read" in server.log_text()
        answer = subprocess.run(server.rsync("--list-only", "host:"), capture_output=True, text=True, check=True)
        assert "template" in answer.stdout


def test_host_keys_are_made_in_the_name_of_their_folders_owner(folder: Path) -> None:
    server = Server(folder / "library", folder / "s", fresh_host_keys=True, wrapper=CONTAINER)
    give_away(server.host_key_folder)
    with server:
        assert {file.stat().st_uid for file in server.host_key_folder.iterdir()} == {SOMEBODY}
        modes = {file.name: file.stat().st_mode & 0o777 for file in server.host_key_folder.iterdir()}
    assert modes == {
        "ssh_host_ed25519_key": 0o600,
        "ssh_host_ed25519_key.pub": 0o644,
        "ssh_host_rsa_key": 0o600,
        "ssh_host_rsa_key.pub": 0o644,
    }


def test_a_host_key_folder_that_cannot_be_written_is_named(folder: Path) -> None:
    server = Server(folder / "library", folder / "s", fresh_host_keys=True, wrapper=CONTAINER)
    give_away(server.host_key_folder)
    server.host_key_folder.chmod(0o500)
    answer = subprocess.run(
        [*CONTAINER, str(Path(__file__).parents[2] / "server" / "entrypoint.sh")],
        env=server.environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert answer.returncode == 3
    assert answer.stderr.count("\n") == 1
    assert f"{server.host_key_folder}: the new host keys cannot be saved here" in answer.stderr
