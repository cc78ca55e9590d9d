"""In which blocks rsync compares a file with an older one."""

from __future__ import annotations

LEAST_BLOCK = 512
MOST_BLOCK = 128 * 1024
"""rsync takes none larger (rsync.h: MAX_BLOCK_SIZE)."""
WHOLE = 0
"""In the place of a block size: send the whole file, compare nothing."""
AUTO = -1

GIB = 1 << 30
BY_SIZE = ((8 * GIB, 4096), (16 * GIB, 8192))
"""Up to this many bytes of a file, these blocks."""
LARGE_BLOCK = 16384
MOST_BLOCKS = 1 << 23
"""Blocks of a file. The sender keeps about 50 bytes for each, and its largest allocation is 1 GiB."""


def block_size(size: int, wish: int = AUTO) -> int:
    """Return the length of the blocks, in bytes, in which to compare a file of ``size`` bytes.

    rsync's own grow with the root of the size up to 128 KiB, and then match next to nothing of a template that was
    built anew. Small ones cost the sender memory and time.

    :param wish: a length that is taken unless the file would have too many blocks.
    """
    block = wish if wish > 0 else next((block for most, block in BY_SIZE if size <= most), LARGE_BLOCK)
    while block < MOST_BLOCK and size > block * MOST_BLOCKS:
        block = min(2 * block, MOST_BLOCK)
    return block
