"""Files are hashed as they arrive, once, and what did not change is not opened."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
from clr_client import arrivals
from clr_client.content import digests, verify
from clr_client.sync import synchronise
from support.proxy import Line
from support.templates import fake_template, pack_ova, replace

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    from clr_client.content.digests import DigestCache
    from clr_client.content.items import SourceItem
    from clr_client.files import FileInfo
    from support.server import Server
    from support.site import Site

MB = 1_000_000


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "primary"
    folder.mkdir()
    return folder


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Every file whose content is read, by name, and when."""
    seen: list[tuple[str, float]] = []
    real = digests.opened

    def watched(path: str | Path) -> Any:
        seen.append((os.path.basename(path), time.monotonic()))
        return real(path)

    for module in (digests, verify):
        monkeypatch.setattr(module, "opened", watched)
    return seen


def large(folder: Path, name: str, size: int) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(os.urandom(size))
    return folder / name


def test_a_file_is_hashed_while_the_next_one_arrives_and_never_again(
    library: Path, server: Server, site: Site, read: list[tuple[str, float]]
) -> None:
    for number in range(3):
        large(library / "item", f"disk{number}.bin", 3 * MB)
    with Line(server.port, rate=3 * MB) as line:
        last: list[float] = []
        line.at(7 * MB, lambda: last.append(time.monotonic()))
        assert site.sync(SYNC_PORT=str(line.port)).added == ("item",)
    assert sorted(name for name, _ in read) == ["disk0.bin", "disk1.bin", "disk2.bin"]
    assert min(when for _, when in read) < last[0], "the first one was read after the last one began"
    assert site.sync().result == "success"
    assert len(read) == 3, "an unchanged file was opened"
    for disk in (library / "item").iterdir():
        assert site.content("item", disk.name) == disk.read_bytes()


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512"])
def test_one_reading_serves_the_manifest_too_whatever_its_algorithm(
    library: Path, site: Site, read: list[tuple[str, float]], algorithm: str
) -> None:
    ovf = fake_template(library / "alpha", disk_bytes=200_000)
    site.sync()
    fake_template(library / "alpha", disk_bytes=200_000, revision=2)
    sign(ovf, algorithm)
    site.sync()
    read.clear()
    fake_template(library / "alpha", disk_bytes=200_000, revision=3)
    sign(ovf, algorithm)
    assert site.sync().updated == ("alpha",)
    disks = [name for name, _ in read if name.endswith(".vmdk")]
    assert len(disks) == len(set(disks)) > 0


def sign(ovf: Path, algorithm: str) -> None:
    folder = ovf if ovf.is_dir() else ovf.parent
    (manifest,) = folder.glob("*.mf")
    lines = [
        f"{algorithm.upper()}({file.name})= {hashlib.new(algorithm, file.read_bytes()).hexdigest()}\n"
        for file in sorted(folder.iterdir())
        if file.suffix not in {".mf", ".cert"}
    ]
    replace(manifest, "".join(lines).encode())


def test_an_archive_is_inspected_as_it_arrives_and_read_once_more_to_unpack_it(
    library: Path, tmp_path: Path, site: Site, read: list[tuple[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_ova(fake_template(tmp_path / "made" / "golden", disk_bytes=300_000).parent, library / "golden.ova")
    inspected: list[bool] = []
    real = verify.ova.inspect

    def watched(*args: Any, **options: Any) -> Any:
        inspected.append(options["stop"] is not None)
        return real(*args, **options)

    monkeypatch.setattr(verify.ova, "inspect", watched)
    assert site.sync().added == ("golden",)
    assert len(inspected) == 1
    assert [name for name, _ in read] == ["golden.ova"]
    assert site.sync().result == "success"
    assert len(inspected) == len(read) == 1


def test_a_failure_to_read_ahead_costs_nothing_but_time(
    library: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_template(library / "alpha", disk_bytes=200_000)

    def fails(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(arrivals, "read_ahead", fails)
    assert site.sync().added == ("alpha",)


def test_a_stopped_sync_does_not_wait_for_a_long_hash(
    library: Path, server: Server, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    large(library / "item", "a.bin", 100_000)
    large(library / "item", "b.bin", 4 * MB)
    stopped: list[bool] = []

    def endless(
        item: SourceItem, file: FileInfo, root: Path, cache: DigestCache, *, stop: threading.Event | None = None
    ) -> None:
        assert item.files
        assert file.size
        assert root
        assert cache
        assert stop is not None
        stopped.append(stop.wait(120))

    monkeypatch.setattr(arrivals, "read_ahead", endless)
    cancel_during_transfer(server, site)
    assert stopped == [True]


def cancel_during_transfer(server: Server, site: Site) -> None:
    async def main() -> None:
        loop, now = asyncio.get_running_loop(), asyncio.Event()
        with Line(server.port) as line:
            line.at(3 * MB, lambda: loop.call_soon_threadsafe(now.set))
            settings = site.settings(SYNC_PORT=str(line.port), SYNC_MAX_BW="1m")
            task = asyncio.create_task(synchronise(settings, trigger="test"))
            await asyncio.wait_for(now.wait(), 60)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < 60
