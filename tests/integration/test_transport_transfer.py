"""Listing and fetching against the real sshd, rrsync and rsync on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from clr_client.errors import HostKeyError, TransportError
from clr_client.transport import (
    PARTIAL_DIR,
    Link,
    Listing,
    Progress,
    Transfer,
    fetch,
    limited,
    list_source,
    partials,
    pin,
    remembered_fingerprints,
    rescue,
    strays,
    versions,
)
from clr_client.values import Peer
from support.server import Server, free_port, make_key, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20
HOSTILE = [
    b"new\nline",
    b" lead",
    b"tail ",
    rb"back\#012slash",
    rb"back\slash",
    b"\xff\xfe not utf-8",
    "ü".encode(),
    b"#comment",
    b";comment",
    b"-n",
    b"--delete",
    b"$(id)",
    b"`id`; id",
    b"a -> b",
    b"tab\tesc\x1b[31m\x07",
    b"'\"*?[x]{a,b}",
    b"%h 100%",
    b"n" * 255,
]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    folder.mkdir()
    return folder


@pytest.fixture
def link(server: Server, tmp_path: Path) -> Link:
    return link_to(server, tmp_path)


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror"
    folder.mkdir()
    return folder


def link_to(server: Server, folder: Path, **changes: object) -> Link:
    values: dict[str, object] = {
        "peer": Peer(server.host, server.port),
        "user": server.user,
        "identity": server.identity,
        "known_hosts": folder / "known_hosts",
        "trust_first": True,
        "connect_timeout": timedelta(seconds=10),
        "idle_timeout": timedelta(seconds=20),
    }
    return Link(**(values | changes))  # type: ignore[arg-type]


def listing(link: Link) -> Listing:
    return asyncio.run(list_source(link))


def bring(
    link: Link,
    mirror: Path,
    *paths: str,
    basis: Path | None = None,
    rate: int = 0,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_file: Callable[[str], None] = lambda path: None,
) -> Transfer:
    async def main() -> Transfer:
        async with limited(link, lambda: rate) if rate else contextlib.nullcontext(link) as line:
            return await fetch(
                line, paths, mirror, basis=basis, block=4096, rate=rate, on_progress=on_progress, on_file=on_file
            )

    return asyncio.run(main())


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def write(path: Path, content: bytes, mtime: int = 1_700_000_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (mtime, mtime))
    return path


def left_behind(folder: Path) -> dict[int, str]:
    """Living processes with a transport's environment that have to do with a test's folder."""
    found = {}
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            environment, command = (process / "environ").read_bytes(), (process / "cmdline").read_bytes()
            zombie = b") Z" in (process / "stat").read_bytes()
            if not zombie and b"HOME=/nonexistent" in environment and bytes(folder) in environment + command:
                found[int(process.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


# --- what arrives ---


def test_names_of_every_kind_are_listed_and_fetched_as_they_are(library: Path, link: Link, mirror: Path) -> None:
    for number, name in enumerate(HOSTILE):
        write(library / "folder" / os.fsdecode(name), name, 1_600_000_000 + number)
    files = listing(link).files
    assert {os.fsencode(file.name): (file.size, file.mtime) for file in files} == {
        name: (len(name), 1_600_000_000 + number) for number, name in enumerate(HOSTILE)
    }
    seen: list[str] = []
    transfer = bring(link, mirror, *(file.path for file in files), on_file=seen.append)
    assert transfer.complete
    assert transfer.problems == ()
    assert sorted(seen) == [file.path for file in files]
    for file in files:
        arrived = mirror / file.path
        assert arrived.read_bytes() == os.fsencode(file.name)
        assert int(arrived.stat().st_mtime) == file.mtime


def test_links_devices_fifos_sockets_and_dotfiles_are_neither_listed_nor_fetched(
    library: Path, link: Link, mirror: Path, tmp_path: Path
) -> None:
    write(library / "a" / "real", b"real")
    write(library / "a" / ".dot", b"x")
    write(library / ".hidden" / "x", b"x")
    write(library / "lost+found" / "x", b"x")
    write(tmp_path / "outside", b"secret")
    (library / "a" / "link").symlink_to(tmp_path / "outside")
    (library / "folderlink").symlink_to(tmp_path)
    os.mkfifo(library / "a" / "fifo")
    if os.geteuid() == 0:
        os.mknod(library / "a" / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(library / "a" / "socket"))
    assert [file.path for file in listing(link).files] == ["a/real"]
    wanted = ["a/real", "a/link", "a/fifo", "a/device", "a/socket", "folderlink", "folderlink/outside"]
    transfer = bring(link, mirror, *wanted)
    assert not transfer.complete
    found = [path.relative_to(mirror).as_posix() for path in mirror.rglob("*") if not path.is_dir()]
    assert found == ["a/real"]


def test_an_empty_library_is_an_empty_complete_listing(link: Link) -> None:
    assert listing(link) == Listing((), complete=True, problems=())


def test_modes_and_owners_of_the_server_do_not_come_along(library: Path, link: Link, mirror: Path) -> None:
    write(library / "a" / "f", b"x").chmod(0o4700)
    (library / "a").chmod(0o700)
    bring(link, mirror, "a/f")
    assert stat.S_IMODE((mirror / "a" / "f").stat().st_mode) == 0o644
    assert stat.S_IMODE((mirror / "a").stat().st_mode) == 0o755


def test_times_are_utc_in_any_time_zone(library: Path, link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    write(library / "f", b"x", 1_711_846_800)
    assert listing(link).files[0].mtime == 1_711_846_800


def test_secrets_of_this_process_are_not_in_the_environment_of_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBRARY_PASSWORD", "secret")
    monkeypatch.setenv("RSYNC_RSH", "false")
    environment = fake(tmp_path, monkeypatch, f"env > {tmp_path}/env; exit 255")
    with pytest.raises(TransportError):
        listing(environment)
    lines = (tmp_path / "env").read_text().splitlines()
    assert {"TZ=UTC", "LC_ALL=C"} <= set(lines)
    names = {line.partition("=")[0] for line in lines}
    assert names - {"PWD", "OLDPWD", "SHLVL", "_"} <= {"PATH", "TZ", "LC_ALL", "HOME"}


def test_progress_grows_to_the_size_and_names_the_file(library: Path, link: Link, mirror: Path) -> None:
    write(library / "a" / "disk", noise(4 * MIB))
    seen: list[Progress] = []
    transfer = bring(link, mirror, "a/disk", rate=2 * MIB, on_progress=seen.append)
    assert seen[-1].done_bytes == transfer.literal == 4 * MIB
    assert seen[-1].file == "a/disk"
    assert [progress.done_bytes for progress in seen] == sorted(progress.done_bytes for progress in seen)
    assert any(0 < progress.done_bytes < 4 * MIB and progress.rate > 0 for progress in seen)
    assert transfer.received > 4 * MIB > transfer.sent > 0


def test_a_file_is_told_of_only_when_it_is_in_place(library: Path, link: Link, mirror: Path) -> None:
    for number in range(30):
        write(library / f"f{number:02d}", noise(100_000, number))
    told: list[str] = []

    def look(path: str) -> None:
        told.append(path)
        assert (mirror / path).read_bytes() == (library / path).read_bytes()

    bring(link, mirror, *(f"f{number:02d}" for number in range(30)), on_file=look)
    assert sorted(told) == sorted(path.name for path in library.iterdir())


def test_a_file_is_told_of_while_the_next_one_is_still_arriving(library: Path, link: Link, mirror: Path) -> None:
    write(library / "a", noise(100_000))
    write(library / "b", noise(4 * MIB))
    told_at: list[bool] = []
    bring(link, mirror, "a", "b", rate=2 * MIB, on_file=lambda path: told_at.append((mirror / "b").exists()))
    assert told_at == [False, True]


def test_with_a_limit_a_port_where_nobody_listens_may_be_tried_again_and_no_process_is_left(
    tmp_path: Path, server: Server, mirror: Path
) -> None:
    link = link_to(server, tmp_path, peer=Peer("127.0.0.1", free_port()))
    with pytest.raises(TransportError) as caught:
        bring(link, mirror, "a", rate=MIB)
    assert caught.value.retryable
    assert "no connection" in caught.value.message
    assert "refused" in caught.value.message
    assert left_behind(tmp_path) == {}


def test_with_a_limit_the_hosts_key_is_the_one_that_is_known_without_it(
    library: Path, server: Server, mirror: Path, tmp_path: Path
) -> None:
    write(library / "a", b"a")
    link = link_to(server, tmp_path)
    listing(link)
    assert bring(link_to(server, tmp_path, trust_first=False), mirror, "a", rate=MIB).complete
    with pytest.raises(HostKeyError):
        bring(link_to(server, tmp_path, trust_first=False, known_hosts=tmp_path / "none"), mirror, "a", rate=MIB)


# --- what does not cross again ---


def test_only_what_changed_in_a_file_crosses(library: Path, link: Link, mirror: Path) -> None:
    content = noise(16 * MIB)
    write(mirror / "disk", content, 1_600_000_000)
    shutil.copy2(mirror / "disk", mirror.parent / "published")
    write(library / "disk", content[: 8 * MIB] + b"changed" + content[8 * MIB + 7 :])
    transfer = bring(link, mirror, "disk")
    assert transfer.literal < MIB
    assert transfer.matched > 15 * MIB
    assert (mirror / "disk").read_bytes() == (library / "disk").read_bytes()


def test_a_published_hard_link_keeps_its_bytes_time_and_mode(library: Path, link: Link, mirror: Path) -> None:
    write(mirror / "disk", b"old", 1_600_000_000)
    published = mirror.parent / "published"
    os.link(mirror / "disk", published)
    before = published.stat()
    write(library / "disk", b"new").chmod(0o600)
    bring(link, mirror, "disk")
    after = published.stat()
    assert published.read_bytes() == b"old"
    assert (after.st_mtime, after.st_mode) == (before.st_mtime, before.st_mode)


def test_a_basis_saves_the_line_also_when_its_size_and_time_are_the_new_files_and_its_content_is_not(
    library: Path, link: Link, mirror: Path, tmp_path: Path
) -> None:
    content = noise(8 * MIB)
    write(library / "new" / "disk", content)
    basis = tmp_path / "the basis"
    write(basis / "new" / "disk", content[: 4 * MIB] + b"X" + content[4 * MIB + 1 :])
    transfer = bring(link, mirror, "new/disk", basis=basis)
    assert transfer.complete
    assert transfer.literal < MIB
    assert (mirror / "new" / "disk").read_bytes() == content


# --- what is cut short ---


def cut(link: Link, mirror: Path, *paths: str, after: int, rate: int = 8 * MIB) -> None:
    """Fetch, and cancel once ``after`` bytes have arrived."""

    async def main() -> None:
        enough = asyncio.Event()

        def look(progress: Progress) -> None:
            if progress.done_bytes >= after:
                enough.set()

        async def slowly() -> None:
            async with limited(link, lambda: rate) as line:
                await fetch(line, paths, mirror, basis=None, block=4096, rate=rate, on_progress=look)

        task = asyncio.create_task(slowly())
        waiter = asyncio.create_task(enough.wait())
        await asyncio.wait({task, waiter}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        assert waiter.done(), f"it ended before it could be cut: {task}"
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert left_behind(mirror.parent) == {}

    asyncio.run(main())


def test_what_arrived_before_a_cancel_is_not_sent_again_and_no_process_is_left(
    library: Path, link: Link, mirror: Path
) -> None:
    write(library / "a" / "disk", noise(24 * MIB))
    cut(link, mirror, "a/disk", after=6 * MIB)
    (partial,) = partials(mirror).items()
    assert partial == ("a/disk", mirror / "a" / PARTIAL_DIR / "disk")
    arrived = partial[1].stat().st_size
    assert arrived > 5 * MIB
    assert not (mirror / "a" / "disk").exists()
    transfer = bring(link, mirror, "a/disk")
    assert transfer.matched > arrived - MIB
    assert (mirror / "a" / "disk").read_bytes() == (library / "a" / "disk").read_bytes()
    assert partials(mirror) == {}


def test_what_a_killed_rsync_left_is_found_and_not_sent_again(library: Path, link: Link, mirror: Path) -> None:
    write(library / "a" / "disk.vmdk", noise(24 * MIB))

    def kill(progress: Progress) -> None:
        if progress.done_bytes >= 6 * MIB:
            # Held first, so that none of them tidies up while the others die.
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in left_behind(mirror.parent):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)

    with pytest.raises(TransportError) as caught:
        bring(link, mirror, "a/disk.vmdk", rate=8 * MIB, on_progress=kill)
    assert caught.value.retryable
    assert "signal 9" in caught.value.message
    (stray,) = strays(mirror)
    assert stray.name.startswith(".disk.vmdk.")
    arrived = stray.stat().st_size
    assert rescue(mirror) == 1
    assert list(strays(mirror)) == []
    assert partials(mirror)["a/disk.vmdk"].stat().st_size == arrived
    transfer = bring(link, mirror, "a/disk.vmdk")
    assert transfer.matched > arrived - MIB > 4 * MIB
    assert (mirror / "a" / "disk.vmdk").read_bytes() == (library / "a" / "disk.vmdk").read_bytes()


def test_an_error_in_the_callers_progress_ends_everything_and_comes_through(
    library: Path, link: Link, mirror: Path, tmp_path: Path
) -> None:
    write(library / "disk", noise(24 * MIB))

    class OwnError(Exception):
        pass

    def fail(progress: Progress) -> None:
        raise OwnError

    with pytest.raises(OwnError):
        bring(link, mirror, "disk", rate=2 * MIB, on_progress=fail)
    assert left_behind(tmp_path) == {}


def test_a_vanished_file_leaves_the_others_and_is_named(library: Path, link: Link, mirror: Path) -> None:
    write(library / "a", noise(4 * MIB))
    write(library / "b", b"b")
    write(library / "c", b"c")

    def vanish(progress: Progress) -> None:
        (library / "b").unlink(missing_ok=True)

    transfer = bring(link, mirror, "a", "b", "c", rate=2 * MIB, on_progress=vanish)
    assert not transfer.complete
    assert any("vanished" in line for line in transfer.problems)
    assert "'b' did not arrive" in transfer.problems
    assert (mirror / "c").read_bytes() == b"c"
    assert not (mirror / "b").exists()


def test_a_file_that_is_gone_before_it_begins_leaves_the_others(library: Path, link: Link, mirror: Path) -> None:
    write(library / "a", b"a")
    transfer = bring(link, mirror, "a", "gone")
    assert not transfer.complete
    assert (mirror / "a").read_bytes() == b"a"
    assert any("gone" in line for line in transfer.problems)


def test_nothing_to_fetch_asks_nobody(tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = fake(tmp_path, monkeypatch, "exit 255")
    assert bring(broken, mirror) == Transfer(0, 0, 0, 0, complete=True, problems=())


def test_a_path_that_leaves_the_mirror_is_refused_before_anything_runs(link: Link, mirror: Path) -> None:
    for path in ("../x", "/etc/passwd", "a/../../x", ""):
        with pytest.raises(TransportError):
            bring(link, mirror, path)


# --- who is there ---


def test_the_first_key_is_remembered_and_another_one_refused_with_both_fingerprints(
    library: Path, link: Link, server: Server, tmp_path: Path
) -> None:
    listing(link)
    (remembered,) = remembered_fingerprints(link.known_hosts, link.peer)
    assert remembered.split()[0] in server.host_key_fingerprints
    server.stop()
    with Server(
        library,
        tmp_path / "other",
        port=server.port,
        keys=[server.identity.with_suffix(".pub")],
        fresh_host_keys=True,
    ) as other:
        with pytest.raises(HostKeyError) as caught:
            listing(link)
        assert remembered in caught.value.message
        assert any(key in caught.value.message for key in other.host_key_fingerprints)
        assert str(link.known_hosts) in caught.value.remedy
    server.start()
    assert listing(link).complete


def test_an_unknown_key_is_refused_when_nothing_is_to_be_trusted(server: Server, tmp_path: Path) -> None:
    with pytest.raises(HostKeyError):
        listing(link_to(server, tmp_path, trust_first=False))
    assert not (tmp_path / "known_hosts").exists()


def test_a_pinned_fingerprint_lets_that_server_in(server: Server, tmp_path: Path) -> None:
    link = link_to(server, tmp_path, trust_first=False)
    for fingerprint in server.host_key_fingerprints:
        asyncio.run(pin(link, [fingerprint]))
        assert [line.split()[0] for line in remembered_fingerprints(link.known_hosts, link.peer)] == [fingerprint]
        assert listing(link).complete


def test_a_pinned_public_key_lets_that_server_in_and_asks_nobody_for_keys(server: Server, tmp_path: Path) -> None:
    link = link_to(server, tmp_path, trust_first=False)
    key = (server.host_key_folder / "ssh_host_ed25519_key.pub").read_text().strip()
    server.stop()
    asyncio.run(pin(link, [key]))
    server.start()
    assert listing(link).complete


def test_a_pin_that_fits_no_key_is_refused_and_names_both(server: Server, tmp_path: Path) -> None:
    link = link_to(server, tmp_path, trust_first=False)
    wrong = "SHA256:" + "A" * 43
    with pytest.raises(HostKeyError) as caught:
        asyncio.run(pin(link, [wrong]))
    assert wrong in caught.value.message
    assert all(key in caught.value.message for key in server.host_key_fingerprints)
    other = make_key(tmp_path / "other").with_suffix(".pub").read_text()
    asyncio.run(pin(link, [other]))
    with pytest.raises(HostKeyError):
        listing(link)


def test_pinning_forgets_what_was_trusted_before_and_leaves_other_servers_alone(server: Server, tmp_path: Path) -> None:
    link = link_to(server, tmp_path)
    other = make_key(tmp_path / "other").with_suffix(".pub").read_text().split()
    foreign = f"[elsewhere]:22 {other[0]} {other[1]}"
    own = f"[{server.host}]:{server.port} {other[0]} {other[1]}"
    link.known_hosts.write_text(f"# mine\n{foreign}\n{own}\n")
    asyncio.run(pin(link, [server.host_key_fingerprints[0]]))
    lines = link.known_hosts.read_text().splitlines()
    assert lines[:2] == ["# mine", foreign]
    assert len(lines) == 3
    assert listing(link).complete


def test_pinning_a_server_that_is_away_may_be_tried_again(tmp_path: Path, server: Server) -> None:
    link = link_to(server, tmp_path, peer=Peer("127.0.0.1", free_port()))
    with pytest.raises(TransportError) as caught:
        asyncio.run(pin(link, [server.host_key_fingerprints[0]]))
    assert caught.value.retryable
    assert not isinstance(caught.value, HostKeyError)


def test_a_key_that_the_server_does_not_know_is_named_by_its_fingerprint(server: Server, tmp_path: Path) -> None:
    stranger = make_key(tmp_path / "stranger")
    shown = subprocess.run(["ssh-keygen", "-lf", stranger], check=True, capture_output=True, text=True).stdout
    with pytest.raises(TransportError) as caught:
        listing(link_to(server, tmp_path, identity=stranger))
    assert not caught.value.retryable
    assert shown.split()[1] in caught.value.message
    assert "Permission denied" in caught.value.message


def test_a_missing_private_key_is_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(TransportError) as caught:
        listing(link_to(server, tmp_path, identity=tmp_path / "nowhere"))
    assert not caught.value.retryable
    assert "nowhere is missing" in caught.value.message


def test_a_port_where_nobody_listens_may_be_tried_again(server: Server, tmp_path: Path) -> None:
    with pytest.raises(TransportError) as caught:
        listing(link_to(server, tmp_path, peer=Peer("127.0.0.1", free_port())))
    assert caught.value.retryable
    assert "refused" in caught.value.message


def test_a_name_that_does_not_resolve_may_be_tried_again(server: Server, tmp_path: Path) -> None:
    with pytest.raises(TransportError) as caught:
        listing(link_to(server, tmp_path, peer=Peer("nowhere.invalid", 22)))
    assert caught.value.retryable
    assert "nowhere.invalid" in caught.value.message


@pytest.mark.parametrize("name", ["a b", "it's", 'say "so"', "100%h", "back\\slash"])
def test_keys_and_known_hosts_may_lie_in_folders_of_any_name(server: Server, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    identity = shutil.copy(server.identity, folder / "id")
    link = link_to(server, folder, identity=Path(identity), known_hosts=folder / "known hosts")
    assert listing(link).complete
    assert len(remembered_fingerprints(link.known_hosts, link.peer)) == 1


def test_a_server_is_reached_by_its_ipv6_address(library: Path, tmp_path: Path) -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("no IPv6 on this machine")
    write(library / "f", b"x")
    server = Server(library, tmp_path / "server")
    server.environment["CLR_SSHD_OPTIONS"] = server.environment["CLR_SSHD_OPTIONS"].replace(
        "ListenAddress=127.0.0.1", "ListenAddress=127.0.0.1 ListenAddress=::1"
    )
    with server:
        link = link_to(server, tmp_path, peer=Peer("::1", server.port))
        assert [file.path for file in listing(link).files] == ["f"]
        assert len(remembered_fingerprints(link.known_hosts, link.peer)) == 1
        trusted = link_to(server, tmp_path, peer=link.peer, known_hosts=tmp_path / "pinned", trust_first=False)
        asyncio.run(pin(trusted, [server.host_key_fingerprints[0]]))
        assert listing(trusted).complete


def test_a_library_that_is_missing_at_the_server_is_said_to_be(library: Path, link: Link) -> None:
    library.rename(library.parent / "away")
    with pytest.raises(TransportError) as caught:
        listing(link)
    assert "directory does not exist" in caught.value.message
    assert not caught.value.retryable


# --- a peer that misbehaves: a program in the place of ssh ---


def fake(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str, **changes: object) -> Link:
    """A link whose ssh is a shell script. rsync hands it ssh's options, the host, and the command for the server."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    ssh = programs / "ssh"
    ssh.write_text(f"#!/bin/sh\n{script}\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    values: dict[str, object] = {
        "peer": Peer("fake.invalid", 22),
        "user": "syncer",
        "identity": folder / "identity",
        "known_hosts": folder / "known_hosts",
        "trust_first": False,
        "connect_timeout": timedelta(seconds=5),
        "idle_timeout": timedelta(seconds=2),
    }
    return Link(**(values | changes))  # type: ignore[arg-type]


def local(library: Path, prefix: str = "") -> str:
    """A script in the place of ssh that runs the real rrsync, as another account if ``prefix`` says so."""
    return f'while [ "$1" != rsync ]; do shift; done\nSSH_ORIGINAL_COMMAND="$*" exec {prefix} rrsync -ro {library}'


def silent_after(size: int, library: Path) -> str:
    """The same, but the server's side goes silent after so many bytes, without an end. Its rsync has a session of its
    own, because a server's is not among our processes either.
    """
    pump = (
        f"import os, time\nos.set_blocking(1, True)\nleft = {size}\n"
        "while left > 0: left -= os.write(1, os.read(0, min(left, 65536)))\ntime.sleep(1000)"
    )
    return local(library).replace("exec ", "setsid ") + f" | exec {sys.executable} -c '{pump}'"


def as_nobody() -> str:
    return "setpriv --reuid=65534 --regid=65534 --clear-groups" if os.geteuid() == 0 else ""


@pytest.fixture
def shared_library() -> Iterator[Path]:
    """A library that another account can reach: pytest keeps its own folders closed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        folder.chmod(0o755)


def test_an_unreadable_file_leaves_the_others_and_is_named(
    shared_library: Path, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(shared_library / "a", b"a")
    write(shared_library / "locked", b"x").chmod(0)
    link = fake(tmp_path, monkeypatch, local(shared_library, as_nobody()), idle_timeout=timedelta(seconds=20))
    files = listing(link)
    assert [file.path for file in files.files] == ["a", "locked"]
    transfer = bring(link, mirror, "a", "locked")
    assert not transfer.complete
    assert any("locked" in line and "Permission denied" in line for line in transfer.problems)
    assert (mirror / "a").read_bytes() == b"a"


def test_an_unreadable_folder_makes_the_listing_incomplete(
    shared_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(shared_library / "a" / "a", b"a")
    write(shared_library / "locked" / "x", b"x").parent.chmod(0)
    link = fake(tmp_path, monkeypatch, local(shared_library, as_nobody()), idle_timeout=timedelta(seconds=20))
    found = listing(link)
    assert [file.path for file in found.files] == ["a/a"]
    assert not found.complete
    assert any("locked" in line for line in found.problems)


@pytest.mark.parametrize("mode", [0, 0o111])
def test_a_library_that_the_account_cannot_read_is_an_error_and_not_an_empty_library(
    shared_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    write(shared_library / "a", b"a")
    shared_library.chmod(mode)
    link = fake(tmp_path, monkeypatch, local(shared_library, as_nobody()), idle_timeout=timedelta(seconds=20))
    with pytest.raises(TransportError) as caught:
        listing(link)
    assert not caught.value.retryable
    assert "Permission denied" in caught.value.message


def test_a_server_that_says_nothing_is_given_up_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = fake(tmp_path, monkeypatch, "exec sleep 1000")
    loop_seconds = 15

    async def main() -> None:
        async with asyncio.timeout(loop_seconds):
            await list_source(link)

    with pytest.raises(TransportError) as caught:
        asyncio.run(main())
    assert caught.value.retryable
    assert left_behind(tmp_path) == {}


def test_a_server_that_falls_silent_in_the_middle_is_given_up_and_what_came_is_kept(
    library: Path, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(library / "disk", noise(8 * MIB))
    link = fake(tmp_path, monkeypatch, silent_after(3_000_000, library))
    with pytest.raises(TransportError) as caught:
        bring(link, mirror, "disk")
    assert caught.value.retryable
    wait_until(lambda: not left_behind(tmp_path), 5, "the end of all processes")
    assert partials(mirror)["disk"].stat().st_size > 2 * MIB


def test_an_rsync_that_hangs_itself_is_ended_by_our_own_watchdog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = fake(tmp_path, monkeypatch, "exit 255")
    rsync = tmp_path / "programs" / "rsync"
    rsync.write_text("#!/bin/sh\ntrap '' TERM\nsleep 1000 &\nwhile :; do wait; done\n")
    rsync.chmod(0o755)
    monkeypatch.setattr("clr_client.transport.runner.GRACE_SECONDS", 0.5)
    with pytest.raises(TransportError) as caught:
        listing(link)
    assert caught.value.retryable
    assert "nothing moved" in caught.value.message
    assert left_behind(tmp_path) == {}


def test_an_ssh_that_outlives_its_rsync_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = fake(tmp_path, monkeypatch, "exit 255", idle_timeout=timedelta(seconds=60))
    mark = tmp_path / "pid"
    rsync = tmp_path / "programs" / "rsync"
    rsync.write_text(f"#!/bin/sh\nsleep 1000 &\necho $! > {mark}\necho went away >&2\nexit 12\n")
    rsync.chmod(0o755)
    with pytest.raises(TransportError) as caught:
        listing(link)
    assert "went away" in caught.value.message
    survivor = Path("/proc", mark.read_text().strip())
    wait_until(lambda: not survivor.exists() or b") Z" in (survivor / "stat").read_bytes(), 5, "its end")


@pytest.mark.parametrize("junk", ["echo junk; exec sleep 1000", "exec head -c 50000000 /dev/urandom", "exec yes"])
def test_junk_in_the_place_of_rsync_is_an_error_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, junk: str
) -> None:
    with pytest.raises(TransportError):
        listing(fake(tmp_path, monkeypatch, junk))
    assert left_behind(tmp_path) == {}


@pytest.mark.parametrize(
    "command",
    [
        "rsync --server --sender -tIRze.LsfxCIvu . wanted unwanted/f",
        "rsync --server --sender -trIRze.LsfxCIvu . ./",
        "rsync --server --sender -tIRze.LsfxCIvu . /proc/self/./../outside",
        "rsync --server --sender -tlIRze.LsfxCIvu --files-from=- --from0 . .",
        "rsync --server --sender -tlrDIRze.LsfxCIvu . ./",
        "rsync --server --sender -tLIRze.LsfxCIvu --files-from=- --from0 . .",
    ],
)
def test_a_server_that_sends_what_nobody_asked_for_writes_nothing_but_what_was(
    library: Path, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    write(library / "wanted", b"wanted")
    write(library / "unwanted" / "f", b"x")
    write(tmp_path / "outside", b"outside")
    (library / "link").symlink_to(tmp_path / "outside")
    os.mkfifo(library / "fifo")
    before = sorted(path for path in tmp_path.rglob("*") if mirror not in path.parents)
    link = fake(tmp_path, monkeypatch, f"cd {library} && exec {command}")
    with contextlib.suppress(TransportError):
        bring(link, mirror, "wanted")
    found = [path.relative_to(mirror).as_posix() for path in mirror.rglob("*")]
    assert set(found) <= {"wanted"}
    assert not any(path.is_symlink() for path in mirror.rglob("*"))
    programs = {tmp_path / "programs", tmp_path / "programs" / "ssh"}
    assert sorted(path for path in tmp_path.rglob("*") if mirror not in path.parents) == sorted({*before, *programs})
    assert left_behind(tmp_path) == {}


def test_endless_words_on_stderr_do_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "head -c 30000000 /dev/zero | tr '\\0' x >&2; yes | head -c 30000000 >&2; exit 255"
    with pytest.raises(TransportError) as caught:
        listing(fake(tmp_path, monkeypatch, script, idle_timeout=timedelta(seconds=20)))
    assert len(caught.value.message) < 10_000


def test_an_endless_listing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = fake(tmp_path, monkeypatch, "exit 255")
    rsync = tmp_path / "programs" / "rsync"
    rsync.write_text("#!/bin/sh\nexec yes 'drwxr-xr-x        4096 2026/11/21 22:19:21 a'\n")
    rsync.chmod(0o755)
    monkeypatch.setattr("clr_client.transport.listing.ListingParser.__init__.__defaults__", (1000, 1000, 1 << 30))
    with pytest.raises(TransportError) as caught:
        listing(link)
    assert not caught.value.retryable
    assert left_behind(tmp_path) == {}


def test_a_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = fake(tmp_path, monkeypatch, "exit 255")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TransportError) as caught:
        listing(link)
    assert not caught.value.retryable
    assert "rsync is not installed" in caught.value.message
    (tmp_path / "rsync").symlink_to("/usr/bin/rsync")
    with pytest.raises(TransportError) as caught:
        listing(link)
    assert not caught.value.retryable
    assert "ssh is not installed" in caught.value.message


def test_what_rrsync_refuses_is_final(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = local(library).replace('"$*"', '"rsync --server --sender -L . ."')
    with pytest.raises(TransportError) as caught:
        listing(fake(tmp_path, monkeypatch, script))
    assert not caught.value.retryable
    assert "refuse" in caught.value.message


def test_the_versions_of_rsync_and_ssh_are_told() -> None:
    found = versions()
    assert found["rsync"].startswith("3.")
    assert found["ssh"].startswith("OpenSSH_")
