"""What all cases of one run share: its size, its folders, and templates that are built once."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.images import Images

if TYPE_CHECKING:
    from collections.abc import Iterator

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "bench"
MB = 1_000_000


@dataclass(frozen=True)
class Size:
    """How much is measured. Bytes, counts and seconds."""

    name: str
    first_sync: int
    first_sync_runs: int
    publish: int
    clients: int
    line_seconds: float
    cut_rate: int
    serve_seconds: float


SIZES = {
    "full": Size("full", 4000 * MB, 2, 4000 * MB, 200, 45, 40 * MB, 8),
    "small": Size("small", 300 * MB, 2, 400 * MB, 20, 12, 20 * MB, 2),
}


@dataclass(frozen=True)
class Bench:
    """One run of the benchmark."""

    size: Size
    cache: Path = CACHE

    @property
    def images(self) -> Images:
        """The templates whose changes are measured."""
        return Images(self.cache / f"images-{self.size.name}", full=self.size.name == "full")

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder on the file system of the cache, so that hard links into it are possible; removed afterwards."""
        work = self.cache / "work"
        work.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=work))
        try:
            yield folder
        finally:
            shutil.rmtree(folder)
