"""What each way in which rsync can end makes of a run, and two sites that sync at once."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from clr_client.errors import TransportError
from clr_client.transport.loss import LOOK_SECONDS
from support.proxy import Line
from support.server import Server, make_key
from support.site import CLR, Site, cli_environment
from support.templates import fake_template

if TYPE_CHECKING:
    from pathlib import Path

MB = 1_000_000


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "primary"
    for name in ("alpha", "beta"):
        fake_template(folder / name, disk_bytes=200_000)
    return folder


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which take no time."""
    seen: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        is_wait = seconds > LOOK_SECONDS
        if is_wait:
            seen.append(seconds)
        await real(0 if is_wait else seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return seen


class Ending:
    """An rsync in front of the real one that ends with a code when it is given ``option``; counts how often it did."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
        programs = folder / "programs"
        programs.mkdir()
        self._code, self._count = folder / "code", folder / "count"
        script = f"case \"$*\" in *{option}*) echo >> '{self._count}'; exit $(cat '{self._code}');; esac"
        (programs / "rsync").write_text(f'#!/bin/sh\n{script}\nexec {shutil.which("rsync")} "$@"\n')
        (programs / "rsync").chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def with_code(self, code: int) -> None:
        self._code.write_text(str(code))
        self._count.write_text("")

    @property
    def count(self) -> int:
        return len(self._count.read_text())


def test_what_may_pass_is_tried_again_with_growing_waits_and_then_fails_with_the_library_as_it_was(
    library: Path, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    site.sync()
    before, generation = site.manifests(), os.readlink(site.store.current)
    fake_template(library / "alpha", disk_bytes=200_000, revision=1)
    rsync = Ending(tmp_path, monkeypatch, "--files-from")
    for failures, code in enumerate((10, 12, 30, 35, 255), 1):
        rsync.with_code(code)
        waits.clear()
        with pytest.raises(TransportError) as caught:
            site.sync(SYNC_RETRIES="2")
        assert caught.value.exit_code == 75
        assert (code, rsync.count, waits) == (code, 3, [15, 30])
        assert (site.manifests(), os.readlink(site.store.current)) == (before, generation)
        status = json.loads(site.store.status.read_bytes())
        assert (status["runs"][0]["result"], status["failures_in_row"]) == ("failed", failures)


def test_the_waits_grow_to_ten_minutes_and_no_further(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    Ending(tmp_path, monkeypatch, "--list-only").with_code(12)
    with pytest.raises(TransportError):
        site.sync(SYNC_RETRIES="8")
    assert waits == [15, 30, 60, 120, 240, 480, 600, 600]


def test_what_no_wait_mends_fails_at_once(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    rsync = Ending(tmp_path, monkeypatch, "--list-only")
    for code in (1, 2, 4, 22):
        rsync.with_code(code)
        with pytest.raises(TransportError):
            site.sync(SYNC_RETRIES="2")
        assert (code, rsync.count, waits) == (code, 1, [])


def test_a_file_that_became_unreadable_holds_its_item_at_the_last_good_version_and_the_run_is_partial(
    library: Path, tmp_path: Path
) -> None:
    wrapper: tuple[str, ...] = ()
    if os.geteuid() == 0:  # without these capabilities root, too, can only read what it may
        wrapper = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    with Server(library, tmp_path / "server", wrapper=wrapper) as server:
        site = Site(tmp_path / "site", server)
        site.sync()
        disk = library / "beta" / "beta-disk1.vmdk"
        good, stamp = disk.read_bytes(), json.loads(site.store.status.read_bytes())["last_success"]
        for name in ("alpha", "beta"):
            fake_template(library / name, disk_bytes=200_000, revision=1)
        disk.chmod(0)
        if os.geteuid() == 0:
            os.chown(disk, 12345, 12345)
        run = subprocess.run([CLR, "sync"], env=cli_environment(site), capture_output=True, text=True, check=False)
    assert run.returncode == 6, run.stdout + run.stderr
    assert site.versions() == {"alpha": "2", "beta": "1"}
    assert site.content("beta", disk.name) == good
    status = json.loads(site.store.status.read_bytes())
    (held,) = status["held"]
    assert (held["key"], held["serves"]) == ("beta", 1)
    assert "Permission denied" in held["reason"]
    assert (status["runs"][0]["result"], status["last_success"]) == ("partial", stamp)
    assert status["runs"][0]["ended"] > stamp


@pytest.mark.parametrize("gone", ["gone.iso", "gone/gone-disk1.vmdk"])
def test_a_file_that_vanishes_while_others_are_read_costs_a_second_pass_and_at_most_its_item(
    library: Path, server: Server, site: Site, caplog: pytest.LogCaptureFixture, gone: str
) -> None:
    (library / "first.bin").write_bytes(os.urandom(16 * MB))
    (library / "gone.iso").write_bytes(os.urandom(1000))
    fake_template(library / "gone", disk_bytes=1000)
    with Line(server.port, rate=16 * MB) as line:  # more than the server's buffers take before it reads on
        line.at(MB // 2, (library / gone).unlink)
        report = site.sync(SYNC_PORT=str(line.port))
    assert "vanished" in caplog.text
    if gone == "gone.iso":
        assert (report.result, report.held) == ("success", ())
        assert site.versions().keys() == {"alpha", "beta", "first.bin", "gone"}
    else:
        assert (report.result, [held.key for held in report.held]) == ("partial", ["gone"])
        assert site.versions().keys() == {"alpha", "beta", "first.bin", "gone.iso"}


def test_two_sites_with_keys_of_their_own_sync_at_once(library: Path, tmp_path: Path) -> None:
    (library / "large.bin").write_bytes(os.urandom(8 * MB))
    keys = [make_key(tmp_path / name, comment=name) for name in ("oslo", "lima")]
    with Server(library, tmp_path / "server", keys=[key.with_suffix(".pub") for key in keys]) as server:
        sites = []
        for key in keys:
            server.identity = key
            sites.append(Site(tmp_path / f"at-{key.name}", server, SYNC_MAX_BW="4m"))
        runs = [subprocess.Popen([CLR, "sync"], env=cli_environment(site)) for site in sites]
        try:
            assert [run.wait(120) for run in runs] == [0, 0]
        finally:
            for run in runs:
                run.kill()
                run.wait()
        sessions = [line for line in server.log_text().splitlines() if "serve-library: site=" in line]
    for site in sites:
        assert site.versions().keys() == {"alpha", "beta", "large.bin"}
        assert site.content("large.bin", "large.bin") == (library / "large.bin").read_bytes()
    assert at_once(sessions), "\n".join(sessions)


def at_once(sessions: list[str]) -> bool:
    """Whether a session of one site ran while one of the other did, by the server's log."""
    running: set[str] = set()
    for line in sessions:
        site = line.split("site=")[1].split()[0]
        running = running | {site} if line.endswith("start") else running - {site}
        if len(running) == 2:
            return True
    return False
