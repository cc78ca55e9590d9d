"""The server says at its start which congestion control it got, and what to do for lines that lose packets."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from support.server import Server, wait_until

SYSCTLS = Path("/proc/sys/net/ipv4")


def start_and_read(tmp_path: Path, wrapper: list[str]) -> str:
    (tmp_path / "library" / "template").mkdir(parents=True)
    with Server(tmp_path / "library", tmp_path / "s", wrapper=wrapper) as server:
        wait_until(lambda: "serving " in server.log_text())
        return server.log_text()


def test_the_congestion_control_of_this_machine_is_named(tmp_path: Path) -> None:
    got = (SYSCTLS / "tcp_congestion_control").read_text().strip()
    known = (SYSCTLS / "tcp_available_congestion_control").read_text().strip()
    assert re.search(
        rf"^congestion control: {got} \(allowed: .*; known to the kernel: {known}\)$",
        start_and_read(tmp_path, []),
        re.MULTILINE,
    )


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to mount other files over the kernel's")
@pytest.mark.parametrize(
    ("got", "allowed", "advice"),
    [
        ("bbr", "reno cubic bbr", None),
        ("cubic", "reno cubic bbr", "the sysctls of docker-compose.server.yaml"),
        ("cubic", "reno cubic", "modprobe tcp_bbr"),
        ("cubic", "reno cubic mybbr", "modprobe tcp_bbr"),
    ],
)
def test_who_has_no_bbr_is_told_in_one_line_what_to_do(
    got: str, allowed: str, advice: str | None, tmp_path: Path
) -> None:
    mounts = []
    for name, text in (("tcp_congestion_control", got), ("tcp_allowed_congestion_control", allowed)):
        (tmp_path / name).write_text(f"{text}\n")
        mounts.append(f"mount --bind {tmp_path / name} {SYSCTLS / name}")
    log = start_and_read(tmp_path, ["unshare", "--mount", "sh", "-ec", f'{"; ".join(mounts)}; exec "$@"', "--"])
    assert f"congestion control: {got} (allowed: {allowed}; " in log
    told = [line for line in log.splitlines() if "lose packets" in line]
    assert len(told) == (advice is not None)
    assert advice is None or (advice in told[0] and "docs/how-to/lossy-lines.md" in told[0])
