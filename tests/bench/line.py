"""A long and lossy line: how much of it transfers use, by congestion control and number of streams."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from clr_client.settings import Settings
from support.far import SERVER_ADDRESS, far_server, unavailable
from support.server import descendants, wait_until
from support.site import Site, cli_environment

from bench.pair import PYTHONPATH
from bench.rows import Row, UnavailableError, case
from bench.times import noise_library

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.far import Far

    from bench.bench import Bench

MB = 1_000_000
RATE, DELAY, LOSS = 12.5 * MB, 0.1, 0.01
"""100 Mbit/s, 200 ms there and back, 1 % lost each way."""
_HEADERS = 52
"""Bytes of IP and TCP with timestamps in each packet."""
_ALGORITHMS = ("bbr", "cubic")
_STREAMS, _MORE = 4, 8
_FROM_BYTES = 2 * MB
"""The measurement begins this far in, and two seconds later: handshake, listing and the first window are over."""


@case
def lossy_line(bench: Bench) -> Iterator[Row]:
    """100 Mbit, 200 ms, 1 % loss: share of the line that content uses, once a transfer runs."""
    available = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    if reason := unavailable():
        raise UnavailableError(reason)
    with bench.scratch() as work, _measured(bench, work) as line:
        for algorithm in _ALGORITHMS:
            if algorithm not in available:
                continue
            line.far.use(algorithm)
            for streams in (1, _STREAMS, _MORE):
                bare, note = line.share(partial(line.bare, streams))
                yield Row(
                    name=f"lossy line, {algorithm}, bare rsync, {_count(streams)}: share used",
                    ours=bare,
                    unit="of 100 Mbit/s",
                    note=note,
                )
                if streams > 1 and "SYNC_PARALLEL" not in _settings():
                    continue
                ours, note = line.share(partial(line.clr, streams))
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


class _Line:
    """The line, and what goes on at its near end."""

    def __init__(self, bench: Bench, work: Path, library: Path, far: Far) -> None:
        self.bench, self.work, self.library, self.far = bench, work, library, far
        self.server = far.server
        self.runs = 0

    def _content(self) -> tuple[float, int, int]:
        """Seconds, bytes without headers and bytes, delivered until now."""
        seconds, packets, size = self.far.delivered[-1]
        return seconds, size - _HEADERS * packets, size

    def share(self, start: Callable[[], list[subprocess.Popen[bytes]]]) -> tuple[float, str]:
        """What share of the line content takes while these processes run, for as long as the size says; and a note."""
        wait_until(lambda: self._still(), 120, "the line to be empty")
        offset = self._content()[1]
        processes = start()
        try:
            deadline = time.monotonic() + 120
            while self._content()[1] - offset < _FROM_BYTES and time.monotonic() < deadline:
                time.sleep(0.1)
                if all(process.poll() is not None for process in processes):
                    raise UnavailableError("the transfer ended early")
            time.sleep(2)
            first = self._content()
            time.sleep(self.bench.size.line_seconds)
            last = self._content()
            content, packets = ((last[at] - first[at]) / (last[0] - first[0]) / RATE for at in (1, 2))
            return content, f"headers included {packets:.2f}"
        finally:
            for process in processes:
                for pid in [process.pid, *descendants(process.pid)]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                process.wait()

    def _still(self) -> bool:
        latest = self.far.delivered[-8:]
        return len(latest) == 8 and latest[-1][2] - latest[0][2] < 4000

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
        site = Site(self._fresh(), self.server, SYNC_PEER=SERVER_ADDRESS)
        if "SYNC_PARALLEL" in _settings():
            site.environment["SYNC_PARALLEL"] = str(streams)
        environment = cli_environment(site) | {"PYTHONPATH": PYTHONPATH}
        return [self._start([sys.executable, "-m", "clr_client", "sync"], environment)]

    def _start(self, argv: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.work / "client.log").open("ab") as log:
            return subprocess.Popen(
                [*self.far.near, *argv],
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
def _measured(bench: Bench, work: Path) -> Iterator[_Line]:
    library = noise_library(work / "primary", items=2 * _STREAMS, disks=1, disk_bytes=100 * MB)
    try:
        with far_server(library, work / "server", rate=RATE, delay=DELAY, loss=LOSS) as far:
            yield _Line(bench, work, library, far)
    except OSError as error:
        raise UnavailableError(str(error)) from error
