"""What a subscriber sees from the first second of a site on, and while generations change under it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from clr_client.lock import running_since
from support.server import wait_until
from support.site import Site, get, running
from support.templates import fake_template

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "primary"
    fake_template(folder / "alpha", disk_bytes=100_000)
    return folder


def test_until_the_first_library_is_there_subscribers_are_told_how_far_it_is(library: Path, site: Site) -> None:
    (library / "large").mkdir()
    (library / "large" / "disk.bin").write_bytes(os.urandom(4_000_000))
    seen: list[int] = []

    def published() -> bool:
        status, body = get(site, "lib.json")
        if status == 503:
            answer = json.loads(body)
            assert answer["message"] == ""
            seen.append(answer["progress"])
        return status == 200

    with running(site, SYNC_MAX_BW="700"):
        wait_until(published, 60, "the first library")
    assert seen == sorted(seen)
    assert any(10 < progress < 100 for progress in seen)


def test_a_slow_subscriber_finishes_the_generation_it_began_and_people_see_the_newest(
    library: Path, site: Site
) -> None:
    with running(site):
        wait_until(site.store.status.exists, 60, "the end of the first sync")
        wait_until(lambda: not running_since(site.library), 60, "its lock")
        begun = json.loads(get(site, "items.json")[1])["items"][0]
        old = {path.name: path.read_bytes() for path in (library / "alpha").iterdir()}
        fake_template(library / "alpha", disk_bytes=100_000, revision=1)
        site.sync()
        assert json.loads(get(site, "items.json")[1])["items"][0]["version"] == "2"
        for file in begun["files"]:
            assert get(site, file["hrefs"][0]) == (200, old[file["name"]])
        assert json.loads(get(site, begun["selfHref"])[1]) == begun
        new = (library / "alpha" / "alpha-disk1.vmdk").read_bytes()
        assert new != old["alpha-disk1.vmdk"]
        assert get(site, "alpha/alpha-disk1.vmdk") == (200, new)


def test_a_published_file_is_never_written_to(library: Path, site: Site) -> None:
    site.sync()
    tree = site.store.items / site.ids()["alpha"].removeprefix("urn:uuid:") / "1"
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in tree.iterdir()}
    for revision in (1, 2):
        fake_template(library / "alpha", disk_bytes=100_000, revision=revision)
        next((library / "alpha").glob("*.mf")).chmod(0o644 if revision == 1 else 0o600)
        site.sync()
    after = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in tree.iterdir()}
    assert after == before
