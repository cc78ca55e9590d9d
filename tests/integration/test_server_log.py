"""What `docker logs` of the server tells: who synced, from where, when, and how it ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.server import Server, descendants, make_key, wait_until

LINE = re.compile(
    r"(?P<time>\S+) serve-library: site=(?P<site>\S+) address=(?P<address>\S+) session=(?P<session>\d+)"
    r" (?P<event>start|end|refused|failed)(?: exit=(?P<code>\d+) seconds=(?P<seconds>\d+))?(?P<more>.*)"
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
        readers = [pid for pid, stat in processes.items() if " (grep) " in stat.read_text()]
        assert len(readers) == 1
        os.kill(readers[0], signal.SIGSTOP)
        wait_until(lambda: " (grep) T " in processes[readers[0]].read_text(), what="the reader to stand still")
        fifo = os.open(server.run_folder / "log", os.O_WRONLY | os.O_NONBLOCK)
        try:
            with pytest.raises(BlockingIOError):
                while True:
                    os.write(fifo, b"x" * 4095 + b"\n")
            subprocess.run(server.rsync("host:file", str(tmp_path)), check=True, timeout=30)
        finally:
            os.close(fifo)
            os.kill(readers[0], signal.SIGCONT)
