"""An rsync sender that does as it is told: puts on the wire what no honest server sends.

``Play`` says what; ``Impostor`` is the real server (entrypoint, sshd, keys) whose forced command plays it. It speaks
protocol 29, the last one without incremental recursion, which rsync 3.5 still takes from a server.
"""

from __future__ import annotations

import os
import pickle
import shlex
import stat
import struct
import sys
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

PROTOCOL = 29
SEED = 1
MOMENT = 1_700_000_000
DONE = -1

Point = Literal["greeting", "seed", "list", "listed", "file", "data", "sum", "end"]
"""Where in a session something happens: before the version, before the checksum seed, before the list of files, after
it, before a file's header, before its data, before its digest, before the final numbers."""
Deed = Literal["hang", "close", "junk", "words", "information", "keep-alive"]
"""What happens: silence; the end; random bytes; endless text on stderr; endless text for the client's own standard
output; endless signs of life that say nothing."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file as it is listed; ``size`` and ``digest`` are what is claimed, else what is true of ``content``.

    ``more`` zero bytes follow the content; -1 for zeros without end.
    """

    name: bytes
    content: bytes = b""
    size: int | None = None
    mtime: int = MOMENT
    mode: int = stat.S_IFREG | 0o644
    digest: bytes | None = None
    more: int = 0


@dataclass(frozen=True, slots=True)
class Play:
    """What a server pretends to have and how it behaves.

    ``files`` is the listing; a fetch gets of it what it asks for, with the folders above, and ``unasked`` besides.
    ``endless`` lists ten thousand
    files for ever. ``lines`` go to the client's standard output after the
    listing. A deed is done in every session, or in those that only list or only fetch.
    """

    files: tuple[Entry, ...] = ()
    unasked: tuple[Entry, ...] = ()
    endless: bool = False
    lines: tuple[bytes, ...] = ()
    deeds: Mapping[Point, Deed] = field(default_factory=dict)
    only: Literal["", "list", "fetch"] = ""


def folder(name: bytes) -> Entry:
    """A folder as it is listed."""
    return Entry(name, size=4096, mode=stat.S_IFDIR | 0o755)


def library(files: Mapping[str | bytes, bytes], mtime: int = MOMENT) -> tuple[Entry, ...]:
    """The listing of an honest library: files by path, and the folders they lie in."""
    paths = {os.fsencode(path): content for path, content in files.items()}
    folders = {b"/".join(path.split(b"/")[:depth]) for path in paths for depth in range(1, path.count(b"/") + 1)}
    entries = [folder(b"."), *map(folder, folders)]
    return (*entries, *(Entry(path, content, mtime=mtime) for path, content in paths.items()))


class Session:
    """One connection, from the client's greeting to the end."""

    def __init__(self, play: Play, command: str) -> None:
        self.play = play
        words = shlex.split(command)
        self.is_fetch = any(word.startswith("--files-from") for word in words)
        letters = next((word for word in words if word.startswith("-") and not word.startswith("--")), "")
        self.is_compressed = "z" in letters.partition("e.")[0]

    def run(self) -> None:
        """Play it to the end."""
        self.at("greeting")
        write(struct.pack("<i", PROTOCOL))
        read_int()
        self.at("seed")
        write(struct.pack("<i", SEED))
        while length := read_int():  # the client's filters
            read(length)
        wanted = set(iter(read_name, b"")) if self.is_fetch else set()
        entries = [entry for entry in self.play.files if not self.is_fetch or is_wanted(entry, wanted)]
        if self.is_fetch:
            entries += self.play.unasked
        self.at("list")
        self.send_list(entries)
        for line in self.play.lines:
            send(line + b"\n", INFO)
        self.at("listed")
        self.send_files(sorted(entries, key=order))
        self.at("end")
        for number in (0, 0, 0, 0, 0):
            send(struct.pack("<i", number))
        if self.is_fetch or entries:
            read_int()

    def at(self, point: Point) -> None:
        """Do what is to be done at a point."""
        if self.play.only and self.play.only != ("fetch" if self.is_fetch else "list"):
            return
        match self.play.deeds.get(point):
            case "hang":
                time.sleep(1000)
            case "close":
                sys.exit(0)
            case "junk":
                write(os.urandom(100_000))
                time.sleep(1000)
            case "words":
                while True:
                    os.write(2, b"words \x1b[31m without end\n" * 1000)
            case "information":
                while True:
                    send(b"words \x1b[31m without end\n" * 100, INFO)
            case "keep-alive":
                while True:
                    send(b"")
                    time.sleep(0.05)

    def send_list(self, entries: Iterable[Entry]) -> None:
        """Send the listing, and the sign that it was read without errors."""
        endless = b"".join(described(Entry(b"%0200d" % number)) for number in range(10_000))
        while self.play.endless:
            send(endless)
        send(b"".join(described(entry) for entry in entries) + b"\0" + struct.pack("<i", 0))

    def send_files(self, entries: list[Entry]) -> None:
        """Answer what is asked for, by index, until nothing is for the third time."""
        done = 0
        while True:
            index = read_int()
            if index == DONE:
                done += 1
                send(struct.pack("<i", DONE))
                if done > 2:
                    return
                continue
            flags = struct.unpack("<H", read(2))[0]
            extra = read(1) if flags & 1 << 11 else b""
            if flags & 1 << 12:
                length = read(1)
                extra += length + read(length[0])
            if not flags & 1 << 15:
                continue
            head = read(16)
            count, _, strong, _ = struct.unpack("<4i", head)
            read(count * (4 + strong))
            self.at("file")
            send(struct.pack("<iH", index, flags) + extra + head)
            self.at("data")
            self.send_content(entries[index])
            self.at("sum")
            send(entries[index].digest or md4(struct.pack("<i", SEED) + entries[index].content))

    def send_content(self, entry: Entry) -> None:
        """Send all of a file, without reference to what the client has."""
        compressor = zlib.compressobj(1, zlib.DEFLATED, -15)
        for piece in pieces(entry):
            if self.is_compressed:
                send_deflated(compressor.compress(piece))
            else:
                send(struct.pack("<i", len(piece)) + piece)
        if self.is_compressed:
            send_deflated(compressor.flush(zlib.Z_SYNC_FLUSH)[:-4])
            send(b"\0")
        else:
            send(struct.pack("<i", 0))


def is_wanted(entry: Entry, wanted: Iterable[bytes]) -> bool:
    """Whether an entry was asked for by name, or is a folder above what was."""
    return any(name == entry.name or name.startswith(entry.name + b"/") for name in wanted) or entry.name == b"."


def described(entry: Entry) -> bytes:
    """An entry of the listing on the wire: flags, name, size, time, mode."""
    size = len(entry.content) if entry.size is None else entry.size
    length = struct.pack("<i", size) if 0 <= size < 1 << 31 else b"\xff\xff\xff\xff" + struct.pack("<q", size)
    name = struct.pack("<i", len(entry.name)) + entry.name
    return b"\x40" + name + length + struct.pack("<Ii", entry.mtime & 0xFFFFFFFF, entry.mode)


def order(entry: Entry) -> tuple[tuple[int, bytes], ...]:
    """By what a client sorts the listing before it asks by index: the files of a folder before its folders."""
    *above, last = entry.name.split(b"/")
    is_folder = stat.S_ISDIR(entry.mode) and entry.name != b"."
    return (*((1, name + b"/") for name in above), (1, last + b"/") if is_folder else (0, last))


def pieces(entry: Entry) -> Iterable[bytes]:
    """What is sent as a file's content."""
    for start in range(0, len(entry.content), 32768):
        yield entry.content[start : start + 32768]
    left = entry.more
    while left:
        piece = bytes(32768 if left < 0 else min(left, 32768))
        left -= len(piece) if left > 0 else 0
        yield piece


def send_deflated(data: bytes) -> None:
    """Send deflated bytes as rsync's tokens of at most 16383."""
    for start in range(0, len(data), 16383):
        piece = data[start : start + 16383]
        send(bytes([0x40 | len(piece) >> 8, len(piece) & 0xFF]) + piece)


DATA, INFO = 7, 9


def send(data: bytes, kind: int = DATA) -> None:
    """Send data, or a message of another kind, in frames."""
    for start in range(0, max(1, len(data)), 65536):
        piece = data[start : start + 65536]
        write(struct.pack("<I", kind << 24 | len(piece)) + piece)


def write(data: bytes) -> None:
    """Write all of it to the client."""
    while data:
        data = data[os.write(1, data) :]


def read(count: int) -> bytes:
    """Read exactly so much; the end of the client ends this."""
    data = b""
    while len(data) < count:
        piece = os.read(0, count - len(data))
        if not piece:
            sys.exit(0)
        data += piece
    return data


def read_int() -> int:
    """Read a 32-bit number."""
    number: int = struct.unpack("<i", read(4))[0]
    return number


def read_name() -> bytes:
    """Read a name that ends with NUL."""
    return b"".join(iter(lambda: read(1), b"\0"))


def md4(data: bytes) -> bytes:
    """MD4 (RFC 1320), which protocol 29 has and OpenSSL 3 no longer offers."""
    state = [0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476]
    mask = 0xFFFFFFFF
    padded = data + b"\x80" + bytes(-(len(data) + 9) % 64) + struct.pack("<Q", len(data) * 8)
    rounds: tuple[tuple[Callable[[int, int, int], int], int, tuple[int, ...], Iterable[int]], ...] = (
        (lambda x, y, z: (x & y) | (~x & z), 0, (3, 7, 11, 19), range(16)),
        (
            lambda x, y, z: (x & y) | (x & z) | (y & z),
            0x5A827999,
            (3, 5, 9, 13),
            [column + 4 * row for column in range(4) for row in range(4)],
        ),
        (
            lambda x, y, z: x ^ y ^ z,
            0x6ED9EBA1,
            (3, 9, 11, 15),
            (0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15),
        ),
    )
    for start in range(0, len(padded), 64):
        words = struct.unpack("<16I", padded[start : start + 64])
        a, b, c, d = state
        for mix, constant, shifts, places in rounds:
            for step, place in enumerate(places):
                total = (a + mix(b, c, d) + words[place] + constant) & mask
                shift = shifts[step % 4]
                a, b, c, d = d, (total << shift | total >> 32 - shift) & mask, b, c
        state = [(old + new) & mask for old, new in zip(state, (a, b, c, d), strict=True)]
    return struct.pack("<4I", *state)


def main(play: str) -> None:
    """Play one session of the pickled ``Play`` in the file ``play``."""
    Session(pickle.loads(Path(play).read_bytes()), os.environ.get("SSH_ORIGINAL_COMMAND", "")).run()
