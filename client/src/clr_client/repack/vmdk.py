"""Stream-optimized VMDKs, read and written grain by grain in memory that does not grow with the disk.

The format is that of VMware's technical note *Virtual Disk Format 1.1*, section "Stream-Optimized Compressed Sparse
Extents". A disk is cut into grains of 64 KiB; those that hold anything are deflated one by one (zlib streams) and found
through grain tables, which a grain directory lists. All numbers are little-endian, all places are counted in sectors.

A grain can also be *stored*: a zlib stream of two blocks that are not compressed. What the guest wrote then lies in the
file as it is, 65535 bytes in a row, which is the most that one such block holds. It is 65552 bytes long. The readers
whose source is public have room for more: open-vmdk and VirtualBox for 66036 bytes, qemu for two grains.
"""

from __future__ import annotations

import os
import re
import struct
import sys
import zlib
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, NoReturn, Protocol

from clr_client.errors import RepackError
from clr_client.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SECTOR = 512
GRAIN_SECTORS = 128
GRAIN = GRAIN_SECTORS * SECTOR
"""Bytes of the disk that one grain holds."""
TABLE_GRAINS = 512
"""Grains that one grain table lists."""
MAX_CAPACITY = 62 << 40
"""Largest disk read, in bytes: what vSphere allows. It bounds the grain directory, which is kept in memory, to 8 MB."""
STORED = 65552
"""Bytes of a stored grain without its marker."""
STORED_SECTORS = 129
"""Sectors of a stored grain with its marker."""

_MAX_DEFLATED = 66036  # room that open-vmdk and VirtualBox have
_MAX_READ = 2 * GRAIN  # room that qemu has
_MAX_DESCRIPTOR = 2048
_MAX_SECTOR = 0xFFFFFFFF
_AT_END = 0xFFFFFFFFFFFFFFFF
_MAGIC = b"KDMV"
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH433x")
_MARKER = struct.Struct("<QII496x")
_GRAIN_MARKER = struct.Struct("<QI")
_NEWLINES = b"\n \r\n"
_HAS_NEWLINES, _HAS_ZEROED_GRAINS, _IS_COMPRESSED, _HAS_MARKERS = 1, 1 << 2, 1 << 16, 1 << 17
_DEFLATE = 1
_END, _TABLE, _DIRECTORY, _FOOTER = range(4)
_TABLE_BYTES = TABLE_GRAINS * 4
_STORED_BEGIN = b"\x78\x01" + struct.pack("<BHH", 0, 0xFFFF, 0)
_STORED_BREAK = struct.pack("<BHH", 1, 1, 0xFFFE)
_ZERO = bytes(GRAIN)


class Reader(Protocol):
    """Anything that bytes come out of one after the other."""

    def read(self, size: int, /) -> bytes:
        """Return that many bytes, fewer only at the end."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the header says: the disk's size, and the places of descriptor and grain directory, all in sectors."""

    capacity: int
    descriptor_offset: int
    descriptor_size: int
    directory: int
    has_zeroed_grains: bool = False

    @property
    def grains(self) -> int:
        """Grains of the disk, whether anything is in them or not."""
        return -(-self.capacity // GRAIN_SECTORS)

    @property
    def tables(self) -> int:
        """Grain tables, written or not."""
        return -(-self.grains // TABLE_GRAINS)

    @property
    def overhead(self) -> int:
        """Where the first grain begins in what ``write`` makes: at a whole grain, as VMware's own programs do it."""
        return -(-(1 + self.descriptor_size) // GRAIN_SECTORS) * GRAIN_SECTORS

    def pack(self) -> bytes:
        """Return the sector that ``write`` makes of it."""
        flags = _HAS_NEWLINES | _IS_COMPRESSED | _HAS_MARKERS
        places = (self.descriptor_offset, self.descriptor_size, TABLE_GRAINS, 0, self.directory, self.overhead)
        return _HEADER.pack(_MAGIC, 3, flags, self.capacity, GRAIN_SECTORS, *places, 0, _NEWLINES, _DEFLATE)


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk that was opened: its header, its descriptor as it lies there, where each grain table is (0: none), and
    the length of its file in bytes.
    """

    header: Header
    descriptor: bytes
    tables: array[int]
    size: int


def open_disk(stream: BinaryIO) -> Disk:
    """Read everything but grain tables and grains of a stream-optimized VMDK.

    :raises RepackError: it is of another kind, damaged, or refers to a parent.
    """
    size = stream.seek(0, os.SEEK_END)
    first = _read(stream, 0, min(size, SECTOR))
    _refuse_other_kinds(stream, first)
    header = _parse_header(first)
    if header.directory == _AT_END:
        end = _read(stream, size - 3 * SECTOR, 3 * SECTOR) if size >= 4 * SECTOR else b""
        if not end or size % SECTOR or _MARKER.unpack(end[:SECTOR])[1:] != (0, _FOOTER) or any(end[2 * SECTOR :][:16]):
            _fail("it has no footer, so its end is missing")
        footer = _parse_header(end[SECTOR : 2 * SECTOR])
        if footer.capacity != header.capacity or footer.directory == _AT_END:
            _fail("its footer does not belong to its header")
        header = Header(
            header.capacity,
            header.descriptor_offset,
            header.descriptor_size,
            footer.directory,
            footer.has_zeroed_grains,
        )
    if max(header.descriptor_offset, header.directory) * SECTOR >= size:
        _fail("it ends early: its descriptor or grain directory is said to be where the file has no more bytes")
    descriptor = _read(stream, header.descriptor_offset * SECTOR, header.descriptor_size * SECTOR)
    _check_descriptor(descriptor)
    return Disk(header, descriptor, _numbers(_read(stream, header.directory * SECTOR, header.tables * 4)), size)


def allocated(stream: BinaryIO, disk: Disk) -> Iterator[tuple[int, int]]:
    """Yield the number and sector of each grain that is in the file, in the order of the disk."""
    for number, table in enumerate(disk.tables):
        if table == 0 or (table == 1 and disk.header.has_zeroed_grains):
            continue
        for place, sector in enumerate(_numbers(_read(stream, table * SECTOR, _TABLE_BYTES)), number * TABLE_GRAINS):
            if sector == 0 or (sector == 1 and disk.header.has_zeroed_grains):
                continue
            if place >= disk.header.grains:
                _fail("it has grains beyond its end")
            yield place, sector


def grains(stream: BinaryIO, disk: Disk) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the 65536 bytes of each grain that holds anything but zeros, in the order of the disk.

    :raises RepackError: a grain is not what its table says, cut off, damaged or longer than a grain.
    """
    for number, sector in allocated(stream, disk):
        data = read_grain(stream, disk, number, sector)
        if data != _ZERO:
            yield number, data


def read_grain(stream: BinaryIO, disk: Disk, number: int, sector: int) -> bytes:
    """Return the 65536 bytes of the grain ``number``, which begins at ``sector``."""
    size = _grain_size(number, *_GRAIN_MARKER.unpack(_read(stream, sector * SECTOR, _GRAIN_MARKER.size)))
    return _inflate(_read(stream, sector * SECTOR + _GRAIN_MARKER.size, size), number, disk.header.capacity)


def is_stored(stream: BinaryIO, disk: Disk) -> bool:
    """Whether each of its grains is stored as ``stored`` does it; looks at the beginning of grains only."""
    length = _GRAIN_MARKER.size + len(_STORED_BEGIN)
    for number, sector in allocated(stream, disk):
        begin = _read(stream, sector * SECTOR, length)
        if begin != _GRAIN_MARKER.pack(number * GRAIN_SECTORS, STORED) + _STORED_BEGIN:
            return False
    return True


def stored(grain: bytes) -> bytes:
    """Return a grain as a zlib stream of stored blocks, the same bytes with every version of zlib.

    The break that is needed comes right before the last byte, so that it and what is between two grains
    spoil one place for rsync, not two.
    """
    return b"".join((_STORED_BEGIN, grain[:-1], _STORED_BREAK, grain[-1:], zlib.adler32(grain).to_bytes(4, "big")))


def deflated(grain: bytes) -> bytes:
    """Return a grain compressed, as most programs do it."""
    return zlib.compress(grain, 6)


def size_written(header: Header, tables: int, grain_sectors: int) -> int:
    """Bytes of the file that ``write`` makes, when so many grain tables are needed and all grains with their markers
    take so many sectors.
    """
    directory = -(-header.tables * 4 // SECTOR)
    return (header.overhead + grain_sectors + tables * (1 + _TABLE_BYTES // SECTOR) + 1 + directory + 3) * SECTOR


def write(out: BinaryIO, disk: Disk, contents: Iterable[tuple[int, bytes]], encode: Callable[[bytes], bytes]) -> None:
    """Write a stream-optimized VMDK from beginning to end, with the descriptor and capacity of ``disk``.

    ``contents`` are numbers and bytes of grains in the order of the disk, ``encode`` makes zlib streams of them. Each
    grain table follows its grains; then come the grain directory, the footer and the end-of-stream marker.
    """
    header = Header(disk.header.capacity, 1, disk.header.descriptor_size, _AT_END)
    sectors = _Sectors(out)
    sectors.put(header.pack() + disk.descriptor)
    sectors.put(bytes((header.overhead - sectors.at) * SECTOR))
    directory = array("I", bytes(4 * header.tables))
    table, current = array("I", bytes(_TABLE_BYTES)), 0

    def end_table() -> None:
        nonlocal table
        if any(table):
            directory[current] = sectors.at + 1
            sectors.put(_MARKER.pack(_TABLE_BYTES // SECTOR, 0, _TABLE) + _packed(table))
            table = array("I", bytes(_TABLE_BYTES))

    for number, data in contents:
        if number // TABLE_GRAINS != current:
            end_table()
            current = number // TABLE_GRAINS
        packed = encode(data)
        if len(packed) > _MAX_DEFLATED or sectors.at > _MAX_SECTOR:
            _fail("it would become larger than the format allows")
        table[number % TABLE_GRAINS] = sectors.at
        sectors.put(_GRAIN_MARKER.pack(number * GRAIN_SECTORS, len(packed)) + packed)
    end_table()
    packed = _packed(directory)
    sectors.put(_MARKER.pack(-(-len(packed) // SECTOR), 0, _DIRECTORY))
    footer = Header(header.capacity, 1, header.descriptor_size, sectors.at)
    sectors.put(packed)
    sectors.put(_MARKER.pack(1, 0, _FOOTER) + footer.pack() + _MARKER.pack(0, 0, _END))


class _Sectors:
    """Writes whole sectors and knows where it is."""

    def __init__(self, out: BinaryIO) -> None:
        self.out = out
        self.at = 0

    def put(self, data: bytes) -> None:
        padding = -len(data) % SECTOR
        self.out.write(data)
        self.out.write(bytes(padding))
        self.at += (len(data) + padding) // SECTOR


def read_back(stream: Reader, disk: Disk) -> Iterator[tuple[int, bytes]]:
    """Read from beginning to end what ``write`` made of ``disk``, and yield its grains.

    It follows the markers, as a reader does that takes the file from a network, and compares every table with them.

    :raises RepackError: anything at all is not as ``write`` makes it.
    """
    header = Header(disk.header.capacity, 1, disk.header.descriptor_size, _AT_END)
    begin = header.pack() + disk.descriptor
    _expect(stream, begin + bytes(header.overhead * SECTOR - len(begin)))
    at, before = header.overhead, -1
    table, directory = array("I", bytes(_TABLE_BYTES)), array("I", bytes(4 * header.tables))
    while _GRAIN_MARKER.unpack_from(marker := _marker(stream))[1] or any(table):
        if marker[8:12] == bytes(4):
            if marker != _MARKER.pack(_TABLE_BYTES // SECTOR, 0, _TABLE):
                _fail("a grain table is missing")
            _expect(stream, _packed(table))
            directory[before // TABLE_GRAINS] = at + 1
            at += 1 + _TABLE_BYTES // SECTOR
            table = array("I", bytes(_TABLE_BYTES))
            continue
        number, length, data = _grain_record(stream, marker, header)
        if number <= before or (any(table) and number // TABLE_GRAINS != before // TABLE_GRAINS):
            _fail(f"grain {number} is out of order")
        table[number % TABLE_GRAINS] = at
        at, before = at + length, number
        yield number, data
    packed = _packed(directory)
    packed += bytes(-len(packed) % SECTOR)
    if marker != _MARKER.pack(len(packed) // SECTOR, 0, _DIRECTORY):
        _fail("its grain directory is missing")
    footer = Header(header.capacity, 1, header.descriptor_size, at + 1)
    _expect(stream, packed + _MARKER.pack(1, 0, _FOOTER) + footer.pack() + _MARKER.pack(0, 0, _END))
    if stream.read(1):
        _fail("something follows its end")


def _marker(stream: Reader) -> bytes:
    marker = stream.read(SECTOR)
    if len(marker) != SECTOR:
        _fail("it ends early")
    return marker


def _grain_record(stream: Reader, marker: bytes, header: Header) -> tuple[int, int, bytes]:
    """Read the rest of a grain of which ``marker`` is the first sector: its number, length in sectors, and bytes."""
    start, size = _GRAIN_MARKER.unpack_from(marker)
    number = start // GRAIN_SECTORS
    if number >= header.grains:
        _fail("it has grains beyond its end")
    size = _grain_size(number, start, size)
    length = -(-(_GRAIN_MARKER.size + size) // SECTOR)
    record = marker + stream.read((length - 1) * SECTOR)
    if len(record) != length * SECTOR or any(record[_GRAIN_MARKER.size + size :]):
        _fail(f"grain {number} is cut off")
    data = _inflate(record[_GRAIN_MARKER.size : _GRAIN_MARKER.size + size], number, header.capacity, is_exact=True)
    if data == _ZERO:
        _fail(f"grain {number} is empty")
    return number, length, data


def _expect(stream: Reader, data: bytes) -> None:
    if stream.read(len(data)) != data:
        _fail("its tables are not those of its grains")


def _parse_header(data: bytes) -> Header:
    if len(data) != SECTOR:
        _fail("it ends early")
    fields = _HEADER.unpack(data)
    magic, version, flags, capacity, grain_sectors, descriptor_offset, descriptor_size, table_grains = fields[:8]
    directory, newlines, compression = fields[9], fields[12], fields[13]
    if magic != _MAGIC or version not in (1, 2, 3):
        _fail(f"its header is damaged or of the unknown version {version}")
    if flags & _HAS_NEWLINES and newlines != _NEWLINES:
        _fail("its line ends were converted by a transfer in text mode")
    if not flags & _HAS_MARKERS or compression != _DEFLATE:
        _fail("its grains are not compressed with deflate")
    if grain_sectors != GRAIN_SECTORS or table_grains != TABLE_GRAINS:
        _fail(f"it has grains of {grain_sectors} sectors in tables of {table_grains}, not of 128 in tables of 512")
    if not 0 < capacity <= MAX_CAPACITY // SECTOR:
        _fail(f"it is said to have {capacity} sectors, which no disk has")
    if not descriptor_offset or not 0 < descriptor_size <= _MAX_DESCRIPTOR:
        _fail("its descriptor is not in it")
    return Header(capacity, descriptor_offset, descriptor_size, directory, bool(flags & _HAS_ZEROED_GRAINS))


def _refuse_other_kinds(stream: BinaryIO, first: bytes) -> None:
    """Say what it is, if it is not stream-optimized."""
    again = "Export the template once more with stream-optimized disks, as ovftool and vSphere do"
    if first[:4] == _MAGIC and len(first) == SECTOR:
        flags, place, size = struct.unpack_from("<I", first, 8)[0], *struct.unpack_from("<QQ", first, 28)
        if flags & _IS_COMPRESSED:
            return
        kind = "monolithicSparse"
        if 0 < place < _MAX_SECTOR and 0 < size <= _MAX_DESCRIPTOR:
            kind = _said(_read(stream, place * SECTOR, size * SECTOR), "createType") or kind
        _fail(f"it is a VMDK of the kind {kind}, not streamOptimized", again)
    if first[:4] == b"COWD":
        _fail("it is a snapshot of an ESX host (vmfsSparse), not streamOptimized", again)
    if first.startswith(b"# Disk DescriptorFile"):
        kind = _said(first, "createType") or "unknown"
        _fail(f"it is only the descriptor of a VMDK of the kind {kind}, not streamOptimized", again)
    if len(first) < SECTOR or first[:4] == _MAGIC:
        _fail("it ends early")
    _fail("it has no VMDK header; if it is a flat disk, it already travels as small deltas as it is")


def _check_descriptor(descriptor: bytes) -> None:
    kind, parent = _said(descriptor, "createType"), _said(descriptor, "parentCID")
    if kind != "streamOptimized":
        _fail(f"its descriptor says that its kind is {kind or 'unknown'}, not streamOptimized")
    if parent and parent.lower() != "ffffffff":
        _fail("it holds only the differences to a parent disk", "Export the template once more, without snapshots")


def _said(descriptor: bytes, name: str) -> str:
    """Return a value of a descriptor, in a form fit to be shown; empty if there is none."""
    found = re.search(
        rb'^[ \t]*%s[ \t]*=[ \t]*"?([^"\r\n]{0,80})' % name.encode(), descriptor, re.MULTILINE | re.IGNORECASE
    )
    return printable(found[1].decode("utf-8", "replace")).strip() if found else ""


def _grain_size(number: int, start: int, size: int) -> int:
    if start != number * GRAIN_SECTORS:
        _fail(f"where grain {number} should be is another")
    if not 0 < size <= _MAX_READ - _GRAIN_MARKER.size:
        _fail(f"grain {number} is said to have {size} bytes")
    return size


def _inflate(packed: bytes, number: int, capacity: int, *, is_exact: bool = False) -> bytes:
    """Return the 65536 bytes of a grain. Only the last of a disk may be shorter; what is beyond the disk reads as 0.

    With ``is_exact`` nothing may follow the zlib stream, which readers do not mind.
    """
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(packed, GRAIN + 1)
    except zlib.error:
        _fail(f"grain {number} is damaged")
    inside = min(GRAIN, capacity * SECTOR - number * GRAIN)
    if not inflater.eof or not inside <= len(data) <= GRAIN or (inside == GRAIN and len(data) != GRAIN):
        _fail(f"grain {number} is damaged: it has not the length of a grain")
    if is_exact and inflater.unused_data:
        _fail(f"something follows grain {number}")
    return data if inside == GRAIN else data[:inside] + bytes(GRAIN - inside)


def _read(stream: BinaryIO, at: int, size: int) -> bytes:
    stream.seek(at)
    data = stream.read(size)
    if len(data) != size:
        _fail("it ends early: something is said to be where the file has no more bytes")
    return data


def _numbers(data: bytes) -> array[int]:
    """Return little-endian numbers of 32 bits."""
    numbers = array("I", data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _packed(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


def _fail(message: str, remedy: str = "") -> NoReturn:
    raise RepackError(message, remedy)
