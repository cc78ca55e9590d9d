"""Congestion control in a container: opt-in, because an engine starts no container with one that it cannot have."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.engine import IMAGE, docker
from support.server import wait_until
from support.templates import fake_template

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.engine import Pair

WITHOUT_BLOCK = "    # sysctls:\n    #   - net.ipv4.tcp_congestion_control=bbr\n"


def take(pair: Pair, algorithm: str) -> None:
    """Take the comment signs off the block in docker-compose.server.yaml, as its text says."""
    file = pair.folder / "docker-compose.server.yaml"
    text = file.read_text()
    assert WITHOUT_BLOCK in text
    block = WITHOUT_BLOCK.replace("    # ", "    ").replace("=bbr", f"={algorithm}")
    file.write_text(text.replace(WITHOUT_BLOCK, block))


def sysctl(name: str) -> str:
    """A sysctl of TCP as a container has it."""
    entry = ("--entrypoint", "cat", IMAGE.format(role="server"))
    return docker("run", "--rm", *entry, f"/proc/sys/net/ipv4/{name}").strip()


def test_a_server_has_the_hosts_choice_unless_the_block_is_taken(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    fake_template(pair.templates / "one")
    here = sysctl("tcp_congestion_control")
    pair.up("server")
    wait_until(lambda: f"congestion control: {here} (allowed: " in pair.logs("server"), 30, "the line")

    allowed = sysctl("tcp_allowed_congestion_control").split()
    other = "bbr" if "bbr" in allowed and here != "bbr" else next(name for name in allowed if name != here)
    take(pair, other)
    pair.up("server")
    wait_until(lambda: f"congestion control: {other} (allowed: " in pair.logs("server"), 30, "the line")
    pair.wait_healthy("server")


def test_a_server_that_asks_for_what_the_host_does_not_allow_does_not_start(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    take(pair, "nonesuch")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        pair.up("server")
    assert re.search("tcp_congestion_control", "".join(caught.value.__notes__))
