"""Bytes across the line when a template changes, against the original's flags and `zstd --patch-from`."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from clr_client.reporting import status
from support.proxy import Line
from support.server import Server
from support.site import Site

from bench.images import NAME
from bench.pair import ORIGINAL, ServerLoad, Usage, limit, run_clr, run_rsync
from bench.rows import Row, UnavailableError, case

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.bench import Bench

MB = 1_000_000
OLD, NEW = "debian-2026.10", "debian-2026.11"
DROPS = 10
_WAYS = {"same": OLD, "folder": NEW, "files": NEW}
_WAY_TEXTS = {"same": "", "folder": ", new folder name", "files": ", new folder and file names"}


@dataclass(frozen=True)
class Crossed:
    """One update: bytes on the socket both ways and from the server, those that rsync counted, what it took, the
    server's CPU seconds.
    """

    bytes: int
    down: int
    counted: int
    usage: Usage
    server_cpu: float
    cuts: int = 0


@dataclass(frozen=True)
class Change:
    """From one revision to another. ``way``: the same names, a new folder, or new names of the files too.

    ``blocks`` is SYNC_BLOCK_SIZE.
    """

    old: str
    new: str
    way: str = "same"
    repacked: bool = False
    blocks: str = "auto"


@cache
def crossed(bench: Bench, change: Change, client: str, rate: float | None = None, cut_at: int = 0) -> Crossed:
    """Let a client that has the old revision get the new one, and count what crosses.

    :param client: ``clr``, or ``original`` for rsync with the original's flags.
    :param rate: bytes per second of the line.
    :param cut_at: cut the line ten times on the way; about so many bytes come from the server in all.
    """
    images = bench.images
    with bench.scratch() as work:
        library = work / "primary"
        if change.old:
            _link(images.template(change.old, repacked=change.repacked), library / OLD)
        else:
            library.mkdir()
        new = images.template(change.new, repacked=change.repacked)
        with Server(library, work / "server") as server:
            site = Site(work / "site", server, SYNC_RETRY_DELAY="0", SYNC_RETRIES="1", SYNC_BLOCK_SIZE=change.blocks)
            plain = work / "plain"
            if change.old:
                _run(client, server, site, plain, server.port)
                shutil.rmtree(library / OLD)
            _link(new, library / _WAYS[change.way], "web" if change.way == "files" else NAME)
            load = ServerLoad(server)
            with Line(server.port, rate=rate) as line:
                for number in range(DROPS if cut_at else 0):
                    line.at(int(cut_at * (0.2 + 0.07 * number)), line.drop)
                usage = _run(client, server, site, plain, line.port)
            cpu = load.stop()
            arrived = (site.library / "mirror" if client == "clr" else plain) / _WAYS[change.way]
            for file in (library / _WAYS[change.way]).iterdir():
                assert filecmp.cmp(file, arrived / file.name, shallow=False), f"{file.name} arrived wrong"
            cuts = line.connections
            return Crossed(line.crossed + line.sent, line.crossed, _counted(client, site, usage), usage, cpu, cuts)


def _run(client: str, server: Server, site: Site, plain: Path, port: int) -> Usage:
    if client == "clr":
        return run_clr(site, "sync", SYNC_PORT=str(port))
    return run_rsync(server, *ORIGINAL, "host:", f"{plain}/", port=port)


def _counted(client: str, site: Site, usage: Usage) -> int:
    """What rsync itself says that it sent and received."""
    if client == "clr":
        run = status.load(site.store.status).runs[0]
        return int(run["sent_bytes"]) + int(run["received_bytes"])
    found = re.search(r"sent ([\d.,]+)([KMG]?) bytes\s+received ([\d.,]+)([KMG]?) bytes", usage.output)
    if not found:
        return 0
    scale = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}
    words = found.groups()
    return sum(int(float(words[at].replace(",", "")) * scale[words[at + 1]]) for at in (0, 2))


def _link(template: Path, folder: Path, name: str = NAME) -> None:
    """Put a template into a library, its disk as a hard link; with another name its files are called so."""
    folder.mkdir(parents=True)
    for file in template.iterdir():
        target = folder / file.name.replace(NAME, name)
        if name == NAME or file.suffix == ".vmdk":
            os.link(file, target)
        else:
            target.write_bytes(file.read_bytes().replace(f"{NAME}-disk1".encode(), f"{name}-disk1".encode()))
    if name != NAME:
        from support.templates import manifest

        names = [f"{name}.ovf", f"{name}-disk1.vmdk"]
        (folder / f"{name}.mf").write_bytes(manifest(folder, names))


def _row(
    bench: Bench,
    name: str,
    change: Change,
    target: float | None,
    *,
    baseline: Change | None = None,
    at_limit: bool = True,
) -> Row:
    ours = crossed(bench, change, "clr")
    theirs = crossed(bench, baseline or change, "original")
    images = bench.images
    old, new = (images.disk(revision, repacked=change.repacked) for revision in (change.old, change.new))
    least = limit(old, new) if at_limit else None
    note = f"{ours.usage.seconds:.1f} s ({theirs.usage.seconds:.1f} s); server's CPU {ours.server_cpu:.1f} s"
    note += f" ({theirs.server_cpu:.1f} s); rsync counted {ours.counted / MB:.3f} MB"
    return Row(
        name=name + _WAY_TEXTS[change.way],
        ours=ours.bytes / MB,
        baseline=theirs.bytes / MB,
        unit="MB",
        against="original's flags",
        target=target,
        limit=least / MB if least else None,
        clr_memory=ours.usage.clr_memory,
        rsync_memory=ours.usage.rsync_memory,
        note=note,
    )


@case
def patched(bench: Bench) -> Iterator[Row]:
    """Security updates inside the same disk."""
    yield _row(bench, "security updates", Change("base", "patched"), 0.96)


@case
def kernel(bench: Bench) -> Iterator[Row]:
    """A new kernel and swapped packages inside the same disk, since the base."""
    yield _row(bench, "kernel updates, packages swapped", Change("base", "kernel"), None)


@case
def rebuilt(bench: Bench) -> Iterator[Row]:
    """Installed from scratch with all updates."""
    yield _row(bench, "rebuilt from scratch", Change("base", "rebuilt"), 0.72)


@case
def patched_folder(bench: Bench) -> Iterator[Row]:
    """Security updates, published under a new folder name."""
    yield _row(bench, "security updates", Change("base", "patched", "folder"), 0.48)


@case
def rebuilt_folder(bench: Bench) -> Iterator[Row]:
    """Rebuilt, published under a new folder name."""
    yield _row(bench, "rebuilt from scratch", Change("base", "rebuilt", "folder"), 0.62)


@case
def patched_files(bench: Bench) -> Iterator[Row]:
    """Security updates, and the folder and its files have new names."""
    yield _row(bench, "security updates", Change("base", "patched", "files"), None)


@case
def renamed(bench: Bench) -> Iterator[Row]:
    """Nothing but the folder's name changed."""
    yield _row(bench, "nothing changed", Change("base", "base", "folder"), 0.002, at_limit=False)


@case
def repacked(bench: Bench) -> Iterator[Row]:
    """Disks that `clr repack` has rewritten, against the original's flags on the disks as they were."""
    try:
        import clr_client.repack.template  # noqa: F401 - whether it is there
    except ImportError:
        raise UnavailableError("`clr repack` is not there") from None
    for new, name, target in (
        ("patched", "security updates", 0.70),
        ("kernel", "kernel updates, packages swapped", 0.70),
        ("rebuilt", "rebuilt from scratch", 0.42),
    ):
        change = Change("base", new, repacked=True)
        yield _row(bench, f"repacked: {name}", change, target, baseline=Change("base", new))


@case
def blocks(bench: Bench) -> Iterator[Row]:
    """Other lengths of blocks than the product's choice, for a rebuilt disk."""
    for length in ("8192", "4096", "1024"):
        change = Change("base", "rebuilt", blocks=length)
        yield _row(bench, f"rebuilt from scratch, blocks of {length}", change, None, baseline=Change("base", "rebuilt"))


@case
def cut(bench: Bench) -> Iterator[Row]:
    """The line drops ten times on the way."""
    for name, change in (
        ("without an old version", Change("", "base")),
        ("with an old version", Change("base", "patched")),
        ("with an old version of another folder", Change("base", "patched", "folder")),
    ):
        calm = crossed(bench, change, "clr")
        stormy = crossed(bench, change, "clr", bench.size.cut_rate, calm.down)
        yield Row(
            name=f"line cut {DROPS} times, {name}",
            ours=stormy.down / MB,
            baseline=calm.down / MB,
            unit="MB",
            against="uncut",
            target=1.03,
            clr_memory=stormy.usage.clr_memory,
            rsync_memory=stormy.usage.rsync_memory,
            note=f"bytes from the server; both ways {stormy.bytes / MB:.1f} and {calm.bytes / MB:.1f} MB; "
            f"{stormy.cuts} connections",
        )
