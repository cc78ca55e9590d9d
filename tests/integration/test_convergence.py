"""Whatever happens at the source, a strict subscriber of the site gets exactly that, by downloading what changed."""

from __future__ import annotations

import hashlib
import random
import shutil
from typing import TYPE_CHECKING

import pytest
from clr_client.content.items import group, scan
from clr_client.vcsp.subscriber import Subscriber, check
from support.site import Site
from support.templates import fake_template, replace
from support.webserver import serving

if TYPE_CHECKING:
    from pathlib import Path

    from support.server import Server

CHANGES = 50
UNCHANGED_SYNCS = 100


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "primary"
    for name in ("alpha", "beta", "nested/gamma", "spaced & 100% #1"):
        fake_template(folder / name, disk_bytes=20_000)
    return folder


@pytest.fixture
def site(server: Server, tmp_path: Path) -> Site:
    return Site(tmp_path / "site", server, SYNC_MAX_DELETE="100%")


class Source:
    """Random changes of a library at the primary site."""

    def __init__(self, library: Path, seed: int) -> None:
        self.library = library
        self.random = random.Random(seed)
        self.count = 0

    def change(self) -> str:
        """Make one change; return what it was."""
        self.count += 1
        templates = sorted(path.parent for path in self.library.rglob("*.ovf"))
        kinds = ["add", "update", "touch", "iso", "describe"]
        if len(templates) > 2:
            kinds += ["remove", "rename", "add file"]
        kind = self.random.choice(kinds)
        chosen = self.random.choice(templates) if templates else self.library
        if kind == "add":
            fake_template(self.library / f"new {self.count}", disk_bytes=self.random.randrange(1000, 50_000))
        elif kind == "update":
            name = next(chosen.glob("*.ovf")).stem
            fake_template(chosen, name=name, disk_bytes=self.random.randrange(1000, 50_000), revision=self.count)
        elif kind == "touch":
            next(chosen.glob("*.ovf")).touch()
        elif kind == "iso":
            replace(self.library / f"disc-{self.random.randrange(3)}.iso", self.random.randbytes(5000))
        elif kind == "describe":
            replace(chosen / "clr-item.toml", f'description = "change {self.count}"\n'.encode())
        elif kind == "remove":
            shutil.rmtree(chosen)
        elif kind == "rename":
            chosen.rename(chosen.with_name(f"renamed {self.count}"))
        elif kind == "add file":
            (chosen / f"notes-{self.count}.txt").write_text(str(self.count))
        return f"{kind} {chosen.relative_to(self.library)}"

    def content(self) -> dict[str, dict[str, str]]:
        """Return the digest of each file of each item, by names."""
        return {
            item.default_name: {file.name: digest(self.library / file.path) for file in item.files}
            for item in group(scan(self.library))
        }


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("seed", [1])
def test_a_subscriber_converges_after_each_of_fifty_random_changes_and_downloads_only_what_changed(
    library: Path, site: Site, tmp_path: Path, seed: int
) -> None:
    source = Source(library, seed)
    subscriber = Subscriber(tmp_path / "subscriber")
    site.sync()
    with serving(site.library / "current") as url:
        subscriber.sync(f"{url}/lib.json")
        had = subscribed(subscriber)
        for _ in range(CHANGES):
            change = source.change()
            site.sync()
            result = subscriber.sync(f"{url}/lib.json")
            has = subscribed(subscriber)
            assert has == source.content(), change
            new = {
                (item, name)
                for item, files in has.items()
                for name in files
                if had.get(item, {}).get(name) != files[name]
            }
            assert set(result.files) == new, change
            assert not result.warnings, change
            had = has
        report = check(f"{url}/lib.json", full=True)
        assert report.ok, report.problems


def subscribed(subscriber: Subscriber) -> dict[str, dict[str, str]]:
    return {item: {name: digest(path) for name, path in files.items()} for item, files in subscriber.files().items()}


def test_a_hundred_syncs_of_an_unchanged_source_change_no_byte_and_read_no_content(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.sync()
    before = site.manifests()
    touched = [path for path in site.library.rglob("*") if path.is_file() and path.suffix in {".vmdk", ".ovf", ".mf"}]
    read_at = {path: path.stat().st_atime_ns for path in touched}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("content was read")

    monkeypatch.setattr("clr_client.content.digests.opened", refuse)
    for _ in range(UNCHANGED_SYNCS):
        report = site.sync()
        assert (report.planned_bytes, report.literal_bytes) == (0, 0)
    assert site.manifests() == before
    assert site.store.generation_numbers() == (1,)
    assert {path: path.stat().st_atime_ns for path in touched} == read_at
