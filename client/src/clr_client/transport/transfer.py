"""Lists the source and fetches files from it."""

from __future__ import annotations

import asyncio
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clr_client.errors import TransportError
from clr_client.transport.failure import DENIED, disk_failure, failure, source_failure
from clr_client.transport.listing import MAX_MEMORY, MAX_SECONDS, Listing, ListingParser, check_path
from clr_client.transport.progress import Progress, ProgressParser, Started
from clr_client.transport.rsync import INCOMPLETE, fetch_argv, list_argv
from clr_client.transport.runner import run
from clr_client.transport.ssh import identity_fingerprint, remembered_fingerprints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from clr_client.transport.runner import Ended
    from clr_client.transport.ssh import Link

MAX_PROBLEMS = 100


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a transfer did: bytes of content that crossed (``literal``) and that were found here
    (``matched``), bytes on the wire both ways, and what did not arrive.

    ``complete`` is False if something asked for is not there now; ``problems`` tells what, in printable
    lines.
    """

    literal: int
    matched: int
    sent: int
    received: int
    complete: bool
    problems: tuple[str, ...]


async def list_source(link: Link, on_files: Callable[[int], object] = lambda _found: None) -> Listing:
    """List the regular files of the library at the server, without dotfiles.

    :param on_files: told how many files have been listed so far.
    :raises HostKeyError: the server's key is not the one known.
    :raises TransportError: no listing could be had; ``retryable`` if a minute's wait may mend that.
    """
    parser = ListingParser()

    def take(data: bytes) -> None:
        parser.feed(data)
        on_files(parser.found)

    try:
        async with asyncio.timeout(MAX_SECONDS):
            ended = await run(list_argv(link), on_output=take, idle=link.idle_timeout, memory=MAX_MEMORY)
    except TimeoutError:
        raise TransportError(f"the server {link.peer} did not end its listing within {MAX_SECONDS:.0f} s") from None
    if ended.code not in (0, *INCOMPLETE):
        raise await explained(ended, link)
    files = parser.finish()
    if ended.code and not files:
        raise source_failure(ended, link)
    return Listing(files, ended.code == 0, (*ended.stderr, *parser.notes)[:MAX_PROBLEMS])


async def fetch(
    link: Link,
    paths: Sequence[str],
    mirror: Path,
    *,
    basis: Path | None,
    block: int,
    rate: int = 0,
    most_bytes: int | None = None,
    on_progress: Callable[[Progress], None],
    on_file: Callable[[str], None] = lambda path: None,  # noqa: ARG005
) -> Transfer:
    """Bring files from the server into ``mirror``, each beside its old version and then in its place by a
    rename.

    :param paths: as a listing gave them.
    :param basis: folder laid out like ``mirror`` with likely predecessors of files that ``mirror`` does not
        have yet. rsync builds on one file: a partial one, else the old version, else the predecessor.
    :param block: length of the blocks in which files are compared, in bytes, or ``WHOLE``.
    :param rate: bytes per second that the sender may send at most, 0 for no limit: what a slower line (``limited``)
        would not take at once then waits at the sender's disk and not in buffers.
    :param most_bytes: bytes that may be written here; a transfer that goes on is ended.
    :param on_file: called with a path once its new content lies in ``mirror``, while the next one is
        arriving.
    :raises HostKeyError: the server's key is not the one known.
    :raises TransportError: the transfer ended early; what arrived stays as partial files. ``retryable`` as
        above.

    Cancelling ends rsync and ssh, keeps partial files, and then raises CancelledError.
    """
    for path in paths:
        check_path(path)
    if not paths:
        return Transfer(0, 0, 0, 0, complete=True, problems=())
    before = await asyncio.to_thread(_inodes, mirror, paths)
    arrivals = _Arrivals(mirror, before, on_progress, on_file)
    ended = await run(
        fetch_argv(link, mirror, basis, block, rate),
        stdin=b"".join(os.fsencode(path) + b"\0" for path in paths),
        on_output=arrivals.feed,
        idle=link.idle_timeout,
        most_written=most_bytes,
    )
    if ended.code not in (0, *INCOMPLETE):
        raise await explained(ended, link)
    if error := disk_failure(ended.stderr):
        raise error
    absent = arrivals.finish()
    problems = [*ended.stderr, *(f"{path!r} did not arrive" for path in absent)]
    numbers = arrivals.parser.numbers
    return Transfer(
        literal=numbers.get("Literal data", 0),
        matched=numbers.get("Matched data", 0),
        sent=numbers.get("Total bytes sent", 0),
        received=numbers.get("Total bytes received", 0),
        complete=ended.code == 0 and not absent,
        problems=tuple(problems[:MAX_PROBLEMS]),
    )


class _Arrivals:
    """Follows a transfer and tells which files are in place.

    A new version is a new inode at its path, because rsync renames; a line about it is only a hint when to
    look.
    """

    def __init__(
        self,
        mirror: Path,
        before: dict[str, int],
        on_progress: Callable[[Progress], None],
        on_file: Callable[[str], None],
    ) -> None:
        self.parser = ProgressParser()
        self._mirror, self._waiting = mirror, before
        self._on_progress, self._on_file = on_progress, on_file
        self._current: str | None = None

    def feed(self, data: bytes) -> None:
        for event in self.parser.feed(data):
            if isinstance(event, Started):
                previous, self._current = self._current, event.path
                if previous is not None:
                    self._look(previous)
            else:
                self._on_progress(event)

    def finish(self) -> list[str]:
        """Look at all that is still waited for; return what did not come."""
        for path in list(self._waiting):
            self._look(path)
        return list(self._waiting)

    def _look(self, path: str) -> None:
        if path in self._waiting and _inode(self._mirror, path) not in (0, self._waiting[path]):
            del self._waiting[path]
            self._on_file(path)


def _inodes(mirror: Path, paths: Iterable[str]) -> dict[str, int]:
    return {path: _inode(mirror, path) for path in paths}


def _inode(mirror: Path, path: str) -> int:
    """The inode number of a regular file, 0 if there is none."""
    try:
        status = (mirror / path).lstat()
    except OSError:
        return 0
    return status.st_ino if stat.S_ISREG(status.st_mode) else 0


async def explained(ended: Ended, link: Link) -> TransportError:
    """The error for a failed rsync or ssh, with the keys of both sides where they matter."""
    denied = any(DENIED.search(line) for line in ended.stderr)
    own_key = await identity_fingerprint(link.identity) if denied else ""
    return failure(ended, link, remembered_fingerprints(link.known_hosts, link.peer), own_key)
