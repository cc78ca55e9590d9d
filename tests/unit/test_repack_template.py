"""`clr repack` on a template's folder: what changes, what is refused, and what is left whenever it is killed."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from clr_client import cli
from clr_client.content.digests import DigestCache
from clr_client.content.items import group, scan
from clr_client.content.verify import VerifiedItem, verify
from clr_client.errors import ClrError, HeldError, LockedError, RepackError
from clr_client.repack import switch, vmdk
from clr_client.repack.template import Repacked, repack
from support import vmdks
from support.faultpoints import Ended, Fail, Kill, run
from support.templates import envelope, manifest, pack_ova

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECTORS = 4 * 128


def disk(seed: int = 1) -> bytes:
    half = random.Random(seed).randbytes(vmdks.GRAIN // 2)
    return bytes(vmdks.vmdk({0: half * 2, 2: half + bytes(len(half))}, SECTORS))


def make(folder: Path, disks: int = 2, *, algorithm: str | None = "sha256", sizes: bool = True) -> Path:
    """A template of real small disks and a file that is none."""
    folder.mkdir(parents=True)
    files = {}
    for number in range(1, disks + 1):
        (folder / f"vm-disk{number}.vmdk").write_bytes(disk(number))
        files[f"vm-disk{number}.vmdk"] = len(disk(number))
    (folder / "vm.nvram").write_bytes(b"nvram" * 100)
    files["vm.nvram"] = 500
    written = envelope("vm", files)
    (folder / "vm.ovf").write_bytes(written if sizes else re.sub(rb" ovf:size='[0-9]+'", b"", written))
    if algorithm:
        (folder / "vm.mf").write_bytes(manifest(folder, ["vm.ovf", *files], algorithm))
    for path in folder.iterdir():
        os.utime(path, (1_600_000_000, 1_600_000_000))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """All files, dotfiles too; disks as what they hold."""
    return {
        path.name: vmdks.read(path.read_bytes()) if path.suffix == ".vmdk" else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def accepted(folder: Path) -> VerifiedItem | None:
    """What a client makes of it; None when it holds it."""
    (item,) = (item for item in group(scan(folder.parent)) if item.key == folder.name)
    try:
        return verify(item, folder.parent, DigestCache())
    except HeldError:
        return None


# ---------------------------------------------------------------- what changes


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512", None])
def test_disks_sizes_and_digests_change_and_nothing_else(tmp_path: Path, algorithm: str | None) -> None:
    folder = make(tmp_path / "vm", algorithm=algorithm)
    old, old_files = content(folder), files(folder)
    done = repack(folder)
    assert [(change.name, change.is_changed) for change in done.disks] == [
        ("vm-disk1.vmdk", True),
        ("vm-disk2.vmdk", True),
    ]
    new, new_files = content(folder), files(folder)
    assert accepted(folder) is not None
    assert {name for name in old if old[name] != new[name]} == ({"vm.ovf", "vm.mf"} if algorithm else {"vm.ovf"})
    for change in done.disks:
        assert (change.before, change.after) == (len(old_files[change.name]), len(new_files[change.name]))
        old["vm.ovf"] = old["vm.ovf"].replace(b"%d" % change.before, b"%d" % change.after)
    assert new["vm.ovf"] == old["vm.ovf"]
    if algorithm:
        lines = zip(old["vm.mf"].splitlines(), new["vm.mf"].splitlines(), strict=True)
        assert [a.split(b"= ")[0] for a, _ in lines] == [b.split(b"= ")[0] for b in new["vm.mf"].splitlines()]
        assert new["vm.mf"] == manifest(folder, ["vm.ovf", "vm-disk1.vmdk", "vm-disk2.vmdk", "vm.nvram"], algorithm)


def test_once_more_changes_nothing_and_the_way_back_has_the_same_content(tmp_path: Path) -> None:
    folder = make(tmp_path / "vm")
    old = content(folder)
    repack(folder)
    first = {path.name: (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes()) for path in folder.iterdir()}
    again = repack(folder / "vm.ovf")
    assert not any(change.is_changed for change in again.disks)
    assert first == {
        path.name: (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes()) for path in folder.iterdir()
    }
    repack(folder, compress=True)
    assert accepted(folder) is not None
    assert {name: data for name, data in content(folder).items() if name[-4:] == "vmdk"} == {
        name: data for name, data in old.items() if name[-4:] == "vmdk"
    }
    assert sum(path.stat().st_size for path in folder.iterdir()) < sum(len(data) for _, _, data in first.values())
    compressed = files(folder)
    repack(folder, compress=True)
    assert files(folder) == compressed


def test_what_is_half_done_already_is_completed(tmp_path: Path) -> None:
    whole = make(tmp_path / "vm")
    half = shutil.copytree(make(tmp_path / "other"), tmp_path / "half")
    repack(whole)
    shutil.copy(whole / "vm-disk2.vmdk", half)
    for name in ("vm.ovf", "vm.mf"):
        (half / name).unlink()
    sizes = {path.name: path.stat().st_size for path in half.iterdir()}
    (half / "vm.ovf").write_bytes(envelope("vm", sizes))
    done = repack(half)
    assert [change.is_changed for change in done.disks] == [True, False]
    assert (half / "vm-disk1.vmdk").read_bytes() == (whole / "vm-disk1.vmdk").read_bytes()


def test_new_files_have_the_old_ones_modes_and_a_later_time_in_whole_seconds(tmp_path: Path) -> None:
    folder = make(tmp_path / "vm")
    (folder / "vm-disk1.vmdk").chmod(0o640)
    future = 4_000_000_000
    os.utime(folder / "vm.ovf", (future, future))
    repack(folder)
    assert (folder / "vm-disk1.vmdk").stat().st_mode & 0o777 == 0o640
    assert (folder / "vm.ovf").stat().st_mtime == future + 1
    assert (folder / "vm.nvram").stat().st_mtime == 1_600_000_000


def test_a_disk_that_is_linked_elsewhere_stays_there_as_it_was(tmp_path: Path) -> None:
    folder = make(tmp_path / "vm")
    os.link(folder / "vm-disk1.vmdk", tmp_path / "backup.vmdk")
    repack(folder)
    assert (tmp_path / "backup.vmdk").read_bytes() == disk(1)


def test_a_dry_run_tells_the_sizes_and_touches_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path / "vm")
    before = files(folder)
    told = repack(folder, dry_run=True)
    assert files(folder) == before
    done = repack(folder)
    assert [change.after for change in told.disks] == [change.after for change in done.disks]
    told = repack(folder, compress=True, dry_run=True)
    done = repack(folder, compress=True)
    assert [change.after for change in told.disks] == [change.after for change in done.disks]


def test_progress_ends_at_its_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    repack(make(tmp_path / "vm"), on_progress=lambda done, total, _name: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


# ---------------------------------------------------------------- what is refused


def sign(folder: Path) -> None:
    (folder / "vm.cert").write_text("SHA256(vm.mf)= 00\n-----BEGIN CERTIFICATE-----\n")


def test_a_signed_template_is_refused_unless_the_signature_is_given_up(tmp_path: Path) -> None:
    folder = make(tmp_path / "vm")
    sign(folder)
    before = files(folder)
    for dry_run in (True, False):
        with pytest.raises(RepackError, match=r"signed \(vm.cert\).*--drop-cert"):
            repack(folder, dry_run=dry_run)
    assert files(folder) == before
    repack(folder, drop_cert=True)
    assert set(files(folder)) == set(before) - {"vm.cert"}
    sign(folder)
    assert not any(change.is_changed for change in repack(folder).disks)
    assert (folder / "vm.cert").exists()


def flat(folder: Path) -> None:
    (folder / "vm-disk1.vmdk").write_bytes(bytes(len(disk(1))))


def poked(at: int, form: str, value: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = bytearray(disk(1))
        vmdks.poke(data, at, form, value)
        (folder / "vm-disk1.vmdk").write_bytes(data)

    return change


def text(old: bytes, new: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "vm.ovf").write_bytes((folder / "vm.ovf").read_bytes().replace(old, new))

    return change


def linked(folder: Path) -> None:
    (folder / "vm-disk1.vmdk").rename(folder.parent / "elsewhere.vmdk")
    (folder / "vm-disk1.vmdk").symlink_to(folder.parent / "elsewhere.vmdk")


def volume(folder: Path) -> None:
    (folder.parent / "mirror").mkdir()
    (folder.parent / "generations").mkdir()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "vm-disk2.vmdk").unlink(), "vm-disk2.vmdk is (referenced|listed)"),
        (lambda folder: (folder / "vm.nvram").unlink(), "vm.nvram is (referenced|listed)"),
        (lambda folder: (folder / "vm-disk1.vmdk").write_bytes(b"short"), "has 5 bytes, but the OVF envelope says"),
        (flat, "vm-disk1.vmdk: it has no VMDK header; if it is a flat disk"),
        (poked(vmdks.FLAGS, "<I", 3), "vm-disk1.vmdk: it is a VMDK of the kind streamOptimized|monolithicSparse"),
        (poked(vmdks.GRAIN_SIZE, "<Q", 64), "vm-disk1.vmdk: it has grains of 64 sectors"),
        (poked(vmdks.OVERHEAD * 512 + 200, "<Q", 0), "vm-disk1.vmdk does not match its SHA256 digest in vm.mf"),
        (lambda folder: (folder / "vm.nvram").write_bytes(b"other" * 100), "vm.nvram does not match its SHA256"),
        (lambda folder: (folder / "vm.mf").write_bytes(b"nonsense"), "malformed"),
        (lambda folder: (folder / "vm.ovf").write_bytes(b"<a/>"), "no envelope"),
        (lambda folder: (folder / "b.ovf").write_bytes(b"<a/>"), "it holds 2 .ovf"),
        (lambda folder: (folder / "vm.ovf").unlink(), "it holds no .ovf"),
        (text(b"ovf:id='file1'", b"ovf:id='file1' ovf:compression='gzip'"), "compressed as a whole"),
        (text(b"ovf:id='file1'", b"ovf:id='file1' ovf:chunkSize='100'"), "cut into pieces"),
        (text(b"vm-disk1.vmdk", b"../vm-disk1.vmdk"), "outside its folder"),
        (linked, "vm-disk1.vmdk is (referenced|listed)"),
        (volume, "client's library volume"),
    ],
)
def test_what_cannot_be_rewritten_is_refused_and_stays_as_it_is(
    tmp_path: Path, change: Callable[[Path], object], reason: str
) -> None:
    folder = make(tmp_path / "vm")
    change(folder)
    before = files(folder)
    with pytest.raises((RepackError, HeldError), match=reason):
        repack(folder)
    assert files(folder) == before


def test_without_a_manifest_damage_is_found_by_the_grain(tmp_path: Path) -> None:
    folder = make(tmp_path / "vm", algorithm=None)
    poked(vmdks.OVERHEAD * 512 + 200, "<Q", 0)(folder)
    before = files(folder)
    with pytest.raises(RepackError, match=r"vm-disk1\.vmdk: grain 0 is damaged"):
        repack(folder)
    assert files(folder) == before


def test_an_archive_is_refused_with_how_to_unpack_it(tmp_path: Path) -> None:
    folder = make(tmp_path / "vm")
    pack_ova(folder, tmp_path / "lib" / "vm.ova")
    for template in (tmp_path / "lib" / "vm.ova", tmp_path / "lib"):
        with pytest.raises(RepackError, match=r"mkdir NAME && tar -xf NAME\.ova"):
            repack(template)


@pytest.mark.parametrize("name", ["nothing", "vm/other.ovf", "vm/vm.nvram"])
def test_what_is_no_template_is_refused(tmp_path: Path, name: str) -> None:
    make(tmp_path / "vm")
    with pytest.raises(RepackError, match="there is no such"):
        repack(tmp_path / name)


def test_a_template_without_disks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepackError, match="references no VMDK"):
        repack(make(tmp_path / "vm", disks=0))


def test_a_disk_by_another_name_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    folder = make(tmp_path / "vm", 1, algorithm=None)
    (folder / "vm-disk1.vmdk").rename(folder / "system.img")
    text(b"vm-disk1.vmdk", b"system.img")(folder)
    assert [change.name for change in repack(folder).disks] == ["system.img"]


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "vm")
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(LockedError):
        repack(folder)
    os.close(handle)
    repack(folder)


def test_two_at_once_are_refused_on_a_file_system_that_locks_no_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "vm")
    real = fcntl.flock

    def flock(handle: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    handle = os.open(folder / ".clr-repack.lock", os.O_RDWR | os.O_CREAT)
    real(handle, fcntl.LOCK_EX)
    with pytest.raises(LockedError):
        repack(folder)
    os.close(handle)
    assert all(change.is_changed for change in repack(folder).disks)


def test_a_volume_without_room_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "vm")
    before = files(folder)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=300_000))
    with pytest.raises(RepackError, match=r"are needed beside the old files, and the volume has 300\.0 kB free"):
        repack(folder)
    assert files(folder) == before


def test_a_file_that_somebody_replaces_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    folder = make(tmp_path / "vm")
    theirs = disk(7)

    def replace(done: int, total: int, _name: str) -> None:
        if done == total:
            (folder / "new").write_bytes(theirs)
            (folder / "new").rename(folder / "vm-disk2.vmdk")

    before = files(folder)
    with pytest.raises(RepackError, match=r"vm-disk2\.vmdk was changed meanwhile"):
        repack(folder, on_progress=replace)
    assert files(folder) == before | {"vm-disk2.vmdk": theirs}


def test_a_disk_that_was_written_wrong_never_takes_the_old_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "vm")
    before = files(folder)
    other = make(tmp_path / "other")
    real = vmdk.stored
    flipped = bytearray(real(random.Random(5).randbytes(vmdks.GRAIN)))
    monkeypatch.setattr(vmdk, "stored", lambda grain: bytes(flipped))
    with pytest.raises(RepackError, match="reads back with another content"):
        repack(folder)
    monkeypatch.setattr(vmdk, "stored", lambda grain: real(grain)[:-1] + b"x")
    with pytest.raises(RepackError, match="grain 0 is damaged"):
        repack(other)
    assert files(folder) == before == files(other)


# ---------------------------------------------------------------- killed, and failing


def check_after(folder: Path, old: dict[str, bytes], new: dict[str, bytes], *, is_listed: bool) -> bool:
    """Hold what is there after a fault against what may be there; return whether it is the new template's turn.

    With a manifest (``is_listed``) clients must hold every mixture; they may take any that has the right content.
    """
    there = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    committed = (folder / switch.COMPLETE).exists()
    unsigned = {name: data for name, data in old.items() if name != "vm.cert"}
    is_mixture = there not in (old, unsigned, new)
    assert not is_mixture or committed, "a mixture, and nothing with which the next run could complete it"
    assert set(old) - {"vm.cert"} <= set(there) <= set(old)
    found = accepted(folder)
    assert found is None or not (is_mixture and is_listed), "clients would take a mixture"
    assert found is not None or is_mixture
    for name in old:
        if name.endswith(".vmdk"):
            assert vmdks.read(there[name]) == vmdks.read(old[name])
    return there == new or committed


class Bench:
    """A template that is repacked under one fault after the other."""

    def __init__(self, tmp_path: Path, pristine: Path) -> None:
        self.pristine = pristine
        self.folder = tmp_path / "lib" / "vm"
        self.old = files(pristine)
        self.points = self.run(None).points
        self.new = files(self.folder)

    def run(self, fault: Kill | Fail | None) -> Ended:
        """Repack a fresh copy."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.pristine, self.folder)
        return run(lambda: repack(self.folder, drop_cert=True), self.folder, fault)

    def complete(self) -> Repacked:
        """Repack once more, without a fault; then all must be as if there never was one."""
        done = repack(self.folder, drop_cert=True)
        assert files(self.folder) == self.new
        return done

    def chosen(self, *, is_early: bool = True) -> list[int]:
        """Numbers of all points from when the new template is ready, and some of those before, with CLR_FULL=1 all."""
        ready = self.committing() - 1
        assert ready > 20
        step = 1 if os.environ.get("CLR_FULL") == "1" else 4
        return [*(range(1, ready, step) if is_early else ()), *range(ready, len(self.points) + 1)]

    def committing(self) -> int:
        """The number of the point at which the new template becomes the valid one."""
        return 1 + next(n for n, point in enumerate(self.points) if point.endswith("rename .clr-repack.new"))


@pytest.mark.parametrize(
    ("algorithm", "sizes", "signed"),
    [("sha256", True, True), (None, True, False), (None, False, False)],
    ids=["all of it", "no manifest", "neither manifest nor sizes"],
)
def test_a_kill_at_any_step_leaves_old_or_new_and_the_next_run_completes_it(
    tmp_path: Path, algorithm: str | None, sizes: bool, signed: bool
) -> None:
    pristine = make(tmp_path / "pristine", algorithm=algorithm, sizes=sizes)
    if signed:
        sign(pristine)
        os.utime(pristine / "vm.cert", (1_600_000_000, 1_600_000_000))
    bench = Bench(tmp_path, pristine)
    for number in bench.chosen(is_early=signed):
        ended = bench.run(Kill(number))
        assert ended.killed
        print(f"killed before {ended.struck}")
        hidden = [path.name for path in bench.folder.iterdir() if path.name not in bench.old]
        assert all(name.startswith(".") for name in hidden)
        is_new = check_after(bench.folder, bench.old, bench.new, is_listed=algorithm is not None)
        assert is_new == (number > bench.committing())
        done = bench.complete()
        assert is_new != any(change.is_changed for change in done.disks)


def test_a_volume_that_fails_at_any_step_is_told_in_words_and_leaves_old_or_new(tmp_path: Path) -> None:
    bench = Bench(tmp_path, make(tmp_path / "pristine"))
    for number in bench.chosen():
        ended = bench.run(Fail(number, errno.ENOSPC))
        assert ended.struck
        print(f"failed at {ended.struck}: {ended.error or 'went on'}")
        assert ended.error in ("", "RepackError")
        assert not ended.error or "No space left on device" in ended.text
        check_after(bench.folder, bench.old, bench.new, is_listed=True)
        bench.complete()


def test_what_a_killed_run_had_ready_is_thrown_away_when_the_template_was_replaced_since(tmp_path: Path) -> None:
    bench = Bench(tmp_path, make(tmp_path / "pristine"))
    folder = bench.folder
    bench.run(Kill(bench.committing() + 3))
    assert accepted(folder) is None
    (folder / "vm-disk1.vmdk").write_bytes(disk(9))
    (folder / "vm-disk2.vmdk").unlink()
    (folder / "vm.ovf").write_bytes(envelope("vm", {"vm-disk1.vmdk": len(disk(9)), "vm.nvram": 500}))
    (folder / "vm.mf").write_bytes(manifest(folder, ["vm.ovf", "vm-disk1.vmdk", "vm.nvram"]))
    done = repack(folder)
    assert not done.was_interrupted
    assert vmdks.read((folder / "vm-disk1.vmdk").read_bytes()) == vmdks.read(disk(9))
    assert accepted(folder) is not None
    assert set(files(folder)) == {"vm-disk1.vmdk", "vm.ovf", "vm.mf", "vm.nvram"}


@pytest.mark.parametrize(
    "plan", [b"", b"{}", b'{"steps": [{"name": "../x", "old": [1], "new": null}]}', b"[" * 100_000]
)
def test_a_plan_that_makes_no_sense_is_thrown_away(tmp_path: Path, plan: bytes) -> None:
    folder = make(tmp_path / "vm")
    (tmp_path / "x").write_bytes(b"x")
    (folder / switch.COMPLETE).mkdir()
    (folder / switch.COMPLETE / "plan.json").write_bytes(plan)
    (folder / switch.COMPLETE / "vm-disk1.vmdk").write_bytes(b"nonsense")
    assert not repack(folder).was_interrupted
    assert accepted(folder) is not None
    assert (tmp_path / "x").exists()
    assert not (folder / switch.COMPLETE).exists()


def test_a_dry_run_does_not_complete_what_a_killed_run_began(tmp_path: Path) -> None:
    folder = make(tmp_path / "vm")
    (folder / switch.COMPLETE).mkdir()
    with pytest.raises(RepackError, match="without --dry-run"):
        repack(folder, dry_run=True)


# ---------------------------------------------------------------- the command


def clr(*arguments: object) -> tuple[int, str]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    result = CliRunner().invoke(cli.main, ["repack", *map(str, arguments)])
    for number, handler in before.items():
        signal.signal(number, handler)
    return result.exit_code, result.output


def test_the_command_says_what_it_did_and_its_exit_code_whether_all_of_it_was_possible(tmp_path: Path) -> None:
    good, bad = make(tmp_path / "good"), make(tmp_path / "bad\x1b[2J", 1)
    (bad / "vm.nvram").unlink()
    code, output = clr("--dry-run", good)
    assert (code, output.count("would be about")) == (0, 2)
    code, output = clr(bad)
    assert code == 1
    assert "vm.nvram" in output
    assert "\x1b" not in output
    code, output = clr(bad, good)
    assert code == 6
    assert output.count(", now ") == 2
    code, output = clr(good)
    assert code == 0
    assert output.count("left as it is: it has that form already") == 2
    assert clr()[0] == 2
    handle = os.open(bad, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert clr(bad)[0] == LockedError.exit_code
    os.close(handle)
    assert issubclass(LockedError, ClrError)


def test_a_signal_clears_away_what_was_begun(tmp_path: Path) -> None:
    folder = make(tmp_path / "vm")
    before = files(folder)
    script = (
        "import os, signal, sys; from clr_client import cli; from clr_client.repack import vmdk\n"
        "real = vmdk.stored\n"
        "vmdk.stored = lambda grain: (os.kill(os.getpid(), signal.SIGTERM), real(grain))[1]\n"
        "cli.main(['repack', sys.argv[1]])"
    )
    done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, timeout=60, check=False)
    assert done.returncode == 143, done.stderr
    assert files(folder) == before
