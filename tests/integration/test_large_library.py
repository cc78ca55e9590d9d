"""What a sync costs: it opens, lists and remembers no more than it needs, whatever the library's size."""

from __future__ import annotations

import sys
import tracemalloc
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from clr_client import transport
from clr_client.content import digests
from clr_client.content.items import scan
from clr_client.transport.listing import Listing
from support.server import Server, make_key
from support.site import Site
from support.templates import fake_template

if TYPE_CHECKING:
    from collections.abc import Iterator

ITEMS = 1000
LEAST_PER_ITEM = 20_000
"""Bytes of memory: 200 MB for ten thousand items."""
_counting: Counter[str] | None = None


def _count(event: str, _arguments: object) -> None:
    if _counting is not None:
        _counting[event] += 1


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count what this process asks of the file system: events of sys.addaudithook."""
    global _counting
    if not hasattr(sys, "_clr_counts"):
        sys.addaudithook(_count)
        sys._clr_counts = True  # type: ignore[attr-defined]
    _counting = Counter()
    try:
        yield _counting
    finally:
        _counting = None


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site with a library of small items; its files are where a transfer would have put them."""
    make_key(tmp_path / "identity")
    site = Site(tmp_path / "site", Server(tmp_path / "primary", tmp_path))
    for number in range(ITEMS):
        folder = site.store.mirror / f"template-{number:05}"
        folder.mkdir(parents=True)
        (folder / "disk.bin").write_bytes(b"%d" % number)
        (folder / "notes.txt").write_bytes(b"%d" % number)
    monkeypatch.setattr("os.fsync", lambda _: None)  # thousands of them; durability is tested elsewhere

    async def list_source(_link: transport.Link) -> Listing:
        return Listing(listing, complete=True, problems=())

    listing = scan(site.store.mirror)
    monkeypatch.setattr(transport, "list_source", list_source)
    site.sync()
    return site


def test_an_unchanged_sync_opens_a_handful_of_files_and_walks_the_volume_a_few_times_whatever_its_size(
    large: Site,
) -> None:
    with counted() as calls:
        report = large.sync()
    assert (report.result, len(large.versions()), large.store.generation_numbers()) == ("success", ITEMS, (1,))
    assert calls["open"] < 60
    assert calls["os.scandir"] + calls["os.listdir"] < 5.5 * ITEMS
    assert sum(calls[event] for event in ("os.rename", "os.mkdir", "os.link", "os.symlink", "os.rmdir")) < 30


def test_a_sync_after_one_with_nothing_to_do_walks_the_mirror_once_and_writes_only_what_it_says_of_itself(
    large: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    large.sync()
    written: list[str] = []
    real = Path.rename

    def rename(path: Path, target: Path) -> Path:
        written.append(target.name)
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with counted() as calls:
        report = large.sync()
    assert (report.result, report.version) == ("success", 1)
    assert calls["open"] < 30
    assert calls["os.scandir"] + calls["os.listdir"] < ITEMS + 20
    assert set(written) == {"progress.json", "running.json", "status.json"}
    assert sum(calls[event] for event in ("os.link", "os.symlink", "os.rmdir")) == 0
    assert calls["os.remove"] == 1  # running.json


def test_an_unchanged_sync_of_ten_thousand_items_would_take_less_than_two_hundred_megabytes(large: Site) -> None:
    tracemalloc.start()
    try:
        large.sync()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < ITEMS * LEAST_PER_ITEM


def test_a_changed_disk_is_read_once_for_all_its_digests_and_nothing_else_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "primary"
    for name in ("alpha", "beta"):
        fake_template(library / name, disk_bytes=100_000, algorithm="sha1")
    with Server(library, tmp_path / "server") as server:
        site = Site(tmp_path / "site", server)
        site.sync()
        fake_template(library / "alpha", disk_bytes=100_000, revision=1, algorithm="sha1")
        read: list[str] = []
        real = digests.opened

        def opened(path: str | Path) -> object:
            read.append(str(path).rpartition("/")[2])
            return real(path)

        monkeypatch.setattr(digests, "opened", opened)
        assert site.sync().updated == ("alpha",)
        assert read.count("alpha-disk1.vmdk") == 1
        assert not [name for name in read if name.startswith("beta")]
        read.clear()
        site.sync()
        assert read == []
