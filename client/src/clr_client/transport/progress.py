"""Reads what a transfer prints: overall progress, the name of each file as it begins, and the final sums."""

from __future__ import annotations

import re
from dataclasses import dataclass

from clr_client.transport.listing import MAX_LINE, unescape

# Ours, so that a name is told from everything else rsync may print; %i begins with ">f" for a file that is
# received.
OUT_FORMAT = "%i %n"

_PROGRESS = re.compile(rb" *(?P<done>[\d,]{1,30}) +\d+% +(?P<rate>\d{1,15}(?:\.\d{1,9})?)(?P<unit>[kMGTP]?)B/s .*")
_STARTED = re.compile(rb"[>c]f[^ ]{9} (?P<name>.+)", re.DOTALL)
_NUMBER = re.compile(rb"(Literal data|Matched data|Total bytes sent|Total bytes received): ([\d,]{1,30})(?: bytes)?")
_UNITS = {b"": 1, b"k": 1 << 10, b"M": 1 << 20, b"G": 1 << 30, b"T": 1 << 40, b"P": 1 << 50}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a transfer is: ``done_bytes`` of the files' content since its start, as rsync's progress2
    counts them (what was found here counts as well as what crossed the line), ``rate`` in bytes per second,
    the file under way.
    """

    done_bytes: int
    rate: float
    file: str | None


@dataclass(frozen=True, slots=True)
class Started:
    """rsync begins to receive a file; whatever began before it is over."""

    path: str


class ProgressParser:
    """Takes a transfer's output in pieces. ``numbers`` holds the final ones by rsync's names for them."""

    def __init__(self) -> None:
        """Begin before the first piece."""
        self.numbers: dict[str, int] = {}
        self._rest = b""
        self._file: str | None = None

    def feed(self, data: bytes) -> list[Progress | Started]:
        """Take a piece of output and return what it tells, in order. What is not understood is left out."""
        *lines, rest = re.split(rb"[\r\n]", self._rest + data)
        self._rest = rest[:MAX_LINE]
        events: list[Progress | Started] = []
        for line in lines:
            if match := _STARTED.fullmatch(line):
                self._file = unescape(match["name"])
                events.append(Started(self._file))
            elif match := _PROGRESS.fullmatch(line):
                rate = float(match["rate"]) * _UNITS[match["unit"]]
                events.append(Progress(_number(match["done"]), rate, self._file))
            elif match := _NUMBER.fullmatch(line):
                self.numbers[match[1].decode("ascii")] = _number(match[2])
        return events


def _number(text: bytes) -> int:
    return int(text.replace(b",", b"") or b"0")
