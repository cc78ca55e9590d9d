"""What lies in the source's folders becomes items that a strict subscriber accepts."""

from __future__ import annotations

import shutil
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
from clr_client.vcsp.subscriber import Subscriber, check
from support.templates import fake_template, pack_ova
from support.webserver import serving

if TYPE_CHECKING:
    from pathlib import Path

    from support.site import Site


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "primary"
    fake_template(folder / "plain", disk_bytes=20_000)
    return folder


def items(site: Site) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in site.document("items.json")["items"]}


def assert_strictly_readable(site: Site) -> None:
    with serving(site.library / "current") as url:
        report = check(f"{url}/lib.json", full=True)
    assert not report.problems
    assert report.ok


def test_an_ova_is_unpacked_so_that_its_template_deploys(library: Path, site: Site, tmp_path: Path) -> None:
    source = fake_template(tmp_path / "made" / "golden", disk_bytes=30_000).parent
    pack_ova(source, library / "golden.ova")
    pack_ova(source, library / "in a folder" / "golden.ova")
    assert site.sync().result == "success"
    for name in ("golden", "in a folder"):
        assert items(site)[name]["type"] == "vcsp.ovf"
        assert site.content(name, "golden-disk1.vmdk") == (source / "golden-disk1.vmdk").read_bytes()
        assert not any(file["name"].endswith(".ova") for file in items(site)[name]["files"])
    assert_strictly_readable(site)
    before = site.manifests()
    assert site.sync().planned_bytes == 0
    assert site.manifests() == before


def test_an_ova_with_a_member_outside_is_held_and_nothing_is_written_outside(
    library: Path, site: Site, tmp_path: Path
) -> None:
    source = fake_template(tmp_path / "made" / "evil", disk_bytes=1000).parent
    with tarfile.open(library / "evil.ova", "w") as archive:
        for file in sorted(source.iterdir(), key=lambda path: path.suffix != ".ovf"):
            archive.add(file, file.name)
        archive.add(source / "evil.ovf", "../../../escaped.ovf")
    report = site.sync()
    assert [held.key for held in report.held] == ["evil.ova"]
    assert not list(tmp_path.rglob("escaped.ovf"))
    assert items(site).keys() == {"plain"}


def test_a_folder_of_only_isos_is_one_item_per_iso_and_a_loose_iso_is_an_item(library: Path, site: Site) -> None:
    (library / "discs").mkdir()
    for name in ("discs/one.iso", "discs/two.ISO", "loose.iso"):
        (library / name).write_bytes(name.encode())
    site.sync()
    assert items(site).keys() == {"plain", "one.iso", "two.ISO", "loose.iso"}
    assert all(items(site)[name]["type"] == "vcsp.iso" for name in ("one.iso", "two.ISO", "loose.iso"))
    before = site.ids()
    (library / "discs" / "three.iso").write_bytes(b"three")
    site.sync()
    assert {name: site.ids()[name] for name in before} == before
    assert_strictly_readable(site)
    assert (site.library / "current" / "discs" / "one.iso").read_bytes() == b"discs/one.iso"


def test_nested_folders_are_items_and_their_human_urls_work(library: Path, site: Site) -> None:
    fake_template(library / "linux", disk_bytes=1000)
    fake_template(library / "linux" / "ubuntu", disk_bytes=1000)
    site.sync()
    current = site.library / "current"
    for path in ("linux/linux.ovf", "linux/ubuntu/ubuntu.ovf", "plain/plain.ovf"):
        assert (current / path).read_bytes() == (library / path).read_bytes()
    assert_strictly_readable(site)


def test_a_metadata_file_names_and_describes_an_item_and_is_no_file_of_it(library: Path, site: Site) -> None:
    site.sync()
    before = items(site)["plain"]
    (library / "plain" / "clr-item.toml").write_text('name = "Plain, renamed"\ndescription = "For \\"tests\\""\n')
    site.sync()
    after = items(site)["Plain, renamed"]
    assert after["id"] == before["id"]
    assert (after["version"], after["contentVersion"]) == ("2", before["contentVersion"])
    assert after["description"] == 'For "tests"'
    assert [file["name"] for file in after["files"]] == [file["name"] for file in before["files"]]
    assert [file["generationNum"] for file in after["files"]] == [file["generationNum"] for file in before["files"]]


NAMES = [
    "with space",
    "hash#1",
    "100%",
    "what?",
    "quo'te",
    'dou"ble',
    "amp&er",
    "-leading",
    "ünïcode",
    "日本",
    "a+b=c;d,e",
    "x" * 200,
]


def test_names_of_every_kind_reach_the_subscriber_as_they_are(library: Path, site: Site, tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        folder = library / name
        folder.mkdir()
        (folder / f"{name}.bin").write_bytes(f"{number}".encode())
    assert site.sync().result == "success"
    with serving(site.library / "current") as url:
        subscriber = Subscriber(tmp_path / "subscriber")
        subscriber.sync(f"{url}/lib.json")
        assert check(f"{url}/lib.json", full=True).ok
    got = {path.name: path.read_bytes() for files in subscriber.files().values() for path in files.values()}
    assert {f"{name}.bin": f"{number}".encode() for number, name in enumerate(NAMES)}.items() <= got.items()


def test_two_names_that_differ_by_case_only_are_told_apart_by_holding_the_second(library: Path, site: Site) -> None:
    site.sync()
    (library / "PLAIN").mkdir()
    (library / "PLAIN" / "file.bin").write_bytes(b"x")
    report = site.sync()
    assert [held.key for held in report.held] == ["PLAIN"]
    assert "plain" in report.held[0].reason
    assert "plain" in items(site)


def test_a_folder_renamed_while_another_takes_its_old_name_never_makes_two_of_one_name(
    library: Path, site: Site
) -> None:
    site.sync()
    (library / "plain").rename(library / "plain-old")
    fake_template(library / "plain", disk_bytes=1000, revision=3)
    site.sync()
    names = [item["name"] for item in site.document("items.json")["items"]]
    assert sorted(names) == ["plain", "plain-old"]
    assert_strictly_readable(site)


def test_plain_hrefs_are_right_too_and_switching_makes_versions_grow(library: Path, site: Site) -> None:
    (library / "loose.iso").write_bytes(b"x")
    site.sync()
    before = site.versions()
    site.sync(LIBRARY_HREFS="plain")
    assert all(int(site.versions()[name]) > int(version) for name, version in before.items())
    assert items(site)["plain"]["files"][0]["hrefs"][0].startswith("plain/")
    assert_strictly_readable(site)


def test_a_reserved_name_at_the_top_is_held(library: Path, site: Site) -> None:
    for name in ("_items", "_clr"):
        (library / name).mkdir()
        (library / name / "file.bin").write_bytes(b"x")
    report = site.sync()
    assert {held.key for held in report.held} == {"_items", "_clr"}
    assert items(site).keys() == {"plain"}


def test_a_file_that_becomes_a_folder_and_back_is_followed(library: Path, site: Site) -> None:
    (library / "thing").write_bytes(b"file")
    site.sync()
    (library / "thing").unlink()
    (library / "thing").mkdir()
    (library / "thing" / "inner.bin").write_bytes(b"folder")
    site.sync()
    assert site.content("thing", "inner.bin") == b"folder"
    shutil.rmtree(library / "thing")
    (library / "thing").write_bytes(b"file again")
    site.sync()
    assert site.content("thing", "thing") == b"file again"
