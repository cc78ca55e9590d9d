"""How a transfer is divided: which files one rsync brings, in which blocks, and how many of them run at once. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from clr_client.files import FileInfo

BATCH_BYTES = 64 << 20
"""What is worth a connection of its own: at 200 ms it takes three seconds to come about."""
SHARE_OF_A_WORKER = 4
"""Batches that each worker gets, so that all of them are busy until near the end."""
SMALL = 1 << 20
"""Files below this many bytes come first: what describes a template is here when its disks arrive."""
WORKER_RATE = 64 << 10
"""Bytes per second below which one more connection is of no use."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one rsync brings. ``block``: in blocks of how many bytes it compares, or ``blocks.WHOLE``."""

    files: tuple[FileInfo, ...]
    block: int

    @property
    def bytes(self) -> int:
        """Size of the files."""
        return sum(file.size for file in self.files)


def workers(parallel: int, total: int, rate: int) -> int:
    """Return how many transfers to run at once.

    :param parallel: the most wanted.
    :param total: bytes to bring.
    :param rate: the line's limit in bytes per second, 0 for none.
    """
    useful = min(parallel, -(-total // BATCH_BYTES), rate // WORKER_RATE if rate else parallel)
    return max(1, useful)


def divide(files: Iterable[FileInfo], blocks: Mapping[str, int], at_once: int) -> tuple[Batch, ...]:
    """Divide files among rsyncs, in the order in which they should start.

    An rsync compares all its files in blocks of one length, and brings them in the order of their names.

    :param files: in the order in which they are wanted; it is kept, but for small ones, which come first.
    :param blocks: block length by path.
    :param at_once: how many rsyncs will run at the same time; for a single one, nothing is divided without need.
    """
    files = list(files)
    most = max(BATCH_BYTES, sum(file.size for file in files) // (at_once * SHARE_OF_A_WORKER))
    batches: list[Batch] = []
    for block in sorted({blocks[file.path] for file in files}):
        same = [file for file in files if blocks[file.path] == block]
        if at_once == 1:
            batches.append(Batch(tuple(same), block))
            continue
        small = [file for file in same if file.size < SMALL]
        for part in (small, [file for file in same if file.size >= SMALL]):
            batches += (Batch(tuple(some), block) for some in _chop(part, most))
    return tuple(batches)


def _chop(files: Iterable[FileInfo], most: int) -> Iterable[list[FileInfo]]:
    """Cut a list into pieces of at most so many bytes, or of one file that has more."""
    some: list[FileInfo] = []
    size = 0
    for file in files:
        if some and size + file.size > most:
            yield some
            some, size = [], 0
        some.append(file)
        size += file.size
    if some:
        yield some
