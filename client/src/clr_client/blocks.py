"""In which blocks rsync compares a file with an older one."""

from __future__ import annotations

LEAST_BLOCK = 512
MOST_BLOCK = 128 * 1024
"""rsync takes none larger (rsync.h: MAX_BLOCK_SIZE)."""
WHOLE = 0
"""In the place of a block size: send the whole file, compare nothing."""
AUTO = -1

GIB = 1 << 30
BY_SIZE = ((4 * GIB, 2048), (8 * GIB, 4096), (16 * GIB, 8192))
"""Up to this many bytes of a file, these blocks."""
MOVED_BLOCK = 4096
"""At least this for what is most likely here under another name: the checksums are all that has to cross the line."""
LARGE_BLOCK = 16384
MOST_BLOCKS = 1 << 23
"""Blocks of a file. The sender keeps about 50 bytes for each, and its largest allocation is 1 GiB."""


def block_size(size: int, wish: int = AUTO, *, is_moved: bool = False) -> int:
    """Return the length of the blocks, in bytes, in which to compare a file of ``size`` bytes.

    rsync's own grow with the root of the size up to 128 KiB, and then match next to nothing of a template that was
    built anew. Small ones cost the sender memory and time.

    :param wish: a length that is taken unless the file would have too many blocks.
    :param is_moved: whether the file has the size and time of the one that it is compared with.
    """
    block = wish if wish > 0 else next((block for most, block in BY_SIZE if size <= most), LARGE_BLOCK)
    if wish <= 0 and is_moved:
        block = max(block, MOVED_BLOCK)
    while block < MOST_BLOCK and size > block * MOST_BLOCKS:
        block = min(2 * block, MOST_BLOCK)
    return block
