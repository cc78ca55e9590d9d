"""The container's process: signals, health and what one part's failure does to the others."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from clr_client import settings as clr_settings
from clr_client.web import health
from support.caddy import make_pair
from support.server import free_port, make_key, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).parents[1]


class Daemon:
    """`clr run` in ``home``, or the same with a sync that pretends. Keyword arguments are settings.

    ``stdout`` is what its log goes to instead of a file.
    """

    def __init__(self, home: Path, *argv: str, stdout: int | None = None, **environment: str) -> None:
        self.home, self.http, self.https = home, free_port(), free_port()
        self.environment = {
            "SYNC_PEER": f"127.0.0.1:{free_port()}",
            "SYNC_RETRIES": "0",
            "HTTP_PORT": str(self.http),
            "HTTPS_PORT": str(self.https),
            "CLR_LIBRARY_DIR": str(home / "library"),
            "CLR_KEYS_DIR": str(home / "keys"),
            "CLR_CERTS_DIR": str(home / "certs"),
            "CLR_DATA_DIR": str(home / "data"),
            "CLR_RUN_DIR": str(home / "run"),
            **environment,
        }
        self.settings = clr_settings.load(self.environment)[0]
        (home / "keys").mkdir()
        make_key(home / "keys" / "id_syncer")
        self.log = home / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *argv],
                cwd=TESTS,
                env={**os.environ, **self.environment},
                stdout=log if stdout is None else stdout,
                stderr=log,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def until(self, text: str, seconds: float = 20) -> None:
        wait_until(
            lambda: text in self.said or self.process.poll() is not None, seconds, f"{text!r} in the log:\n{self.said}"
        )
        assert text in self.said, self.said

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, seconds: float = 10) -> int:
        """Ask it to stop; its exit code."""
        self.send(signal.SIGTERM)
        return self.process.wait(seconds)

    @property
    def problems(self) -> list[str]:
        return health.problems(self.settings, self.home / "library" / "status.json")

    def status(self) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", "/lib.json")
            return connection.getresponse().status


@contextlib.contextmanager
def running(*argv: str, stdout: int | None = None, **environment: str) -> Iterator[Daemon]:
    with TemporaryDirectory(prefix="clr") as home:
        daemon = Daemon(Path(home), *argv, stdout=stdout, **environment)
        try:
            yield daemon
        finally:
            if daemon.process.poll() is None:
                daemon.process.send_signal(signal.SIGTERM)
                try:
                    daemon.process.wait(10)
                except subprocess.TimeoutExpired:
                    daemon.process.kill()
                    daemon.process.wait()


def pretending(seconds: float, end: str = "ok", clock: str = "") -> tuple[str, ...]:
    """A sync that pretends; ``clock`` is the time that the schedule is told at the start."""
    return ("support.daemon", str(seconds), end, *([clock] if clock else []))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_it_serves_at_once_and_syncs_at_once_without_the_random_wait() -> None:
    with running(*pretending(0), SYNC_DELAY="true") as daemon:
        daemon.until("sync ended")
        assert "sync began: start" in daemon.said
        assert daemon.said.index("serving; the subscription URL is") < daemon.said.index("sync began: start")
        assert daemon.status() == 503
        assert "clr " in daemon.said.splitlines()[0]
        daemon.until("the next sync is due Fri")


def test_it_serves_while_the_first_sync_is_running() -> None:
    with running(*pretending(3600)) as daemon:
        daemon.until("sync began")
        assert daemon.status() == 503
        wait_until(lambda: not daemon.problems)


def test_sigterm_in_a_sync_cancels_it_and_leaves_no_process_behind() -> None:
    with running(*pretending(3600)) as daemon:
        daemon.until("sync began")
        daemon.status()
        below = children(daemon.process.pid)
        assert len(below) == 1
        started = time.monotonic()
        assert daemon.end() == 0
        assert time.monotonic() - started < 5
        assert "sync was cancelled" in daemon.said
        assert daemon.said.splitlines()[-1].endswith(" stopped")
        assert "Traceback" not in daemon.said
        assert not Path(f"/proc/{below[0]}").exists()
        assert not health.heartbeat(daemon.settings).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_between_syncs_ends_it_at_once(number: signal.Signals) -> None:
    with running(*pretending(0)) as daemon:
        daemon.until("the next sync is due")
        started = time.monotonic()
        daemon.send(number)
        assert daemon.process.wait(10) == 0
        assert time.monotonic() - started < 5


def test_signal_while_it_starts_ends_it_at_once() -> None:
    with running(*pretending(0), LIBRARY_PASSWORD="hashing takes a second") as daemon:
        daemon.until("settings:")
        assert daemon.end() == 0


def test_signal_within_the_random_wait_ends_it_at_once() -> None:
    environment = {"SYNC_SCHEDULE": "0 0 * * *", "SYNC_DELAY": "true", "SYNC_DELAY_MAX_SECONDS": "604800"}
    with running(*pretending(0, clock="2026-11-21T23:59:58+00:00"), **environment) as daemon:
        daemon.until("before this sync (SYNC_DELAY)")
        assert "SYNC_DELAY_MAX_SECONDS=604800 is longer than the time between syncs; capped at 86400 s" in daemon.said
        started = time.monotonic()
        assert daemon.end() == 0
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("schedule", ["0 0 31 2 *", "0 0 0 * * *", "whenever", "61 * * * *", " ", "@never"])
def test_schedule_that_cannot_be_ends_it_at_once_with_one_line_that_shows_an_example(schedule: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clr_client", "run"],
        env={**os.environ, "SYNC_PEER": "127.0.0.1:1", "SYNC_SCHEDULE": schedule},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 3
    said = done.stdout + done.stderr
    assert said.count("\n") == 1
    assert "SYNC_SCHEDULE=" in said
    assert "0 21 * * 5 is Fridays at 21:00" in said


@pytest.mark.parametrize("reader", ["stands still", "is gone"])
def test_log_whose_reader_stands_still_or_is_gone_stops_neither_site_nor_syncs_nor_the_end(reader: str) -> None:
    readable, writable = os.pipe()
    fcntl.fcntl(writable, fcntl.F_SETPIPE_SZ, 4096)
    if reader == "is gone":
        os.close(readable)
    with running("clr_client", "run", stdout=writable, LOG_LEVEL="debug") as daemon:
        os.close(writable)
        status = daemon.home / "library" / "status.json"
        wait_until(status.exists, what="the first sync")
        for _ in range(200):  # each is a line
            assert daemon.status() == 503
        daemon.send(signal.SIGUSR1)
        wait_until(lambda: json.loads(status.read_text())["failures_in_row"] == 2, what="the second sync")
        assert daemon.status() == 503
        assert daemon.end() == 0
    if reader == "stands still":
        with os.fdopen(readable, "rb") as rest:
            assert 3000 < len(rest.read()) <= 4096, "the pipe was full: no further line fits"


def test_second_signal_does_not_wait_for_anything() -> None:
    with running(*pretending(3600, "stubborn")) as daemon:
        daemon.until("sync began")
        below = children(daemon.process.pid)
        daemon.send(signal.SIGTERM)
        daemon.until("sync was cancelled")
        daemon.send(signal.SIGTERM)
        assert daemon.process.wait(3) == 1
        wait_until(lambda: not Path(f"/proc/{below[0]}").exists())


def test_caddy_does_not_outlive_a_process_that_is_killed() -> None:
    with running(*pretending(0)) as daemon:
        daemon.until("the next sync is due")
        below = children(daemon.process.pid)
        daemon.process.kill()
        daemon.process.wait()
        wait_until(lambda: not Path(f"/proc/{below[0]}").exists(), what="Caddy's end")


def test_sigusr1_syncs_now_and_once_more_after_a_sync_that_is_running() -> None:
    with running(*pretending(0.5)) as daemon:
        daemon.until("the next sync is due")
        daemon.send(signal.SIGUSR1)
        wait_until(lambda: daemon.said.count("sync began: hand") == 1)
        daemon.send(signal.SIGUSR1)
        wait_until(lambda: daemon.said.count("sync began: hand") == 2)
        wait_until(lambda: daemon.said.count("sync ended") == 3)


def test_sighup_reads_the_certificate_anew() -> None:
    environment = {"TLS_NAME": "library.example.com", "TLS_CUSTOM_CERT": "true"}
    with running(*pretending(0), **environment) as daemon:
        daemon.until("nothing is served until the certificate is mended")
        assert any("cert.pem is missing" in problem for problem in daemon.problems)
        make_pair(daemon.home / "certs")
        daemon.send(signal.SIGHUP)
        daemon.until("the web server's configuration was loaded anew", seconds=5)
        wait_until(lambda: not daemon.problems)


@pytest.mark.parametrize(
    ("end", "line"),
    [("fail", "error: sync failed: the server is away. Wait for it"), ("crash", "RuntimeError: a defect")],
)
def test_failing_sync_is_logged_and_everything_else_goes_on(end: str, line: str) -> None:
    with running(*pretending(0, end)) as daemon:
        daemon.until("the next sync is due")
        assert line in daemon.said
        assert ("Traceback" in daemon.said) is (end == "crash")
        assert daemon.status() == 503
        daemon.send(signal.SIGUSR1)
        daemon.until("sync began: hand")
        assert daemon.end() == 0


def test_dead_caddy_is_unhealthy_and_comes_back() -> None:
    with running(*pretending(0)) as daemon:
        daemon.until("the next sync is due")
        wait_until(lambda: not daemon.problems)
        os.kill(children(daemon.process.pid)[0], signal.SIGKILL)
        daemon.until("Caddy ended with signal 9")
        assert any("does not answer on port" in problem for problem in daemon.problems)
        wait_until(lambda: not daemon.problems)


def test_caddy_that_keeps_dying_is_unhealthy_and_stops_neither_syncs_nor_the_end(tmp_path: Path) -> None:
    broken = tmp_path / "caddy"
    broken.write_text("#!/bin/sh\ncat >/dev/null\necho 'Error: it is broken' >&2\nexit 3\n")
    broken.chmod(0o755)
    with running(*pretending(0), PATH=f"{tmp_path}:{os.environ['PATH']}") as daemon:
        daemon.until("Caddy ended with exit code 3: it is broken; starting it again in 2 s")
        assert "starting it again in 1 s" in daemon.said
        assert any("does not answer on port" in problem for problem in daemon.problems)
        daemon.send(signal.SIGUSR1)
        daemon.until("sync began: hand")
        started = time.monotonic()
        assert daemon.end() == 0
        assert time.monotonic() - started < 5
        assert "Traceback" not in daemon.said


def test_busy_port_is_named_and_used_once_it_is_free_while_syncs_go_on() -> None:
    with socket.create_server(("0.0.0.0", free_port())) as other:
        port = other.getsockname()[1]
        with running(*pretending(0), HTTP_PORT=str(port)) as daemon:
            daemon.until(f"another program uses port {port}, so Caddy cannot listen there")
            daemon.until("sync ended")
            other.close()
            wait_until(lambda: not daemon.problems, 20, "the site")


@pytest.mark.parametrize("tls", ["plain", "internal"])
def test_library_with_a_password_is_healthy(tls: str) -> None:
    named = {"TLS_NAME": "library.example.com", "TLS_INTERNAL": "true"} if tls == "internal" else {}
    with running(*pretending(0), LIBRARY_PASSWORD="geheim", **named) as daemon:
        daemon.until("the next sync is due")
        wait_until(lambda: not daemon.problems)
        assert "geheim" not in daemon.said
        assert "LIBRARY_PASSWORD=(set)" in daemon.said


def test_health_names_what_is_wrong_with_the_syncs() -> None:
    with running(*pretending(0)) as daemon:
        daemon.until("the next sync is due")
        wait_until(lambda: not daemon.problems)
        status = daemon.home / "library" / "status.json"
        for failures, published, found in [
            (0, False, []),
            (1, True, []),
            (2, True, []),
            (3, True, ["the last 3 syncs failed; see `clr status`"]),
            (1, False, ["nothing is published, and the last sync failed; see `clr status`"]),
        ]:
            status.write_text(json.dumps({"published": published, "failures_in_row": failures}))
            assert daemon.problems == found
        status.write_text("damaged")
        assert daemon.problems == []


def test_health_notices_a_process_that_hangs_and_one_that_is_gone() -> None:
    with running(*pretending(0)) as daemon:
        daemon.until("the next sync is due")
        wait_until(lambda: not daemon.problems)
        daemon.send(signal.SIGSTOP)
        for other_time in (time.time() - 100, time.time() + 101):  # the clock may have been set back
            os.utime(health.heartbeat(daemon.settings), (other_time, other_time))
            (problem,) = daemon.problems
            assert problem.startswith("`clr run` has shown no sign of life for 10")
        daemon.send(signal.SIGCONT)
        assert daemon.end() == 0
        assert daemon.problems[0] == "`clr run` is not running, or has not come up yet"


def test_real_run_serves_on_although_its_server_is_away_and_says_so() -> None:
    with running("clr_client", "run") as daemon:
        daemon.until("the next sync is due")
        assert "sync failed: " in daemon.said
        assert "Traceback" not in daemon.said
        assert daemon.status() == 503
        wait_until(lambda: daemon.problems == ["nothing is published, and the last sync failed; see `clr status`"])
        assert daemon.end() == 0


def test_run_without_a_server_ends_with_one_line() -> None:
    with running("clr_client", "run", SYNC_PEER="") as daemon:
        assert daemon.process.wait(20) == 3
        assert daemon.said.count("\n") == 1
        assert "SYNC_PEER is not set" in daemon.said
