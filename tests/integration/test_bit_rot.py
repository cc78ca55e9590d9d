"""What rots on a site's disk is found, withdrawn, fetched again and published under the version that it has."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from clr_client import pull
from clr_client.errors import TransportError
from clr_client.integrity import audit, repair, verification
from clr_client.integrity.damages import noted
from clr_client.rollback import release, roll_back
from clr_client.transport import fetch
from clr_client.vcsp.checking import check
from support.disks import disk, without_hard_links
from support.proxy import Line
from support.server import wait_until
from support.site import Site, cli_environment, get, running
from support.templates import fake_template, pack_ova, replace
from support.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from clr_client.reporting.status import Verification
    from clr_client.transport import Transfer
    from support.server import Server

BIG = 8_000_000
DISK = "alpha-disk1.vmdk"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "primary"
    fake_template(folder / "alpha", disk_bytes=BIG)
    fake_template(folder / "beta", disk_bytes=100_000)
    return folder


@pytest.fixture
def crossed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], Transfer]]:
    """Every transfer: what was asked for, and what it did."""
    seen: list[tuple[list[str], Transfer]] = []

    async def watched(link: Any, paths: Any, *rest: Any, **options: Any) -> Transfer:
        done = await fetch(link, paths, *rest, **options)
        seen.append((list(paths), done))
        return done

    monkeypatch.setattr("clr_client.transport.fetch", watched)
    return seen


def place(site: Site, item: str, file: str) -> Path:
    """Where a published file lies in its item tree."""
    library = site.store.published()
    assert library is not None
    return site.store.tree(next(known for known in library.items if known.name == item)) / file


def flip(path: Path, at: int = 5_000) -> None:
    """Change one byte of a file behind the back of everybody: size and times stay."""
    before = path.stat()
    with path.open("r+b") as handle:
        handle.seek(at)
        byte = handle.read(1)
        handle.seek(at)
        handle.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def verify(site: Site, **options: Any) -> Verification:
    settings = site.settings(**options.pop("changes", {}))
    return asyncio.run(verification.verify(settings, trigger="test", **options))


def paths(site: Site, *files: tuple[str, str]) -> list[str]:
    return sorted(place(site, *file).relative_to(site.library).as_posix() for file in files)


def damaged(site: Site) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(site.store.status.read_bytes())["damaged"]
    return found


def two_files(library: Path) -> None:
    """Put an item of two plain files into the library."""
    (library / "tools").mkdir()
    replace(library / "tools" / "one.bin", os.urandom(50_000))
    replace(library / "tools" / "two.bin", b"old")


def test_one_flipped_byte_is_found_and_only_what_is_around_it_crosses_the_line(
    library: Path, site: Site, crossed: list[tuple[list[str], Transfer]]
) -> None:
    site.sync()
    before, generation = site.manifests(), site.store.current_number()
    disk = place(site, "alpha", DISK)
    assert disk.samefile(site.store.mirror / "alpha" / DISK)
    flip(disk, BIG // 2)
    crossed.clear()
    done = verify(site)
    assert [damage.path for damage in done.mended] == paths(site, ("alpha", DISK))
    assert (done.damaged, done.error) == ((), "")
    assert [files for files, _ in crossed] == [[f"alpha/{DISK}"]]
    assert 0 < crossed[0][1].literal < 10_000
    assert disk.read_bytes() == (library / "alpha" / DISK).read_bytes()
    assert disk.samefile(site.store.mirror / "alpha" / DISK)
    assert (site.manifests(), site.store.current_number()) == (before, generation)
    assert verify(site).found == ()
    report = site.sync()
    assert (report.result, report.updated, report.planned_bytes) == ("success", (), 0)
    assert (site.manifests(), site.store.current_number()) == (before, generation)


def test_a_reader_in_the_middle_of_the_damaged_file_reads_on_and_the_next_one_gets_the_good_one(
    library: Path, site: Site
) -> None:
    site.sync()
    with running(site):
        url = f"http://127.0.0.1:{site.environment['HTTP_PORT']}/lib.json"
        wait_until(
            lambda: "the next sync is due" in (site.home / "run.log").read_text(), what="the end of its first sync"
        )
        assert check(url, full=True).ok
        flip(place(site, "alpha", DISK), BIG - 10)
        rotten = place(site, "alpha", DISK).read_bytes()
        href = place(site, "alpha", DISK).relative_to(site.store.items)
        with socket.socket() as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)  # less than the file
            reader.connect(("127.0.0.1", int(site.environment["HTTP_PORT"])))
            reader.sendall(f"GET /_items/{href} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            received = bytearray(reader.recv(1000))
            assert len(verify(site).mended) == 1
            while piece := reader.recv(1 << 16):
                received += piece
        assert received.partition(b"\r\n\r\n")[2] == rotten
        assert get(site, f"_items/{href}") == (200, (library / "alpha" / DISK).read_bytes())
        assert check(url, full=True).ok


def test_several_damages_of_all_kinds_are_mended_in_one_run_each_manifest_to_its_meaning(
    library: Path, site: Site, crossed: list[tuple[list[str], Transfer]]
) -> None:
    site.sync()
    before = site.manifests()
    flip(place(site, "alpha", DISK))
    place(site, "alpha", "alpha.mf").unlink()
    os.truncate(place(site, "beta", "beta-disk1.vmdk"), 99)
    place(site, "beta", "item.json").write_bytes(b"{}")
    (site.library / "current" / "lib.json").write_bytes(b"{")
    (site.library / "current" / "items.json").unlink()
    crossed.clear()
    done = verify(site)
    assert (len(done.found), len(done.mended), done.damaged) == (6, 6, ())
    assert sorted(crossed[0][0]) == [f"alpha/{DISK}", "beta/beta-disk1.vmdk"]
    assert site.manifests() == before
    assert verify(site).found == ()
    for name in ("alpha", "beta"):
        for file in (library / name).iterdir():
            assert site.content(name, file.name) == file.read_bytes()
            assert place(site, name, file.name).samefile(site.store.mirror / name / file.name)


def test_a_lost_tree_is_built_again_without_the_server(server: Server, site: Site) -> None:
    site.sync()
    before = site.manifests()
    shutil.rmtree(place(site, "alpha", DISK).parent)
    server.stop()
    done = verify(site)
    assert (len(done.mended), done.damaged) == (4, ())
    assert site.manifests() == before
    assert verify(site).found == ()


def test_damage_found_while_the_line_is_down_is_withdrawn_and_mended_by_the_next_sync(
    library: Path, server: Server, site: Site
) -> None:
    site.sync()
    before = site.manifests()
    disk = place(site, "alpha", DISK)
    flip(disk)
    rotten = disk.read_bytes()
    server.stop()
    done = verify(site)
    assert [damage.path for damage in done.damaged] == paths(site, ("alpha", DISK))
    assert "no connection" in done.damaged[0].hindrance
    assert damaged(site)[0]["path"] == done.damaged[0].path
    assert not disk.exists()
    assert (disk.parent / ".damaged" / DISK).read_bytes() == rotten
    with pytest.raises(TransportError):
        site.sync()
    assert len(damaged(site)) == 1
    server.start()
    report = site.sync()
    assert (report.result, len(report.mended), report.damaged) == ("success", 1, ())
    assert 0 < report.literal_bytes < 10_000
    assert (damaged(site), noted(site.store)) == ([], ())
    assert disk.read_bytes() == (library / "alpha" / DISK).read_bytes()
    assert not (disk.parent / ".damaged").exists()
    assert site.manifests() == before
    assert verify(site).found == ()


def test_damage_that_a_verification_only_noted_is_mended_by_the_next_sync_whatever_the_switches_say(
    library: Path, site: Site
) -> None:
    site.sync()
    before = site.manifests()
    flip(place(site, "alpha", DISK))
    done = verify(site, repairing=False)
    assert len(done.damaged) == 1
    assert place(site, "alpha", DISK).exists()
    report = site.sync(SYNC_UPDATE="false", SYNC_ADD="false", SYNC_DELETE="false")
    assert (report.result, len(report.mended)) == ("success", 1)
    assert site.content("alpha", DISK) == (library / "alpha" / DISK).read_bytes()
    assert site.manifests() == before


def test_a_line_that_is_cut_while_a_damaged_disk_is_fetched_goes_on_from_there(
    library: Path, server: Server, site: Site, crossed: list[tuple[list[str], Transfer]]
) -> None:
    site.sync()
    disk = place(site, "alpha", DISK)
    disk.write_bytes(os.urandom(BIG))  # nothing of it is any good
    with Line(server.port, None, BIG // 2) as line:
        done = verify(site, changes={"SYNC_PORT": str(line.port)})
    assert len(done.damaged) == 1
    crossed.clear()
    done = verify(site)
    assert (len(done.mended), done.damaged) == (1, ())
    assert crossed[0][1].literal < BIG * 3 // 4
    assert disk.read_bytes() == (library / "alpha" / DISK).read_bytes()


def test_a_file_that_changed_at_the_server_meanwhile_becomes_a_new_version(library: Path, site: Site) -> None:
    site.sync()
    flip(place(site, "beta", "beta-disk1.vmdk"))
    fake_template(library / "beta", disk_bytes=100_500, revision=1)
    done = verify(site)
    assert [damage.hindrance for damage in done.damaged] == [repair.OTHER]
    assert site.versions() == {"alpha": "1", "beta": "1"}
    report = site.sync()
    assert (report.result, report.updated, report.damaged) == ("success", ("beta",), ())
    assert site.versions() == {"alpha": "1", "beta": "2"}
    assert (verify(site).found, damaged(site)) == ((), [])


def test_other_content_of_the_same_size_and_time_at_the_server_becomes_a_new_version(library: Path, site: Site) -> None:
    (library / "tools").mkdir()
    replace(library / "tools" / "tools.bin", b"a" * 50_000)
    os.utime(library / "tools" / "tools.bin", (1_700_000_000, 1_700_000_000))
    site.sync()
    flip(place(site, "tools", "tools.bin"))
    replace(library / "tools" / "tools.bin", b"b" * 50_000)
    os.utime(library / "tools" / "tools.bin", (1_700_000_000, 1_700_000_000))
    done = verify(site)
    assert [damage.hindrance for damage in done.damaged] == [repair.OTHER]
    report = site.sync()
    assert (report.updated, report.damaged) == (("tools",), ())
    assert site.versions()["tools"] == "2"
    assert site.content("tools", "tools.bin") == b"b" * 50_000
    assert verify(site).found == ()


def test_a_file_that_the_server_no_longer_has_is_not_served_and_reported_by_each_run_until_it_is_back(
    library: Path, site: Site
) -> None:
    site.sync()
    before = site.manifests()
    disk = place(site, "beta", "beta-disk1.vmdk")
    flip(disk)
    (library / "beta").rename(library.parent / "beta")
    done = verify(site)
    assert [damage.hindrance for damage in done.damaged] == [repair.GONE]
    for _ in range(2):
        report = site.sync(SYNC_DELETE="false")
        assert (report.result, len(report.damaged)) == ("partial", 1)
        assert not disk.exists()
    assert (disk.parent / ".damaged" / disk.name).exists()
    assert site.manifests() == before
    (library.parent / "beta").rename(library / "beta")
    report = site.sync(SYNC_DELETE="false")
    assert (report.result, len(report.mended)) == ("success", 1)
    assert disk.read_bytes() == (library / "beta" / disk.name).read_bytes()
    assert site.manifests() == before


def test_damage_of_an_item_that_goes_away_is_forgotten(library: Path, site: Site) -> None:
    site.sync()
    flip(place(site, "beta", "beta-disk1.vmdk"))
    verify(site, repairing=False)
    shutil.rmtree(library / "beta")
    report = site.sync()
    assert (report.result, report.removed, report.damaged) == ("success", ("beta",), ())
    assert noted(site.store) == ()


def test_a_file_unpacked_from_an_archive_is_unpacked_again_and_the_archive_fetched_if_it_rotted_too(
    library: Path, server: Server, site: Site, crossed: list[tuple[list[str], Transfer]]
) -> None:
    key = "folder/web.ova"
    fake_template(library.parent / "packed" / "web", disk_bytes=300_000, algorithm=None)
    pack_ova(library.parent / "packed" / "web", library / key)
    site.sync()
    before = site.manifests()
    disk = place(site, "folder", "web-disk1.vmdk")
    good = disk.read_bytes()
    flip(disk)
    server.stop()
    done = verify(site)
    assert ([damage.path for damage in done.mended], done.damaged) == (paths(site, ("folder", disk.name)), ())
    assert disk.read_bytes() == good
    server.start()
    crossed.clear()
    flip(disk)
    flip(site.store.mirror / key, 200_000)
    done = verify(site)
    assert (len(done.mended), done.damaged) == (1, ())
    assert crossed[0][0] == [key]
    assert crossed[0][1].literal < 10_000
    assert disk.read_bytes() == good
    assert site.sync().result == "success"
    assert site.manifests() == before
    assert verify(site).found == ()


def test_where_the_mirror_has_its_own_sound_copy_nothing_crosses_the_line(server: Server, site: Site) -> None:
    site.sync()
    disk = place(site, "alpha", DISK)
    good = disk.read_bytes()
    replace(disk, good[:-1])
    server.stop()
    done = verify(site)
    assert (len(done.mended), done.damaged) == (1, ())
    assert disk.samefile(site.store.mirror / "alpha" / DISK)


def test_rot_that_nobody_noticed_is_no_new_version_even_where_the_digests_were_lost(library: Path, site: Site) -> None:
    two_files(library)
    site.sync()
    before = site.manifests()
    flip(place(site, "tools", "one.bin"))
    flip(place(site, "beta", "beta-disk1.vmdk"))  # its .mf no longer fits
    site.store.digests.unlink()
    report = site.sync()
    assert (report.result, len(report.mended), report.held) == ("success", 2, ())
    assert site.manifests() == before
    assert verify(site).found == ()


def test_a_new_version_of_an_item_takes_no_rotten_file_over_from_the_old_one(library: Path, site: Site) -> None:
    two_files(library)
    site.sync()
    flip(place(site, "tools", "one.bin"))
    verify(site, repairing=False)
    replace(library / "tools" / "two.bin", b"new")
    report = site.sync()
    assert (report.result, report.updated) == ("success", ("tools",))
    assert site.content("tools", "one.bin") == (library / "tools" / "one.bin").read_bytes()
    assert verify(site).found == ()


def test_kept_older_versions_that_share_the_damaged_file_are_mended_with_it(library: Path, site: Site) -> None:
    two_files(library)
    site.sync()
    old = place(site, "tools", "one.bin")
    replace(library / "tools" / "two.bin", b"new")
    site.sync()
    new = place(site, "tools", "one.bin")
    assert new != old
    assert new.samefile(old)
    flip(old)
    assert verify(site).damaged == ()
    assert old.read_bytes() == new.read_bytes() == (library / "tools" / "one.bin").read_bytes()
    assert not (old.parent / ".damaged").exists()


def test_a_site_that_was_rolled_back_is_mended_as_well(library: Path, site: Site) -> None:
    site.sync()
    fake_template(library / "beta", disk_bytes=100_000, revision=1)
    site.sync()
    roll_back(site.settings(), site.store, 1)
    before = site.manifests()
    flip(place(site, "alpha", DISK))
    verify(site, repairing=False)
    report = site.sync()
    assert (report.result, len(report.mended)) == ("paused", 1)
    assert site.manifests() == before
    assert site.content("alpha", DISK) == (library / "alpha" / DISK).read_bytes()
    release(site.store)


def test_a_file_that_the_disk_cannot_read_is_fetched_whole(
    library: Path, site: Site, monkeypatch: pytest.MonkeyPatch, crossed: list[tuple[list[str], Transfer]]
) -> None:
    site.sync()
    disk = place(site, "alpha", DISK)
    bad = disk.stat().st_ino
    real = os.read

    def read(descriptor: int, count: int) -> bytes:
        if os.fstat(descriptor).st_ino == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, count)

    monkeypatch.setattr(os, "read", read)
    crossed.clear()
    done = verify(site)
    assert [damage.reason for damage in done.found] == ["cannot be read: Input/output error"]
    assert (len(done.mended), done.damaged) == (1, ())
    assert crossed[0][1].literal == BIG
    assert disk.read_bytes() == (library / "alpha" / DISK).read_bytes()


def test_reading_blocks_no_sync_and_what_the_sync_replaces_or_removes_meanwhile_is_no_damage(
    library: Path, site: Site
) -> None:
    site.sync()
    reading, go_on = threading.Event(), threading.Event()
    found: list[Verification] = []

    def wait(_done: int, _total: int, _name: str) -> None:
        reading.set()
        assert go_on.wait(60)

    worker = threading.Thread(target=lambda: found.append(verify(site, on_progress=wait)))
    worker.start()
    try:
        assert reading.wait(60)
        shutil.rmtree(library / "beta")
        fake_template(library / "alpha", disk_bytes=BIG, revision=1)
        report = site.sync(LIBRARY_KEEP="1", LIBRARY_GRACE="0")
        report = site.sync(LIBRARY_KEEP="1", LIBRARY_GRACE="0")
        assert report.result == "success"
        assert site.versions() == {"alpha": "2"}
    finally:
        go_on.set()
        worker.join(60)
    assert found[0].found == ()
    assert not (site.store.items / "beta").exists()


def test_a_sync_that_is_at_work_when_damage_is_found_mends_it_at_its_end(
    library: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.sync()
    disk = place(site, "alpha", DISK)
    flip(disk)
    found: list[Verification] = []
    list_source = pull.transport.list_source

    async def listing(link: Any) -> Any:
        if not found:
            found.append(await verification.verify(site.settings(), trigger="test"))
        return await list_source(link)

    monkeypatch.setattr(pull.transport, "list_source", listing)
    report = site.sync()
    assert found[0].error == verification.BUSY
    assert (len(found[0].damaged), report.result, len(report.mended)) == (1, "success", 1)
    assert disk.read_bytes() == (library / "alpha" / DISK).read_bytes()
    assert verify(site).found == ()


def test_a_file_that_is_sound_when_it_is_read_again_stays_where_it_is(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.sync()
    disk = place(site, "alpha", DISK)
    inode = disk.stat().st_ino
    real: Callable[..., str] = audit.flaw
    monkeypatch.setattr(audit, "flaw", lambda path, *rest: audit.CHANGED if path == disk else real(path, *rest))
    done = verify(site)
    assert (len(done.found), done.mended, done.damaged) == (1, (), ())
    assert disk.stat().st_ino == inode
    assert noted(site.store) == ()


CLOCKED = """
import asyncio, os
from datetime import UTC, datetime, timedelta
from clr_client import daemon, settings
from clr_client.reporting import logs

ahead = timedelta(seconds=55 - datetime.now(UTC).second)  # five seconds before the next minute

class Work(daemon.Work):
    def __init__(self, *arguments):
        super().__init__(*arguments, now=lambda: datetime.now(UTC) + ahead)

daemon.Work = Work
loaded, _ = settings.load(os.environ)
logs.configure(loaded.tz)
asyncio.run(daemon.run(loaded))
"""


def test_a_running_client_verifies_on_its_schedule_and_a_strict_subscriber_never_sees_a_difference(
    library: Path, site: Site
) -> None:
    site.sync()
    before = site.manifests()
    flip(place(site, "alpha", DISK), 4_000_000)
    argv = [sys.executable, "-c", CLOCKED]
    environment = {**cli_environment(site), "VERIFY_SCHEDULE": "* * * * *"}
    log = site.home / "run.log"
    with log.open("wb") as output, subprocess.Popen(argv, env=environment, stdout=output, stderr=output) as client:
        try:
            wait_until(lambda: "verification: " in log.read_text(), 60, "the end of a verification")
            url = f"http://127.0.0.1:{site.environment['HTTP_PORT']}/lib.json"
            assert check(url, full=True).ok
            href = place(site, "alpha", DISK).relative_to(site.store.items)
            assert get(site, f"_items/{href}") == (200, (library / "alpha" / DISK).read_bytes())
        finally:
            client.terminate()
    text = log.read_text()
    assert "the next verification is due " in text
    assert f"mended: items/{href}: is not what was published (alpha)" in text
    assert "1 found damaged; 1 mended\n" in text
    assert site.manifests() == before
    status = json.loads(site.store.status.read_bytes())
    assert status["verification"]["trigger"] == "schedule"
    assert [damage["path"] for damage in status["verification"]["mended"]] == [f"items/{href}"]


def test_rot_on_the_disk_is_found_although_memory_still_holds_the_file_as_it_was(tmp_path: Path) -> None:
    content = os.urandom(1_000_000)
    with disk("ext4", tmp_path / "volume") as mounted:
        volume = Volume(mounted.path / "library")
        volume.put("a/disk.vmdk", content)
        path = volume.store.tree(volume.sync().items[0]) / "disk.vmdk"
        os.sync()
        assert path.read_bytes() == content
        start = mounted.image.read_bytes().index(content[:4096])
        with mounted.image.open("r+b") as image:
            image.seek(start)
            image.write(bytes([content[0] ^ 1]))
        assert [damage.reason for damage in audit.audit(volume.store)] == [audit.CHANGED]


def test_where_files_have_no_second_name_both_copies_are_mended(library: Path, server: Server, tmp_path: Path) -> None:
    site = Site(tmp_path / "site", server)
    with without_hard_links(site.library, tmp_path / "behind"):
        site.sync()
        before = site.manifests()
        disk, mirrored = place(site, "beta", "beta-disk1.vmdk"), site.store.mirror / "beta" / "beta-disk1.vmdk"
        flip(disk)
        flip(mirrored)
        done = verify(site)
        assert (len(done.mended), done.damaged) == (1, ())
        assert disk.read_bytes() == mirrored.read_bytes() == (library / "beta" / disk.name).read_bytes()
        assert site.sync().result == "success"
        assert site.manifests() == before
