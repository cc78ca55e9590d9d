"""From the mirror to a published generation: what is held, what stays, and what the next library holds."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from clr_client.content.digests import DigestCache
from clr_client.content.items import group
from clr_client.files import FileInfo
from clr_client.publishing import select, unfinished
from clr_client.pull import Pulled
from clr_client.vcsp.build import next_library
from clr_client.vcsp.model import FileContent, ItemContent, PublishedLibrary
from support.templates import fake_template
from support.volume import Volume

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 21, tzinfo=UTC)


def content(key: str, name: str) -> ItemContent:
    return ItemContent(key, name, "", "vcsp.other", False, (FileContent("f", 1, "sha256:0"),))


def library(*contents: ItemContent) -> PublishedLibrary:
    return next_library(None, "Library", contents, now=NOW)


def following(published: PublishedLibrary, *contents: ItemContent, stays: tuple[str, ...] = ()) -> dict[str, str]:
    selection = select(published, {item.key: item for item in contents}, stays)
    return {item.key: item.name for item in next_library(published, "Library", selection.contents, now=NOW).items}


def test_an_item_that_wants_a_used_name_stays_published_under_its_old_one():
    before = library(content("a", "a"), content("b", "b"))
    assert following(before, content("a", "a"), content("b", "A")) == {"a": "a", "b": "b"}


def test_of_two_items_adopted_under_one_name_the_second_is_held_and_the_library_goes_on():
    before = library(content("Web", "Web"), content("web", "other"))
    twins = dataclasses.replace(before, items=tuple(dataclasses.replace(item, name=item.key) for item in before.items))
    assert following(twins, content("Web", "Web"), content("web", "web")) == {"Web": "Web"}
    assert following(twins, stays=("Web", "web")) == {"Web": "Web"}


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    volume = Volume(tmp_path / "library")
    fake_template(volume.mirror / "web", disk_bytes=3000)
    volume.put("tools.iso", b"iso")
    volume.sync()
    return volume


def manifests(volume: Volume) -> dict[str, bytes]:
    root = volume.store.current
    items = [volume.store.tree(item) / "item.json" for item in volume.published().items]
    return {str(path): path.read_bytes() for path in (root / "lib.json", root / "items.json", *items)}


def test_a_hundred_runs_of_an_unchanged_source_write_the_same_bytes_and_read_no_content(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = manifests(volume)
    real = os.open

    def watched(path: str, flags: int, *rest: int, **more: int) -> int:
        assert not str(path).endswith((".vmdk", ".iso", ".ovf", ".mf")), path
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", watched)
    for _ in range(100):
        volume.sync()
    assert manifests(volume) == before
    assert volume.store.current_number() == 1


def test_a_half_copied_template_is_held_at_its_last_good_version_and_the_others_go_on(volume: Volume) -> None:
    good = (volume.store.current / "web" / "web-disk1.vmdk").read_bytes()
    fake_template(volume.mirror / "web", disk_bytes=3000, revision=1)
    (volume.mirror / "web" / "web-disk1.vmdk").unlink()
    volume.put("tools.iso", b"newer iso")
    volume.sync()
    (held,) = volume.held
    assert (held.key, held.serves) == ("web", 1)
    assert "web-disk1.vmdk" in held.reason
    assert (volume.store.current / "web" / "web-disk1.vmdk").read_bytes() == good
    assert volume.versions() == {"tools.iso": 2, "web": 1}
    fake_template(volume.mirror / "web", disk_bytes=3000, revision=1)
    volume.sync()
    assert volume.held == ()
    assert volume.versions() == {"tools.iso": 2, "web": 2}


def test_a_new_item_that_is_not_whole_is_held_and_serves_nothing(volume: Volume) -> None:
    fake_template(volume.mirror / "half", disk_bytes=3000)
    (volume.mirror / "half" / "half-disk1.vmdk").unlink()
    volume.sync()
    assert [(held.key, held.serves) for held in volume.held] == [("half", None)]
    assert volume.versions().keys() == {"tools.iso", "web"}


def test_an_impossible_name_is_held_with_its_reason_and_the_others_go_on(volume: Volume) -> None:
    volume.put("bad\x1bname/disk.vmdk")
    (volume.mirror / os.fsdecode(b"not-utf8-\xff")).mkdir()
    (volume.mirror / os.fsdecode(b"not-utf8-\xff") / "disk").write_bytes(b"x")
    volume.sync()
    assert len(volume.held) == 2
    assert volume.versions().keys() == {"tools.iso", "web"}
    assert all(held.reason.isprintable() for held in volume.held)


def test_a_renamed_library_and_a_new_description_grow_versions_but_not_content_versions(volume: Volume) -> None:
    before = volume.published()
    volume.sync(LIBRARY_NAME="Renamed")
    renamed = volume.published()
    assert (renamed.name, renamed.id, renamed.version) == ("Renamed", before.id, before.version + 1)
    assert renamed.items == before.items
    volume.put("web/clr-item.toml", b'name = "Web"\ndescription = "New"')
    volume.sync(LIBRARY_NAME="Renamed")
    old, new = (next(item for item in lib.items if item.key == "web") for lib in (renamed, volume.published()))
    assert (new.name, new.description, new.id) == ("Web", "New", old.id)
    assert (new.version, new.content_version, new.etag) == (old.version + 1, old.content_version, old.etag)
    assert new.files == old.files


def test_names_equal_after_the_cut_at_80_characters_or_in_case_hold_the_second_with_the_reason(volume: Volume) -> None:
    volume.put("one/Photon/disk")
    volume.put("two/photon/disk")
    volume.sync()
    (held,) = volume.held
    assert held.key == "two/photon"
    assert "already that of one/Photon" in held.reason
    for number in (1, 2):
        volume.put(f"{'n' * 90}{number}/disk")
    volume.sync()
    assert len([key for key in volume.versions() if key.startswith("nnn")]) == 2


def test_a_folder_renamed_while_a_new_one_takes_its_name_never_gives_two_items_one_name(volume: Volume) -> None:
    (volume.mirror / "web").rename(volume.mirror / "web-old")
    volume.put("web/disk", b"another")
    ids = volume.ids()
    volume.sync()
    names = [item["name"] for item in json.loads((volume.store.current / "items.json").read_bytes())["items"]]
    assert sorted(names) == ["tools.iso", "web", "web-old"]
    assert volume.ids()["web"] == ids["web"]
    assert volume.versions()["web"] == 2


def test_an_item_held_for_its_name_keeps_its_old_files_when_hrefs_change(volume: Volume) -> None:
    """Its folder in the mirror has new files already; they must not slip into the version that stays."""
    volume.put("a/disk", b"old")
    volume.sync()
    volume.put("a/clr-item.toml", b'name = "web"')
    volume.put("a/disk", b"newer content")
    volume.sync(LIBRARY_HREFS="plain")
    assert [held.key for held in volume.held] == ["a"]
    item = next(item for item in volume.published().items if item.key == "a")
    assert (volume.store.tree(item) / "disk").read_bytes() == b"old"
    assert item.files[0].size == 3


def test_a_digest_cache_that_cannot_be_kept_costs_time_only(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_self: DigestCache, _path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DigestCache, "save", full)
    volume.put("tools.iso", b"newer iso")
    volume.sync()
    assert volume.versions()["tools.iso"] == 2
    assert "read again next time" in caplog.text


def test_a_file_removed_from_an_item_goes_from_its_next_version(volume: Volume) -> None:
    volume.put("plain/a", b"1")
    volume.put("plain/b", b"2")
    volume.sync()
    (volume.mirror / "plain" / "b").unlink()
    volume.sync()
    item = next(item for item in volume.published().items if item.key == "plain")
    assert [file.name for file in item.files] == ["a"]
    assert item.version == 2
    assert not (volume.store.tree(item) / "b").exists()


def test_everything_gone_is_an_empty_library_with_the_same_id(volume: Volume) -> None:
    before = volume.published()
    shutil.rmtree(volume.mirror)
    volume.mirror.mkdir()
    after = volume.sync()
    assert (after.id, after.items) == (before.id, ())
    assert after.version == before.version + 1


def test_what_did_not_arrive_whole_is_named_with_the_reason() -> None:
    files = (FileInfo("web/a", 5, 1), FileInfo("web/b", 5, 1))
    (source,) = group(files)
    here = {file.path: file for file in files}
    assert unfinished(source, Pulled(mirror=here)) == ""
    short = {**here, "web/b": FileInfo("web/b", 4, 1)}
    cases = [
        (Pulled(mirror=short), "b did not arrive whole: it changed or was unreadable at the server"),
        (Pulled(mirror=short, stopped="SYNC_WINDOW ended"), "b did not arrive whole: SYNC_WINDOW ended"),
        (Pulled(mirror=short, problems=("x", 'rsync: "/b": Permission denied')), 'rsync: "/b": Permission denied'),
        (Pulled(mirror=here, unconfirmed={"web/a": "127.0.0.1:22"}), "before the server could confirm"),
    ]
    for pulled, reason in cases:
        assert reason in unfinished(source, pulled)
