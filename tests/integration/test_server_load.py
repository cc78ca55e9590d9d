"""Many sites at the same moment."""

from __future__ import annotations

import re
import socket
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING

from support.server import Server, make_key, wait_until

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
        taken = [hold(server, stack) for _site in range(60)]
        assert all(taken[:2])  # the visit that waited for its greeting may still count
        assert taken.count(True) <= 3
        assert "maxstartups" in server.log_text().lower()  # OpenSSH 9 writes MaxStartups, 10 Maxstartups


def test_refused_logins_do_not_lock_out_the_other_sites_of_the_same_address(tmp_path: Path) -> None:
    with Server(make_library(tmp_path), tmp_path / "s") as server:
        for _try in range(20):
            stranger = [*server.ssh("-o", "PubkeyAuthentication=no"), "host", "true"]
            assert subprocess.run(stranger, capture_output=True, timeout=20, check=False).returncode == 255
        subprocess.run(server.rsync("--list-only", "host:"), check=True, capture_output=True, timeout=20)


def hold_session(server: Server, stack: ExitStack, identity: Path) -> subprocess.Popen[bytes]:
    """Open a session whose client never speaks; it ends with ``stack``."""
    argv = [*server.ssh(identity=identity), "host", "rsync --server --sender -re.iLsfxC . ."]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process: subprocess.Popen[bytes] = subprocess.Popen(argv, **pipes)  # type: ignore[call-overload]
    stack.callback(process.communicate)
    stack.callback(process.kill)
    return process


def lists(server: Server, *options: str, identity: Path | None = None) -> subprocess.CompletedProcess[str]:
    ssh = [*server.ssh(*options, identity=identity), "host", "true"]
    return subprocess.run(ssh, capture_output=True, text=True, timeout=60, check=False)


def test_a_key_that_holds_all_its_sessions_takes_none_from_another(tmp_path: Path) -> None:
    thief, oslo = (make_key(tmp_path / name, comment=name) for name in ("thief", "oslo"))
    keys = [key.with_suffix(".pub") for key in (thief, oslo)]
    environment = {"SYNC_MAX_SESSIONS": "3"}
    with Server(make_library(tmp_path), tmp_path / "s", keys=keys, environment=environment) as server:
        with ExitStack() as stack:
            for count in range(1, 4):
                hold_session(server, stack, thief)
                wait_until(lambda count=count: server.log_text().count("site=thief ") >= 2 * count - count)
            wait_until(lambda: len(list((server.run_folder / "sessions").glob("thief.*"))) == 3)
            refused = lists(server, identity=thief)
            assert refused.returncode == 1
            assert "this key has 3 sessions already" in refused.stderr
            assert lists(server, identity=oslo).returncode == 0
            line = r'site=thief .* refused exit=1 seconds=0 sent=0 received=0 reason="3 sessions already"'
            wait_until(lambda: re.search(line, server.log_text()))
        wait_until(lambda: lists(server, identity=thief).returncode == 0, what="the places that are free again")


def test_one_address_at_the_door_turns_no_other_away(tmp_path: Path) -> None:
    environment = {"SYNC_MAX_SESSIONS": "5"}
    with Server(make_library(tmp_path), tmp_path / "s", environment=environment) as server, ExitStack() as stack:
        while hold(server, stack):
            pass
        assert lists(server).returncode == 255
        for _visit in range(5):
            answer = lists(server, "-b", "127.0.0.2")
            assert answer.returncode == 0, answer.stderr


def test_who_does_not_log_in_or_asks_for_nothing_is_gone_in_time(tmp_path: Path) -> None:
    server = Server(make_library(tmp_path), tmp_path / "s", environment={"SYNC_MAX_SESSIONS": "2"})
    server.environment["CLR_SSHD_OPTIONS"] += " LoginGraceTime=2 UnusedConnectionTimeout=2 ClientAliveInterval=1"
    with server, ExitStack() as stack:
        while hold(server, stack):
            pass
        wait_until(lambda: lists(server).returncode == 0, 60, "a place at the door")
        idle = subprocess.run([*server.ssh("-N"), "host"], capture_output=True, timeout=60, check=False)
        assert idle.returncode == 255


def test_a_connection_has_one_session_at_a_time(tmp_path: Path) -> None:
    with Server(make_library(tmp_path), tmp_path / "s") as server, ExitStack() as stack:
        control = ("-o", f"ControlPath={tmp_path}/c")
        master = subprocess.Popen(
            [*server.ssh("-M", *control), "host", "rsync --server --sender -re.iLsfxC . ."],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(master.communicate)
        stack.callback(master.kill)
        wait_until((tmp_path / "c").exists, what="the master connection")
        wait_until(lambda: " start" in server.log_text())
        second = subprocess.run(
            [*server.ssh(*control, "-o", "ProxyCommand=false"), "host", "id"],
            capture_output=True,
            timeout=20,
            check=False,
        )
        assert second.returncode == 255
        assert b"uid=" not in second.stdout
        wait_until(lambda: 'refused request="session"' in server.log_text())
