"""Every command that takes long shows a bar on a real terminal, and none in the way of its answer."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from support.libraries import content, write_site
from support.libraries import library as manifest_of
from support.server import Server, wait_until
from support.site import CLR, Site, cli_environment
from support.templates import fake_template
from support.terminal import terminal
from support.webservers import misbehaving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.terminal import Terminal
    from support.webservers import Handler

ENVIRONMENT = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}


@dataclass
class Work:
    """A command that takes long, and what its answer begins with."""

    words: list[str]
    answer: str
    environment: dict[str, str] = field(default_factory=lambda: dict(ENVIRONMENT))
    also_without_time: bool = False


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "primary"
    fake_template(folder / "alpha", disk_bytes=600_000)
    return folder


@pytest.fixture
def site(library: Path, tmp_path: Path) -> Iterator[Site]:
    with Server(library, tmp_path / "server") as server:
        yield Site(tmp_path / "site", server)


@pytest.fixture
def work(request: pytest.FixtureRequest, tmp_path: Path) -> Work:
    made: Work = globals()[f"_{request.param}"](request, tmp_path)
    return made


def _sync(request: pytest.FixtureRequest, tmp_path: Path) -> Work:
    site = request.getfixturevalue("site")
    return Work([CLR, "sync"], "", {**cli_environment(site), "SYNC_MAX_BW": "300k"})


def _plan(request: pytest.FixtureRequest, tmp_path: Path) -> Work:
    site, library = request.getfixturevalue("site"), request.getfixturevalue("library")
    for number in range(300):
        (library / "alpha" / f"text-{number}.txt").write_text("x")
    site.sync()
    (library / "more.iso").write_text("x")
    return Work([CLR, "plan"], "add     more.iso", cli_environment(site), also_without_time=True)


def _verify(request: pytest.FixtureRequest, tmp_path: Path) -> Work:
    site, library = request.getfixturevalue("site"), request.getfixturevalue("library")
    with (library / "large.iso").open("wb") as file:
        file.truncate(200_000_000)
    site.sync()
    return Work([CLR, "verify"], "all is as published\n", cli_environment(site))


def _publish(request: pytest.FixtureRequest, tmp_path: Path) -> Work:
    folder = tmp_path / "templates" / "large"
    folder.mkdir(parents=True)
    with (folder / "large.iso").open("wb") as file:
        file.truncate(400_000_000)
    return Work(
        [CLR, "publish", str(tmp_path / "templates"), "--name", "L"], "L: version 1, 1 items; manifests written\n"
    )


def _check(request: pytest.FixtureRequest, tmp_path: Path) -> Work:
    """A full check of a server that takes its time."""
    root, data = tmp_path / "root", random.Random(1).randbytes(1_000_000)
    write_site(root, manifest_of(content("tools", {"disk.iso": data})), {"tools": {"disk.iso": data}})
    server = request.getfixturevalue("slow")(root, "disk.iso")
    return Work([CLR, "check", f"{server}/lib.json", "--full"], f"{server}/lib.json: SUCCESS\n")


def _repack(request: pytest.FixtureRequest, tmp_path: Path) -> Work:
    folder = fake_template(tmp_path / "vm", disk_bytes=1000, algorithm=None).parent
    disk = folder / "vm-disk1.vmdk"
    raw = tmp_path / "raw"
    with raw.open("wb") as file:
        for number in range(60):
            file.write(random.Random(number).randbytes(1 << 20))
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, disk]
    subprocess.run(convert, check=True)
    ovf = folder / "vm.ovf"
    ovf.write_text(ovf.read_text().replace("ovf:size='1000'", f"ovf:size='{disk.stat().st_size}'"))
    return Work([CLR, "repack", str(folder)], f"{folder}: vm-disk1.vmdk: ")


COMMANDS = ["sync", "plan", "verify", "publish", "check", "repack"]
each_command = pytest.mark.parametrize("work", COMMANDS, indirect=True)


@pytest.fixture
def slow() -> Iterator[Callable[[Path, str], str]]:
    """Makes a server of a folder that sends one of its files slowly."""
    with contextlib.ExitStack() as servers:

        def make(root: Path, name: str) -> str:
            site = servers.enter_context(misbehaving(root))

            def behaviour(handler: Handler) -> None:
                if handler.command == "HEAD" or handler.headers.get("Range"):
                    handler.serve()
                    return
                data = next(root.rglob(name)).read_bytes()
                handler.send_response(200)
                handler.send_header("Content-Length", str(len(data)))
                handler.end_headers()
                for at in range(0, len(data), 100_000):
                    handler.wfile.write(data[at : at + 100_000])
                    time.sleep(0.1)

            for path in root.rglob(name):
                site.behaviours[f"/{path.relative_to(root)}"] = behaviour
            return site.url

        yield make


def frames(found: Terminal) -> list[str]:
    """Each state of the bar, without what steers the terminal."""
    return [re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", frame).strip() for frame in re.split(r"[\r\n]", found.text)]


@each_command
def test_a_bar_reaches_its_end_with_rate_and_time_left_and_the_answer_stands_alone(work: Work) -> None:
    with terminal(work.words, work.environment) as found:
        assert found.end() == 0, found.text + found.output.decode()
        output = wait_until(lambda: found.output.decode() or (work.answer == "" and " "), what="the answer")
    seen = [frame for frame in frames(found) if "[" in frame]
    assert any(re.search(r"\d+%.* of .*(?:B|files)  [\d.]+(?: [kMGT]?B)?/s", frame) for frame in seen), seen
    assert work.also_without_time or any(re.search(r"/s  \d.* left", frame) for frame in seen), seen
    assert "100%" in seen[-1], seen
    assert output.startswith(work.answer)
    assert "\x1b" not in output
    assert "%" not in output.replace("100 %", "")
    assert found.has_cursor
    assert all(len(line) < found.columns for line in found.screen)


@each_command
def test_without_a_terminal_there_is_no_bar(work: Work) -> None:
    done = subprocess.run(work.words, env=work.environment, capture_output=True, timeout=120, check=True)
    assert done.stderr == b""
    assert done.stdout.decode().startswith(work.answer)
    assert b"\x1b" not in done.stdout
    assert b"\r" not in done.stdout


def test_log_lines_stand_above_the_bar_where_both_are_on_one_terminal(site: Site) -> None:
    environment = {**cli_environment(site), "SYNC_MAX_BW": "300k"}
    with terminal([CLR, "sync"], environment, columns=400, shared=True) as found:
        assert found.end() == 0, found.text
    lines = [line for line in found.screen if line]
    bars = [line for line in lines if line.startswith("fetching [")]
    assert len(bars) == 1
    assert "100%" in bars[0]
    others = [line for line in lines if line not in bars]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d ", line) for line in others), lines
    text = "\n".join(lines)
    assert re.search(r"fetching \d files of 1 items", text)
    assert "success: 1 added" in text
    assert " % (" not in text, "the bar says how far it is, so no line of the log does"


def test_a_log_that_goes_elsewhere_still_says_how_far_a_sync_is(site: Site) -> None:
    with terminal([CLR, "sync"], {**cli_environment(site), "SYNC_MAX_BW": "300k"}) as found:
        assert found.end() == 0
    assert "fetching [" in found.text
    assert "success: 1 added" in found.output.decode()
    assert "success: 1 added" not in found.text


@pytest.mark.parametrize(
    ("work", "number"),
    [
        ("sync", signal.SIGINT),
        ("sync", signal.SIGTERM),
        ("publish", signal.SIGINT),
        ("publish", signal.SIGTERM),
        ("verify", signal.SIGTERM),
    ],
    indirect=["work"],
)
def test_a_signal_in_the_middle_gives_the_cursor_back_and_is_the_exit_code(work: Work, number: signal.Signals) -> None:
    if work.words[1] == "publish":
        with open(f"{work.words[2]}/large/large.iso", "ab") as file:
            file.truncate(200_000_000_000)
    with terminal(work.words, {**work.environment, "SYNC_MAX_BW": "20k"}) as found:
        found.shows(r"\[[#-]+\].*%")
        found.process.send_signal(number)
        code = found.end()
    assert code == 128 + number or (work.words[1] == "verify" and code == 0)
    assert found.has_cursor
    assert found.screen[-1] == ""
    assert "Traceback" not in found.text


def test_a_terminal_that_is_closed_in_the_middle_stops_no_sync_that_ignores_hangups(site: Site) -> None:
    environment = {**cli_environment(site), "SYNC_MAX_BW": "300k"}
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    controller, its = os.openpty()
    process: subprocess.Popen[Any] = subprocess.Popen(
        [sys.executable, "-c", ignoring, CLR, "sync"],
        env={**environment, "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=its,
    )
    os.close(its)
    seen = b""
    while b"fetching [" not in seen:
        seen += os.read(controller, 4096)
    os.close(controller)
    assert process.wait(120) == 0
    assert site.versions() == {"alpha": "1"}
