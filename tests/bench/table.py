"""The table of results: for the terminal, and between markers in ``docs/reference/performance.md``."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from bench.rows import Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "performance.md"
_HEAD = ("case", "ours", "baseline", "of", "ratio", "target", "", "zstd limit", "clr / rsync memory", "note")


def table(rows: Iterable[Row]) -> str:
    """Markdown: one line a row, with its target and whether that was met."""
    lines = [_HEAD, ("---",) * len(_HEAD), *(_cells(row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(row: Row) -> Sequence[str]:
    target = "" if row.target is None else f"{'≥' if row.at_least else '≤'} {row.target:g}"
    memory = ""
    if row.clr_memory:
        memory = f"{row.clr_memory / 1e6:.0f} / {row.rsync_memory / 1e6:.0f} MB"
    return (
        row.name,
        f"{_number(row.ours)} {row.unit}".rstrip(),
        "" if row.baseline is None else f"{_number(row.baseline)} {row.unit}",
        row.against,
        "" if row.ratio is None else _number(row.ratio),
        target,
        row.verdict,
        "" if row.limit is None else f"{_number(row.limit)} {row.unit}",
        memory,
        row.note.replace("|", "/"),
    )


def _number(value: float) -> str:
    """Three digits that count."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}"


def into_page(text: str, size: str, block: str) -> str:
    """Return a page with the block between the markers of ``size`` replaced.

    :raises ValueError: the page has no such markers.
    """
    begin, end = f"<!-- bench {size}: begin -->\n", f"<!-- bench {size}: end -->"
    pattern = re.compile(f"({re.escape(begin)}).*?({re.escape(end)})", re.DOTALL)
    changed, count = pattern.subn(lambda found: f"{found[1]}{block}{found[2]}", text)
    if count != 1:
        raise ValueError(f"the page has {count} blocks for bench {size}")
    return changed


def facts() -> str:
    """What was measured on and with, in one line."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    tools = [
        _said("rsync", "--version", find=r"rsync +version (\S+)"),
        _said("ssh", "-V", find=r"OpenSSH_(\S+?),?\s"),
        _said("zstd", "--version", find=r"v([\d.]+)"),
        _said("qemu-img", "--version", find=r"version (\S+)"),
        _said("caddy", "version", find=r"v?([\d.]+)"),
    ]
    return (
        f"{os.cpu_count()} cores of {cpu[1].strip() if cpu else platform.machine()}, "
        f"{int(memory[1]) / 1e6 if memory else 0:.0f} GB, Linux {platform.release().split('-')[0]}; "
        f"{', '.join(tools)}, Python {platform.python_version()}"
    )


def _said(program: str, *words: str, find: str) -> str:
    try:
        done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    except OSError:
        return f"no {program}"
    found = re.search(find, done.stdout + done.stderr)
    return f"{program} {found[1] if found else 'of unknown version'}"


def block(rows: Sequence[Row], dates: Iterable[str], origin: str, command: str) -> str:
    """What stands between the markers of a page."""
    days = sorted(set(dates))
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    missed = [row.name for row in rows if row.verdict == "MISS"]
    met = sum(row.verdict == "pass" for row in rows)
    text = f"`{command}`, {when}: {facts()}. Templates: {origin}.\n\n{table(rows)}\n{met} targets met"
    return f"{text}, {len(missed)} missed{': ' + '; '.join(missed) if missed else ''}.\n"


def dump(row: Row) -> str:
    """A row as JSON."""
    return json.dumps(dataclasses.asdict(row))


def load(text: str) -> Row:
    """The row that ``dump`` wrote."""
    return Row(**json.loads(text))
