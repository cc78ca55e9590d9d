"""A line that loses packets: the client's own log says so, and what to do about it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from clr_client.doctor.finding import Result
from support.examining import found
from support.far import SERVER_ADDRESS, Far, far_server, unavailable
from support.site import CLR, Site, cli_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "-")

MB = 1_000_000
AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
RATE, DELAY = 4 * MB, 0.03


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "primary"
    folder.mkdir()
    (folder / "disk.bin").write_bytes(os.urandom(8 * MB))
    return folder


def sync(far: Far, home: Path, seconds: float) -> str:
    """Sync for some seconds at most; what was logged."""
    site = Site(home, far.server, SYNC_PEER=SERVER_ADDRESS, SYNC_WINDOW=f"{seconds:.0f}s")
    done = subprocess.run(
        [*far.near, CLR, "sync"], env=cli_environment(site), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    return done.stdout + done.stderr


def said(log: str) -> list[str]:
    return [line for line in log.splitlines() if "the line loses packets" in line]


@pytest.fixture(params=["lossy", "clean"])
def line(request: pytest.FixtureRequest, library: Path, tmp_path: Path) -> Iterator[tuple[str, Far]]:
    loss = {"lossy": 0.02, "clean": 0.0}[request.param]
    with far_server(library, tmp_path / "server", rate=RATE, delay=DELAY, loss=loss) as far:
        yield request.param, far


def test_the_log_of_a_sync_names_the_loss_of_its_line_and_what_helps(line: tuple[str, Far], tmp_path: Path) -> None:
    kind, far = line
    far.use("cubic" if "cubic" in AVAILABLE else "reno")
    told: list[str] = []
    for number in range(3 if kind == "lossy" else 1):  # on a busy machine packets wait as on a line that is full
        told += said(sync(far, tmp_path / f"site{number}", 14))
        if told:
            break
    assert len(told) == (kind == "lossy")
    if told:
        print(told[0])
        assert "BBR" in told[0]
        assert "docs/how-to/lossy-lines.md" in told[0]
        estimate = float(told[0].partition("about ")[2].partition(" %")[0])
        assert 1 < estimate < 4
    site = cli_environment(Site(tmp_path / f"site{number}", far.server))
    finding = found(site, "line")
    assert finding.result == (Result.WARNING if told else Result.OK)
    assert not told or (finding.text in told[0] and finding.remedy in told[0])


@pytest.mark.skipif("bbr" not in AVAILABLE, reason="this kernel has no bbr")
def test_nothing_is_said_where_the_server_does_not_give_way_to_loss(library: Path, tmp_path: Path) -> None:
    with far_server(library, tmp_path / "server", rate=RATE, delay=DELAY, loss=0.02) as far:
        far.use("bbr")
        assert said(sync(far, tmp_path / "site", 14)) == []
