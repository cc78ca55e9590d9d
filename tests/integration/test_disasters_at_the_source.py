"""What an administrator or a storage box can do to the primary site's library, and what a remote site makes of it."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest
from clr_client.errors import ClrError, GuardError
from support.server import Server
from support.site import Site
from support.templates import fake_template

if TYPE_CHECKING:
    from pathlib import Path

NAMES = tuple(f"template-{number}" for number in range(10))


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "primary"
    for name in NAMES:
        fake_template(folder / name, disk_bytes=2000)
    return folder


def published_names(site: Site) -> list[list[str]]:
    """The names of each generation that is kept, oldest first."""
    generations = sorted(site.store.generations.iterdir(), key=lambda folder: int(folder.name))
    lists = [json.loads((folder / "items.json").read_bytes())["items"] for folder in generations]
    return [[item["name"] for item in items] for items in lists]


def test_six_of_ten_items_gone_are_held_for_confirmation_and_five_of_ten_are_taken_for_meant(
    library: Path, site: Site
) -> None:
    site.sync()
    before, ids = site.manifests(), site.ids()
    elsewhere = library.with_name("elsewhere")
    elsewhere.mkdir()
    for name in NAMES[:6]:
        (library / name).rename(elsewhere / name)
    with pytest.raises(GuardError, match=r"6 of 10 items are gone .*SYNC_MAX_DELETE=50%.*--allow-deletes"):
        site.sync()
    assert site.manifests() == before
    assert all((site.store.mirror / name).is_dir() for name in NAMES)
    (elsewhere / NAMES[5]).rename(library / NAMES[5])
    report = site.sync()
    assert report.removed == NAMES[:5]
    assert site.ids() == {name: ids[name] for name in NAMES[5:]}


def test_a_library_that_the_server_may_not_read_fails_the_run_and_touches_nothing(
    library: Path, tmp_path: Path
) -> None:
    wrapper: tuple[str, ...] = ()
    if os.geteuid() == 0:  # without these capabilities root, too, can only read what it may
        os.chown(library, 12345, 12345)
        wrapper = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    with Server(library, tmp_path / "server", wrapper=wrapper) as server:
        site = Site(tmp_path / "site", server)
        site.sync()
        before = site.manifests()
        library.chmod(0)
        try:
            with pytest.raises(ClrError) as caught:
                site.sync(allow_deletes=True)
        finally:
            library.chmod(0o755)
        assert "Permission denied" in str(caught.value)
        assert site.manifests() == before
        assert all((site.store.mirror / name).is_dir() for name in NAMES)
        assert json.loads(site.store.status.read_bytes())["runs"][0]["result"] == "failed"
        assert site.sync().result == "success"


@pytest.mark.parametrize("copied", ["without its disk", "with half of its disk"])
def test_a_half_copied_template_is_named_in_the_status_and_all_others_go_on(
    library: Path, site: Site, copied: str
) -> None:
    site.sync()
    good = site.content("template-0", "template-0-disk1.vmdk")
    for name in ("template-0", "new"):
        fake_template(library / name, disk_bytes=3000, revision=1)
        disk = library / name / f"{name}-disk1.vmdk"
        if copied == "without its disk":
            disk.unlink()
        else:
            os.truncate(disk, 1000)
    fake_template(library / "template-1", disk_bytes=3000, revision=1)
    report = site.sync()
    assert (report.result, report.updated) == ("partial", ("template-1",))
    held = {entry["key"]: entry for entry in json.loads(site.store.status.read_bytes())["held"]}
    assert held.keys() == {"template-0", "new"}
    assert all(f"{name}-disk1.vmdk" in held[name]["reason"] for name in held)
    assert (held["template-0"]["serves"], held["new"]["serves"]) == (1, None)
    assert site.content("template-0", "template-0-disk1.vmdk") == good
    assert "new" not in site.versions()


def test_a_renamed_folder_is_another_item_and_no_generation_ever_has_one_name_twice(library: Path, site: Site) -> None:
    site.sync()
    ids = site.ids()
    first, second, third = NAMES[:3]
    (library / first).rename(library / "renamed")
    fake_template(library / first, disk_bytes=2500, revision=3)  # something new under the old name
    (library / second).rename(library / "swap")
    (library / third).rename(library / second)
    (library / "swap").rename(library / third)
    assert site.sync().result == "success"
    after = site.ids()
    assert after.keys() == ids.keys() | {"renamed"}
    assert after["renamed"] not in ids.values()
    assert {name: after[name] for name in NAMES} == ids
    shutil.rmtree(library / first)
    (library / "renamed").rename(library / first)
    site.sync()
    assert site.ids() == ids
    names = published_names(site)
    assert len(names) == 3
    assert all(len(set(generation)) == len(generation) for generation in names)


def test_of_two_templates_with_one_name_the_second_is_refused_with_the_reason_whichever_comes_first(
    library: Path, site: Site
) -> None:
    long = "a" * 80
    fake_template(library / "x" / "same", name="t", disk_bytes=500)
    fake_template(library / f"{long}-one", name="t", disk_bytes=500)
    site.sync()
    before = site.versions()
    fake_template(library / "a" / "SAME", name="t", disk_bytes=500, revision=1)
    fake_template(library / f"{long}-other", name="t", disk_bytes=500)
    fake_template(library / NAMES[0].upper(), name="t", disk_bytes=500)
    for _ in range(2):
        report = site.sync()
        assert {held.key: held.reason for held in report.held} == {
            "a/SAME": 'the name "SAME" is already that of x/same',
            NAMES[0].upper(): f'the name "{NAMES[0].upper()}" is already that of {NAMES[0]}',
        }
        alike = [name for name in site.versions() if name.startswith("aaa")]
        assert (len(alike), {len(name) for name in alike}) == (2, {80})  # cut, and still told apart
        assert before.items() <= site.versions().items()
        assert site.content("same", "t-disk1.vmdk") == (library / "x" / "same" / "t-disk1.vmdk").read_bytes()
    shutil.rmtree(library / "x")
    assert site.sync().added == ("SAME",)
