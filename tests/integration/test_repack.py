"""`clr repack` with real disks: qemu reads them, rsync finds more in them, and a site that pulls meanwhile is safe."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from clr_client.content.digests import DigestCache
from clr_client.content.items import group, scan
from clr_client.content.verify import verify
from clr_client.errors import HeldError
from clr_client.repack.template import repack
from support import faultpoints
from support.faultpoints import Kill
from support.site import CLR, Site
from support.templates import TemplateMaker, envelope, fake_template

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img makes the disks")

DISK = "deb-disk1.vmdk"


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> TemplateMaker:
    return TemplateMaker(tmp_path_factory.mktemp("disks"), megabytes=8)


@pytest.fixture
def library(tmp_path: Path, maker: TemplateMaker) -> Path:
    """A primary site with a real template and one that is never touched."""
    maker.template(tmp_path / "primary" / "deb")
    fake_template(tmp_path / "primary" / "other")
    return tmp_path / "primary"


def run(*command: object) -> str:
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, timeout=300).stdout


def check_same(one: Path, two: Path) -> None:
    """Both are sound stream-optimized VMDKs of the same content and size."""
    for disk in (one, two):
        run("qemu-img", "check", "-f", "vmdk", disk)
        facts = json.loads(run("qemu-img", "info", "--output=json", disk))
        assert facts["format-specific"]["data"]["create-type"] == "streamOptimized"
    run("qemu-img", "compare", "-s", "-f", "vmdk", "-F", "vmdk", one, two)


def accepted(folder: Path) -> bool:
    (item,) = (item for item in group(scan(folder.parent)) if item.key == folder.name)
    try:
        verify(item, folder.parent, DigestCache())
    except HeldError:
        return False
    return True


def test_qemu_reads_the_same_disk_after_it_was_repacked_and_after_the_way_back(
    tmp_path: Path, maker: TemplateMaker
) -> None:
    folder = tmp_path / "deb"
    original = maker.disk("base", 0)
    maker.template(folder)
    told = run(CLR, "repack", "--dry-run", folder)
    done = run(CLR, "repack", folder)
    assert told.replace("would be about", "now") == done
    check_same(original, folder / DISK)
    assert (folder / DISK).stat().st_size > 1.5 * original.stat().st_size
    run("qemu-img", "convert", "-f", "vmdk", "-O", "raw", folder / DISK, tmp_path / "raw")
    run("cmp", tmp_path / "raw", original.with_suffix(".raw"))
    run("sha256sum", "-c", _as_sums(folder))
    repacked = (folder / DISK).read_bytes()
    assert "left as it is" in run(CLR, "repack", folder)
    assert (folder / DISK).read_bytes() == repacked
    run(CLR, "repack", "--compress", folder)
    check_same(original, folder / DISK)
    assert (folder / DISK).stat().st_size < 1.1 * original.stat().st_size
    repack(folder)
    assert (folder / DISK).read_bytes() == repacked


def _as_sums(folder: Path) -> Path:
    """The manifest in the form that sha256sum checks."""
    lines = re.findall(r"SHA256\((.*)\)= (\w+)", (folder / "deb.mf").read_text())
    sums = folder.parent / "sums"
    sums.write_text("".join(f"{digest}  {folder / name}\n" for name, digest in lines))
    return sums


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (1, ()),
        (33 << 20, ("-W", "-m", "8")),
        ((33 << 20) + 7 * 512, ("-o", "subformat=streamOptimized,zeroed_grain=on")),
        (60_000_000_000, ()),
    ],
    ids=["one sector", "grains out of order", "zeroed grains", "60 GB"],
)
def test_disks_of_any_size_and_order_stay_what_they_are(tmp_path: Path, size: int, options: tuple[str, ...]) -> None:
    folder, raw = tmp_path / "vm", tmp_path / "raw"
    folder.mkdir()
    generator = random.Random(size)
    with raw.open("wb") as stream:
        stream.truncate(size)
        for _ in range(60):
            stream.seek(generator.randrange(size))
            stream.write(generator.randbytes(min(size - stream.tell(), generator.randrange(1, 70_000))))
        stream.seek(-1, os.SEEK_END)
        stream.write(b"!")
    disk = folder / "vm.vmdk"
    options = ("-o", "subformat=streamOptimized", *options)
    run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", *options, raw, disk)
    (folder / "vm.ovf").write_bytes(envelope("vm", {"vm.vmdk": disk.stat().st_size}, capacity=size))
    original = shutil.copyfile(disk, tmp_path / "original.vmdk")
    repack(folder)
    check_same(original, disk)
    assert accepted(folder)
    repack(folder, compress=True)
    check_same(original, disk)
    assert accepted(folder)


def literal_bytes(old: Path, new: Path, scratch: Path) -> int:
    """Bytes of ``new`` that rsync does not find in ``old``, with blocks of 4096 bytes."""
    target = shutil.copyfile(old, scratch)
    told = run("rsync", "--no-whole-file", "--ignore-times", "--block-size=4096", "--stats", new, target)
    assert target.read_bytes() == new.read_bytes()
    found = re.search(r"^Literal data: ([\d,]+) bytes$", told, re.MULTILINE)
    assert found
    return int(found[1].replace(",", ""))


def test_less_is_sent_between_two_repacked_revisions_than_between_the_originals(
    tmp_path: Path, maker: TemplateMaker
) -> None:
    originals, repacked = [], []
    for revision in (0, 1):
        for disks, name in ((originals, f"original-{revision}"), (repacked, f"repacked-{revision}")):
            maker.template(tmp_path / name, name="deb", revision=revision)
            disks.append(tmp_path / name / DISK)
        repack(tmp_path / f"repacked-{revision}")
    before = literal_bytes(*originals, tmp_path / "scratch")
    after = literal_bytes(*repacked, tmp_path / "scratch")
    print(f"{before} bytes between the originals, {after} between the repacked ones")
    assert after < 0.85 * before


def test_a_library_of_repacked_templates_is_published_without_a_word(library: Path) -> None:
    run(CLR, "repack", library / "deb")
    done = subprocess.run(
        [CLR, "publish", str(library), "--name", "Golden"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 items; manifests written" in done.stdout


def test_a_site_that_pulls_while_files_are_put_in_place_keeps_its_version_and_has_the_new_one_afterwards(
    tmp_path: Path, library: Path, site: Site
) -> None:
    original = (library / "deb" / DISK).read_bytes()
    site.sync()
    assert site.versions() == {"deb": "1", "other": "1"}
    pristine = shutil.copytree(library / "deb", tmp_path / "pristine")
    work = shutil.copytree(pristine, tmp_path / "work")
    points = faultpoints.run(lambda: repack(work), work).points
    (first,) = (number for number, point in enumerate(points, 1) if point.endswith(f"rename .clr-repack.ready/{DISK}"))
    # Before the disk and before the manifest comes to its place.
    for number, held in ((first, []), (first + 2, ["deb"])):
        shutil.rmtree(library / "deb")
        shutil.copytree(pristine, library / "deb")
        assert faultpoints.run(lambda: repack(library / "deb"), library / "deb", Kill(number)).killed
        assert [entry.key for entry in site.sync().held] == held
        assert site.versions() == {"deb": "1", "other": "1"}
        assert site.content("deb", DISK) == original
        assert not list(site.store.mirror.rglob(".clr-repack*"))
    repack(library / "deb")
    assert site.sync().held == ()
    assert site.versions() == {"deb": "2", "other": "1"}
    assert site.content("deb", DISK) == (library / "deb" / DISK).read_bytes() != original
    assert site.sync().literal_bytes == 0


def test_a_process_killed_at_any_time_leaves_a_template_that_clients_take_or_hold_until_it_is_completed(
    tmp_path: Path, maker: TemplateMaker
) -> None:
    seed = int(os.environ.get("CLR_SEED", "1"))
    print(f"CLR_SEED={seed}")
    generator = random.Random(seed)
    original = maker.disk("base", 0)
    folder = tmp_path / "lib" / "deb"
    maker.template(folder)
    began = time.monotonic()
    run(CLR, "repack", folder)
    takes = time.monotonic() - began
    wanted = {path.name: path.read_bytes() for path in folder.iterdir()}
    for _ in range(3):
        shutil.rmtree(folder)
        maker.template(folder)
        process = subprocess.Popen([CLR, "repack", str(folder)], stdout=subprocess.DEVNULL)
        time.sleep(generator.uniform(0.2, 1.0) * takes)
        process.kill()
        process.wait()
        if accepted(folder):
            run("qemu-img", "compare", "-f", "vmdk", "-F", "vmdk", original, folder / DISK)
        run(CLR, "repack", folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == wanted
