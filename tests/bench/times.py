"""Time until the library is readable, and what an unchanged library costs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from support.server import Server
from support.site import CLR, Site
from support.templates import envelope, manifest

from bench.pair import ServerLoad, Usage, fastest, finish_clr, run_clr, run_rsync, start_clr
from bench.rows import Row, RunError, UnavailableError, case

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.bench import Bench

MB = 1_000_000
FILES = 10_000
_PER_ITEM = 4
FULL_SIZE = 4000 * MB
"""What the targets of times are for: with less, starting the programs is what takes long."""


def noise_library(folder: Path, *, items: int, disks: int, disk_bytes: int) -> Path:
    """Make OVF templates with disks of random bytes, unless they are there: ``disks`` + 2 files each."""
    if folder.exists():
        return folder
    made = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(made, ignore_errors=True)
    for number in range(items):
        name = f"item-{number:04}"
        (made / name).mkdir(parents=True)
        files = {f"{name}-disk{disk}.vmdk": disk_bytes for disk in range(1, disks + 1)}
        lines = []
        for file in files:
            digest = hashlib.sha256()
            with (made / name / file).open("wb") as out:
                for start in range(0, disk_bytes, 8 * MB):
                    piece = os.urandom(min(8 * MB, disk_bytes - start))
                    digest.update(piece)
                    out.write(piece)
            lines.append(f"SHA256({file})= {digest.hexdigest()}\n".encode())
        (made / name / f"{name}.ovf").write_bytes(envelope(name, files))
        mf = manifest(made / name, [f"{name}.ovf"]) + b"".join(lines)
        (made / name / f"{name}.mf").write_bytes(mf)
    made.rename(folder)
    return folder


@case
def first_sync(bench: Bench) -> Iterator[Row]:
    """Everything is new: until the library can be read, against rsync alone."""
    size = bench.size.first_sync
    with bench.scratch() as work:
        library = noise_library(work / "primary", items=8, disks=1, disk_bytes=size // 8)
        with Server(library, work / "server") as server:

            def ours() -> Usage:
                shutil.rmtree(work / "site", ignore_errors=True)
                site = Site(work / "site", server)
                running = start_clr(site, "sync")
                readable = _wait_for_items(site, 8, running.process)
                used = finish_clr(running)
                return Usage(0, readable - running.began, used.cpu, used.others_cpu, used.clr_memory, used.rsync_memory)

            def bare() -> Usage:
                shutil.rmtree(work / "plain", ignore_errors=True)
                return run_rsync(server, "-a", "host:", f"{work / 'plain'}/")

            runs = [(ours(), bare()) for _ in range(bench.size.first_sync_runs)]
            best, baseline = (min((pair[at] for pair in runs), key=lambda used: used.seconds) for at in (0, 1))
            yield Row(
                name=f"first sync of {size / 1e9:g} GB, until readable",
                ours=best.seconds,
                baseline=baseline.seconds,
                unit="s",
                against="rsync -a alone",
                target=1.1 if size >= FULL_SIZE else None,
                clr_memory=best.clr_memory,
                rsync_memory=best.rsync_memory,
                note=f"CPU: clr {best.cpu:.1f} s, its ssh and rsync {best.others_cpu:.1f} s; "
                f"bare rsync and ssh {baseline.others_cpu:.1f} s",
            )


def _wait_for_items(site: Site, count: int, process: subprocess.Popen[str]) -> float:
    """The moment at which so many items are published."""
    current = site.library / "current" / "items.json"
    while True:
        ended = process.poll() is not None
        now = time.monotonic()
        with suppress(OSError, ValueError):
            if len(json.loads(current.read_bytes())["items"]) == count:
                return now
        if ended:
            raise RunError("clr ended and not all items are published")
        time.sleep(0.02)


@case
def unchanged(bench: Bench) -> Iterator[Row]:
    """Nothing changed in a library of 10,000 files: time against a bare `rsync -an`, and what is read."""
    with bench.scratch() as work:
        library = noise_library(work / "primary", items=FILES // _PER_ITEM, disks=2, disk_bytes=2000)
        with Server(library, work / "server") as server:
            site = Site(work / "site", server)
            run_clr(site, "sync")
            run_rsync(server, "-a", "host:", f"{work / 'plain'}/")
            run_clr(site, "sync")  # what the first one may have left to do
            load = ServerLoad(server)
            ours = fastest(5, lambda: run_clr(site, "sync"))
            ours_server = load.stop() / 5
            load = ServerLoad(server)
            bare = fastest(5, lambda: run_rsync(server, "-an", "host:", f"{work / 'plain'}/"))
            bare_server = load.stop() / 5
            what = f"unchanged sync of {FILES:,} files"
            yield Row(
                name=f"{what}: time",
                ours=ours.seconds,
                baseline=bare.seconds,
                unit="s",
                against="rsync -an",
                target=1.5,
                note=f"server's CPU {ours_server:.2f} s ({bare_server:.2f} s)",
                clr_memory=ours.clr_memory,
                rsync_memory=ours.rsync_memory,
            )
            yield Row(
                name=f"{what}: CPU at the client",
                ours=ours.cpu + ours.others_cpu,
                baseline=bare.others_cpu,
                unit="s",
                against="rsync -an",
                note=f"clr itself {ours.cpu:.2f} s",
            )
            yield Row(
                name=f"{what}: content read",
                ours=_content_read(site),
                unit="bytes",
                target=0,
                note="sizes of all content files whose access time changed, whoever read them",
            )


def _content_read(site: Site) -> float:
    """Bytes of the content files that an unchanged sync opens and reads, by their access times.

    An access time before the modification time is renewed by the first read, also on a file system that is mounted
    with relatime; this is tried first.
    """
    probe = site.home / "probe"
    probe.write_bytes(b"x")
    os.utime(probe, (1, 1000))
    probe.read_bytes()
    if probe.stat().st_atime == 1:
        raise UnavailableError("this file system does not note reads (noatime)")
    files = [path for path in (site.library / "mirror").rglob("*") if path.is_file()]
    for path in files:
        os.utime(path, ns=(1_000_000_000, path.stat().st_mtime_ns))
    run_clr(site, "sync")
    return sum(path.stat().st_size for path in files if path.stat().st_atime != 1)


@case
def publish(bench: Bench) -> Iterator[Row]:
    """Manifests for a plain folder in which nothing changed, against a script that reads every file twice."""
    size = bench.size.publish
    items = FILES // _PER_ITEM
    with bench.scratch() as work:
        library = noise_library(work / "library", items=items, disks=2, disk_bytes=size // items // 2)
        theirs = work / "theirs"
        subprocess.run(["cp", "-al", library, theirs], check=True)  # the manifests do not mix, the content is the same
        clr = [CLR, "publish", str(library), "--name", "Bench"]
        _timed(clr)
        ours = min(_timed(clr) for _ in range(3))
        script = [sys.executable, str(Path(__file__).with_name("read_twice.py")), str(theirs), "Bench"]
        baseline = min(_timed(script) for _ in range(2))
        yield Row(
            name=f"unchanged clr publish of {FILES:,} files, {size / 1e9:g} GB",
            ours=ours,
            baseline=baseline,
            unit="s",
            against="script that reads twice",
            target=0.02 if size >= FULL_SIZE else None,
            note="all files are in memory, which is good for the script",
        )


def _timed(argv: list[str]) -> float:
    began = time.monotonic()
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RunError(f"{argv[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return time.monotonic() - began
