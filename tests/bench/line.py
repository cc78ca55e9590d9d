"""A long and lossy line: how much of it transfers use, by congestion control and number of streams."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from clr_client.settings import Settings
from support.server import Server, descendants, free_port, wait_until
from support.site import Site, cli_environment

from bench.pair import PYTHONPATH, TESTS
from bench.rows import Row, UnavailableError, case
from bench.times import noise_library

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.bench import Bench

MB = 1_000_000
RATE, DELAY, LOSS = 12.5 * MB, 0.1, 0.01
"""100 Mbit/s, 200 ms there and back, 1 % lost each way."""
_HEADERS = 52
"""Bytes of IP and TCP with timestamps in each packet."""
_SERVER, _CLIENT = "10.219.77.1", "10.219.77.2"
_ALGORITHMS = ("bbr", "cubic")
_STREAMS = 4
_FROM_BYTES = 2 * MB
"""The measurement begins this far in, and two seconds later: handshake, listing and the first window are over."""


@case
def lossy_line(bench: Bench) -> Iterator[Row]:
    """100 Mbit, 200 ms, 1 % loss: share of the line that content uses, once a transfer runs."""
    available = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    if os.geteuid() != 0 or not os.path.exists("/dev/net/tun") or not shutil.which("ip"):
        raise UnavailableError("needs root, /dev/net/tun and the program ip")
    with bench.scratch() as work, ExitStack() as stack:
        far = stack.enter_context(_far(bench, work))
        for algorithm in _ALGORITHMS:
            if algorithm not in available:
                continue
            far.use(algorithm)
            for streams in (1, _STREAMS):
                bare, note = far.share(partial(far.bare, streams))
                yield Row(
                    name=f"lossy line, {algorithm}, bare rsync, {_count(streams)}: share used",
                    ours=bare,
                    unit="of 100 Mbit/s",
                    note=note,
                )
                if streams > 1 and "SYNC_PARALLEL" not in _settings():
                    continue
                ours, note = far.share(partial(far.clr, streams))
                wanted = algorithm == "bbr" and streams == _STREAMS
                yield Row(
                    name=f"lossy line, {algorithm}, clr sync, {_count(streams)}: share used",
                    ours=ours,
                    unit="of 100 Mbit/s",
                    note=note,
                    target=0.9 if wanted else None,
                    at_least=True,
                )
    if "bbr" not in available or "SYNC_PARALLEL" not in _settings():
        raise UnavailableError(
            f"clr with {_STREAMS} streams and bbr: this kernel has {available}, clr has no SYNC_PARALLEL"
        )


def _count(streams: int) -> str:
    return "one stream" if streams == 1 else f"{streams} streams"


def _settings() -> set[str]:
    return {name.upper() for name in Settings.__dataclass_fields__}


class _Far:
    """Two namespaces with the line between them, a server in one of them, and what goes on in the other."""

    def __init__(self, bench: Bench, work: Path, relay: subprocess.Popen[str], names: tuple[str, str]) -> None:
        self.bench, self.work, self.relay = bench, work, relay
        self.client, self.server_space = names
        self.seen: list[tuple[float, int, int]] = []
        self.library = noise_library(work / "primary", items=2 * _STREAMS, disks=1, disk_bytes=100 * MB)
        self.server = Server(self.library, work / "server", port=free_port())
        self.server.host = _SERVER
        self.runs = 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.relay.stdout is not None
        for line in self.relay.stdout:
            seconds, packets, size = line.split()
            self.seen.append((float(seconds), int(size) - _HEADERS * int(packets), int(size)))

    def use(self, algorithm: str) -> None:
        """Set the congestion control of new connections on both sides.

        By the route: the sysctl of a network namespace takes only what the host's
        net.ipv4.tcp_allowed_congestion_control lists.
        """
        for space, peer in ((self.client, _SERVER), (self.server_space, _CLIENT)):
            _ip("-n", space, "route", "replace", peer, "dev", space, "congctl", algorithm)

    def share(self, start: Callable[[], list[subprocess.Popen[bytes]]]) -> tuple[float, str]:
        """What share of the line content takes while these processes run, for as long as the size says; and a note."""
        wait_until(lambda: self._still(), 120, "the line to be empty")
        offset = self.seen[-1][1]
        processes = start()
        try:
            deadline = time.monotonic() + 120
            while self.seen[-1][1] - offset < _FROM_BYTES and time.monotonic() < deadline:
                time.sleep(0.1)
                if all(process.poll() is not None for process in processes):
                    raise UnavailableError("the transfer ended early")
            time.sleep(2)
            first = self.seen[-1]
            time.sleep(self.bench.size.line_seconds)
            last = self.seen[-1]
            content, packets = ((last[at] - first[at]) / (last[0] - first[0]) / RATE for at in (1, 2))
            return content, f"headers included {packets:.2f}"
        finally:
            for process in processes:
                for pid in [process.pid, *descendants(process.pid)]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                process.wait()

    def _still(self) -> bool:
        latest = self.seen[-8:]
        return len(latest) == 8 and latest[-1][1] - latest[0][1] < 2000

    def bare(self, streams: int) -> list[subprocess.Popen[bytes]]:
        """So many rsyncs with the original's flags, each with its own items."""
        target = self._fresh()
        items = sorted(folder.name for folder in self.library.iterdir())
        argvs = []
        for number in range(streams):
            mine = [f"host:{item}" for item in items[number::streams]]
            argvs.append(self.server.rsync("-a", mine[0], *(f":{word[5:]}" for word in mine[1:]), f"{target}/"))
        return [self._start(argv, dict(os.environ)) for argv in argvs]

    def clr(self, streams: int) -> list[subprocess.Popen[bytes]]:
        """A first sync of a new site."""
        site = Site(self._fresh(), self.server, SYNC_PEER=_SERVER)
        if "SYNC_PARALLEL" in _settings():
            site.environment["SYNC_PARALLEL"] = str(streams)
        environment = cli_environment(site) | {"PYTHONPATH": PYTHONPATH}
        return [self._start([sys.executable, "-m", "clr_client", "sync"], environment)]

    def _start(self, argv: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.work / "client.log").open("ab") as log:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.client, *argv],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _fresh(self) -> Path:
        shutil.rmtree(self.work / f"target{self.runs}", ignore_errors=True)
        self.runs += 1
        target = self.work / f"target{self.runs}"
        target.mkdir()
        return target


@contextlib.contextmanager
def _far(bench: Bench, work: Path) -> Iterator[_Far]:
    names = (f"clrb{os.getpid()}c", f"clrb{os.getpid()}s")
    options = ["--rate", str(RATE), "--delay", str(DELAY), "--loss", str(LOSS)]
    with ExitStack() as stack:
        relay = subprocess.Popen(
            [sys.executable, "-m", "bench.relay", *names, *options], cwd=TESTS, stdout=subprocess.PIPE, text=True
        )
        stack.callback(_end, relay)
        assert relay.stdout is not None
        if relay.stdout.readline() != "ready\n":
            raise UnavailableError("no TUN device can be made here")
        for name, address, peer in zip(names, (_CLIENT, _SERVER), (_SERVER, _CLIENT), strict=True):
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
            _ip("link", "set", name, "netns", name)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "addr", "add", address, "peer", peer, "dev", name)
            _ip("-n", name, "link", "set", name, "up", "txqueuelen", "1000")
        far = _Far(bench, work, relay, names)
        argv = ["ip", "netns", "exec", names[1], sys.executable, "-m", "bench.remote"]
        told = [str(far.library), str(work / "server"), _SERVER, str(far.server.port)]
        server = subprocess.Popen([*argv, *told], cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.callback(_end_server, server)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n", far.server.log_text()
        yield far


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait()


def _end_server(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait(30)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, stdin=subprocess.DEVNULL)
