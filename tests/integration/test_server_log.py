"""What `docker logs` of the server tells: who synced, from where, when, and how it ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from support.server import Server, descendants, make_key, wait_until

LINE = re.compile(
    r"(?P<time>\S+) serve-library: site=(?P<site>\S+) address=(?P<address>\S+) session=(?P<session>\d+)"
    r" (?P<event>start|end|refused|failed)"
    r"(?: exit=(?P<code>\d+) seconds=(?P<seconds>\d+) sent=(?P<sent>\d+) received=(?P<received>\d+))?(?P<more>.*)"
)


def events(server: Server) -> list[dict[str, str]]:
    lines = [line for line in server.log_text().split("\n") if " serve-library: " in line]
    found = [LINE.fullmatch(line) for line in lines]
    assert all(found), lines
    return [match.groupdict() for match in found if match]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    folder.mkdir()
    (folder / "file").write_bytes(b"content")
    with (folder / "big").open("wb") as big:
        big.truncate(300_000_000)
    return folder


def test_a_sync_is_two_lines_with_site_address_times_exit_code_and_seconds(library: Path, tmp_path: Path) -> None:
    identity = make_key(tmp_path / "id", comment="oslo")
    with Server(library, tmp_path / "s", keys=[identity.with_suffix(".pub")]) as server:
        subprocess.run(server.rsync("host:file", str(tmp_path), identity=identity), check=True)
        start, end = wait_until(lambda: events(server) if len(events(server)) == 2 else [])
        assert (start["event"], end["event"]) == ("start", "end")
        assert (end["site"], end["address"], end["code"]) == ("oslo", "127.0.0.1", "0")
        assert start["session"] == end["session"]
        assert int(end["seconds"]) < 10
        assert time.strptime(start["time"], "%Y-%m-%dT%H:%M:%S%z")


def test_the_bytes_of_a_session_are_those_that_rsync_counts(library: Path, tmp_path: Path) -> None:
    (library / "new").write_bytes(os.urandom(3_000_000))
    (tmp_path / "new").write_bytes((library / "new").read_bytes()[:2_000_000] + os.urandom(500_000))
    with Server(library, tmp_path / "s") as server:
        argv = server.rsync("--ignore-times", "--block-size=4096", "--stats", "host:new", str(tmp_path))
        done = subprocess.run(argv, check=True, capture_output=True, text=True)
        end = wait_until(lambda: events(server)[1:])[0]
    came, went = (
        int(re.findall(rf"Total bytes {which}: ([\d,]+)", done.stdout)[0].replace(",", ""))
        for which in ("received", "sent")
    )
    # The last words of both sides come after the client's own count.
    assert abs(int(end["sent"]) - came) < 200
    assert abs(int(end["received"]) - went) < 200
    assert came > 1_000_000
    assert went > 2_000


def test_times_are_of_the_zone_that_is_set(library: Path, tmp_path: Path) -> None:
    with Server(library, tmp_path / "s", environment={"TZ": "Asia/Tokyo"}) as server:
        subprocess.run(server.rsync("host:file", str(tmp_path)), check=True)
        assert wait_until(lambda: events(server))[0]["time"].endswith("+0900")


def test_a_file_that_is_not_there_is_a_nonzero_exit_code(library: Path, tmp_path: Path) -> None:
    with Server(library, tmp_path / "s") as server:
        answer = subprocess.run(server.rsync("--files-from=-", "host:", str(tmp_path)), input=b"nothing\n", check=False)
        assert answer.returncode == 23
        assert wait_until(lambda: events(server)[1:])[0]["code"] == "23"


def test_a_refused_command_is_quoted_in_one_printable_line(library: Path, tmp_path: Path) -> None:
    with Server(library, tmp_path / "s") as server:
        evil = 'x" exit=0\n2026-01-01T00:00:00+0000 serve-library: site=forged\r\x1b[31m\x07\xff' + "y" * 5000
        subprocess.run([*server.ssh(), "host", evil], check=False, capture_output=True)
        refused = wait_until(lambda: events(server)[1:])[0]
        assert refused["event"] == "refused"
        assert refused["more"].startswith(" command=\"x' exit=0?2026")
        assert len(refused["more"]) < 400
        assert len(events(server)) == 2
        assert not re.search(r"[^\n -~]", server.log_text())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_end_is_logged_when_the_client_goes_away_in_the_middle(
    number: signal.Signals, library: Path, tmp_path: Path
) -> None:
    with Server(library, tmp_path / "s") as server:
        argv = server.rsync("--bwlimit=1m", "--whole-file", "host:big", str(tmp_path / "out"))
        client = subprocess.Popen(argv, start_new_session=True, stderr=subprocess.DEVNULL)
        wait_until(lambda: list(tmp_path.glob(".out.*")), what="the transfer's first bytes")
        os.killpg(client.pid, number)
        client.wait()
        end = wait_until(lambda: events(server)[1:])[0]
        assert end["event"] == "end"
        assert end["code"] != "0"
        assert 0 < int(end["sent"]) < 300_000_000


def test_a_client_whose_line_died_is_dropped_and_its_end_logged(library: Path, tmp_path: Path) -> None:
    server = Server(library, tmp_path / "s")
    server.environment["CLR_SSHD_OPTIONS"] += " ClientAliveInterval=1 ClientAliveCountMax=2"
    with server:
        client = subprocess.Popen(
            [*server.ssh(), "host", "rsync --server --sender -re.iLsfxC . ."],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: events(server), what="the session's start")
            client.send_signal(signal.SIGSTOP)  # keeps the connection and answers nothing
            assert wait_until(lambda: events(server)[1:], what="the end of a dead session")[0]["event"] == "end"
            assert server.process is not None
            names = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in descendants(server.process.pid)]
            assert "rsync" not in names
        finally:
            client.kill()
            client.communicate()


def test_a_log_that_nobody_reads_does_not_hold_up_a_transfer(library: Path, tmp_path: Path) -> None:
    with Server(library, tmp_path / "s") as server:
        assert server.process is not None
        processes = {pid: Path(f"/proc/{pid}/stat") for pid in descendants(server.process.pid)}
        (reader,) = (pid for pid, stat in processes.items() if " (log-lines) " in stat.read_text())
        os.kill(reader, signal.SIGSTOP)
        wait_until(lambda: " (log-lines) T " in processes[reader].read_text(), what="the reader to stand still")
        fifo = os.open(server.run_folder / "log", os.O_WRONLY | os.O_NONBLOCK)
        try:
            with pytest.raises(BlockingIOError):
                while True:
                    os.write(fifo, b"x" * 4095 + b"\n")
            subprocess.run(server.rsync("host:file", str(tmp_path)), check=True, timeout=30)
        finally:
            os.close(fifo)
            os.kill(reader, signal.SIGCONT)


def test_nobody_is_let_in_when_nothing_is_logged_any_more(library: Path, tmp_path: Path) -> None:
    with Server(library, tmp_path / "s") as server:
        assert server.process is not None
        processes = {pid: Path(f"/proc/{pid}/stat").read_text() for pid in descendants(server.process.pid)}
        (reader,) = (pid for pid, stat in processes.items() if " (log-lines) " in stat)
        os.kill(reader, signal.SIGKILL)
        assert server.process.wait(timeout=20) == 1
        assert "log-lines failed, so sshd is stopped" in server.log_text()


QUIET: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

# What sshd itself refuses, before any command of ours runs, by what the log calls it
REQUESTS = {
    "pty-req": ["-tt", "host", "true"],
    "auth-agent-req@openssh.com": ["-A", "host", "true"],
    "x11-req": ["-X", "host", "true"],
    "env request LD_PRELOAD": ["-o", "SetEnv=LD_PRELOAD=/tmp/x", "host", "true"],
    "env request RSYNC_PROTECT_ARGS": ["-o", "SetEnv=RSYNC_PROTECT_ARGS=1", "host", "true"],
    "local port forward: originator": ["-W", "127.0.0.1:9", "host"],
    "tcpip-forward": ["-N", "-o", "ExitOnForwardFailure=yes", "-R", "9:127.0.0.1:9", "host"],
    "streamlocal-forward@openssh.com": ["-N", "-o", "ExitOnForwardFailure=yes", "-R", "/tmp/clr:127.0.0.1:9", "host"],
    "tun@openssh.com": ["-N", "-o", "ExitOnForwardFailure=yes", "-w", "any:any", "host"],
    "subsystem request for sftp": ["-s", "host", "sftp"],
    "subsystem request for no?2026-01-01T00:00:00+0000 serve-library: site=forged": [
        *("-s", "host", "no\n2026-01-01T00:00:00+0000 serve-library: site=forged\x1b[31m")
    ],
}


def test_what_sshd_refuses_is_one_printable_line_with_the_sites_name(library: Path, tmp_path: Path) -> None:
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(tmp_path / "agent")], stdout=subprocess.DEVNULL)
    environment = os.environ | {"SSH_AUTH_SOCK": str(tmp_path / "agent"), "DISPLAY": ":99"}
    identities = [make_key(tmp_path / name, comment=name) for name in ("oslo", "thief")]
    try:
        wait_until((tmp_path / "agent").exists)
        with Server(library, tmp_path / "s", keys=[key.with_suffix(".pub") for key in identities]) as server:
            subprocess.run(server.rsync("host:file", str(tmp_path), identity=identities[0]), check=True)
            requests = {what: words for what, words in REQUESTS.items() if os.getuid() == 0 or "tun@" not in what}
            argvs = [[*server.ssh(identity=identities[1]), *words] for words in requests.values()]
            clients = [subprocess.Popen(argv, env=environment, **QUIET) for argv in argvs]
            for client in clients:
                client.wait(timeout=60)
            for what in requests:
                line = f'sshd: site=thief address=127.0.0.1 refused request="{what}'
                wait_until(lambda line=line: line in server.log_text(), what=f"{line} in {server.log_text()}")
            assert "site=oslo address=127.0.0.1 refused" not in server.log_text()
            assert server.log_text().count(" refused ") == len(requests)
            assert not re.search(r"[^\n -~]", server.log_text())
            assert "\n2026-01-01" not in server.log_text()
    finally:
        agent.terminate()
        agent.wait()


def test_a_login_names_its_site(library: Path, tmp_path: Path) -> None:
    identity = make_key(tmp_path / "id", comment="oslo")
    with Server(library, tmp_path / "s", keys=[identity.with_suffix(".pub")]) as server:
        subprocess.run(server.rsync("host:file", str(tmp_path), identity=identity), check=True)
        assert re.search(r"^Accepted publickey for .* SHA256:\S+ site=oslo$", server.log_text(), re.MULTILINE)


def test_a_flood_of_requests_does_not_push_the_past_out_of_the_log(library: Path, tmp_path: Path) -> None:
    with Server(library, tmp_path / "s") as server:
        variables = " ".join(f"FLOOD_{number}=1" for number in range(200))
        subprocess.run([*server.ssh("-o", f"SetEnv={variables}"), "host", "true"], check=True, timeout=20)
        wait_until(lambda: " end exit=0 " in server.log_text())
        assert server.log_text().count(" refused ") == 20
        assert 'refused request="more; ' in server.log_text()
