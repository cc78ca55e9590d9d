"""`make soak`: random faults against a running pair for a chosen time, while what must always hold is checked.

The real server and the real `clr run`, with a line between them that breaks. A seed decides what happens to them; it is
printed, and ``SOAK_SEED`` takes it to have the same faults again. ``SOAK`` is the time: 90s, 10m, 1h.

All the time strict subscribers follow the library over HTTP, one of them over a thin line. After each round the volume
is read as a subscriber would read it. After every few rounds the faults rest: then the site has to have what the source
has and keep nothing that nobody needs, and damage on its disk has to be found and mended.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

import click
from clr_client.content.items import scan
from clr_client.errors import ClrError
from clr_client.vcsp.subscriber import Subscriber

from support.proxy import Line
from support.reading import Served, Witness, read
from support.server import Server, descendants, free_port, wait_until
from support.site import CLR, Site, cli_environment
from support.source import Source
from support.templates import fake_template, replace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from subprocess import CompletedProcess, Popen

GRACE_SECONDS = 60
"""How long replaced files stay; every subscriber here has finished with them well before."""
CALM_EVERY = 5
"""Rounds."""
CALM_SECONDS = 180.0
"""In which a site has caught up with its source, on a machine that is busy with other things."""
MOST_RESIDENT = 160 << 20
MOST_DESCRIPTORS = 64
THIN = 300_000
"""Bytes per second."""
SHOWN = 40
SYNC_EXITS = {0, 1, 5, 6, 75}
LEFT_BEHIND = re.compile(r"\.new-.*|\..+\.[A-Za-z0-9]{6}|\.clr-partial")
_UNITS = {"s": 1, "m": 60, "h": 3600}


class ViolationError(AssertionError):
    """Something that must never be was seen."""


class Client:
    """`clr run` of a site, to be killed and started again."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.process: Popen[bytes] | None = None
        self.changes = 1
        """Grows when the web site or a file of it goes away and when it is back: odd while it is away."""

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Start it and wait until it serves a library; ViolationError if it ends by itself."""
        with (self.site.home / "run.log").open("ab") as log:
            self.process = subprocess.Popen([CLR, "run"], env=cli_environment(self.site), stdout=log, stderr=log)
        self.wait_until_served()

    def wait_until_served(self) -> None:
        """Wait until the library can be read again."""
        wait_until(self._serves, 60, "the library to be served")
        self.changes += 1

    def _serves(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise ViolationError(f"`clr run` ended with {self.process.returncode}")
        port = int(self.site.environment["HTTP_PORT"])
        with contextlib.suppress(ClrError), tempfile.TemporaryDirectory() as folder:
            Subscriber(Path(folder), timeout=5).sync(f"http://127.0.0.1:{port}/lib.json")
            return True
        return False

    def end(self, number: signal.Signals, *, alone: bool) -> None:
        """End it by a signal; unless ``alone``, all that it started gets the signal too, as in a container's end."""
        assert self.process is not None
        self.changes += 1
        pids = [self.pid] if alone else [self.pid, *descendants(self.pid)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        self.process.wait(60)

    def sync(self) -> None:
        """Ask for a sync."""
        os.kill(self.pid, signal.SIGUSR1)

    def kill_caddy(self) -> None:
        """Kill its web server and wait until there is another."""
        self.changes += 1
        for pid in descendants(self.pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "caddy":
                    os.kill(pid, signal.SIGKILL)
        self.wait_until_served()


class Soak:
    """A pair in ``home`` and what befalls it; a context manager."""

    def __init__(self, home: Path, seed: int) -> None:
        self.home = home
        self.random = random.Random(seed)
        self.library = home / "primary"
        for name in ("alpha", "beta", "nested/gamma", "spaced & 100% #1"):
            fake_template(self.library / name, disk_bytes=300_000)
        self.source = Source(self.library, seed, largest=1_500_000)
        self.server = Server(self.library, home / "server")
        self.line = Line(self.server.port)
        self.site = Site(
            home / "site",
            self.server,
            SYNC_PORT=str(self.line.port),
            SYNC_SCHEDULE="0 0 1 1 *",
            SYNC_TIMEOUT="5",
            SYNC_RETRIES="1",
            SYNC_RETRY_DELAY="1",
            SYNC_MAX_DELETE="60%",
            LIBRARY_KEEP="2",
            LIBRARY_GRACE=f"{GRACE_SECONDS}s",
            HTTP_PORT=str(free_port()),
            HTTPS_PORT=str(free_port()),
        )
        self.client = Client(self.site)
        self.thin = Line(int(self.site.environment["HTTP_PORT"]), rate=THIN)
        self.tally: Counter[str] = Counter()
        self.story: list[str] = []
        self.violation: BaseException | None = None
        self._witness = Witness()
        self._over = threading.Event()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.server.start()
            stack.callback(self._stop_server)
            stack.enter_context(self.line)
            stack.enter_context(self.thin)
            self.client.start()
            stack.callback(self._stop_client)
            for port in (int(self.site.environment["HTTP_PORT"]), self.thin.port):
                thread = threading.Thread(target=self._follow, args=(port,), daemon=True)
                thread.start()
                stack.callback(thread.join)
            stack.callback(self._over.set)
            self._exits = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def _stop_server(self) -> None:
        if self.server.process is not None and self.server.process.poll() is None:
            self.server.stop()

    def _stop_client(self) -> None:
        if self.client.process is not None and self.client.process.poll() is None:
            self.client.end(signal.SIGTERM, alone=True)

    def run(self, seconds: float) -> None:
        """Let things happen for so long; raises what was violated."""
        faults = [
            self._line_cut,
            self._line_stalled,
            self._line_thin,
            self._line_corrupt,
            self._line_slow,
            self._server_away,
            self._client_killed,
            self._client_killed_alone,
            self._client_stopped,
            self._web_server_killed,
            self._source_unmounted,
            self._template_torn,
            self._rolled_back,
            self._synced_by_hand,
        ]
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.violation is None:
            for _ in range(self.random.randrange(4)):
                self._tell(f"source: {self.source.change()}")
            with contextlib.ExitStack() as round_:
                for fault in self.random.sample(faults, self.random.randrange(3)):
                    name = fault.__name__.strip("_").replace("_", " ")
                    self._tell(name)
                    self.tally[name] += 1
                    round_.enter_context(fault())
                self.client.sync()
                time.sleep(self.random.uniform(0.2, 4))
            self._look()
            self.tally["rounds"] += 1
            if self.tally["rounds"] % CALM_EVERY == 0:
                self._rest()
        if self.violation is not None:
            raise self.violation
        self._rest()

    def _tell(self, event: str) -> None:
        self.story.append(f"{time.strftime('%H:%M:%S')} {event}")

    # --- what befalls the pair; each ends with its block ---

    @contextmanager
    def _line_cut(self) -> Iterator[None]:
        for _ in range(self.random.randrange(1, 4)):
            self.line.at(self.line.crossed + self.random.randrange(2_000_000), self.line.cut)
        yield
        self.line.heal()

    @contextmanager
    def _line_stalled(self) -> Iterator[None]:
        self.line.at(self.line.crossed + self.random.randrange(500_000), self.line.stall)
        yield
        self.line.heal()

    @contextmanager
    def _line_thin(self) -> Iterator[None]:
        self.line.rate = self.random.randrange(20_000, 500_000)
        yield
        self.line.heal()

    @contextmanager
    def _line_corrupt(self) -> Iterator[None]:
        self.line.at(self.line.crossed + self.random.randrange(500_000), self.line.corrupt)
        yield
        self.line.heal()

    @contextmanager
    def _line_slow(self) -> Iterator[None]:
        self.line.delay = self.random.uniform(0.05, 0.3)
        yield
        self.line.heal()

    @contextmanager
    def _server_away(self) -> Iterator[None]:
        self.server.stop()
        yield
        self.server.start()

    @contextmanager
    def _client_killed(self) -> Iterator[None]:
        yield from self._end_and_start(signal.SIGKILL, alone=False)

    @contextmanager
    def _client_killed_alone(self) -> Iterator[None]:
        yield from self._end_and_start(signal.SIGKILL, alone=True)

    @contextmanager
    def _client_stopped(self) -> Iterator[None]:
        yield from self._end_and_start(signal.SIGTERM, alone=True)

    def _end_and_start(self, number: signal.Signals, *, alone: bool) -> Iterator[None]:
        self.client.sync()
        time.sleep(self.random.uniform(0, 2))
        self.client.end(number, alone=alone)
        self._look()
        self.client.start()
        yield

    @contextmanager
    def _web_server_killed(self) -> Iterator[None]:
        self.client.kill_caddy()
        yield

    @contextmanager
    def _source_unmounted(self) -> Iterator[None]:
        aside = self.library.with_name("unmounted")
        self.library.rename(aside)
        self.library.mkdir()
        yield
        self.library.rmdir()
        aside.rename(self.library)

    @contextmanager
    def _template_torn(self) -> Iterator[None]:
        disks = sorted(self.library.rglob("*.vmdk"))
        if not disks:  # unmounted at the same time
            yield
            return
        disk = self.random.choice(disks)
        whole = disk.read_bytes()
        replace(disk, whole[: self.random.randrange(len(whole))])
        yield
        if disk.parent.is_dir():
            replace(disk, whole)

    @contextmanager
    def _rolled_back(self) -> Iterator[None]:
        self._clr("rollback", exits={0, 1, 5})
        yield
        while self._clr("rollback", "--release", exits={0, 5}).returncode:
            time.sleep(0.5)

    @contextmanager
    def _synced_by_hand(self) -> Iterator[None]:
        self._clr("sync", exits=SYNC_EXITS)
        yield

    def _clr(self, *words: str, exits: set[int]) -> CompletedProcess[str]:
        """Run a command at the site; ViolationError if it ends in another way than it may."""
        done = subprocess.run(
            [CLR, *words], env=cli_environment(self.site), capture_output=True, text=True, timeout=600, check=False
        )
        if done.returncode not in exits:
            raise ViolationError(
                f"clr {' '.join(words)} ended with {done.returncode}: {done.stdout[-3000:]}{done.stderr}"
            )
        return done

    # --- what must hold ---

    def _look(self) -> Served | None:
        """Read what is published, whatever else is going on, and hold it against all that was seen before."""
        current = self.site.library / "current"
        while True:
            before = current.readlink()
            served = read(current)
            if current.readlink() == before:
                self._witness.see(served)
                return served

    def _rest(self) -> None:
        """Without faults the site comes to have what the source has, and nothing that nobody needs."""
        self._tell("rest")
        deadline = time.monotonic() + CALM_SECONDS
        while (ended := self._clr("sync", "--allow-deletes", exits=SYNC_EXITS)).returncode:
            if time.monotonic() > deadline:
                raise ViolationError(
                    f"a sync in quiet times ends with {ended.returncode}: {ended.stdout}{ended.stderr}"
                )
            time.sleep(1)
        served = self._look()
        if served is None or served.contents != self.source.content():
            raise ViolationError("the site does not publish what the source has")
        if scan(self.site.store.mirror) != scan(self.library):
            raise ViolationError("the mirror is not what the source has")
        left = [str(path) for path in self.site.library.rglob("*") if LEFT_BEHIND.fullmatch(path.name)]
        if left:
            raise ViolationError(f"left behind: {left}")
        self._rot(served)
        self._inspect_process()
        self.tally["rests"] += 1

    def _rot(self, served: Served) -> None:
        """One byte on the disk flips: it is found and mended. Until it is, the file is withdrawn: 404 is right."""
        path = self.random.choice(sorted(self.site.store.items.glob("*/*/*.vmdk")))
        self._clr("verify", exits={0})
        status = path.stat()
        with path.open("r+b") as file:
            position = self.random.randrange(status.st_size)
            file.seek(position)
            byte = file.read(1)
            file.seek(position)
            file.write(bytes([byte[0] ^ 1]))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        self._tell(f"rot: {path.name}")
        self.client.changes += 1
        self._clr("verify", "--repair", exits={0, 4})
        self.client.changes += 1
        self._clr("verify", exits={0})
        again = self._look()
        if again != served:
            raise ViolationError("a file that was mended has another version")
        self.tally["rotten files mended"] += 1

    def _inspect_process(self) -> None:
        proc = Path(f"/proc/{self.client.pid}")
        resident = int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        descriptors = len(list((proc / "fd").iterdir()))
        if resident > MOST_RESIDENT or descriptors > MOST_DESCRIPTORS:
            raise ViolationError(f"`clr run` holds {resident >> 20} MB and {descriptors} descriptors")
        log = (self.site.home / "run.log").read_text(errors="replace")
        if "Traceback" in log:
            raise ViolationError(f"a defect was logged: {log[log.index('Traceback') - 500 :][:5000]}")

    def _follow(self, port: int) -> None:
        """Subscribe until the end. Every look has to succeed unless the web site was away for some of it."""
        subscriber = Subscriber(self.home / f"subscriber-{port}", timeout=20)
        while not self._over.wait(0.3):
            changes = self.client.changes
            try:
                subscriber.sync(f"http://127.0.0.1:{port}/lib.json")
            except ClrError as error:
                if changes % 2 == 0 and changes == self.client.changes:
                    self.violation = self.violation or ViolationError(f"a subscriber failed: {error}")
                    return
            except BaseException as error:  # noqa: BLE001 - whatever it is, the run has to end with it
                self.violation = self.violation or error
                return
            else:
                self.tally["subscriptions"] += 1


def seconds(text: str) -> float:
    """Read a time as ``90s``, ``10m`` or ``1h``; ValueError."""
    match = re.fullmatch(r"(\d+)([smh])", text)
    if match is None:
        raise ValueError(f"SOAK={text} is not a time; write 90s, 10m or 1h")
    return float(int(match[1]) * _UNITS[match[2]])


def soak(home: Path, seed: int, duration: float) -> str:
    """Soak for ``duration`` seconds; return the summary. ViolationError tells the last events as well."""
    with Soak(home, seed) as run:
        try:
            run.run(duration)
        except BaseException as error:
            error.add_note("\n".join(["What happened before:", *run.story[-SHOWN:]]))
            raise
    counts = ", ".join(f"{count} {what}" for what, count in sorted(run.tally.items()))
    return f"{duration:.0f} s with seed {seed}: {counts}; nothing lost, nothing left behind"


def main() -> None:
    """Soak for ``SOAK``; what was written stays if something is found."""
    duration = seconds(os.environ.get("SOAK", "10m"))
    seed = int(os.environ.get("SOAK_SEED") or random.SystemRandom().randrange(1 << 31))
    home = Path(tempfile.mkdtemp(prefix="clr-soak-"))
    click.echo(f"soaking for {duration:.0f} s; SOAK_SEED={seed}")
    try:
        click.echo(soak(home, seed, duration))
    except BaseException:
        click.echo(f"SOAK_SEED={seed}: see {home}, its site/run.log first", err=True)
        raise
    shutil.rmtree(home)


if __name__ == "__main__":
    main()
