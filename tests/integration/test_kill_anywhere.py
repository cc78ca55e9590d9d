"""The client is killed at any step of what it does to a volume: readers have a whole library, the next run mends."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from clr_client.errors import LockedError
from clr_client.store import Store
from support.faultpoints import Kill
from support.reading import Witness, listing, read
from support.scenarios import SCENARIOS, Bench, Reference, chosen, hold_against
from support.server import descendants, wait_until
from support.site import CLR, Site, cli_environment
from support.templates import fake_template

if TYPE_CHECKING:
    from support.server import Server


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_kill_at_any_step_leaves_a_whole_library_and_the_next_run_comes_to_the_same_volume(
    tmp_path: Path, name: str
) -> None:
    bench = Bench(tmp_path, SCENARIOS[name])
    good = Reference(bench)
    for number in chosen(good.points, name):
        bench.reset()
        ended = bench.do(bench.scenario.work, Kill(number))
        assert ended.killed, f"the run had fewer than {number} steps"
        print(f"killed before {ended.struck}")
        hold_against(bench, good)


# ---------------------------------------------------------------- whole processes, with a real server


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "primary"
    for name in ("alpha", "beta"):
        fake_template(folder / name, disk_bytes=300_000)
    return folder


def killed_after(site: Site, seconds: float, **environment: str) -> None:
    """Run `clr sync`, and kill it, and only it, after a time."""
    with (site.home / "sync.log").open("ab") as log:
        process = subprocess.Popen([CLR, "sync"], env=cli_environment(site) | environment, stdout=log, stderr=log)
    time.sleep(seconds)
    process.kill()
    process.wait()


def test_a_client_killed_at_any_time_and_started_again_at_once_serves_whole_libraries_until_all_is_there(
    library: Path, server: Server, site: Site, tmp_path: Path
) -> None:
    seed = int(os.environ.get("CLR_SEED", "1"))
    chance = random.Random(seed)
    print(f"CLR_SEED={seed}")
    witness = Witness()
    for revision in range(1, 60 if os.environ.get("CLR_FULL") else 7):
        fake_template(library / "alpha", disk_bytes=300_000, revision=revision)
        fake_template(library / f"added-{revision}", disk_bytes=1000)
        seconds = chance.uniform(0.3, 1.5)
        print(f"revision {revision}: killed after {seconds:.2f} s")
        killed_after(site, seconds, SYNC_MAX_BW="1m")
        witness.see(read(site.library / "current"))
    assert site.sync().result == "success"
    witness.see(read(site.library / "current"))
    undisturbed = Site(tmp_path / "undisturbed", server)
    undisturbed.sync()
    served, expected = read(site.library / "current"), read(undisturbed.library / "current")
    assert served is not None
    assert expected is not None
    assert served.contents == expected.contents
    assert paths(site) == paths(undisturbed)


def paths(site: Site) -> set[str]:
    """Everything on a volume, without numbers: each item has trees, and nothing lies beside what belongs there."""
    return {re.sub(r"\d+", "0", path) for path in listing(site.library)}


def test_rsync_ends_with_a_killed_client_and_the_next_run_has_the_volume_for_itself(library: Path, site: Site) -> None:
    (library / "large").mkdir()
    (library / "large" / "disk.bin").write_bytes(os.urandom(20_000_000))
    with subprocess.Popen([CLR, "sync"], env=cli_environment(site) | {"SYNC_MAX_BW": "400k"}) as client:
        folder = site.store.mirror
        wait_until(lambda: any(part.stat().st_size for part in folder.glob("large/.disk.bin.*")), 60, "the transfer")
        family = [pid for pid in descendants(client.pid) if is_running(pid, "rsync")]
        assert len(family) >= 2  # rsync itself and its receiver
        client.kill()
    with site.store.locked("test"):
        assert not [pid for pid in family if is_running(pid, "rsync")]
    assert list(site.store.mirror.glob("large/.clr-partial/disk.bin")), "what had arrived is thrown away"
    assert site.sync().result == "success"
    assert site.content("large", "disk.bin") == (library / "large" / "disk.bin").read_bytes()


def is_running(pid: int, name: str) -> bool:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text()
        return f"({name})" in fields and ") Z " not in fields
    return False


HOLDER = """
import asyncio, sys
from datetime import timedelta
from pathlib import Path
from clr_client.store import Store
from clr_client.transport.runner import run

script = "trap '' TERM; echo $$ > $0; while :; do sleep 0.1; done"
with Store(Path(sys.argv[1])).locked("schedule"):
    asyncio.run(run(["sh", "-c", script, sys.argv[2]], on_output=print, idle=timedelta(0)))
"""


def test_no_run_begins_beside_a_program_of_a_killed_one_that_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, mark = Store(tmp_path / "library"), tmp_path / "pid"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(store.root), str(mark)]) as holder:
        wait_until(lambda: mark.exists() and mark.read_text(), 30, "the program")
        with pytest.raises(LockedError, match="already running since"), store.locked("test"):
            pytest.fail("the lock was taken twice")
        holder.kill()
    program = int(mark.read_text())
    try:
        monkeypatch.setattr("clr_client.lock.ORPHAN_SECONDS", 0.3)
        with pytest.raises(LockedError, match="of a run that was killed"), store.locked("test"):
            pytest.fail("the run began beside it")
        monkeypatch.setattr("clr_client.lock.ORPHAN_SECONDS", 60)
        threading.Timer(0.5, os.kill, (program, signal.SIGKILL)).start()
        with store.locked("test"):
            assert not is_running(program, "sh")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(program, signal.SIGKILL)
