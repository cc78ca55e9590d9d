"""Makes templates as a publisher would: tiny valid ones for unit tests, real disks for everything else.

``fake_template`` writes a valid OVF item in milliseconds. ``TemplateMaker`` puts a root file system on an ext4
disk, converts it to a streamOptimized VMDK and describes it with an OVF envelope and a SHA-256 manifest; a higher
revision has some files changed inside the same disk, as after a security update. It needs ``qemu-img``,
``mke2fs`` and ``debugfs``, and no privileges. ``python -m support.templates OUT`` makes a sample library.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import platform
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MIB = 1 << 20
VMDK = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"


def envelope(
    name: str,
    files: Mapping[str, int],
    *,
    capacity: int = MIB,
    vapp: bool = False,
    hrefs: Mapping[str, str] | None = None,
) -> bytes:
    """An OVF envelope like ovftool's.

    ``files`` are names and sizes; ``hrefs`` replaces what is written for a name.
    """
    hrefs = hrefs or {}
    references = "".join(
        f"    <File ovf:href={quoteattr(hrefs.get(file, file))} ovf:id='file{number}' ovf:size='{size}'/>\n"
        for number, (file, size) in enumerate(files.items(), 1)
    )
    disks = "".join(
        f"    <Disk ovf:capacity='{capacity}' ovf:capacityAllocationUnits='byte' ovf:diskId='vmdisk{number}' "
        f"ovf:fileRef='file{number}' ovf:format='{VMDK}'/>\n"
        for number in range(1, len(files) + 1)
    )
    system = f"""  <VirtualSystem ovf:id={quoteattr(name)}>
    <Info>A virtual machine</Info>
    <Name>{quoteattr(name)[1:-1]}</Name>
    <OperatingSystemSection ovf:id="96" vmw:osType="debian12_64Guest">
      <Info>The kind of installed guest operating system</Info>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>Virtual hardware requirements</Info>
      <Item>
        <rasd:Description>Number of virtual CPUs</rasd:Description>
        <rasd:ElementName>1 virtual CPU(s)</rasd:ElementName>
        <rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType>
        <rasd:VirtualQuantity>1</rasd:VirtualQuantity>
      </Item>
      <Item>
        <rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits>
        <rasd:ElementName>512MB of memory</rasd:ElementName>
        <rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType>
        <rasd:VirtualQuantity>512</rasd:VirtualQuantity>
      </Item>
    </VirtualHardwareSection>
  </VirtualSystem>
"""
    if vapp:
        system = f"  <VirtualSystemCollection ovf:id='vapp'>\n{system}  </VirtualSystemCollection>\n"
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
    xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
    xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
    xmlns:vmw="http://www.vmware.com/schema/ovf">
  <References>
{references}  </References>
  <DiskSection>
    <Info>Virtual disk information</Info>
{disks}  </DiskSection>
{system}</Envelope>
""".encode()


def manifest(folder: Path, names: Iterable[str], algorithm: str = "sha256") -> bytes:
    """An OVF manifest (.mf) of these files of a folder."""
    lines = []
    for name in names:
        with (folder / name).open("rb") as stream:
            lines.append(f"{algorithm.upper()}({name})= {hashlib.file_digest(stream, algorithm).hexdigest()}\n")
    return "".join(lines).encode()


def fake_template(
    folder: Path,
    *,
    name: str | None = None,
    disk_bytes: int = 64 * 1024,
    disks: int = 1,
    revision: int = 0,
    algorithm: str | None = "sha256",
    vapp: bool = False,
) -> Path:
    """Write a tiny valid OVF item into ``folder`` (made if missing) and return its .ovf.

    Disks are incompressible bytes that depend on the name and ``revision`` only; a revision above 0 changes
    the middle of each. ``algorithm`` is the manifest's, None for no manifest. Files are replaced by rename,
    as an orderly publisher does.
    """
    name = name or folder.name
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, int] = {}
    for number in range(disks):
        disk = f"{name}-disk{number + 1}.vmdk"
        content = bytearray(random.Random(f"{name}/{number}").randbytes(disk_bytes))
        if revision:
            changed = random.Random(f"{name}/{number}/{revision}").randbytes(min(disk_bytes, 4096))
            start = (disk_bytes - len(changed)) // 2
            content[start : start + len(changed)] = changed
        replace(folder / disk, bytes(content))
        files[disk] = disk_bytes
    ovf = folder / f"{name}.ovf"
    replace(ovf, envelope(name, files, vapp=vapp))
    if algorithm:
        replace(folder / f"{name}.mf", manifest(folder, [ovf.name, *files], algorithm))
    return ovf


def pack_ova(folder: Path, archive: Path) -> None:
    """Pack the OVF item in ``folder`` into an OVA as ovftool does: envelope, manifest, disks; ustar."""
    order = {".ovf": 0, ".mf": 1}
    files = sorted(
        (file for file in folder.iterdir() if not file.name.startswith(".")),
        key=lambda file: (order.get(file.suffix, 2), file.name),
    )
    temporary = archive.with_name(f".{archive.name}.new")
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for file in files:
            tar.add(file, file.name)
    temporary.replace(archive)


def replace(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it there, with a later time: rsync compares whole seconds."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(content)
    if path.exists() and int(path.stat().st_mtime) >= int(temporary.stat().st_mtime):
        later = int(path.stat().st_mtime) + 1
        os.utime(temporary, (later, later))
    temporary.replace(path)


class TemplateMaker:
    """Makes real templates, and keeps disks in ``cache`` so that each is built once.

    ``megabytes`` is about what the root file system holds. It is Debian's, from mmdebstrap, where that is
    installed, we are root and there is room for it (100 MB and more); else files of this machine's /usr.
    """

    def __init__(self, cache: Path, *, megabytes: int = 24) -> None:
        self.cache = cache
        self.megabytes = megabytes
        cache.mkdir(parents=True, exist_ok=True)

    def template(self, folder: Path, *, name: str | None = None, revision: int = 0, flavour: str = "base") -> Path:
        """Write an OVF template into ``folder`` (made if missing), return its .ovf.

        Templates of different ``flavour`` have different disks; revision N has had N updates.
        """
        name = name or folder.name
        source = self.disk(flavour, revision)
        folder.mkdir(parents=True, exist_ok=True)
        disk = folder / f"{name}-disk1.vmdk"
        temporary = disk.with_name(f".{disk.name}.new")
        shutil.copyfile(source, temporary)
        temporary.replace(disk)
        capacity = source.with_suffix(".raw").stat().st_size
        ovf = folder / f"{name}.ovf"
        replace(ovf, envelope(name, {disk.name: disk.stat().st_size}, capacity=capacity))
        replace(folder / f"{name}.mf", manifest(folder, [ovf.name, disk.name]))
        return ovf

    def ova(self, archive: Path, *, revision: int = 0, flavour: str = "base") -> None:
        """Write a template as an OVA."""
        folder = self.cache / f"ova-{flavour}-{revision}"
        self.template(folder, name=archive.stem, revision=revision, flavour=flavour)
        pack_ova(folder, archive)
        shutil.rmtree(folder)

    def iso(self, image: Path, *, flavour: str = "base") -> None:
        """Write an ISO image of some files; without a program for that, a file that only begins like one."""
        image.parent.mkdir(parents=True, exist_ok=True)
        temporary = image.with_name(f".{image.name}.new")
        with tempfile.TemporaryDirectory(dir=self.cache) as text:
            folder = Path(text)
            _copy_machine(folder, MIB, flavour)
            for program in (["xorriso", "-as", "mkisofs"], ["genisoimage"], ["mkisofs"]):
                if shutil.which(program[0]):
                    _run(*program, "-quiet", "-r", "-J", "-V", "TOOLS", "-o", str(temporary), str(folder))
                    break
            else:
                content = bytearray(random.Random(flavour).randbytes(MIB))
                content[0x8000:0x8008] = b"\x01CD001\x01\x00"
                temporary.write_bytes(content)
        temporary.replace(image)

    def disk(self, flavour: str, revision: int) -> Path:
        """The streamOptimized VMDK of a revision; the raw disk lies beside it with suffix ``.raw``."""
        folder = self.cache / f"{flavour}-{self.megabytes}"
        vmdk = folder / f"{revision}.vmdk"
        raw = vmdk.with_suffix(".raw")
        with _lock(self.cache / f"{folder.name}.lock"):
            folder.mkdir(exist_ok=True)
            if not vmdk.exists():
                self._raw(folder, flavour, revision)
                temporary = folder / f"{revision}.vmdk.new"
                options = ["-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"]
                _run("qemu-img", "convert", *options, str(raw), str(temporary))
                temporary.replace(vmdk)
        return vmdk

    def _raw(self, folder: Path, flavour: str, revision: int) -> None:
        raw = folder / f"{revision}.raw"
        if raw.exists():
            return
        temporary = folder / f"{revision}.raw.new"
        if revision == 0:
            self._first(folder, temporary, flavour)
        else:
            self._raw(folder, flavour, revision - 1)
            _run("cp", "--sparse=always", "--reflink=auto", str(folder / f"{revision - 1}.raw"), str(temporary))
            _update(temporary, folder / "root", revision)
        temporary.replace(raw)

    def _first(self, folder: Path, raw: Path, flavour: str) -> None:
        root = folder / "root"
        if root.exists():
            shutil.rmtree(root)
        if not (self.megabytes >= 100 and _debian(root)):
            root.mkdir()
            _copy_machine(root, self.megabytes * MIB, flavour)
        (root / "etc").mkdir(exist_ok=True)
        (root / "etc" / "hostname").write_text(f"{flavour}\n")
        size = sum(f.lstat().st_blocks * 512 for f in root.rglob("*") if not f.is_symlink())
        identity = str(uuid.uuid5(uuid.NAMESPACE_DNS, flavour))
        _run(
            *("mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-U", identity, "-E", f"hash_seed={identity}"),
            *("-d", str(root), str(raw), f"{size * 3 // 2 // MIB + 32}M"),
        )


def _debian(root: Path) -> bool:
    """Make a Debian root file system; False where that is not possible."""
    if os.geteuid() != 0 or not shutil.which("mmdebstrap"):
        return False
    suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "stable")
    excludes = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info")]
    try:
        _run("mmdebstrap", "--quiet", "--variant=essential", *excludes, suite, str(root))
    except subprocess.SubprocessError as error:
        print(f"no Debian root file system, taking this machine's files: {error}", file=sys.stderr)
        shutil.rmtree(root, ignore_errors=True)
        return False
    return True


def _copy_machine(root: Path, size: int, flavour: str) -> None:
    """Copy programs and libraries of this machine, ``size`` bytes in all; which ones depends on ``flavour``."""
    files: list[Path] = []
    pending = [Path("/usr/bin"), Path("/usr/lib")]
    while pending:
        with contextlib.suppress(PermissionError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    files.append(Path(entry.path))
    files.sort(key=lambda path: hashlib.sha256(f"{flavour}{path}".encode(errors="replace")).digest())
    done = 0
    for path in files:
        length = path.stat().st_size
        if done + length <= size and 0 < length <= size // 4 and os.access(path, os.R_OK):
            target = root / path.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
            done += length
        if size - done < size // 100:
            break


def _update(raw: Path, root: Path, revision: int) -> None:
    """Change a few files inside an ext4 disk in place: about two percent of its bytes, and a log that grows."""
    generator = random.Random(f"update {revision}")
    files = sorted(
        (path for path in root.rglob("*") if not path.is_symlink() and path.is_file()), key=lambda path: str(path)
    )
    budget = sum(path.stat().st_size for path in files) // 50
    generator.shuffle(files)
    with tempfile.TemporaryDirectory(dir=raw.parent) as text:
        folder = Path(text)
        commands: list[str] = []
        for number, path in enumerate(files):
            content = bytearray(path.read_bytes())
            name = str(path.relative_to(root))
            if not 4096 < len(content) <= budget or not name.isprintable() or '"' in name or " " in name:
                continue
            budget -= len(content)
            for start in range(0, len(content) - 512, 32 * 1024):
                content[start : start + 512] = generator.randbytes(512)
            (folder / str(number)).write_bytes(content)
            commands += [f"rm /{name}", f"write {folder / str(number)} /{name}"]
        (folder / "log").write_text(f"upgrade {revision}\n" * 100)
        commands.append(f"write {folder / 'log'} /upgrade-{revision}.log")
        (folder / "commands").write_text("\n".join(commands) + "\n")
        _run("debugfs", "-w", "-f", str(folder / "commands"), str(raw))


def sample_library(out: Path, cache: Path, *, megabytes: int = 24, revision: int = 0) -> None:
    """A small library of every kind of item. With a higher revision its first template has had updates."""
    maker = TemplateMaker(cache, megabytes=megabytes)
    maker.template(out / "Debian 12", name="debian-12", revision=revision)
    if not (out / "Appliance").exists():
        maker.ova(out / "Appliance" / "appliance.ova", flavour="appliance")
        maker.iso(out / "tools.iso")
        replace(out / "Debian 12" / "clr-item.toml", b'description = "Debian 12, the sample template"\n')


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _run(*command: str) -> None:
    # sbin: where Debian keeps mke2fs and debugfs, which a user's PATH lacks
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900
    )
    if done.returncode != 0:
        raise subprocess.SubprocessError(f"{command[0]} failed ({done.returncode}): {done.stderr.strip()}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a sample library of real templates.")
    parser.add_argument("out", type=Path, help="folder to put the library's items into")
    parser.add_argument("--cache", type=Path, default=None, help="folder that keeps disks between runs")
    parser.add_argument("--megabytes", type=int, default=24, help="size of each root file system")
    parser.add_argument("--revision", type=int, default=0, help="how many updates the first template has had")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        cache = options.cache or Path(scratch)
        sample_library(options.out, cache, megabytes=options.megabytes, revision=options.revision)


if __name__ == "__main__":
    main()
