"""`clr publish`: manifests in a plain directory, incremental, adopted, and never taken back."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import pytest
from clr_client import catalogue, settled
from clr_client.catalogue import DIGESTS, STATE
from clr_client.directory import SETTLED, Published, publish_directory
from clr_client.errors import LockedError, ManifestError, StoreError
from clr_client.vcsp.record import load as load_record
from support.templates import fake_template, pack_ova, replace
from support.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Callable

    from clr_client.vcsp.model import PublishedLibrary

UUID = "urn:uuid:{}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A template, a nested one, an ISO and a folder of two ISOs."""
    root = tmp_path / "templates"
    fake_template(root / "photon", disk_bytes=2000)
    fake_template(root / "lab" / "web", disk_bytes=2000)
    replace(root / "tools.iso", b"tools")
    (root / "isos").mkdir()
    replace(root / "isos" / "one.iso", b"1")
    replace(root / "isos" / "two.iso", b"22")
    return root


def publish(folder: Path) -> Published:
    return publish_directory(folder, "Golden")


def recorded(folder: Path) -> PublishedLibrary:
    """The library as the folder's record has it."""
    return load_record((folder / STATE).read_bytes())


def published(folder: Path, name: str = "Golden") -> PublishedLibrary:
    """Publish a folder and return its library."""
    publish_directory(folder, name)
    return recorded(folder)


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Read as a subscriber does: hrefs only, sizes held against the files."""
    library = json.loads((folder / "lib.json").read_bytes())
    items = json.loads((folder / library["itemsHref"]).read_bytes())["items"]
    for item in items:
        assert json.loads((folder / unquote(item["selfHref"])).read_bytes()) == item
        for file in item["files"]:
            assert (folder / unquote(file["hrefs"][0])).stat().st_size == file["size"]
    return {item["name"]: item for item in items}


def version(folder: Path) -> int:
    return int(json.loads((folder / "lib.json").read_bytes())["version"])


def stand(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file's inode and time of change: what no write leaves alone."""
    return {str(path): (path.stat().st_ino, path.stat().st_ctime_ns) for path in folder.rglob("*") if path.is_file()}


OPENED: list[str] | None = None


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and OPENED is not None and isinstance(args[0], str | os.PathLike):
        OPENED.append(os.fspath(args[0]))


sys.addaudithook(_watch)


def opened_by(work: Callable[[], object]) -> list[str]:
    global OPENED
    OPENED = []
    try:
        work()
        return OPENED
    finally:
        OPENED = None


def test_a_plain_directory_becomes_a_library_whose_files_stay_where_they_are(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = publish(folder)
    assert done.changed
    assert done.held == ()
    items = read(folder)
    assert {name: item["type"] for name, item in items.items()} == {
        "photon": "vcsp.ovf",
        "web": "vcsp.ovf",
        "tools.iso": "vcsp.iso",
        "one.iso": "vcsp.iso",
        "two.iso": "vcsp.iso",
    }
    assert items["web"]["files"][0]["hrefs"] == ["lab/web/web-disk1.vmdk"]
    assert {path: path.read_bytes() for path in before} == before


def test_an_unchanged_second_run_writes_nothing_and_opens_no_content(folder: Path) -> None:
    publish(folder)
    before = stand(folder)
    results: list[Published] = []
    opened = opened_by(lambda: results.append(publish(folder)))
    assert not results[0].changed
    assert stand(folder) == before
    content = [path for path in opened if path.startswith(str(folder)) and not path.endswith((".json", str(folder)))]
    assert content == []


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Is added to when `clr publish` looks at every item."""
    found: list[str] = []
    real = catalogue.write

    def write(*arguments: Any) -> Any:
        found.append("looked")
        return real(*arguments)

    monkeypatch.setattr(catalogue, "write", write)
    return found


def test_an_unchanged_second_run_says_what_the_first_one_said_without_a_look_at_the_items(
    folder: Path, looks: list[str]
) -> None:
    (folder / "ovas").mkdir()
    for name in ("one", "two"):
        pack_ova(fake_template(folder / "photon", name=name, disk_bytes=2000).parent, folder / "ovas" / f"{name}.ova")
    shutil.rmtree(folder / "photon")
    first = publish(folder)
    assert first.changed
    assert first.warnings
    second = publish(folder)
    assert second == dataclasses.replace(first, changed=False)
    assert looks == ["looked"]


def unlike(path: Path) -> None:
    """Change a manifest so that it says something else in as many bytes, at the same time."""
    before = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def same_size_and_time(path: Path) -> None:
    """Put another file of the same size and time into a file's place."""
    before = path.stat()
    replace(path, bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "a template was added": lambda folder: fake_template(folder / "more", disk_bytes=2000),
    "a file was added": lambda folder: (folder / "photon" / "more").touch(),
    "a file is gone": lambda folder: (folder / "tools.iso").unlink(),
    "a file was touched": lambda folder: os.utime(folder / "tools.iso", (1, 1)),
    "a file became longer": lambda folder: replace(folder / "tools.iso", b"tools and more"),
    "a file was replaced": lambda folder: same_size_and_time(folder / "tools.iso"),
    "a file has another name": lambda folder: (folder / "tools.iso").rename(folder / "tool.iso"),
    "lib.json was changed": lambda folder: unlike(folder / "lib.json"),
    "items.json was changed": lambda folder: unlike(folder / "items.json"),
    "an item.json was changed": lambda folder: unlike(folder / "photon" / "item.json"),
    "an item.json is gone": lambda folder: (folder / "photon" / "item.json").unlink(),
    "a single file's item.json was changed": lambda folder: unlike(next((folder / "_items").glob("*/*/item.json"))),
    "the record was changed": lambda folder: unlike(folder / STATE),
    "the record is gone": lambda folder: (folder / STATE).unlink(),
    "the note was changed": lambda folder: unlike(folder / SETTLED),
    "the note is gone": lambda folder: (folder / SETTLED).unlink(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_run_looks_at_every_item_and_says_what_is_there_again_when(folder: Path, looks: list[str], what: str) -> None:
    publish(folder)
    CHANGES[what](folder)
    publish(folder)
    assert len(looks) == 2
    shown = {file["hrefs"][0] for item in read(folder).values() for file in item["files"]}
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".json"}
    assert {Path(unquote(href)) for href in shown} == files
    publish(folder)
    assert len(looks) == 2


def test_a_run_looks_at_every_item_again_under_another_name_or_by_another_release(
    folder: Path, looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(folder)
    assert publish_directory(folder, "Silver").changed
    monkeypatch.setattr(settled, "__version__", "1000.0.0")
    assert not publish_directory(folder, "Silver").changed
    assert len(looks) == 3


def test_what_is_held_is_said_by_every_run(folder: Path, looks: list[str]) -> None:
    next((folder / "photon").glob("*.vmdk")).unlink()
    for _ in range(3):
        assert [held.key for held in publish(folder).held] == ["photon"]
    assert len(looks) == 3


def test_only_a_changed_file_is_read_again_and_only_its_item_grows(folder: Path) -> None:
    first = published(folder)
    fake_template(folder / "photon", disk_bytes=2000, revision=1)
    os.utime(folder / "photon" / "photon.ovf", (2_000_000_000, 2_000_000_000))
    opened = opened_by(lambda: publish(folder))
    assert not [path for path in opened if "lab/web/web" in path or path.endswith(".iso")]
    items = read(folder)
    assert {item["version"] for name, item in items.items() if name != "photon"} == {"1"}
    assert items["photon"]["version"] == "2"
    assert version(folder) == 2
    assert {item["id"] for item in items.values()} == {item.id for item in first.items}


def test_the_data_is_referenced_only_once_it_is_there_lib_json_comes_last(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = catalogue.replace_file

    def record(path: Path, data: bytes) -> None:
        order.append(path.name)
        real(path, data)

    monkeypatch.setattr(catalogue, "replace_file", record)
    publish(folder)
    assert order == ["item.json"] * 5 + ["items.json", STATE, "lib.json"]


def test_a_run_that_dies_at_any_write_is_finished_by_the_next_with_the_same_ids(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = {item.key: item.id for item in published(folder).items}
    real = catalogue.replace_file
    for fatal in range(1, 6):
        before = version(folder)
        fake_template(folder / "photon", disk_bytes=2000 + fatal)
        count = 0

        def dying(path: Path, data: bytes, fatal: int = fatal) -> None:
            nonlocal count
            count += 1
            if count == fatal:
                raise OSError(28, "No space left on device", str(path))
            real(path, data)

        with monkeypatch.context() as patch:
            patch.setattr(catalogue, "replace_file", dying)
            if fatal < 5:
                with pytest.raises(StoreError, match="Make room"):
                    publish(folder)
                assert version(folder) == before
        publish(folder)
        assert version(folder) > before
        assert {item.key: item.id for item in published(folder).items} == ids
        read(folder)


def test_an_item_that_is_gone_leaves_no_manifest_behind(folder: Path) -> None:
    publish(folder)
    (folder / "tools.iso").unlink()
    for path in (folder / "photon").iterdir():
        if path.name != "item.json":
            path.unlink()
    shutil.rmtree(folder / "lab")
    publish(folder)
    assert read(folder).keys() == {"one.iso", "two.iso"}
    manifests = {path.relative_to(folder).parts[0] for path in folder.rglob("item.json")}
    assert manifests == {"_items"}
    assert len(list(folder.rglob("item.json"))) == 2
    assert not (folder / "lab").exists()


def test_a_held_item_stays_published_while_its_published_files_are_there(folder: Path) -> None:
    before = published(folder)
    ovf = folder / "photon" / "photon.ovf"
    replace(ovf, ovf.read_bytes().replace(b"</Envelope>", b"</Envelop3>"))
    done = publish(folder)
    assert [held.key for held in done.held] == ["photon"]
    assert "photon" in read(folder)
    assert recorded(folder) == before
    assert not done.changed
    next((folder / "photon").glob("*.vmdk")).unlink()
    assert "photon" not in {item.key for item in published(folder).items}


def test_an_item_that_was_never_whole_is_held_and_the_others_are_published(folder: Path) -> None:
    next((folder / "photon").glob("*.vmdk")).unlink()
    done = publish(folder)
    assert [held.key for held in done.held] == ["photon"]
    assert "photon-disk1.vmdk" in done.held[0].reason
    assert len(read(folder)) == 4


def test_an_ova_is_published_as_the_plain_file_it_is_with_a_warning(tmp_path: Path) -> None:
    fake_template(tmp_path / "web", disk_bytes=2000)
    folder = tmp_path / "library"
    pack_ova(tmp_path / "web", folder / "web.ova")
    done = publish(folder)
    (item,) = read(folder).values()
    assert [file["name"] for file in item["files"]] == ["web.ova"]
    assert any("web.ova" in warning and "not unpacked" in warning for warning in done.warnings)
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        "_items",
        "items.json",
        "lib.json",
        "web.ova",
    ]


@pytest.mark.parametrize("name", ["with space", "#%?&'\"", "ünï", "-n", "e\u0301"])
def test_a_hostile_name_is_quoted_in_hrefs(tmp_path: Path, name: str) -> None:
    replace_in = tmp_path / "t" / name
    replace_in.mkdir(parents=True)
    replace(replace_in / f"{name}.bin", b"x")
    publish(tmp_path / "t")
    (item,) = read(tmp_path / "t").values()
    assert item["files"][0]["hrefs"] == [f"{quote(name, safe='')}/{quote(name, safe='')}.bin"]


def make_vcsp(folder: Path) -> dict[str, str]:
    """Manifests as the make_vcsp scripts leave them: hex etags, no generation numbers, unquoted."""
    ids = {}
    items = []
    for path in sorted(folder.rglob("*.ovf")):
        home = path.parent
        ids[home.name] = UUID.format(uuid.uuid4())
        files = [
            {
                "name": file.name,
                "size": file.stat().st_size,
                "etag": "d41d8cd98f00b204e9800998ecf8427e",
                "hrefs": [str(file.relative_to(folder))],
            }
            for file in sorted(home.iterdir())
        ]
        item = {
            "created": "2020-01-01T00:00Z",
            "description": "",
            "version": "7",
            "contentVersion": "1",
            "files": files,
            "id": ids[home.name],
            "name": home.name,
            "metadata": [],
            "properties": {},
            "selfHref": f"{home.relative_to(folder)}/item.json",
            "type": "vcsp.ovf",
        }
        (home / "item.json").write_text(json.dumps(item, indent=4))
        items.append(item)
    ids[""] = UUID.format(uuid.uuid4())
    library = {"vcspVersion": "2", "version": "23", "contentVersion": "1", "name": "Old", "id": ids[""]}
    library |= {"created": "2020-01-01T00:00Z", "itemsHref": "items.json"}
    (folder / "lib.json").write_text(json.dumps(library, indent=4))
    (folder / "items.json").write_text(json.dumps({"items": items}, indent=4))
    return ids


def test_manifests_of_make_vcsp_are_adopted_ids_stay_and_versions_grow(folder: Path) -> None:
    ids = make_vcsp(folder)
    publish(folder)
    items = read(folder)
    assert recorded(folder).id == ids[""]
    assert {name: items[name]["id"] for name in ("photon", "web")} == {name: ids[name] for name in ("photon", "web")}
    assert int(items["photon"]["version"]) > 7
    assert version(folder) > 23
    assert all(file["etag"].isdecimal() and file["generationNum"] for item in items.values() for file in item["files"])


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"format": 99}'])
def test_a_damaged_record_is_made_up_from_the_manifests(folder: Path, damage: bytes) -> None:
    before = published(folder)
    (folder / STATE).write_bytes(damage)
    after = published(folder)
    assert after.id == before.id
    assert {item.key: item.id for item in after.items} == {item.key: item.id for item in before.items}
    assert after.version > before.version


def test_a_lost_record_and_a_truncated_list_are_made_up_from_the_items_own_manifests(folder: Path) -> None:
    before = published(folder)
    (folder / STATE).unlink()
    (folder / "items.json").write_bytes((folder / "items.json").read_bytes()[:300])
    after = published(folder)
    assert {item.id for item in after.items} == {item.id for item in before.items}


def test_lib_json_alone_lost_is_written_again_as_it_was(folder: Path) -> None:
    publish(folder)
    before = (folder / "lib.json").read_bytes()
    (folder / "lib.json").unlink()
    publish(folder)
    assert (folder / "lib.json").read_bytes() == before


def test_a_lib_json_that_cannot_be_read_is_refused_when_there_is_no_record(folder: Path) -> None:
    (folder / "lib.json").write_bytes(b'{"version": "5"')
    with pytest.raises(ManifestError, match=r"lib.json is not JSON.*Restore it from a backup, or remove it"):
        publish(folder)
    assert (folder / "lib.json").read_bytes() == b'{"version": "5"'


def test_an_old_record_from_a_backup_takes_no_version_back(folder: Path) -> None:
    publish(folder)
    old = (folder / STATE).read_bytes()
    for revision in range(1, 4):
        fake_template(folder / "photon", disk_bytes=2000, revision=revision)
        newest = published(folder)
    (folder / STATE).write_bytes(old)
    fake_template(folder / "photon", disk_bytes=2000)
    after = published(folder)
    assert after.version > newest.version
    photon, earlier = (next(item for item in lib.items if item.key == "photon") for lib in (after, newest))
    assert photon.version > earlier.version
    assert photon.etag > earlier.etag
    assert all(file.generation_num > earlier.etag for file in photon.files)


def test_an_old_record_that_knows_an_item_removed_since_grows_the_library(folder: Path) -> None:
    publish(folder)
    old = (folder / STATE).read_bytes()
    (folder / "tools.iso").rename(folder / "isos" / "kept.bak")
    removed = published(folder)
    (folder / "isos" / "kept.bak").rename(folder / "tools.iso")
    (folder / STATE).write_bytes(old)
    assert published(folder).version > removed.version
    assert "tools.iso" in read(folder)


def test_a_new_name_of_the_library_grows_its_version_only(folder: Path) -> None:
    first = published(folder)
    second = published(folder, "Silver")
    assert (second.name, second.id, second.version) == ("Silver", first.id, first.version + 1)
    assert second.items == first.items


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(StoreError, match="is not a folder"):
            publish(path)
        (tmp_path / "file").touch()


def test_two_at_once_are_refused(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match="another process publishes"):
            publish(folder)
    finally:
        os.close(handle)
    publish(folder)


def test_nothing_but_our_files_is_added(folder: Path) -> None:
    before = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    publish(folder)
    after = {path.relative_to(folder).as_posix() for path in folder.rglob("*")} - before
    ours = {"lib.json", "items.json", STATE, DIGESTS, SETTLED, "photon/item.json", "lab/web/item.json"}
    assert {path for path in after if not path.startswith("_items")} == ours


def test_an_empty_directory_is_an_empty_library(tmp_path: Path) -> None:
    assert published(tmp_path).items == ()
    assert read(tmp_path) == {}


@pytest.mark.parametrize("inside", [".", "current", "items", "mirror"])
def test_a_clients_own_volume_is_refused_and_left_as_it_is(tmp_path: Path, inside: str) -> None:
    volume = Volume(tmp_path / "library")
    volume.put("a/disk.vmdk", b"a")
    volume.put("loose.iso", b"x")
    volume.sync()
    before = {path: path.read_bytes() for path in volume.store.root.rglob("*") if path.is_file()}
    with pytest.raises(StoreError, match="client's library volume"):
        publish_directory(volume.store.root / inside, "X")
    assert {path: path.read_bytes() for path in volume.store.root.rglob("*") if path.is_file()} == before
