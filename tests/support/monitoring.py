"""Prometheus and promtool from Debian."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

from support.caddy import missing

if TYPE_CHECKING:
    from pathlib import Path


def program(name: str) -> str:
    """Where prometheus or promtool lies; the test ends when it is not installed."""
    return shutil.which(name) or missing(f"{name} is not installed (Debian package prometheus)")


def promtool(*words: str | Path, given: bytes = b"") -> str:
    """Run promtool with ``given`` as input; return what it said. AssertionError when it finds something wrong."""
    argv = [program("promtool"), *map(str, words)]
    done = subprocess.run(argv, input=given, capture_output=True, timeout=60, check=False)
    text = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, text
    return text
