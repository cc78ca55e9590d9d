"""How much of a changed disk crosses the line depends on the blocks in which rsync compares."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from support.proxy import Line
from support.templates import replace

if TYPE_CHECKING:
    from pathlib import Path

    from support.server import Server
    from support.site import Site

MB = 1_000_000
SIZE = 16 * MB


def scattered(old: bytes, every: int = 32_000) -> bytes:
    """A byte in every 32 kB is another one, as files of a guest are moved and dated by a new build."""
    new = bytearray(old)
    for at in range(0, len(new), every):
        new[at] ^= 255
    return bytes(new)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    (tmp_path / "primary").mkdir()
    return tmp_path / "primary"


@pytest.mark.parametrize(
    ("wish", "least", "most"),
    [("auto", 0.05, 0.1), ("4096", 0.1, 0.2), ("1024", 0.02, 0.05), ("131072", 0.99, 1.02), ("whole", 0.99, 1.02)],
)
def test_small_blocks_find_what_is_the_same_between_scattered_changes(
    library: Path, server: Server, site: Site, wish: str, least: float, most: float
) -> None:
    old = random.Random(1).randbytes(SIZE)
    (library / "disk.bin").write_bytes(old)
    site.sync()
    replace(library / "disk.bin", scattered(old))
    with Line(server.port) as line:
        report = site.sync(SYNC_PORT=str(line.port), SYNC_BLOCK_SIZE=wish)
    print(f"{wish}: {line.crossed / len(old):.3f} of the file, {line.sent:,} bytes up")
    assert report.result == "success"
    assert least < line.crossed / len(old) < most
    assert site.content("disk.bin", "disk.bin") == scattered(old)


def test_whole_files_still_do_not_send_again_what_arrived(library: Path, server: Server, site: Site) -> None:
    (library / "disk.bin").write_bytes(random.Random(1).randbytes(8 * MB))
    with Line(server.port, rate=8 * MB) as line:
        line.at(5 * MB, line.drop)
        report = site.sync(SYNC_PORT=str(line.port), SYNC_BLOCK_SIZE="whole", SYNC_RETRIES="1", SYNC_RETRY_DELAY="0")
    assert report.result == "success"
    assert line.crossed < 9 * MB
    assert site.content("disk.bin", "disk.bin") == (library / "disk.bin").read_bytes()
