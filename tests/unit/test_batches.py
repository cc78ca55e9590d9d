"""How a transfer is divided: block sizes, batches and how many run at once."""

from __future__ import annotations

import pytest
from clr_client import blocks
from clr_client.files import FileInfo
from clr_client.transport import batches
from clr_client.transport.batches import BATCH_BYTES, divide, workers
from hypothesis import given
from hypothesis import strategies as st

GIB = 1 << 30
MIB = 1 << 20


@pytest.mark.parametrize(
    ("size", "block"),
    [
        (0, 2048),
        (500 * MIB, 2048),
        (4 * GIB, 2048),
        (4 * GIB + 1, 4096),
        (8 * GIB, 4096),
        (8 * GIB + 1, 8192),
        (16 * GIB, 8192),
        (17 * GIB, 16384),
        (128 * GIB, 16384),
        (200 * GIB, 32768),
        (1 << 50, blocks.MOST_BLOCK),
    ],
)
def test_blocks_stay_small_so_that_large_disks_get_a_delta_too(size: int, block: int) -> None:
    assert blocks.block_size(size) == block


@given(st.integers(0, 1 << 40))
def test_the_sender_keeps_no_more_than_100_mb_for_a_disk_of_8_gib_and_no_more_blocks_than_it_can(size: int) -> None:
    count = size / blocks.block_size(size)
    assert count <= blocks.MOST_BLOCKS
    assert size > 8 * GIB or count * 50 <= 105_000_000


@pytest.mark.parametrize(("size", "block"), [(500 * MIB, 4096), (8 * GIB, 4096), (9 * GIB, 8192)])
def test_what_looks_moved_is_compared_in_longer_blocks(size: int, block: int) -> None:
    assert blocks.block_size(size, is_moved=True) == block
    assert blocks.block_size(size, 1024, is_moved=True) == max(1024, blocks.block_size(size, 1024))


@given(st.integers(0, 1 << 40), st.integers(blocks.LEAST_BLOCK, blocks.MOST_BLOCK))
def test_a_wish_is_followed_unless_the_sender_would_have_to_keep_too_many_blocks(size: int, wish: int) -> None:
    block = blocks.block_size(size, wish)
    assert wish <= block <= blocks.MOST_BLOCK
    assert size / block <= blocks.MOST_BLOCKS
    assert block == wish or size / wish > blocks.MOST_BLOCKS


def file(number: int, size: int) -> FileInfo:
    return FileInfo(f"item-{number:03}/disk", size, 1)


@given(
    st.lists(st.tuples(st.integers(0, 40 * GIB), st.sampled_from([0, 4096, 8192])), max_size=40),
    st.integers(1, 16),
)
def test_every_file_is_in_one_batch_with_others_of_its_block_size(wanted: list[tuple[int, int]], at_once: int) -> None:
    files = [file(number, size) for number, (size, _) in enumerate(wanted)]
    lengths = {each.path: block for each, (_, block) in zip(files, wanted, strict=True)}
    found = divide(files, lengths, at_once)
    assert sorted(each for batch in found for each in batch.files) == sorted(files)
    assert all(lengths[each.path] == batch.block for batch in found for each in batch.files)
    if at_once == 1:
        assert len(found) == len(set(lengths.values()))
    assert len(found) <= 3 * 3 + 2 * sum(each.size for each in files) / BATCH_BYTES + len(files)


def test_what_describes_a_template_and_small_items_come_first_and_large_disks_alone() -> None:
    files = [file(1, 30 * MIB), file(2, 20 * MIB), file(3, 5000), file(4, 9 * GIB), file(5, 2 * GIB)]
    lengths = {each.path: 4096 for each in files}
    found = divide(files, lengths, 4)
    assert [[int(each.path[5:8]) for each in batch.files] for batch in found] == [[3], [1, 2], [4], [5]]


def test_a_large_plan_becomes_a_few_batches_for_each_worker() -> None:
    files = [file(number, 200 * MIB) for number in range(500)]
    found = divide(files, {each.path: 4096 for each in files}, 4)
    assert 16 <= len(found) <= 20


@pytest.mark.parametrize(
    ("parallel", "total", "rate", "count"),
    [
        (4, 100 * GIB, 0, 4),
        (1, 100 * GIB, 0, 1),
        (4, 10_000, 0, 1),
        (4, 0, 0, 1),
        (4, BATCH_BYTES + 1, 0, 2),
        (4, 100 * GIB, 1_500_000, 4),
        (4, 100 * GIB, 2 * batches.WORKER_RATE, 2),
        (4, 100 * GIB, 512, 1),
    ],
)
def test_more_connections_only_where_they_are_of_use(parallel: int, total: int, rate: int, count: int) -> None:
    assert workers(parallel, total, rate) == count
