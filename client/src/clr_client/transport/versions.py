"""Which rsync and ssh are at work."""

from __future__ import annotations

import re
import subprocess

from clr_client.errors import Trouble
from clr_client.transport.runner import environment

# 3.5.0 closed 33 holes, several of which a malicious server could use against a client (an allocation without
# bound, writing through links, an I/O timeout that the server switches off). Debian 12 and 13 carry it as a
# security update.
LEAST_RSYNC = (3, 5, 0)
OLD_RSYNC = Trouble(
    "rsync {version} has holes by which a malicious server can write to memory (CVE-2026-70458) or hold the client up"
    " for ever (CVE-2026-70462), unless its distribution has closed them; use 3.5.0 or newer (a rebuilt image has it)"
)
UNKNOWN_RSYNC = Trouble("the version of rsync cannot be told ({version}); it should be 3.5.0 or newer")
_PROGRAMS = {
    "rsync": (("rsync", "--version"), re.compile(r"rsync +version v?(\S+)")),
    "ssh": (("ssh", "-V"), re.compile(r"(OpenSSH_[^,\n]+)")),
}


def versions() -> dict[str, str]:
    """Versions of rsync and ssh, ``missing`` for one that cannot be run."""
    return {name: _version(argv, pattern) for name, (argv, pattern) in _PROGRAMS.items()}


def rsync_warning(version_text: str) -> str | None:
    """A warning if this rsync has known holes, else None.

    The number alone is judged. A distribution that backports fixes into an older number is warned about as
    well: its own revision is not part of what rsync tells, and a list of revisions kept here would be wrong
    in a year.
    """
    match = re.search(r"(\d+)\.(\d+)\.(\d+)", version_text)
    if match is None:
        return UNKNOWN_RSYNC.told(version=version_text)[0]
    if tuple(int(part) for part in match.groups()) >= LEAST_RSYNC:
        return None
    return OLD_RSYNC.told(version=match[0])[0]


def _version(argv: tuple[str, ...], pattern: re.Pattern[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, timeout=10, check=False, env=environment())
    except (OSError, subprocess.TimeoutExpired):
        return "missing"
    match = pattern.search((done.stdout + done.stderr).decode("utf-8", "replace"))
    return match[1] if match else "unknown"
