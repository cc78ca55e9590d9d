"""Stream-optimized VMDKs: what is written is what was read, and nothing that is wrong gets through."""

from __future__ import annotations

import io
import random
import struct
import tracemalloc
import zlib
from typing import TYPE_CHECKING, BinaryIO

import pytest
from clr_client.errors import RepackError
from clr_client.repack import vmdk
from hypothesis import given
from hypothesis import strategies as st
from support import vmdks
from support.fuzz import damaged
from support.vmdks import GRAIN, OVERHEAD, SECTOR, poke

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECTORS = 3 * 128 + 5
"""A small disk of four grains, of which the last is short."""


def noise(seed: int, size: int = GRAIN) -> bytes:
    return random.Random(seed).randbytes(size)


def some(*numbers: int) -> dict[int, bytes]:
    """Grains that can be compressed about by half."""
    return {number: (noise(number, GRAIN // 2) + bytes([number % 255 + 1]) * (GRAIN // 2)) for number in numbers}


def read(data: bytes) -> dict[int, bytes]:
    stream = io.BytesIO(data)
    return dict(vmdk.grains(stream, vmdk.open_disk(stream)))


def rewritten(data: bytes, encode: Callable[[bytes], bytes] = vmdk.stored) -> bytes:
    stream, out = io.BytesIO(data), io.BytesIO()
    disk = vmdk.open_disk(stream)
    vmdk.write(out, disk, vmdk.grains(stream, disk), encode)
    return out.getvalue()


def read_back(data: bytes, original: bytes) -> dict[int, bytes]:
    return dict(vmdk.read_back(io.BytesIO(data), vmdk.open_disk(io.BytesIO(original))))


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize("encode", [vmdk.stored, vmdk.deflated])
@pytest.mark.parametrize(
    ("numbers", "sectors"),
    [
        ((), 1),
        ((), 128),
        ((0,), 1),
        ((0, 1, 3), SECTORS),
        ((0, 511, 512, 1100), 1101 * 128),
        ((700,), 800 * 128 + 1),
    ],
)
def test_a_disk_that_is_rewritten_has_the_same_content_descriptor_and_capacity(
    numbers: tuple[int, ...], sectors: int, encode: Callable[[bytes], bytes]
) -> None:
    grains = some(*numbers)
    original = bytes(vmdks.vmdk(grains, sectors))
    new = rewritten(original, encode)
    assert vmdks.read(new) == vmdks.read(original) == vmdks.content(grains, sectors)
    old_disk, new_disk = vmdk.open_disk(io.BytesIO(original)), vmdk.open_disk(io.BytesIO(new))
    assert new_disk.descriptor == old_disk.descriptor
    assert new_disk.header.capacity == sectors
    assert read_back(new, original) == read(original) == read(new)
    assert vmdk.is_stored(io.BytesIO(new), new_disk) == (encode is vmdk.stored or not numbers)
    assert rewritten(new, encode) == new


def test_what_is_written_is_laid_out_as_the_format_says() -> None:
    grains = some(0, 2, 600)
    new = rewritten(bytes(vmdks.vmdk(grains, 700 * 128)))
    assert len(new) % SECTOR == 0
    assert new[:4] == b"KDMV"
    assert struct.unpack_from("<IIQQQQIQQQB", new, 4) == (
        *(3, 0x30001, 700 * 128, 128, 1, 20, 512),
        *(0, 2**64 - 1, 128, 0),
    )
    assert new[73:77] == b"\n \r\n"
    assert new[77:79] == b"\x01\x00"
    # From marker to marker, as a reader does that cannot go back.
    at, seen, places, tables = OVERHEAD * SECTOR, [], {}, {}
    while True:
        value, size, kind = struct.unpack_from("<QII", new, at)
        if size:
            seen.append(value // 128)
            places[value // 128] = at // SECTOR
            at += -(-(12 + size) // SECTOR) * SECTOR
            continue
        seen.append({0: "end", 1: "table", 2: "directory", 3: "footer"}[kind])
        if kind == 1:
            tables[len(tables)] = at // SECTOR + 1
            assert value == 4
        if kind == 2:
            directory = at // SECTOR + 1
        if kind == 3:
            assert new[at + SECTOR : at + 2 * SECTOR] == new[:56] + struct.pack("<Q", directory) + new[64:SECTOR]
        at += SECTOR * (1 + value)
        if kind == 0:
            break
    assert seen == [0, 2, "table", 600, "table", "directory", "footer", "end"]
    assert at == len(new)
    assert not any(new[-SECTOR:])
    assert struct.unpack_from("<II", new, directory * SECTOR) == (tables[0], tables[1])
    first = struct.unpack_from("<512I", new, tables[0] * SECTOR)
    assert {number: place for number, place in enumerate(first) if place} == {0: places[0], 2: places[2]}
    assert struct.unpack_from("<I", new, tables[1] * SECTOR + (600 - 512) * 4) == (places[600],)


def test_a_stored_grain_lies_in_the_file_in_one_piece_and_fits_into_the_buffers_of_known_readers() -> None:
    grain = noise(1)
    packed = vmdk.stored(grain)
    assert zlib.decompress(packed) == grain
    assert packed[7 : 7 + 65535] == grain[:65535]
    assert len(packed) == vmdk.STORED == 65552 <= 66036
    assert vmdk.size_written(vmdk.Header(128, 1, 20, 0), 1, vmdk.STORED_SECTORS) == len(
        rewritten(bytes(vmdks.vmdk({0: grain}, 128)))
    )


def test_what_cannot_be_compressed_fits_as_well_and_is_no_stored_grain() -> None:
    original = bytes(vmdks.vmdk({0: noise(1), 1: noise(2)}, 256))
    new = rewritten(original, vmdk.deflated)
    assert len(vmdk.deflated(noise(1))) <= 66036
    assert vmdks.read(new) == noise(1) + noise(2)
    assert not vmdk.is_stored(io.BytesIO(new), vmdk.open_disk(io.BytesIO(new)))


def test_grains_that_a_program_wrote_out_of_order_are_put_in_order() -> None:
    grains = some(0, 1, 2, 3)
    mixed = bytes(vmdks.vmdk(grains, SECTORS, order=[2, 0, 3, 1]))
    assert rewritten(mixed) == rewritten(bytes(vmdks.vmdk(grains, SECTORS)))


def test_grains_of_zeros_take_no_room_however_they_were_written() -> None:
    grains = some(1) | {0: bytes(GRAIN)}
    written = bytes(vmdks.vmdk(grains, SECTORS, zeroed=[2]))
    assert rewritten(written) == rewritten(bytes(vmdks.vmdk(some(1), SECTORS)))


@pytest.mark.parametrize("pack", [zlib.compress, lambda data: zlib.compress(data[: 5 * SECTOR])])
def test_the_last_grain_may_be_short_and_what_lies_beyond_the_disk_is_left_behind(
    pack: Callable[[bytes], bytes],
) -> None:
    original = bytes(vmdks.vmdk({3: noise(3)}, SECTORS, pack=pack))
    assert read(rewritten(original)) == {3: noise(3)[: 5 * SECTOR] + bytes(GRAIN - 5 * SECTOR)}


# ---------------------------------------------------------------- what is refused

Damage = tuple[str, "Callable[[bytearray], object]", str]


def damages() -> Iterator[Damage]:
    entry = vmdks.table_entry(SECTORS, 0)
    first = OVERHEAD * SECTOR
    yield "empty", lambda data: data.clear(), "ends early"
    yield "a header cut off", lambda data: data.__delitem__(slice(100, None)), "ends early"
    yield "no magic", lambda data: poke(data, 0, "4s", b"\0\0\0\0"), "no VMDK header; if it is a flat disk"
    yield "an ESX snapshot", lambda data: poke(data, 0, "4s", b"COWD"), "vmfsSparse"
    yield "version", lambda data: poke(data, vmdks.VERSION, "<I", 9), "unknown version 9"
    yield "no grains at all", lambda data: poke(data, vmdks.CAPACITY, "<Q", 0), "have 0 sectors"
    yield "largest capacity", lambda data: poke(data, vmdks.CAPACITY, "<Q", 2**64 - 1), "which no disk has"
    yield "large capacity", lambda data: poke(data, vmdks.CAPACITY, "<Q", vmdk.MAX_CAPACITY // SECTOR), "ends early"
    for size in (0, 1, 127, 256, 2**63):
        yield (
            f"grain size {size}",
            lambda data, size=size: poke(data, vmdks.GRAIN_SIZE, "<Q", size),
            "sectors in tables",
        )
    for size in (0, 513, 2**32 - 1):
        yield (
            f"table size {size}",
            lambda data, size=size: poke(data, vmdks.TABLE_SIZE, "<I", size),
            "sectors in tables",
        )
    yield "text mode", lambda data: poke(data, vmdks.NEWLINES, "4s", b"\n \n\n"), "text mode"
    yield "no markers", lambda data: poke(data, vmdks.FLAGS, "<I", 0x10001), "not compressed with deflate"
    yield "algorithm", lambda data: poke(data, vmdks.COMPRESSION, "<H", 2), "not compressed with deflate"
    yield "no descriptor", lambda data: poke(data, vmdks.DESCRIPTOR, "<Q", 0), "descriptor is not in it"
    yield "long descriptor", lambda data: poke(data, vmdks.DESCRIPTOR_SIZE, "<Q", 2**40), "descriptor is not in it"
    yield "far descriptor", lambda data: poke(data, vmdks.DESCRIPTOR, "<Q", 2**60), "ends early"
    yield "descriptor beyond", lambda data: poke(data, vmdks.DESCRIPTOR, "<Q", len(data) // SECTOR - 1), "ends early"
    yield "far directory", lambda data: poke(data, vmdks.DIRECTORY, "<Q", 2**64 - 2), "ends early"
    yield "no footer", lambda data: poke(data, vmdks.DIRECTORY, "<Q", vmdks.AT_END), "no footer"
    yield "far table", lambda data: poke(data, 21 * SECTOR, "<I", 2**32 - 1), "ends early"
    yield "far grain", lambda data: poke(data, entry, "<I", 2**32 - 1), "ends early"
    yield "two grains in one place", lambda data: poke(data, entry + 4, "<I", OVERHEAD), "where grain 1 should be"
    yield "a grain in the header", lambda data: poke(data, entry, "<I", 1), "where grain 0 should be"
    yield "a grain beyond", lambda data: poke(data, entry + 16, "<I", OVERHEAD), "beyond its end"
    yield "a grain of nothing", lambda data: poke(data, first + 8, "<I", 0), "is said to have 0 bytes"
    yield "a large grain", lambda data: poke(data, first + 8, "<I", 2 * GRAIN), "is said to have 131072 bytes"
    yield "a huge grain", lambda data: poke(data, first + 8, "<I", 2**32 - 1), "is said to have"
    yield "a shorter grain", lambda data: poke(data, first + 8, "<I", 100), "not the length of a grain"
    yield "damage", lambda data: poke(data, first + 300, "8s", b"\xff" * 8), "grain 0 is damaged"
    yield "the end cut off", lambda data: data.__delitem__(slice(-600, None)), "ends early"


@pytest.mark.parametrize(("damage", "reason"), [pytest.param(d, r, id=name) for name, d, r in damages()])
def test_a_disk_that_is_damaged_or_hostile_is_refused_in_words(
    damage: Callable[[bytearray], object], reason: str
) -> None:
    data = vmdks.vmdk(some(0, 1, 3), SECTORS)
    damage(data)
    with pytest.raises(RepackError, match=reason):
        read(bytes(data))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (vmdks.descriptor("monolithicSparse"), "its kind is monolithicSparse"),
        (b"# Disk DescriptorFile\n", "its kind is unknown"),
        (vmdks.descriptor("a\x1b[2J"), r"its kind is a\\x1b"),
        (vmdks.descriptor(parent="1234abcd"), "differences to a parent"),
    ],
)
def test_a_disk_whose_descriptor_says_something_else_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(RepackError, match=reason):
        read(bytes(vmdks.vmdk(some(0), SECTORS, text=text)))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (vmdks.descriptor("monolithicFlat").ljust(600), "only the descriptor of a VMDK of the kind monolithicFlat"),
        (vmdks.descriptor("twoGbMaxExtentSparse"), "only the descriptor of a VMDK of the kind twoGbMaxExtentSparse"),
        (bytes(4096), "if it is a flat disk, it already travels as small deltas"),
    ],
)
def test_another_kind_of_disk_is_named(data: bytes, kind: str) -> None:
    with pytest.raises(RepackError, match=kind):
        read(data)


def test_a_sparse_disk_that_is_not_compressed_is_named_with_what_to_do() -> None:
    data = vmdks.vmdk({}, SECTORS, text=vmdks.descriptor("monolithicSparse"))
    poke(data, vmdks.FLAGS, "<I", 3)
    with pytest.raises(
        RepackError, match=r"of the kind monolithicSparse, not streamOptimized\. Export the template once"
    ):
        read(bytes(data))


@pytest.mark.parametrize("footer", [False, True])
def test_a_disk_that_is_cut_off_anywhere_is_refused(footer: bool) -> None:
    data = bytes(vmdks.vmdk(some(0, 1, 3), SECTORS))
    data = rewritten(data) if footer else data
    for end in range(0, len(data) - SECTOR, 13 * SECTOR):
        with pytest.raises(RepackError):
            read(data[:end])


@given(damaged([bytes(vmdks.vmdk(some(0, 1, 3), SECTORS)), rewritten(bytes(vmdks.vmdk(some(0, 3), SECTORS)))]))
def test_whatever_the_bytes_are_a_disk_is_read_or_refused(data: bytes) -> None:
    try:
        found = read(data)
    except RepackError:
        return
    assert all(len(grain) == GRAIN for grain in found.values())


# ---------------------------------------------------------------- memory


def peak(work: Callable[[], object]) -> int:
    """The most memory that work takes, in bytes."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_grain_that_would_inflate_to_a_gigabyte_is_refused_in_little_memory() -> None:
    inflates = zlib.compressobj(9)
    bomb = b"".join(inflates.compress(bytes(1 << 20)) for _ in range(100)) + inflates.flush()
    assert len(bomb) < 2 * GRAIN
    data = bytes(vmdks.vmdk({0: bytes(GRAIN)}, 128, pack=lambda _: bomb))

    def work() -> None:
        with pytest.raises(RepackError, match="not the length of a grain"):
            read(data)

    assert peak(work) < 4 << 20


@pytest.mark.parametrize("capacity", [vmdk.MAX_CAPACITY // SECTOR, 2**64 - 1])
def test_a_small_file_that_says_it_is_an_enormous_disk_is_refused_in_little_memory(capacity: int) -> None:
    data = vmdks.vmdk(some(0), SECTORS)
    poke(data, vmdks.CAPACITY, "<Q", capacity)

    def work() -> None:
        with pytest.raises(RepackError):
            read(bytes(data))

    assert peak(work) < 4 << 20


class Null(io.RawIOBase):
    """Takes everything and keeps nothing."""

    def write(self, data: object) -> int:
        return len(memoryview(data))  # type: ignore[arg-type]


def test_memory_does_not_grow_with_the_disk() -> None:
    def write(count: int) -> None:
        disk = vmdk.Disk(vmdk.Header(count * 128, 1, 20, 0), bytes(20 * SECTOR), vmdk.array("I"), 0)
        grain = noise(1)
        out: BinaryIO = Null()  # type: ignore[assignment]
        vmdk.write(out, disk, ((number, grain) for number in range(count)), vmdk.stored)

    write(2)
    assert peak(lambda: write(3000)) < peak(lambda: write(600)) + 100_000 < 2 << 20


# ---------------------------------------------------------------- reading back


def test_one_byte_that_was_written_wrong_anywhere_is_noticed() -> None:
    original = bytes(vmdks.vmdk(some(0, 1, 3, 600), 700 * 128))
    good = rewritten(original)
    content = read(original)
    choose = random.Random(4)
    places = {choose.randrange(sector, sector + SECTOR) for sector in range(0, len(good), SECTOR)}
    for place in (
        places | set(range(OVERHEAD * SECTOR, OVERHEAD * SECTOR + 24)) | set(range(len(good) - 1600, len(good)))
    ):
        wrong = bytearray(good)
        wrong[place] ^= 1 << choose.randrange(8)
        try:
            found = read_back(bytes(wrong), original)
        except RepackError:
            continue
        assert found != content, f"byte {place} of {len(good)}"


@pytest.mark.parametrize("change", [-SECTOR, -1, 1, SECTOR])
def test_a_file_that_became_too_short_or_too_long_is_noticed(change: int) -> None:
    original = bytes(vmdks.vmdk(some(0, 1), SECTORS))
    good = rewritten(original)
    with pytest.raises(RepackError):
        read_back(good[:change] if change < 0 else good + bytes(change), original)


def test_grains_that_were_written_twice_or_out_of_order_are_noticed() -> None:
    original = bytes(vmdks.vmdk(some(0, 1, 600), 700 * 128))
    disk = vmdk.open_disk(io.BytesIO(original))
    for order in ((0, 0), (1, 0), (600, 1)):
        out = io.BytesIO()
        vmdk.write(out, disk, [(number, noise(number)) for number in order], vmdk.stored)
        with pytest.raises(RepackError, match="out of order"):
            read_back(out.getvalue(), original)


@given(st.dictionaries(st.integers(0, 1300), st.integers(1, 255), max_size=6), st.integers(0, 127))
def test_any_disk_comes_back_as_it_was(filled: dict[int, int], beyond: int) -> None:
    sectors = 1300 * 128 + 1 + beyond
    grains = {number: bytes([fill]) * GRAIN for number, fill in filled.items()}
    original = bytes(vmdks.vmdk(grains, sectors))
    new = rewritten(original)
    back = rewritten(new, vmdk.deflated)
    assert read(new) == read(back) == read(original) == read_back(new, original) == read_back(back, original)
