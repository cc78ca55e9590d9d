"""What the server's Python programs share. They run with the modules of Debian's python3-minimal alone."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager

TYPE_CHECKING = False  # typing's own would load typing, and hundreds of sessions load this file
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def printable(text: str) -> str:
    """``text`` in one line of visible ASCII, a ``?`` for every other byte: names and comments come from outside."""
    return "".join(chr(byte) if " " <= chr(byte) <= "~" else "?" for byte in os.fsencode(text))


def say(text: str) -> None:
    """Write one line to the container's log."""
    sys.stdout.write(printable(text) + "\n")
    sys.stdout.flush()


@contextmanager
def owner_of(folder: Path) -> Iterator[None]:
    """Act as the owner of ``folder``; OSError when it is not there.

    Without the capabilities to override file modes, which the container does not get, root can neither look into a
    private folder on a volume nor write to somebody else's. Its owner can.
    """
    if os.geteuid() != 0:
        yield
        return
    there = folder.stat()
    os.setgroups([])
    os.setegid(there.st_gid)
    os.seteuid(there.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def measure(argument: str, text: str = "") -> tuple[int, str] | None:
    """Bits and fingerprint of the key in the file ``argument``, or with ``-`` in ``text``; None when it is none."""
    import re
    import subprocess

    argv = ["ssh-keygen", "-l", "-f", argument]
    done = subprocess.run(argv, input=os.fsencode(text), capture_output=True, check=False)
    found = re.match(rb"(\d+) (SHA256:\S+) ", done.stdout) if done.returncode == 0 else None
    return (int(found[1]), found[2].decode("ascii")) if found else None
