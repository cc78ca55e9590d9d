"""A server at the far end of a long line: two network namespaces with an emulated line between them. Only root can."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from support.server import Server, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).resolve().parents[1]
SERVER_ADDRESS, CLIENT_ADDRESS = "10.219.77.1", "10.219.77.2"


def unavailable() -> str:
    """Why no line can be emulated here; empty when one can."""
    if os.geteuid() != 0 or not os.path.exists("/dev/net/tun") or not shutil.which("ip"):
        return "needs root, /dev/net/tun and the program ip"
    return ""


class Far:
    """A running ``server`` in one namespace; programs started with ``near`` before their words run in the other.

    ``delivered`` has what came from the server until now, newest last: seconds, packets, bytes.
    """

    def __init__(self, server: Server, tunnel: subprocess.Popen[str], client: str, far: str) -> None:
        self.server = server
        self.near = ("ip", "netns", "exec", client)
        self.delivered: list[tuple[float, int, int]] = []
        self._tunnel, self._spaces = tunnel, {client: SERVER_ADDRESS, far: CLIENT_ADDRESS}
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self._tunnel.stdout is not None
        with self._tunnel.stdout as lines:
            for line in lines:
                seconds, packets, size = line.split()
                self.delivered.append((float(seconds), int(packets), int(size)))

    def use(self, algorithm: str) -> None:
        """Set the congestion control of new connections on both sides.

        By the route: the sysctl of a network namespace takes only what the host's
        net.ipv4.tcp_allowed_congestion_control lists.
        """
        for space, peer in self._spaces.items():
            _ip("-n", space, "route", "replace", peer, "dev", space, "congctl", algorithm)


@contextlib.contextmanager
def far_server(library: Path, work: Path, *, rate: float, delay: float, loss: float) -> Iterator[Far]:
    """Serve ``library`` over a line.

    :param rate: bytes per second.
    :param delay: seconds, each way.
    :param loss: share of the packets, each way.
    :raises OSError: no TUN device can be made here.
    """
    name = f"clr{uuid.uuid4().hex[:8]}"
    client, far = f"{name}c", f"{name}s"
    options = ["--rate", str(rate), "--delay", str(delay), "--loss", str(loss)]
    with ExitStack() as stack:
        tunnel = subprocess.Popen(
            [sys.executable, "-m", "support.tunnel", client, far, *options],
            cwd=TESTS,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(_end, tunnel)
        assert tunnel.stdout is not None
        if tunnel.stdout.readline() != "ready\n":
            raise OSError("no TUN device can be made here")
        for space, address, peer in ((client, CLIENT_ADDRESS, SERVER_ADDRESS), (far, SERVER_ADDRESS, CLIENT_ADDRESS)):
            _ip("netns", "add", space)
            stack.callback(_ip, "netns", "del", space)
            _ip("link", "set", space, "netns", space)
            _ip("-n", space, "link", "set", "lo", "up")
            _ip("-n", space, "addr", "add", address, "peer", peer, "dev", space)
            _ip("-n", space, "link", "set", space, "up", "txqueuelen", "1000")
        server = Server(library, work, port=free_port())
        server.host = SERVER_ADDRESS
        argv = ["ip", "netns", "exec", far, sys.executable, "-m", "support.remote"]
        told = [str(library), str(work), SERVER_ADDRESS, str(server.port)]
        remote = subprocess.Popen(
            [*argv, *told],
            cwd=TESTS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(_end_server, remote)
        assert remote.stdout is not None
        assert remote.stdout.readline() == "ready\n", server.log_text()
        running = Far(server, tunnel, client, far)
        yield running
    running.reader.join()


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait()


def _end_server(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=30)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, stdin=subprocess.DEVNULL)
