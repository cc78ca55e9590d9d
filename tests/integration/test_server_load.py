"""Many sites at the same moment."""

from __future__ import annotations

import socket
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING

from support.server import Server, wait_until

if TYPE_CHECKING:
    from pathlib import Path


def make_library(tmp_path: Path) -> Path:
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "file").write_bytes(b"content")
    return tmp_path / "library"


def hold(server: Server, stack: ExitStack) -> bool:
    """Open a connection that never logs in, and say whether sshd took it."""
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
    try:
        return connection.recv(8) == b"SSH-2.0-"
    except ConnectionResetError:
        return False


def test_a_hundred_sites_start_in_the_same_second_and_none_is_turned_away(tmp_path: Path) -> None:
    with Server(make_library(tmp_path), tmp_path / "s") as server:
        clients = [
            subprocess.Popen(server.rsync("--list-only", "host:"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            for _site in range(100)
        ]
        errors = [client.communicate(timeout=120)[1] for client in clients]
        assert [client.returncode for client in clients] == [0] * 100, errors
        wait_until(lambda: server.log_text().count(" end exit=0 ") == 100)


def test_a_site_logs_in_while_150_others_are_at_the_door(tmp_path: Path) -> None:
    with Server(make_library(tmp_path), tmp_path / "s") as server, ExitStack() as stack:
        taken = [hold(server, stack) for _site in range(150)]
        assert taken == [True] * 150
        subprocess.run(server.rsync("--list-only", "host:"), check=True, capture_output=True, timeout=60)


def test_the_ceiling_is_a_variable(tmp_path: Path) -> None:
    environment = {"SYNC_MAX_SESSIONS": "3"}
    with Server(make_library(tmp_path), tmp_path / "s", environment=environment) as server, ExitStack() as stack:
        # From three on sshd turns some away by chance, from six on all.
        taken = [hold(server, stack) for _site in range(60)]
        assert all(taken[:2])  # the visit that waited for its greeting may still count
        assert taken.count(True) <= 6
        assert "maxstartups" in server.log_text().lower()  # OpenSSH 9 writes MaxStartups, 10 Maxstartups


def test_refused_logins_do_not_lock_out_the_other_sites_of_the_same_address(tmp_path: Path) -> None:
    with Server(make_library(tmp_path), tmp_path / "s") as server:
        for _try in range(20):
            stranger = [*server.ssh("-o", "PubkeyAuthentication=no"), "host", "true"]
            assert subprocess.run(stranger, capture_output=True, timeout=20, check=False).returncode == 255
        subprocess.run(server.rsync("--list-only", "host:"), check=True, capture_output=True, timeout=20)
