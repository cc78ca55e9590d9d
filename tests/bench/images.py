"""Templates as a publisher revises them, from real Debian root file systems.

``base`` is Debian's release as it was at its last point release. The others are what became of it:

- ``patched``: the same disk after `apt-get upgrade` with Debian's security updates, kernel held back;
- ``kernel``: the patched disk with a new kernel (where the base has one) and some packages swapped;
- ``rebuilt``: installed from scratch with all updates on a new ext4 file system, as a golden image pipeline does.

Free space is trimmed before each export. Without root, mmdebstrap or loop devices the disks hold programs of this
machine, are changed with debugfs and rebuilt by mke2fs; ``origin`` says which it was.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from support.templates import TemplateMaker, envelope, manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = "debian"
REVISIONS = ("base", "patched", "kernel", "rebuilt")
_MIRROR = "http://deb.debian.org/debian"
_SECURITY = "http://deb.debian.org/debian-security"
_EXCLUDES = ("doc", "man", "locale", "info")
_SMALL = ("apt", "python3-minimal")
_SMALL_SWAPPED = (("python3-minimal",), ("perl", "vim-tiny"))
_FULL = (
    *("apt", "linux-image-amd64", "openssh-server", "systemd-sysv", "dbus", "python3", "vim", "git", "curl"),
    *("build-essential", "postgresql", "nginx", "default-jre-headless", "strace", "tcpdump"),
)
_FULL_SWAPPED = (("nginx", "postgresql", "tcpdump"), ("apache2", "php-cli", "mariadb-server", "nmap"))


class Images:
    """The revisions of one template, each a folder with OVF, disk and ``.mf``, built at the first use."""

    def __init__(self, cache: Path, *, full: bool) -> None:
        self.cache = cache
        self.full = full
        cache.mkdir(parents=True, exist_ok=True)

    def template(self, revision: str, *, repacked: bool = False) -> Path:
        """The folder of a revision; ``repacked``: as `clr repack` leaves it."""
        folder = self.cache / (f"{revision}-repacked" if repacked else revision)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=self.cache) as scratch:
                made = Path(scratch) / folder.name
                if repacked:
                    from clr_client.repack.template import repack

                    shutil.copytree(self.template(revision), made)
                    repack(made)
                else:
                    self._export(self._raw(revision), made)
                made.rename(folder)
        return folder

    def disk(self, revision: str, *, repacked: bool = False) -> Path:
        """The disk of a revision."""
        return self.template(revision, repacked=repacked) / f"{NAME}-disk1.vmdk"

    @property
    def origin(self) -> str:
        """Where the content comes from."""
        file = self.cache / "origin"
        return file.read_text() if file.exists() else ""

    def _export(self, raw: Path, folder: Path) -> None:
        folder.mkdir()
        disk = folder / f"{NAME}-disk1.vmdk"
        _run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", str(raw), str(disk))
        text = envelope(NAME, {disk.name: disk.stat().st_size}, capacity=raw.stat().st_size)
        (folder / f"{NAME}.ovf").write_bytes(text)
        (folder / f"{NAME}.mf").write_bytes(manifest(folder, [f"{NAME}.ovf", disk.name]))

    def _raw(self, revision: str) -> Path:
        raw = self.cache / f"{revision}.raw"
        if raw.exists():
            return raw
        temporary = self.cache / f"{revision}.raw.new"
        temporary.unlink(missing_ok=True)
        if self._is_debian():
            self._debian(revision, temporary)
        else:
            self._machine(revision, temporary)
        temporary.rename(raw)
        return raw

    def _is_debian(self) -> bool:
        if not self.origin:
            able = os.geteuid() == 0 and shutil.which("mmdebstrap") and os.path.exists("/dev/loop-control")
            origin = f"Debian {_suite()} from mmdebstrap" if able else "programs of this machine"
            (self.cache / "origin").write_text(origin)
        return self.origin.startswith("Debian")

    # --- Debian ---

    def _debian(self, revision: str, raw: Path) -> None:
        if revision in ("base", "rebuilt"):
            with raw.open("wb") as handle:
                handle.truncate(4_000_000_000 if self.full else 1_000_000_000)
            _run("mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", str(raw))
            with _mounted(raw) as root:
                excludes = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _EXCLUDES]
                include = ",".join(_FULL if self.full else _SMALL)
                options = ["--quiet", "--variant=essential", *excludes, f"--include={include}"]
                _run("mmdebstrap", *options, _suite(), str(root), *_sources(updates=revision == "rebuilt"))
                _tidy(root)
            return
        before = self._raw("base" if revision == "patched" else "patched")
        _run("cp", "--sparse=always", "--reflink=auto", str(before), str(raw))
        out, into = _FULL_SWAPPED if self.full else _SMALL_SWAPPED
        with _mounted(raw) as root, _chroot(root) as inside:
            (root / "etc/apt/sources.list").write_text("\n".join(_sources(updates=True)) + "\n")
            inside("apt-get", "-q", "update")
            if revision == "patched":  # which never takes a package with a new name, as a new kernel has
                inside("apt-get", "-q", "-y", "upgrade")
            else:
                inside("apt-get", "-q", "-y", "dist-upgrade")
                inside("apt-get", "-q", "-y", "install", "--no-install-recommends", *into)
                inside("apt-get", "-q", "-y", "purge", *out)
                inside("apt-get", "-q", "-y", "autoremove", "--purge")
            _tidy(root)

    # --- elsewhere ---

    def _machine(self, revision: str, raw: Path) -> None:
        maker = TemplateMaker(self.cache / "machine", megabytes=99 if not self.full else 900)
        maker.disk("base", {"base": 0, "kernel": 4}.get(revision, 1))
        made = self.cache / "machine" / f"base-{maker.megabytes}" / f"{ {'base': 0, 'kernel': 4}.get(revision, 1) }.raw"
        if revision != "rebuilt":
            _run("cp", "--sparse=always", "--reflink=auto", str(made), str(raw))
            return
        with tempfile.TemporaryDirectory(dir=self.cache) as files:
            _run("debugfs", "-R", f'rdump / "{files}"', str(made))
            shutil.rmtree(Path(files) / "lost+found", ignore_errors=True)
            _run("mke2fs", "-q", "-F", "-t", "ext4", "-d", files, str(raw), f"{made.stat().st_size // 1024}k")


def _suite() -> str:
    found = platform.freedesktop_os_release()
    return found.get("VERSION_CODENAME", "") if found.get("ID") == "debian" else "bookworm"


def _sources(*, updates: bool) -> list[str]:
    lines = [f"deb {_MIRROR} {_suite()} main"]
    if updates:
        lines += [f"deb {_MIRROR} {_suite()}-updates main", f"deb {_SECURITY} {_suite()}-security main"]
    return lines


def _tidy(root: Path) -> None:
    """What a pipeline removes before it exports."""
    for pattern in ("var/lib/apt/lists/*", "var/cache/apt/*.bin", "var/cache/apt/archives/*.deb"):
        for path in root.glob(pattern):
            if path.is_file():
                path.unlink()
    _run("sync", "-f", str(root))  # what a transaction that is not committed freed is not trimmed
    _run("fstrim", str(root))


@contextmanager
def _mounted(raw: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=raw.parent) as folder:
        _run("mount", "-o", "loop,discard", str(raw), folder)
        try:
            yield Path(folder)
        finally:
            _run("umount", folder)


@contextmanager
def _chroot(root: Path) -> Iterator[Callable[..., None]]:
    """Yield a function that runs a program inside ``root``, with what package scripts need."""
    policy, resolver = root / "usr/sbin/policy-rc.d", root / "etc/resolv.conf"
    was = resolver.read_bytes() if resolver.exists() else b""
    with ExitStack() as stack:
        for kind in ("proc", "sysfs"):
            place = root / {"proc": "proc", "sysfs": "sys"}[kind]
            _run("mount", "-t", kind, kind, str(place))
            stack.callback(_run, "umount", str(place))
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        with suppress(OSError):
            resolver.write_bytes(Path("/etc/resolv.conf").read_bytes())
        yield lambda *words: _run("chroot", str(root), *words, DEBIAN_FRONTEND="noninteractive")
        policy.unlink()
        resolver.write_bytes(was)


def _run(*words: str, **environment: str) -> None:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    values = {**os.environ, "PATH": path, "LC_ALL": "C.UTF-8", **environment}
    done = subprocess.run(words, env=values, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise subprocess.SubprocessError(f"{' '.join(words[:3])} failed ({done.returncode}): {done.stderr[-2000:]}")
