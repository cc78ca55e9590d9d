"""A library at the primary site that people and pipelines keep changing: random changes from a seed."""

from __future__ import annotations

import hashlib
import random
import shutil
from typing import TYPE_CHECKING

from clr_client.content.items import group, scan

from support.templates import fake_template, replace

if TYPE_CHECKING:
    from pathlib import Path


class Source:
    """Random changes of the library in ``library``, which has templates in it; files are replaced by renames."""

    def __init__(self, library: Path, seed: int, *, largest: int = 50_000) -> None:
        self.library = library
        self.random = random.Random(seed)
        self.count = 0
        self.largest = largest

    def change(self) -> str:
        """Make one change; return what it was."""
        self.count += 1
        templates = sorted(path.parent for path in self.library.rglob("*.ovf"))
        kinds = ["add", "update", "touch", "iso", "describe"]
        if len(templates) > 2:
            kinds += ["remove", "rename", "add file"]
        kind = self.random.choice(kinds)
        chosen = self.random.choice(templates) if templates else self.library
        size = self.random.randrange(1000, self.largest)
        if kind == "add":
            fake_template(self.library / f"new {self.count}", disk_bytes=size)
        elif kind == "update":
            fake_template(chosen, name=next(chosen.glob("*.ovf")).stem, disk_bytes=size, revision=self.count)
        elif kind == "touch":
            next(chosen.glob("*.ovf")).touch()
        elif kind == "iso":
            replace(self.library / f"disc-{self.random.randrange(3)}.iso", self.random.randbytes(5000))
        elif kind == "describe":
            replace(chosen / "clr-item.toml", f'description = "change {self.count}"\n'.encode())
        elif kind == "remove":
            shutil.rmtree(chosen)
        elif kind == "rename":
            chosen.rename(chosen.with_name(f"renamed {self.count}"))
        elif kind == "add file":
            (chosen / f"notes-{self.count}.txt").write_text(str(self.count))
        return f"{kind} {chosen.relative_to(self.library)}"

    def content(self) -> dict[str, dict[str, str]]:
        """Return the SHA-256 of each file of each item, by names."""
        return {
            item.default_name: {file.name: digest(self.library / file.path) for file in item.files}
            for item in group(scan(self.library))
        }


def digest(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
