"""A primary site and clients of it on loopback: our own, and the original's rsync; what each run crossed and used."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from support.server import descendants
from support.site import cli_environment

from bench.rows import RunError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from support.server import Server
    from support.site import Site

TESTS = Path(__file__).resolve().parents[1]
PYTHONPATH = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
LARGEST_WINDOW = 1 << 31
ORIGINAL = ("-avh", "--delete")
"""The flags of the original's rsync."""


@dataclass(frozen=True)
class Usage:
    """What a run took: wall and CPU seconds, and peaks of memory in bytes, of `clr` itself and of what it started."""

    code: int
    seconds: float
    cpu: float
    others_cpu: float
    clr_memory: int = 0
    rsync_memory: int = 0
    output: str = ""


def run_clr(site: Site, *words: str, prefix: Sequence[str] = (), **environment: str) -> Usage:
    """Run `clr` with a site's settings to its end.

    :raises RunError: it did not end with 0.
    """
    return finish_clr(start_clr(site, *words, prefix=prefix, **environment))


@dataclass
class Running:
    """A `clr` that runs."""

    process: subprocess.Popen[str]
    began: float
    figures: Path
    watch: Watch


def start_clr(site: Site, *words: str, prefix: Sequence[str] = (), **environment: str) -> Running:
    """Start `clr` with a site's settings."""
    handle, name = tempfile.mkstemp(dir=site.home, suffix=".json")
    os.close(handle)
    values = cli_environment(site) | {"PYTHONPATH": PYTHONPATH} | environment
    began = time.monotonic()
    process = subprocess.Popen(
        [*prefix, sys.executable, "-m", "bench.launch", name, *words],
        env=values,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Running(process, began, Path(name), Watch(process.pid))


def finish_clr(running: Running, *, must: bool = True) -> Usage:
    """Wait for the end of a `clr`; :raises RunError: unless it ended with 0."""
    output = running.process.communicate()[0]
    seconds = time.monotonic() - running.began
    memory = running.watch.stop()
    used = json.loads(running.figures.read_text() or "{}")
    running.figures.unlink()
    code = running.process.returncode
    if must and code != 0:
        raise RunError(f"clr ended with {code}: {output[-2000:]}")
    return Usage(code, seconds, used.get("cpu", 0), used.get("others_cpu", 0), used.get("memory", 0), memory, output)


def run_rsync(server: Server, *words: str, port: int | None = None, prefix: Sequence[str] = ()) -> Usage:
    """Run a bare rsync over the ssh that the tests use.

    :raises RunError: it did not end with 0.
    """
    near = copy.copy(server)
    near.port = port or server.port
    before = os.times()
    began = time.monotonic()
    done = subprocess.run(
        [*prefix, *near.rsync(*words)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    seconds, after = time.monotonic() - began, os.times()
    if done.returncode != 0:
        raise RunError(f"rsync ended with {done.returncode}: {done.stderr[-2000:]}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return Usage(0, seconds, 0, used, output=done.stdout)


class Watch:
    """Watches the memory of a process's descendants while it runs; ``stop`` returns the largest peak in bytes."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peak = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.ended.wait(0.05):
            for pid in descendants(self.pid):
                with contextlib.suppress(OSError):
                    if found := re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()):
                        self.peak = max(self.peak, int(found[1]) * 1024)

    def stop(self) -> int:
        """End it."""
        self.ended.set()
        self.thread.join()
        return self.peak


class ServerLoad:
    """What a server uses from here on: CPU seconds of all its processes, and the peaks of their number and memory."""

    def __init__(self, server: Server, *, watch: bool = False) -> None:
        assert server.process is not None
        self.pid = server.process.pid
        self.before = self._cpu()
        self.memory = self._memory() if watch else 0
        self.idle_memory = self.memory
        self.processes = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        if watch:
            self.thread.start()

    def _pids(self) -> Iterator[int]:
        yield self.pid
        yield from descendants(self.pid)

    def _cpu(self) -> float:
        """CPU seconds of its processes, and of those that they have waited for."""
        ticks = 0
        for pid in self._pids():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(int(field) for field in fields[11:15])
        return ticks / os.sysconf("SC_CLK_TCK")

    def _memory(self) -> int:
        """Memory of its processes in bytes, what several share counted once."""
        total = 0
        for pid in self._pids():
            with contextlib.suppress(OSError):
                if found := re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE):
                    total += int(found[1]) * 1024
        return total

    def _watch(self) -> None:
        while not self.ended.wait(0.5):
            self.memory = max(self.memory, self._memory())
            self.processes = max(self.processes, len(list(self._pids())))

    def stop(self) -> float:
        """End the watch; the CPU seconds used."""
        time.sleep(0.5)  # for the last sessions to be gone
        self.ended.set()
        if self.thread.is_alive():
            self.thread.join()
        return self._cpu() - self.before


@cache
def limit(old: Path, new: Path) -> int | None:
    """What `zstd --patch-from` needs to make one file from another, in bytes; None for files beyond its window."""
    if max(old.stat().st_size, new.stat().st_size) > LARGEST_WINDOW:
        return None
    with tempfile.TemporaryDirectory(dir=new.parents[1]) as folder:
        patch = Path(folder) / "patch"
        argv = ["zstd", "-q", "--long=31", f"--patch-from={old}", str(new), "-o", str(patch)]
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
        return patch.stat().st_size


def fastest(count: int, work: Callable[[], Usage]) -> Usage:
    """The fastest of several runs: what else the machine does only makes them slower."""
    return min((work() for _ in range(count)), key=lambda usage: usage.seconds)
