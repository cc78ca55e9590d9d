"""A directory that the original Content Library Rsync left is taken over with its identity; nothing crosses again."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from clr_client.errors import ManifestError, StoreError, TransportError
from support.original import leave_original
from support.site import Site
from support.templates import fake_template, replace

if TYPE_CHECKING:
    from pathlib import Path

    from support.server import Server


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "primary"
    for name in ("Template_1", "Template_2", "items"):
        fake_template(folder / name, disk_bytes=100_000)
    return folder


@pytest.fixture
def site(server: Server, library: Path, tmp_path: Path) -> Site:
    site = Site(tmp_path / "site", server)
    shutil.copytree(library, site.library, copy_function=shutil.copy2)
    return site


def test_ids_stay_versions_grow_and_no_content_crosses_the_line(site: Site) -> None:
    ids = leave_original(site.library)
    report = site.sync()
    assert report.result == "success"
    assert (report.planned_bytes, report.literal_bytes) == (0, 0)
    assert site.document()["id"] == ids.pop("")
    assert int(site.document()["version"]) > 10
    assert site.ids() == ids
    assert all(int(version) > 7 for version in site.versions().values())


def test_hex_etags_become_decimal_ones(site: Site) -> None:
    leave_original(site.library)
    site.sync()
    for item in site.document("items.json")["items"]:
        assert len({file["etag"] for file in item["files"]}) == 1
        assert all(file["etag"].isdecimal() and isinstance(file["generationNum"], int) for file in item["files"])


def test_the_library_is_served_even_when_the_server_cannot_be_reached(site: Site) -> None:
    ids = leave_original(site.library)
    with pytest.raises(TransportError):
        site.sync(SYNC_PORT="1")
    assert site.document()["id"] == ids[""]
    assert site.versions().keys() == {"Template_1", "Template_2", "items"}


def test_an_interrupted_adoption_is_finished_by_the_next_start(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = leave_original(site.library)
    moving = site.library / ".adopting"
    moving.mkdir()
    (site.library / "lib.json").rename(moving / "lib.json")
    (site.library / "Template_2").rename(moving / "Template_2")
    report = site.sync()
    assert report.planned_bytes == 0
    assert site.document()["id"] == ids[""]
    assert site.versions().keys() == {"Template_1", "Template_2", "items"}


def test_truncated_items_json_keeps_the_ids_from_the_item_manifests(site: Site) -> None:
    ids = leave_original(site.library)
    (site.library / "items.json").write_text((site.library / "items.json").read_text()[:40])
    site.sync()
    assert site.document()["id"] == ids.pop("")
    assert site.ids() == ids


def test_a_damaged_lib_json_is_refused_with_a_remedy_and_nothing_is_lost(site: Site) -> None:
    leave_original(site.library)
    (site.library / "lib.json").write_text('{"vcspVersion": "2", "ver')
    for _ in range(2):
        with pytest.raises(ManifestError, match="backup"):
            site.sync()
    assert (site.store.mirror / "Template_1" / "item.json").is_file()
    assert not site.store.current.exists()


def test_a_folder_with_foreign_files_is_refused(server: Server, tmp_path: Path) -> None:
    site = Site(tmp_path / "other", server)
    (site.library / "Documents").mkdir(parents=True)
    (site.library / "Documents" / "letter.txt").write_text("dear")
    with pytest.raises(StoreError, match="Documents"):
        site.sync()
    assert (site.library / "Documents" / "letter.txt").read_text() == "dear"
    assert not site.store.mirror.exists()


def test_templates_put_into_the_mirror_by_hand_are_not_fetched(server: Server, library: Path, tmp_path: Path) -> None:
    site = Site(tmp_path / "other", server)
    shutil.copytree(library, site.store.mirror, copy_function=shutil.copy2)
    report = site.sync()
    assert (report.planned_bytes, len(report.added)) == (0, 3)


def test_a_broken_template_of_the_original_is_held_and_keeps_its_id_until_it_is_mended(
    library: Path, site: Site
) -> None:
    ids = leave_original(site.library)
    with (site.library / "Template_2" / "Template_2-disk1.vmdk").open("r+b") as disk:
        disk.write(b"half copied")
    good = library / "Template_2" / "Template_2-disk1.vmdk"
    os.utime(site.library / "Template_2" / good.name, ns=(good.stat().st_atime_ns, good.stat().st_mtime_ns))
    report = site.sync()
    assert [held.key for held in report.held] == ["Template_2"]
    assert site.ids() == {name: ids[name] for name in ("Template_1", "items")}
    replace(good, good.read_bytes())  # as good as before, with a new time
    report = site.sync()
    assert report.result == "success"
    assert site.ids()["Template_2"] == ids["Template_2"]
    assert int(site.versions()["Template_2"]) > 7
