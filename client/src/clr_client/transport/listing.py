"""Reads what ``rsync --list-only`` prints. The server wrote the names, and may have written anything."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter

from clr_client.errors import TransportError
from clr_client.files import FileInfo
from clr_client.transport.runner import printable

MAX_FILES = 1_000_000
MAX_LINE = 64 << 10
MAX_BYTES = 1 << 30
MAX_SECONDS = 3600.0
MAX_MEMORY = 1 << 30
"""For rsync, which holds the whole listing before it prints the first line: five times what MAX_FILES need."""
MAX_NOTES = 100
MAX_SIZE = 2**63 - 1

_ENTRY = re.compile(
    rb"([-dlcbpsD?])[-rwxsStTl]{9}[.+@]? +(-?[\d,]{1,30}) "  # type, size
    rb" *(-?\d{1,12}/\d\d/\d\d) (\d\d:\d\d:\d\d?) (.*)",  # date, time, name
    re.DOTALL,
)
_LOOKS_LIKE_ENTRY = re.compile(rb"[-dlcbpsD?][-rwxsStTl]{9}[.+@]? ")
_ESCAPE = re.compile(rb"\\#([0-7]{3})")
_ENCODING = sys.getfilesystemencoding()


@dataclass(frozen=True, slots=True)
class Listing:
    """The regular files of a library, sorted by path.

    ``complete`` is False if rsync could not read something (exit status 23 or 24); ``problems`` are its own
    lines about that, made printable.
    """

    files: tuple[FileInfo, ...]
    complete: bool
    problems: tuple[str, ...]


def unescape(name: bytes) -> str:
    r"""A name as rsync prints it (``\#ooo`` for bytes it does not show) as the path it stands for."""
    if b"\\#" in name:
        name = _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 255]), name)
    return name.decode(_ENCODING, "surrogateescape")


def check_path(path: str) -> None:
    """Raise TransportError unless a path can only lie below the folder that it is relative to."""
    segments = f"/{path}/"
    if "//" in segments or "/./" in segments or "/../" in segments or "\0" in path:
        raise TransportError(f"the server lists a path outside the library: {path!r}", retryable=False)


class ListingParser:
    """Takes rsync's output in pieces. Holds at most ``MAX_FILES`` files and a line of ``MAX_LINE`` bytes."""

    def __init__(self, max_files: int = MAX_FILES, max_line: int = MAX_LINE, max_bytes: int = MAX_BYTES) -> None:
        """Begin before the first piece."""
        self._max_files, self._max_line, self._max_bytes = max_files, max_line, max_bytes
        self._files: dict[str, FileInfo] = {}
        self._rest = b""
        self._received = 0
        self.entries = 0
        self.notes: list[str] = []

    @property
    def found(self) -> int:
        """How many regular files there were so far."""
        return len(self._files)

    def feed(self, data: bytes) -> None:
        """Take a piece of output.

        :raises TransportError: too much of it, or an entry that cannot be; final.
        """
        self._received += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)
        if len(self._rest) > self._max_line or self._received > self._max_bytes:
            raise self._endless()

    def finish(self) -> tuple[FileInfo, ...]:
        """The regular files, sorted by path. A last line without its end was cut, and is not used.

        :raises TransportError: a path is that of a file and of a folder; final.
        """
        folders: set[str] = set()
        further = set(self._files)
        while further := {path.rpartition("/")[0] for path in further} - folders:
            folders |= further
        if both := folders & self._files.keys():
            raise TransportError(f"the server lists {min(both)!r} as a file and as a folder", retryable=False)
        return tuple(sorted(self._files.values(), key=attrgetter("path")))

    def _line(self, line: bytes) -> None:
        if len(line) > self._max_line:
            raise self._endless()
        entry = _ENTRY.fullmatch(line)
        if entry is None:
            self._note(line)
            return
        self.entries += 1
        if self.entries > self._max_files:
            raise self._endless()
        kind, digits, date, time, name = entry.groups()
        if kind != b"-":
            return
        path, size = unescape(name), int(digits.replace(b",", b""))
        check_path(path)
        if not 0 <= size <= MAX_SIZE or path in self._files:
            raise TransportError(f"the server's listing contradicts itself at {path!r}", retryable=False)
        seconds = int(time[:2]) * 3600 + int(time[3:5]) * 60 + int(time[6:])
        self._files[path] = FileInfo(path, size, _days(date) * 86400 + seconds)

    def _note(self, line: bytes) -> None:
        """Keep what rsync says besides its listing."""
        if _LOOKS_LIKE_ENTRY.match(line):
            raise TransportError(f"the server's listing cannot be read: {printable(line)}", retryable=False)
        if line.strip() and len(self.notes) < MAX_NOTES:
            self.notes.append(printable(line))

    def _endless(self) -> TransportError:
        return TransportError(
            f"the server's listing is larger than a library can be: {self._received} bytes, {self.entries} entries",
            retryable=False,
        )


@lru_cache(maxsize=4096)
def _days(date: bytes) -> int:
    """Days from 1970-01-01 to a date of the Gregorian calendar, any year: a file's time need not be a sane
    one.
    """
    year, month, day = (int(part) for part in date.rsplit(b"/", 2))
    year -= month <= 2  # years begin in March here, so that the leap day is the last
    of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return year * 365 + year // 4 - year // 100 + year // 400 + of_year - 719468
