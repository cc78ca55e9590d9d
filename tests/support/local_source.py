"""The server's library as a folder of this machine: for tests that need a thousand syncs and no line.

What it does to the mirror is what rsync does (``.NAME.XXXXXX`` beside the file, flushed, then renamed; a partial file
goes when its file is whole), in Python, so that a fault can be put between any two of these steps.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from clr_client import transport
from clr_client.content.items import scan
from clr_client.transport.failure import failure
from clr_client.transport.listing import Listing
from clr_client.transport.progress import Progress
from clr_client.transport.runner import Ended
from clr_client.transport.transfer import Transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from clr_client.transport.ssh import Link


class LocalSource:
    """Lists and brings the files of ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self) -> None:
        """Let all syncs of this process read from here."""
        transport.list_source = self.list_source
        transport.fetch = self.fetch

    async def list_source(self, link: Link, on_files: Callable[[int], object] = lambda _: None) -> Listing:
        """List the folder, whatever the server is called."""
        assert link.peer
        return Listing(scan(self.folder), complete=True, problems=())

    async def fetch(self, link: Link, paths: Sequence[str], mirror: Path, **options: Any) -> Transfer:
        """Bring files, as ``transport.fetch`` does."""
        done = 0
        try:
            for path in paths:
                done += self._bring(path, mirror)
                options["on_progress"](Progress(done, 1e6, path))
        except OSError as error:
            line = f"rsync: [receiver] write failed on {error.filename}: {error.strerror} ({error.errno})"
            raise failure(Ended(11, (line,)), link, (), "") from None
        return Transfer(literal=done, matched=0, sent=0, received=done, complete=True, problems=())

    def _bring(self, path: str, mirror: Path) -> int:
        source, target = self.folder / path, mirror / path
        target.parent.mkdir(parents=True, exist_ok=True)
        info, content = source.stat(), source.read_bytes()
        temporary = target.with_name(f".{target.name}.Ab3dE9")
        with temporary.open("wb") as file:
            for start in range(0, len(content), 50_000):
                file.write(content[start : start + 50_000])
            file.flush()
            os.fsync(file.fileno())
        os.utime(temporary, ns=(info.st_mtime_ns, info.st_mtime_ns))
        temporary.rename(target)
        partial = target.parent / transport.PARTIAL_DIR / target.name
        if partial.exists():
            partial.unlink()
            partial.parent.rmdir()
        return len(content)
