"""Templates as real tools make them are published as they are."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from clr_client.content.digests import DigestCache
from clr_client.content.items import group, scan
from clr_client.content.ova import unpack
from clr_client.content.verify import VerifiedItem, verify
from clr_client.errors import HeldError

if TYPE_CHECKING:
    from pathlib import Path
from support.templates import TemplateMaker, fake_template, sample_library


def run(*command: str, cwd: Path | None = None) -> str:
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


def library(root: Path) -> dict[str, VerifiedItem]:
    return {item.key: verify(item, root, DigestCache()) for item in group(scan(root))}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("disks")


def test_a_sample_library_of_real_disks_is_published_whole(tmp_path, cache):
    sample_library(tmp_path, cache, megabytes=8)
    found = library(tmp_path)
    assert {key: (item.name, item.type, item.warnings) for key, item in found.items()} == {
        "Appliance": ("Appliance", "vcsp.ovf", ()),
        "Debian 12": ("Debian 12", "vcsp.ovf", ()),
        "tools.iso": ("tools.iso", "vcsp.iso", ()),
    }
    assert found["Debian 12"].description
    assert [file.name for file in found["Appliance"].files] == [
        "appliance-disk1.vmdk",
        "appliance.mf",
        "appliance.ovf",
    ]


def test_an_updated_template_is_a_sound_disk_of_which_most_is_the_same(tmp_path, cache):
    maker = TemplateMaker(cache, megabytes=8)
    for revision in (0, 1, 2):
        disk = maker.template(tmp_path / "lib" / str(revision), revision=revision).with_name(f"{revision}-disk1.vmdk")
        facts = json.loads(run("qemu-img", "info", "--output=json", str(disk)))
        assert facts["format-specific"]["data"]["create-type"] == "streamOptimized"
        raw = tmp_path / f"{revision}.raw"
        run("qemu-img", "convert", "-O", "raw", str(disk), str(raw))
        run(shutil.which("e2fsck", path="/usr/sbin:/sbin:/usr/bin") or "e2fsck", "-fn", str(raw))
    blocks = [
        {content[place : place + 4096] for place in range(0, len(content), 4096)}
        for content in ((tmp_path / f"{revision}.raw").read_bytes() for revision in (0, 1))
    ]
    new = len(blocks[1] - blocks[0])
    assert 0 < new < len(blocks[1]) // 10
    assert list(library(tmp_path / "lib")) == ["0", "1", "2"]


@pytest.mark.parametrize("form", ["ustar", "gnu", "posix", "v7"])
def test_an_archive_made_by_gnu_tar_is_unpacked_to_the_same_files(tmp_path, form: str):
    fake_template(tmp_path / "vm", disks=2, disk_bytes=100_001)
    names = ["vm.ovf", "vm.mf", "vm-disk1.vmdk", "vm-disk2.vmdk"]
    (tmp_path / "lib").mkdir()
    run("tar", f"--format={form}", "-cf", str(tmp_path / "lib" / "vm.ova"), *names, cwd=tmp_path / "vm")
    (item,) = library(tmp_path / "lib").values()
    (tmp_path / "out").mkdir()
    unpack(tmp_path / "lib" / "vm.ova", tmp_path / "out", expected={file.name: file.sha256 for file in item.files})
    run("diff", "-r", str(tmp_path / "vm"), str(tmp_path / "out"))


@pytest.mark.parametrize(("option", "what"), [("--sparse", "sparse"), ("--hard-dereference", "symbolic link")])
def test_an_archive_made_by_gnu_tar_with_anything_but_plain_files_is_held(tmp_path, option: str, what: str):
    fake_template(tmp_path / "vm", algorithm=None)
    disk = tmp_path / "vm" / "vm-disk1.vmdk"
    if what == "sparse":
        disk.unlink()
        run("truncate", "-s", "65536", str(disk))
        with disk.open("r+b") as stream:
            stream.seek(60_000)
            stream.write(b"end of a hole")
    else:
        (tmp_path / "vm" / "etc").symlink_to("/etc/passwd")
    (tmp_path / "lib").mkdir()
    names = sorted((path.name for path in (tmp_path / "vm").iterdir()), key=lambda name: not name.endswith(".ovf"))
    for form in ("gnu", "posix"):
        command = ["tar", f"--format={form}", option, "-cf", str(tmp_path / "lib" / "vm.ova"), *names]
        run(*command, cwd=tmp_path / "vm")
        with pytest.raises(HeldError, match=what):
            library(tmp_path / "lib")


def test_a_manifest_made_by_openssl_is_read(tmp_path):
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    fake_template(tmp_path / "vm", algorithm=None)
    lines = run("openssl", "dgst", "-sha256", "vm.ovf", "vm-disk1.vmdk", cwd=tmp_path / "vm")
    (tmp_path / "vm" / "vm.mf").write_text(lines)
    assert library(tmp_path)["vm"].warnings == ()
    (tmp_path / "vm" / "vm-disk1.vmdk").write_bytes(bytes(65536))
    with pytest.raises(HeldError, match="does not match"):
        library(tmp_path)
