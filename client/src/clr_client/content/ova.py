"""OVA archives: an OVF template in one tar file, read strictly and unpacked into plain files.

An own reader, because the archive may be hostile: nothing but regular files under plain names is accepted, no
header makes it allocate more than a fixed amount, and every byte of a member lies inside the archive.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clr_client.content import checksums, ovf
from clr_client.content.digests import hash_range, opened
from clr_client.content.items import ignored
from clr_client.content.names import flaw, fold
from clr_client.disk import remedy
from clr_client.errors import HeldError, StoreError
from clr_client.text import printable

if TYPE_CHECKING:
    import threading
    from collections.abc import Collection, Iterator, Mapping
    from io import BufferedWriter
    from pathlib import Path

_BLOCK = 512
_MAX_MEMBERS = 1_000
_MAX_HEADERS = 4 * _MAX_MEMBERS
_MAX_EXTENSION = 1 << 20
"""Largest extended header (long names, pax records) read, in bytes."""
_MAX_FILE_NAME = 255
_ENCODING = ("utf-8", "surrogateescape")
_PAX_HEAD = re.compile(rb"([0-9]{1,7}) ([^=]+)=")
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a folder",
    b"6": "a pipe",
    b"S": "a sparse file",
    b"K": "a link",
}


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive; ``sha256`` in hex."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Contents:
    """A verified archive: its files in their order, and what is worth telling its owner."""

    members: tuple[Member, ...]
    is_vapp_template: bool
    warnings: tuple[str, ...]

    def dump(self) -> str:
        """As text for the cache; ``restore`` reads it."""
        members = [[member.name, member.size, member.sha256] for member in self.members]
        return json.dumps([members, self.is_vapp_template, self.warnings])


def restore(text: str) -> Contents:
    """Read what ``Contents.dump`` wrote."""
    members, vapp, warnings = json.loads(text)
    return Contents(tuple(Member(*member) for member in members), vapp, tuple(warnings))


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    offset: int
    size: int


def inspect(descriptor: int, size: int, *, stop: threading.Event | None = None) -> Contents:
    """Verify an open archive of ``size`` bytes in one read: structure, references, manifest.

    Raises HeldError that says what is wrong with it, OSError if it cannot be read.
    """
    return _process(descriptor, size, None, stop)


def unpack(
    archive: Path,
    destination: Path,
    *,
    expected: Mapping[str, str] | None = None,
    only: Collection[str] | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Write an archive's files, mode 0644 and synced, into the empty folder ``destination``.

    The archive is verified again on the way; ``expected`` are the SHA-256 digests by name that it must have.
    ``only`` are the names to write; None: all.
    On an error the folder holds an incomplete set, which the caller removes. Raises HeldError for an archive
    that is refused, StoreError if the files cannot be written.
    """
    try:
        folder = os.open(destination, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        place = printable(str(destination))
        raise StoreError(f"cannot unpack into {place}: {error.strerror}", remedy(error.errno)) from error
    try:
        with opened(archive) as (descriptor, info):
            contents = _process(descriptor, info.st_size, folder, stop, only)
        found = {member.name: member.sha256 for member in contents.members}
        if expected is not None and found != dict(expected):
            raise HeldError("the archive is not the one that was verified")
        os.fsync(folder)
    finally:
        os.close(folder)


def _process(
    descriptor: int,
    size: int,
    folder: int | None,
    stop: threading.Event | None,
    only: Collection[str] | None = None,
) -> Contents:
    entries = _entries(descriptor, size)
    envelope = ovf.parse(_small(descriptor, entries[0], ovf.MAX_ENVELOPE))
    sizes = {entry.name: entry.size for entry in entries}
    ovf.resolve(envelope, sizes)
    stem = entries[0].name[: -len(".ovf")]
    manifest = next((entry for entry in entries[1:] if fold(entry.name) == fold(f"{stem}.mf")), None)
    listed: tuple[checksums.Entry, ...] = ()
    if manifest is not None:
        listed = checksums.parse(_small(descriptor, manifest, checksums.MAX_MANIFEST))
    algorithms = checksums.wanted(listed, sizes)
    digests = {
        entry.name: _member(
            descriptor,
            entry,
            {"sha256"} | algorithms.get(entry.name, set()),
            folder if only is None or entry.name in only else None,
            stop,
        )
        for entry in entries
    }
    warnings = () if manifest is None else checksums.compare(listed, digests, manifest.name)
    members = tuple(Member(entry.name, entry.size, digests[entry.name]["sha256"]) for entry in entries)
    return Contents(members, envelope.is_vapp_template, warnings)


def _member(
    descriptor: int, entry: _Entry, algorithms: set[str], folder: int | None, stop: threading.Event | None
) -> dict[str, str]:
    """Digests of one member, which is also written into ``folder`` if one is given."""
    if folder is None:
        return hash_range(descriptor, entry.offset, entry.size, algorithms, stop=stop)
    with _created(entry.name, folder) as target:

        def write(piece: memoryview) -> None:
            with _writing(entry.name):
                target.write(piece)

        return hash_range(descriptor, entry.offset, entry.size, algorithms, sink=write, stop=stop)


@contextlib.contextmanager
def _created(name: str, folder: int) -> Iterator[BufferedWriter]:
    """A new file in an open folder, synced when it was written without error."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with _writing(name):
        target = os.fdopen(os.open(name, flags, 0o644, dir_fd=folder), "wb")
    try:
        yield target
        with _writing(name):
            target.flush()
            os.fchmod(target.fileno(), 0o644)
            os.fsync(target.fileno())
    finally:
        with contextlib.suppress(OSError):  # what a full disk refused was told before
            target.close()


@contextlib.contextmanager
def _writing(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot unpack {name}: {error.strerror}", remedy(error.errno)) from error


def _small(descriptor: int, entry: _Entry, limit: int) -> bytes:
    if entry.size > limit:
        raise HeldError(f"{entry.name} in the archive is larger than {limit >> 20} MiB")
    return os.pread(descriptor, entry.size, entry.offset)


def _entries(descriptor: int, size: int) -> list[_Entry]:
    """The archive's files, checked by name and order."""
    entries: list[_Entry] = []
    seen: set[str] = set()
    for entry in _headers(descriptor, size):
        _check_name(entry.name)
        if fold(entry.name) in seen:
            raise HeldError(f"the archive holds {entry.name} twice")
        seen.add(fold(entry.name))
        entries.append(entry)
        if len(entries) > _MAX_MEMBERS:
            raise HeldError(f"the archive holds more than {_MAX_MEMBERS} files")
    envelopes = [entry.name for entry in entries if entry.name.lower().endswith(".ovf")]
    if not entries or envelopes[:1] != [entries[0].name]:
        raise HeldError("the archive does not begin with an .ovf, so it is no OVA")
    if len(envelopes) > 1:
        raise HeldError(f"the archive holds more than one .ovf: {envelopes[0]} and {envelopes[1]}")
    return entries


def _check_name(name: str) -> None:
    shown = printable(name[:120])
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise HeldError(f'the archive holds a path instead of a file name: "{shown}"')
    if (reason := flaw(name)) is not None:
        raise HeldError(f'the archive holds a file whose name {reason}: "{shown}"')
    if ignored(name) or len(name.encode()) > _MAX_FILE_NAME:
        raise HeldError(f'the archive holds a file whose name is not allowed: "{shown}"')


def _headers(descriptor: int, size: int) -> Iterator[_Entry]:
    """Walk the headers of a POSIX, GNU or pax tar; data is skipped, not read."""
    position = 0
    long_name: str | None = None
    long_size: int | None = None
    for _ in range(_MAX_HEADERS):
        block = os.pread(descriptor, _BLOCK, position)
        if len(block) < _BLOCK:
            raise HeldError("the archive is truncated: it ends without tar's end mark")
        if not block.strip(b"\0"):
            return
        _check_sum(block, position)
        kind, length = block[156:157], _number(block[124:136])
        position += _BLOCK
        if kind in (b"L", b"x", b"g"):
            data = _extension(descriptor, position, length, size)
            if kind == b"L":
                long_name = data.rstrip(b"\0").decode(*_ENCODING)
            else:
                name, declared = _pax(data)
                if kind == b"g" and not (name is None and declared is None):
                    raise HeldError("the archive has a global header that renames files")
                long_name = name if name is not None else long_name
                long_size = declared if declared is not None else long_size
        else:
            name = long_name if long_name is not None else _header_name(block)
            name = name.removeprefix("./")
            length = long_size if long_size is not None else length
            if kind not in (b"0", b"\0"):
                what = _REFUSED.get(kind, f"an entry of unknown type {kind!r}")
                raise HeldError(f'the archive holds {what}: "{printable(name[:120])}"')
            if position + length > size:
                raise HeldError(f'the archive is truncated: "{printable(name[:120])}" is cut off')
            yield _Entry(name, position, length)
            long_name = long_size = None
        position += -(-length // _BLOCK) * _BLOCK
    raise HeldError(f"the archive has more than {_MAX_HEADERS} headers")


def _check_sum(block: bytes, position: int) -> None:
    if position == 0 and block.startswith(b"\x1f\x8b"):
        raise HeldError("the archive is compressed with gzip; an OVA is a plain tar")
    blank = block[:148] + b" " * 8 + block[156:]
    signed = sum(byte - 256 if byte > 127 else byte for byte in blank)
    if _read_number(block[148:156]) not in (sum(blank), signed):
        where = f"damaged at byte {position}" if position else "no tar file"
        raise HeldError(f"the archive is {where}")


def _number(raw: bytes) -> int:
    number = _read_number(raw)
    if number is None:
        raise HeldError("the archive has a damaged header")
    return number


def _read_number(raw: bytes) -> int | None:
    """A number in a tar header: octal digits, or base 256 where the first bit is set. None if it is neither."""
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    digits = raw.strip(b" \0")
    return int(digits or b"0", 8) if re.fullmatch(rb"[0-7]*", digits) else None


def _header_name(block: bytes) -> str:
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0]
    if prefix and block[257:263] == b"ustar\0":
        name = prefix + b"/" + name
    return name.decode(*_ENCODING)


def _extension(descriptor: int, position: int, length: int, size: int) -> bytes:
    if length > _MAX_EXTENSION:
        raise HeldError("the archive has an extended header that is too large")
    if position + length > size:
        raise HeldError("the archive is truncated in a header")
    return os.pread(descriptor, length, position)


def _pax(data: bytes) -> tuple[str | None, int | None]:
    """Path and size out of pax records (``<length> <key>=<value>\\n``), None where not given."""
    path: str | None = None
    size: int | None = None
    start = 0
    while start < len(data):
        head = _PAX_HEAD.match(data, start)
        end = start + int(head[1]) if head else 0
        if head is None or not head.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise HeldError("the archive has a damaged extended header")
        key, value = head[2], data[head.end() : end - 1]
        if key.startswith(b"GNU.sparse"):
            raise HeldError("the archive holds a sparse file")
        if key == b"path":
            path = value.decode(*_ENCODING)
        elif key == b"size":
            if not re.fullmatch(rb"[0-9]{1,18}", value):
                raise HeldError("the archive has a damaged extended header")
            size = int(value)
        start = end
    return path, size
