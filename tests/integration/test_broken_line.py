"""A line that drops, falls silent, trickles, spoils bytes or is slow: everything arrives, once, and nothing wrong."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from clr_client.errors import TransportError
from support.proxy import Line
from support.server import Server, descendants, wait_until
from support.site import CLR, Site, cli_environment
from support.templates import fake_template, replace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MB = 1_000_000
RATE = 20 * MB
"""Slow enough for a busy client to keep up with, as real lines are: a kill takes what waits in its buffers."""
DROPS = 10
MOST = 1.03
MOST_KILLED = 1.1
"""What the client had received and not yet written is lost with it: up to some hundred kilobytes each time."""
"""What may cross with ten drops, for what crosses without.

Lost with a drop are a block that zstd has not closed (at most 128 KiB), the last block of the partial file (the root of
its size, at most 128 KiB), a handshake and a listing (10 kB). SIGKILL also takes what rsync has not written yet (at
most 256 KiB). None of it grows with the file: what is 2 % of 50 MB is nothing of 60 GB.
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "primary"
    folder.mkdir()
    return folder


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def half_changed(old: bytes, piece: int = MB) -> bytes:
    """Every second piece is new."""
    new = bytearray(old)
    for start in range(0, len(old), 2 * piece):
        new[start : start + piece] = noise(len(new[start : start + piece]), start + 2)
    return bytes(new)


def a_site(home: Path, server: Server, **environment: str) -> Site:
    return Site(home, server, SYNC_RETRY_DELAY="0", **environment)


# --- it drops ---


def publish_several_files(library: Path) -> dict[str, Path]:
    for name, size in (("disk1.bin", 8 * MB), ("disk2.bin", 48 * MB), ("disk3.bin", MB)):
        (library / "item").mkdir(exist_ok=True)
        (library / "item" / name).write_bytes(noise(size, size))
    return {"item": library / "item"}


def publish_new_versions(library: Path) -> dict[str, Path]:
    """Change one template in its place and another as a publisher does who dates the folder."""
    replace(library / "base" / "disk.bin", half_changed(noise(48 * MB, 1)))
    replace(library / "web-2026-10" / "disk.bin", half_changed(noise(48 * MB, 2)))
    (library / "web-2026-10").rename(library / "web-2026-11")
    return {"base": library / "base", "web-2026-11": library / "web-2026-11"}


@pytest.mark.parametrize("publish", [publish_several_files, publish_new_versions])
def test_the_line_drops_ten_times_and_nothing_is_sent_twice(
    library: Path, server: Server, tmp_path: Path, publish: Callable[[Path], dict[str, Path]]
) -> None:
    environment = {"SYNC_RETRIES": "1", "SYNC_PARALLEL": "1"}
    sites = [a_site(tmp_path / name, server, **environment) for name in ("calm", "stormy")]
    if publish is publish_new_versions:
        for number, name in enumerate(("base", "web-2026-10"), 1):
            (library / name).mkdir()
            (library / name / "disk.bin").write_bytes(noise(48 * MB, number))
        sites[0].sync()
        subprocess.run(["cp", "-a", sites[0].library, sites[1].library], check=True)
    items = publish(library)
    crossed = []
    for site in sites:
        with Line(server.port, rate=RATE if crossed else None) as line:
            for number in range(DROPS if crossed else 0):
                line.at(int(crossed[0] * (0.2 + 0.07 * number)), line.drop)
            report = site.sync(SYNC_PORT=str(line.port))
        assert report.result == "success"
        assert line.connections == (2 * DROPS + 3 if crossed else 3)
        crossed.append(line.crossed)
        for name, folder in items.items():
            for file in folder.iterdir():
                assert site.content(name, file.name) == file.read_bytes()
    print(f"{publish.__name__}: {crossed[1]} bytes for {crossed[0]}, ratio {crossed[1] / crossed[0]:.4f}")
    assert crossed[1] < MOST * crossed[0]


def test_a_line_that_drops_again_before_anything_new_came_keeps_what_arrived(
    library: Path, server: Server, site: Site
) -> None:
    (library / "disk.bin").write_bytes(noise(8 * MB))
    partial = site.store.mirror / ".clr-partial" / "disk.bin"
    sizes = []
    with Line(server.port, rate=RATE) as line:
        for more in (
            6 * MB,
            9000,
            20_000,
        ):  # the second in the listing or right after it, the third while rsync compares
            line.at(line.crossed + more, line.drop)
            with pytest.raises(TransportError):
                site.sync(SYNC_PORT=str(line.port))
            sizes.append(partial.stat().st_size)
        assert sizes == sorted(sizes)
        assert sizes[0] > 5 * MB
        assert site.sync(SYNC_PORT=str(line.port)).result == "success"
    assert line.crossed < 9 * MB


def test_the_client_is_stopped_and_killed_ten_times_and_nothing_is_sent_twice(
    library: Path, server: Server, tmp_path: Path
) -> None:
    (library / "disk.bin").write_bytes(noise(96 * MB))
    crossed = []
    for name in ("calm", "stormy"):
        site = a_site(tmp_path / name, server, SYNC_RETRIES="0")
        with Line(server.port, rate=RATE if crossed else None) as line:
            for number in range(DROPS if crossed else 0):
                stop_clr(site, line, int(crossed[0] * (0.1 + 0.08 * number)), kill=bool(number % 2))
            assert site.sync(SYNC_PORT=str(line.port)).result == "success"
        crossed.append(line.crossed)
        assert site.content("disk.bin", "disk.bin") == (library / "disk.bin").read_bytes()
    print(f"stopped and killed: {crossed[1]} bytes for {crossed[0]}, ratio {crossed[1] / crossed[0]:.4f}")
    assert crossed[1] < MOST_KILLED * crossed[0]


def stop_clr(site: Site, line: Line, at: int, *, kill: bool) -> None:
    """Run `clr sync` and stop it with SIGTERM, or kill it with all that it started, when so many bytes have crossed."""
    environment = cli_environment(site) | {"SYNC_PORT": str(line.port)}
    process = subprocess.Popen([CLR, "sync"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop() -> None:
        if not kill:
            process.terminate()
            return
        for pid in [process.pid, *descendants(process.pid)]:
            os.kill(pid, signal.SIGKILL)

    line.at(at, stop)
    try:
        assert process.wait(60) != 0
    finally:
        process.kill()
        process.wait()


# --- it falls silent, or nearly ---


def banner_length(server: Server) -> int:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        return len(connection.makefile("rb").readline())


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("at the connection", "timed out"),
        ("after the banner", "timed out|nothing"),
        ("in the listing", "nothing was heard for too long|nothing moved"),
        ("in the transfer", "nothing was heard for too long|nothing moved"),
    ],
)
def test_a_server_that_falls_silent_is_given_up_in_time_and_what_arrived_is_kept(
    library: Path, server: Server, site: Site, where: str, says: str
) -> None:
    fake_template(library / "alpha", disk_bytes=1000)
    site.sync()
    before = site.manifests()
    (library / "many").mkdir()
    for number in range(3000):
        (library / "many" / f"{number:x}-{'x' * 20}").touch()
    (library / "large.bin").write_bytes(noise(8 * MB))
    places = {"at the connection": 0, "after the banner": banner_length(server), "in the listing": 40_000}
    with Line(server.port) as line:
        if where == "at the connection":
            line.stall()
        line.at(places.get(where, 4 * MB), line.stall)
        began = time.monotonic()
        with pytest.raises(TransportError, match=says) as caught:
            site.sync(SYNC_PORT=str(line.port), SYNC_TIMEOUT="4s", SYNC_CONNECT_TIMEOUT="4s")
        assert time.monotonic() - began < 60
    assert caught.value.retryable
    assert site.manifests() == before
    if where == "in the transfer":
        partial = site.store.mirror / ".clr-partial" / "large.bin"
        assert partial.stat().st_size > 2 * MB


def test_a_server_that_trickles_is_given_up_like_a_silent_one_so_that_the_schedule_goes_on(
    library: Path, server: Server, site: Site
) -> None:
    (library / "large.bin").write_bytes(noise(8 * MB))
    with Line(server.port) as line:
        line.at(4 * MB, lambda: setattr(line, "rate", 20))
        with pytest.raises(TransportError, match="moved on the line"):
            site.sync(SYNC_PORT=str(line.port), SYNC_TIMEOUT="4s", SYNC_CONNECT_TIMEOUT="4s")
    assert (site.store.mirror / ".clr-partial" / "large.bin").stat().st_size > 2 * MB


def test_a_slow_line_ends_at_the_window_and_what_arrived_is_kept(library: Path, server: Server, site: Site) -> None:
    fake_template(library / "alpha", disk_bytes=1000)
    (library / "zulu").mkdir()
    (library / "zulu" / "large.bin").write_bytes(noise(8 * MB))
    with Line(server.port) as line:
        line.at(4 * MB, lambda: setattr(line, "rate", 50_000))
        report = site.sync(SYNC_PORT=str(line.port), SYNC_TIMEOUT="4s", SYNC_WINDOW="10s")
    assert report.result == "partial"
    assert "SYNC_WINDOW" in report.error
    assert site.versions() == {"alpha": "1"}
    assert (site.store.mirror / "zulu" / ".clr-partial" / "large.bin").stat().st_size > 2 * MB


# --- it spoils bytes, or takes its time ---


def test_a_spoilt_byte_ends_the_connection_and_the_retry_brings_what_the_server_has(
    library: Path, server: Server, site: Site
) -> None:
    (library / "large.bin").write_bytes(noise(3 * MB))
    site.sync()
    before = site.manifests()
    replace(library / "large.bin", half_changed(noise(3 * MB)))
    with Line(server.port) as line:
        line.at(MB, line.corrupt)
        with pytest.raises(TransportError, match="broke") as caught:
            site.sync(SYNC_PORT=str(line.port))
        assert caught.value.retryable
        assert site.manifests() == before
        line.at(line.crossed + MB // 2, line.corrupt)
        assert site.sync(SYNC_PORT=str(line.port), SYNC_RETRIES="1", SYNC_RETRY_DELAY="0").result == "success"
    assert site.content("large.bin", "large.bin") == (library / "large.bin").read_bytes()


def test_a_line_with_a_long_way_works(library: Path, server: Server, site: Site) -> None:
    (library / "large.bin").write_bytes(noise(2 * MB))
    with Line(server.port, delay=0.1) as line:
        assert site.sync(SYNC_PORT=str(line.port)).result == "success"
    assert site.content("large.bin", "large.bin") == (library / "large.bin").read_bytes()


# --- another server goes on ---


@pytest.fixture
def second(library: Path, server: Server, tmp_path: Path) -> Iterator[Server]:
    """Another server, with a copy of the library as it is at the beginning."""
    (library / "disk.bin").write_bytes(noise(8 * MB))
    shutil.copytree(library, tmp_path / "secondary", copy_function=shutil.copy2)
    key = server.identity.with_suffix(".pub")
    with Server(tmp_path / "secondary", tmp_path / "server-2", keys=[key]) as running:
        yield running


def torn_line(server: Server, *later: int) -> Line:
    """A line on which a listing and a transfer go through; meanwhile the end of the file is written anew in place."""
    line = Line(server.port, None, None, *later, rate=4 * MB)
    line.at(3 * MB, lambda: rewrite_the_end(server.library / "disk.bin"))
    return line


def rewrite_the_end(disk: Path) -> None:
    with disk.open("r+b") as file:
        file.seek(6 * MB)
        file.write(noise(MB, 9))


def test_a_file_rewritten_while_it_was_read_is_fetched_again_from_the_server_that_takes_over(
    server: Server, second: Server, site: Site
) -> None:
    """The first one dies before it can say that the file changed; the second lists the size and time of before."""
    with torn_line(server, 0, 0, 0) as line:
        report = site.sync(SYNC_PEER=f"127.0.0.1:{line.port}, 127.0.0.1:{second.port}")
    assert (report.result, report.peer) == ("success", f"127.0.0.1:{second.port}")
    assert line.connections == 3
    assert site.content("disk.bin", "disk.bin") == noise(8 * MB)


@pytest.mark.parametrize("killed", [False, True])
def test_what_no_server_confirmed_is_fetched_again_by_a_later_run_from_another_server(
    server: Server, second: Server, site: Site, killed: bool
) -> None:
    retries = {"SYNC_RETRIES": "1", "SYNC_RETRY_DELAY": "10m"} if killed else {}
    with torn_line(server, 0, 0, 0) as line:
        environment = cli_environment(site) | {"SYNC_PORT": str(line.port)} | retries
        process = subprocess.Popen([CLR, "sync"], env=environment)
        try:
            wait_until(lambda: line.connections > 2, 60, "the second listing")
            if killed:
                process.kill()
            assert process.wait(60) != 0
        finally:
            process.kill()
            process.wait()
    assert (site.store.mirror / "disk.bin").read_bytes() != noise(8 * MB)
    assert not site.store.current.exists()
    with Line(second.port) as line:
        assert site.sync(SYNC_PORT=str(line.port)).result == "success"
    assert site.content("disk.bin", "disk.bin") == noise(8 * MB)
    assert line.crossed < 3 * MB, "more than what differs was sent again"


def test_the_server_that_a_file_came_from_confirms_it_in_a_later_run_without_sending_it_again(
    library: Path, server: Server, site: Site
) -> None:
    (library / "disk.bin").write_bytes(noise(MB))
    with Line(server.port, None, None, 0, 0) as line:
        with pytest.raises(TransportError):
            site.sync(SYNC_PORT=str(line.port))
        assert not site.store.current.exists()
        assert site.sync(SYNC_PORT=str(line.port)).added == ("disk.bin",)
        assert line.connections == 5


def test_a_server_with_an_older_library_is_followed_and_the_items_that_went_back_are_named(
    library: Path, server: Server, second: Server, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    fake_template(library / "alpha", disk_bytes=1000)
    replace(library / "disk.bin", noise(2 * MB, 2))
    later = time.time() + 100
    os.utime(library / "disk.bin", (later, later))
    assert site.sync().went_back == ()
    report = site.sync(SYNC_PORT=str(second.port))
    assert report.result == "success"
    assert report.went_back == ("disk.bin",)
    assert "disk.bin" in report.summary
    assert "disk.bin went back in time" in caplog.text
    assert json.loads(site.store.status.read_bytes())["runs"][0]["went_back"] == ["disk.bin"]
    assert site.content("disk.bin", "disk.bin") == noise(8 * MB)
    assert site.versions() == {"disk.bin": "2"}
    assert site.sync(SYNC_PORT=str(second.port)).went_back == ()
