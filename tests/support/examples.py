"""Examples of log lines in the documentation, and what may differ between one of them and a real run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

VARYING = {
    "TIME": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00",
    "RUN": r"\[[0-9a-f]{6}\]",
    "DATE": r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun) \d{4}-\d\d-\d\d \d\d:\d\d UTC",
    "KEY": r"SHA256:[A-Za-z0-9+/]{43}",
    "SIZE": r"\b\d+(\.\d)? [kMG]?B\b|[\d,]+ bytes",
    "SHARE": r"\b\d+ %",
    "SPAN": r"\b(\d+ min )?\d+ s\b",
    "PORT": r"(?<=[.]1:)\d{4,5}\b|(?<=host>:)\d+|(?<= port )\d{4,5}\b",
    "FILE": r"(?<=left, ).*",
    "VERSIONS": r"(?<=rsync )\S+, ssh .*, caddy \S+|(?<=clr )\d\S+(?=,)",
    "SETTINGS": r"(?<=settings: ).*",
}
"""What differs from run to run, each by a pattern."""


def normalised(lines: list[str]) -> list[str]:
    """Return lines with everything that may differ named instead, and progress lines in a row as one."""
    found: list[str] = []
    for line in lines:
        plain = line
        for name, pattern in VARYING.items():
            plain = re.sub(pattern, name, plain)
        if not (found and found[-1] == plain and "SHARE (" in plain):
            found.append(plain)
    return found


def blocks(page: Path) -> list[list[str]]:
    """Return the lines of each fenced block of a page that begins with a time."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [block.splitlines() for _, block in fenced if re.match(VARYING["TIME"], block)]
