"""How long ago something was, on a machine whose clock may be set at any time.

The kernel's time since the start of the machine cannot be set, so it decides while the machine runs. Over a restart of
the machine the clock on the wall has to do.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Moment:
    """An instant: ``boot`` names the run of the machine ("" unknown), ``uptime`` is seconds within it, ``wall`` seconds
    since the epoch, as the clock showed it.
    """

    boot: str
    uptime: float
    wall: float

    def seconds_until(self, later: Moment) -> float:
        """Seconds from here to ``later``, never less than 0; a clock that was set in between changes nothing."""
        if self.boot and self.boot == later.boot:
            return max(0.0, later.uptime - self.uptime)
        since_start = later.uptime if self.boot and later.boot else 0.0  # that long ago it was at least
        return max(later.wall - self.wall, since_start)


def now() -> Moment:
    """This instant."""
    try:
        boot = BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        boot = ""
    return Moment(boot, time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


def dump(moment: Moment) -> bytes:
    """Return a moment as the text of a file."""
    return json.dumps(asdict(moment)).encode("ascii") + b"\n"


def load(text: bytes) -> Moment | None:
    """Return the moment in a file's text, None when it holds none."""
    try:
        found = json.loads(text)
        return Moment(str(found["boot"]), float(found["uptime"]), float(found["wall"]))
    except (ValueError, TypeError, KeyError):
        return None
