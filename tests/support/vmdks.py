"""Builds stream-optimized VMDKs byte by byte, as qemu-img lays them out, so that a test can make them wrong."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SECTOR, GRAIN = 512, 65536
OVERHEAD = 128
"""Sector of the first grain, for disks of up to 600 MB."""
# Places in the header, for ``poke``.
VERSION, FLAGS, CAPACITY, GRAIN_SIZE, DESCRIPTOR, DESCRIPTOR_SIZE, TABLE_SIZE = 4, 8, 12, 20, 28, 36, 44
DIRECTORY, NEWLINES, COMPRESSION = 56, 73, 77
AT_END = 2**64 - 1


def descriptor(kind: str = "streamOptimized", parent: str = "ffffffff") -> bytes:
    return f"""# Disk DescriptorFile
version=1
CID=1234abcd
parentCID={parent}
createType="{kind}"

# Extent description
RW 143362 SPARSE "a.vmdk"
""".encode()


def vmdk(
    grains: Mapping[int, bytes],
    sectors: int,
    *,
    text: bytes = b"",
    pack: Callable[[bytes], bytes] = zlib.compress,
    order: Sequence[int] = (),
    zeroed: Sequence[int] = (),
) -> bytearray:
    """A disk of so many ``sectors`` with these grains by number.

    ``pack`` makes a grain's zlib stream. Grains lie in the file in ``order``, else in theirs; those that are ``zeroed``
    are entered as such.
    """
    tables = (sectors + 65535) // 65536
    directory = 21
    first = directory + -(-tables * 4 // SECTOR)
    assert first + 4 * tables <= OVERHEAD
    flags = 0x30001 | (4 if zeroed else 0)
    places = (1, 20, 512, 0, directory, OVERHEAD, 0)
    header = struct.pack("<4sIIQQQQIQQQB", b"KDMV", 3, flags, sectors, 128, *places) + b"\n \r\n" + struct.pack("<H", 1)
    out = bytearray(OVERHEAD * SECTOR)
    out[: len(header)] = header
    text = text or descriptor()
    out[SECTOR : SECTOR + len(text)] = text
    for number in range(tables):
        poke(out, directory * SECTOR + number * 4, "<I", first + 4 * number)
    for number in zeroed:
        poke(out, first * SECTOR + number * 4, "<I", 1)
    for number in order or sorted(grains):
        poke(out, first * SECTOR + number * 4, "<I", len(out) // SECTOR)
        packed = pack(grains[number])
        out += struct.pack("<QI", number * 128, len(packed)) + packed
        out += bytes(-len(out) % SECTOR)
    return out


def table_entry(sectors: int, number: int) -> int:
    """Where the entry of a grain is in what ``vmdk`` makes, in bytes."""
    tables = (sectors + 65535) // 65536
    return (21 + -(-tables * 4 // SECTOR)) * SECTOR + number * 4


def poke(data: bytearray, at: int, form: str, value: int | bytes) -> None:
    """Put a value somewhere."""
    struct.pack_into(form, data, at, value)


def content(grains: Mapping[int, bytes], sectors: int) -> bytes:
    """The disk that these grains make."""
    out = bytearray(sectors * SECTOR)
    for number, data in grains.items():
        out[number * GRAIN : (number + 1) * GRAIN] = data[: max(0, len(out) - number * GRAIN)]
    return bytes(out)


def read(data: bytes) -> bytes:
    """The disk that a stream-optimized VMDK holds, read through its tables without any doubt of them."""
    sectors = struct.unpack_from("<Q", data, CAPACITY)[0]
    header = data
    if struct.unpack_from("<Q", data, DIRECTORY)[0] == AT_END:
        header = data[-1024:-512]
    directory = struct.unpack_from("<Q", header, DIRECTORY)[0]
    grains: dict[int, bytes] = {}
    for number in range(-(-sectors // 128)):
        table = struct.unpack_from("<I", data, directory * SECTOR + number // 512 * 4)[0]
        place = struct.unpack_from("<I", data, table * SECTOR + number % 512 * 4)[0] if table else 0
        if place > 1:
            start, size = struct.unpack_from("<QI", data, place * SECTOR)
            assert start == number * 128
            grains[number] = zlib.decompress(data[place * SECTOR + 12 : place * SECTOR + 12 + size])
    return content(grains, sectors)
