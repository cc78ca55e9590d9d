"""A plain Caddy file server on loopback, for tests that are not about its configuration."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.request import urlopen

from support.server import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def serving(root: Path) -> Iterator[str]:
    """Serve ``root`` over HTTP for as long as the block runs; yields the URL without a slash at its end."""
    port = free_port()
    process = subprocess.Popen(
        ["caddy", "file-server", "--root", str(root), "--listen", f"127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _answers(url), what="Caddy")
        yield url
    finally:
        process.terminate()
        process.wait(10)


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2):
            return True
    except OSError as error:
        return getattr(error, "code", None) is not None
