"""What a newcomer types: `make help`, `make demo`, and what set-up says where it cannot install."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def demo(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "support.demo"],
        cwd=ROOT / "tests",
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )


def processes_of(folder: Path) -> list[str]:
    """Command lines of running processes that name a path below a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if entry.name.isdecimal() and f"{folder}/" in line:
            found.append(line)
    return found


def test_the_demonstration_shows_two_syncs_and_ends_with_nothing_left_running(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    done = demo(CLR_DEMO_FOLDER=str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    shares = [float(share) for share in re.findall(r"crossed the line \((\d+\.\d) %", done.stdout)]
    assert len(shares) == 2, done.stdout
    assert 90 < shares[0] < 110, "the first sync brings everything"
    assert shares[1] < 30, "the second one brings what changed"
    assert re.search(r"updated: +Debian 12$", done.stdout, re.MULTILINE)
    assert re.search(r"added: +Jump host$", done.stdout, re.MULTILINE)
    assert re.search(r"removed: +tools.iso$", done.stdout, re.MULTILINE)
    assert re.search(r"http://127\.0\.0\.1:\d+/lib\.json$", done.stdout, re.MULTILINE)
    assert processes_of(folder) == []


def test_with_a_terminal_the_library_stays_up_until_ctrl_c(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    keyboard, terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "support.demo"],
        cwd=ROOT / "tests",
        env={**os.environ, "CLR_DEMO_FOLDER": str(folder)},
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        told = ""
        for line in process.stdout:
            told += line
            if "Ctrl-C" in line:
                break
        url = re.search(r"http://127\.0\.0\.1:\d+/lib\.json$", told, re.MULTILINE)
        assert url is not None, told
        with urllib.request.urlopen(url[0], timeout=10) as answer:
            assert answer.status == 200
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 0, process.stdout.read()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)
        process.stdout.close()
        os.close(keyboard)
        os.close(terminal)
    assert processes_of(folder) == []


def test_a_demonstration_that_fails_says_why_and_where_the_logs_are(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    programs = tmp_path / "bin"
    programs.mkdir()
    for program in ("rsync", "ssh", "ssh-keygen", "ssh-keyscan", "qemu-img", "cp"):
        (programs / program).symlink_to(f"/usr/bin/{program}")
    done = demo(CLR_DEMO_FOLDER=str(folder), PATH=str(programs))
    assert done.returncode == 1
    assert "caddy" in done.stderr
    assert f"Logs: {folder}/" in done.stderr
    assert processes_of(folder) == []


def test_help_is_what_make_says_by_itself() -> None:
    said = [
        subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for words in ([], ["help"])
    ]
    assert said[0] == said[1]
    for target in ("setup", "demo", "test", "lint", "images", "up", "down", "clean"):
        assert f"  make {target} " in said[0]


@pytest.mark.parametrize("purpose", ["demo", "lint"])
def test_missing_packages_are_named_in_one_line_where_they_cannot_be_installed(tmp_path: Path, purpose: str) -> None:
    for program in ("dirname", "grep", "id", "cat"):
        (tmp_path / program).symlink_to(f"/usr/bin/{program}")
    done = subprocess.run(
        ["/bin/sh", str(ROOT / "tests/support/setup.sh"), "packages", purpose],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "apt-get install " in done.stderr
    assert "python3-venv" in done.stderr
    assert ("shellcheck" if purpose == "lint" else "rsync") in done.stderr


def test_folders_and_key_for_both_roles_are_made_once_and_never_touched_again(tmp_path: Path) -> None:
    script = tmp_path / "tests" / "support" / "setup.sh"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / "tests/support/setup.sh", script)
    private = tmp_path / "client/data/ssh/id_syncer"
    public = tmp_path / "server/data/ssh/this-host.pub"
    subprocess.run([script, "data"], check=True, capture_output=True, timeout=60)
    assert private.stat().st_mode & 0o777 == 0o600
    assert public.read_text().startswith("ssh-ed25519 ")
    for folder in ("server/data/library", "server/data/hostkeys", "client/data/library", "client/data/certs"):
        assert (tmp_path / folder).is_dir()
    keys = private.read_bytes(), public.read_bytes()
    subprocess.run([script, "data"], check=True, capture_output=True, timeout=60)
    assert keys == (private.read_bytes(), public.read_bytes())
    assert not (tmp_path / "client/data/ssh/id_syncer.pub").exists()
