"""Runs `clr` and writes what its own process used to a file: ``python -m bench.launch FILE COMMAND...``.

``ru_maxrss`` would not do: a process inherits it from the one that started it.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from pathlib import Path


def main() -> None:
    target = Path(sys.argv.pop(1))
    from clr_client import cli

    try:
        cli.main()
    finally:
        status = Path("/proc/self/status").read_text()
        peak = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        used = {
            "memory": int(peak[1]) * 1024 if peak else 0,
            "cpu": own.ru_utime + own.ru_stime,
            "others_cpu": others.ru_utime + others.ru_stime,
        }
        target.write_text(json.dumps(used))


if __name__ == "__main__":
    main()
