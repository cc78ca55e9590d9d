"""Whatever happens at the source, a strict subscriber of the site gets exactly that, by downloading what changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from clr_client.vcsp.subscriber import Subscriber, check
from support.site import Site
from support.source import Source, digest
from support.templates import fake_template
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
