"""Small real file systems for one test each: in an image file over a loop device, or through FUSE.

Every one of them is unmounted with its block. Where this machine cannot have it, the test is skipped with the reason.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import socket
import struct
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import pytest

from support.server import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

MIB = 1 << 20
MAKERS: dict[str, tuple[tuple[str, ...], int]] = {
    "ext4": (("mkfs.ext4", "-q", "-F", "-m", "0"), 16),
    "xfs": (("mkfs.xfs", "-q", "-f", "-m", "reflink=1"), 300),
    "btrfs": (("mkfs.btrfs", "-q", "-f"), 256),
}
"""What makes a file system of each kind, and the least size in MiB that it takes."""
_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN, linux/fs.h: _IOR('X', 125, __u32)
_LOSE_LOG = 2
_NEW_MOUNTS = 0x20000  # CLONE_NEWNS, linux/sched.h
_BALLAST = ".ballast"
_SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")


@dataclass
class Disk:
    """A mounted file system: ``path`` is where, ``image`` what holds it."""

    kind: str
    path: Path
    image: Path

    @property
    def free(self) -> int:
        """Free space in bytes."""
        room = os.statvfs(self.path)
        return room.f_bavail * room.f_frsize

    @property
    def used(self) -> int:
        """Space taken, in bytes."""
        os.sync()
        room = os.statvfs(self.path)
        return (room.f_blocks - room.f_bfree) * room.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Take all free space but ``leave`` bytes."""
        ballast = self.path / _BALLAST
        with ballast.open("ab") as handle:
            piece = 64 * MIB
            while piece >= 4096:
                size = os.fstat(handle.fileno()).st_size
                wanted = min(piece, self.free - leave)
                try:
                    if wanted <= 0:
                        raise OSError(errno.ENOSPC, "enough")
                    os.posix_fallocate(handle.fileno(), size, wanted)
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    piece //= 2

    def take_all_inodes(self) -> None:
        """Make empty files until there can be no more."""
        folder = self.path / f"{_BALLAST}s"
        folder.mkdir()
        with contextlib.suppress(OSError):
            for number in range(100_000):
                (folder / str(number)).touch()

    def make_room(self) -> None:
        """Give back what ``fill`` and ``take_all_inodes`` took."""
        (self.path / _BALLAST).unlink(missing_ok=True)
        shutil.rmtree(self.path / f"{_BALLAST}s", ignore_errors=True)
        os.sync()

    def fail(self) -> None:
        """From now on every access that needs the disk fails with EIO, as after a fatal error; ext4 and XFS can.

        What was not forced to disk before is lost, as in a power cut.
        """
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, _SHUTDOWN, struct.pack("I", _LOSE_LOG))
        finally:
            os.close(handle)

    def abort(self) -> None:
        """Make the kernel find an error of an ext4 and go on read-only, as it does by default."""
        run("mount", "-o", "remount,abort,errors=remount-ro", str(self.path))

    def remount(self, *options: str) -> None:
        """Unmount and mount again: what a failed file system needs, and what a power cut comes to.

        Who still holds the failed file system would be given it again; so this is repeated until it is a new one.
        """
        run("umount", str(self.path))
        wait_until(lambda: self._is_mounted(options), what=f"{self.path} to be mounted again")

    def _is_mounted(self, options: Sequence[str]) -> bool:
        mount = ["mount", "-o", ",".join(("loop", *options)), str(self.image), str(self.path)]
        if subprocess.run(mount, capture_output=True).returncode != 0:
            return False
        try:
            if "ro" not in options:
                alive = self.path / ".alive"
                alive.touch()
                alive.unlink()
        except OSError:
            run("umount", str(self.path))
            return False
        return True


@contextmanager
def disk(kind: str, path: Path, *, megabytes: int = 0, make: Sequence[str] = ()) -> Iterator[Disk]:
    """Mount a new file system at ``path``.

    :param kind: ext4, xfs (with reflinks) or btrfs.
    :param megabytes: its size; at least what the kind needs.
    :param make: further options of its mkfs.
    """
    maker, least = MAKERS[kind]
    needs_root()
    needs(maker[0], f"{kind} cannot be made here")
    image = path.with_name(f"{path.name}.{kind}")
    path.mkdir(parents=True, exist_ok=True)
    with image.open("wb") as handle:
        handle.truncate(max(least, megabytes) * MIB)
    run(*maker, *make, str(image))
    mounted = subprocess.run(["mount", "-o", "loop", str(image), str(path)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no {kind} can be mounted here: {mounted.stderr.strip()}")
    try:
        yield Disk(kind, path, image)
    finally:
        run("umount", "--lazy", str(path))
        image.unlink()


@contextmanager
def without_hard_links(path: Path, behind: Path) -> Iterator[None]:
    """Mount the folder ``behind`` at ``path`` through sshfs, as a network file system that has no hard links."""
    program = _fuse("sshfs")
    server = next((name for name in _SFTP_SERVERS if os.access(name, os.X_OK)), None)
    if server is None:
        pytest.skip("sftp-server is not installed")
    path.mkdir(parents=True, exist_ok=True)
    behind.mkdir(parents=True, exist_ok=True)
    options = "passive,disable_hardlink"
    if "no_contain_symlinks" in subprocess.run([program, "--help"], capture_output=True, text=True).stdout:
        options += ",no_contain_symlinks"  # newer ones do not let a link lead upwards unless told to
    ours, theirs = socket.socketpair()
    processes = [
        subprocess.Popen([server], stdin=ours.fileno(), stdout=ours.fileno()),
        subprocess.Popen(
            [program, "-f", "-o", options, f":{behind}", str(path)], stdin=theirs.fileno(), stdout=theirs.fileno()
        ),
    ]
    ours.close()
    theirs.close()
    yield from _while_mounted(path, processes)


@contextmanager
def without_links(path: Path) -> Iterator[None]:
    """Mount an exFAT, which has neither hard nor symbolic links, at ``path``."""
    program = _fuse("mount.exfat-fuse")
    with _image(path, "mkfs.exfat") as image:
        loop = run("losetup", "--find", "--show", str(image))
        try:
            yield from _while_mounted(path, [_start([program, "-d", loop, str(path)])])
        finally:
            run("losetup", "--detach", loop)


@contextmanager
def without_case(path: Path) -> Iterator[None]:
    """Mount an NTFS for which names that differ only by case are the same at ``path``."""
    program = _fuse("lowntfs-3g")
    with _image(path, "mkntfs", "--force", "--quick", "--quiet") as image:
        options = "ignore_case,no_detach,permissions"
        yield from _while_mounted(path, [_start([program, "-o", options, str(image), str(path)])])


@contextmanager
def _image(path: Path, maker: str, *options: str) -> Iterator[Path]:
    needs(maker, "no such file system can be made here")
    path.mkdir(parents=True, exist_ok=True)
    image = path.with_name(f"{path.name}.image")
    with image.open("wb") as handle:
        handle.truncate(32 * MIB)
    run(maker, *options, str(image))
    yield image
    image.unlink()


def _start(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _while_mounted(path: Path, processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    try:
        wait_until(
            lambda: os.path.ismount(path) or any(process.poll() is not None for process in processes),
            what=f"a mount at {path}",
        )
        if not os.path.ismount(path):
            pytest.skip("FUSE cannot mount here")
        yield
    finally:
        subprocess.run(["umount", str(path)], stderr=subprocess.DEVNULL)
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _fuse(program: str) -> str:
    needs_root()
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no FUSE here")
    return needs(program, "the file system that it mounts cannot be had")


def needs_root() -> None:
    """Skip the test where file systems cannot be mounted."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount file systems")
    if not _mounts_apart():
        pytest.skip("this process cannot have mounts of its own")


@cache
def _mounts_apart() -> bool:
    """Let only this process and its children see its mounts from now on.

    A container that starts, or a network namespace that is made, takes copies of all mounts that it sees, and keeps a
    failed file system in use.
    """
    if ctypes.CDLL(None).unshare(_NEW_MOUNTS):
        return False
    run("mount", "--make-rprivate", "/")
    return True


def needs(program: str, otherwise: str) -> str:
    """Return where a program lies; skip the test where it is not installed."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{program} is not installed: {otherwise}")
    return found


def run(*argv: str) -> str:
    """Run a program as root has it and return what it says; AssertionError with its complaint when it fails."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    done = subprocess.run(argv, env={**os.environ, "PATH": path, "LC_ALL": "C"}, capture_output=True, text=True)
    assert done.returncode == 0, f"{argv[0]}: {done.stderr.strip()}"
    return done.stdout.strip()
