"""The one value all stages share: a regular file, as a listing knows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class FileInfo:
    """A regular file in a library tree.

    ``path`` is relative to the tree's root, with ``/`` between segments; bytes that are not UTF-8 are
    surrogate-escaped, as ``os.fsdecode`` does. ``size`` is in bytes, ``mtime`` in whole seconds since the epoch,
    UTC: what rsync compares to tell whether a file changed.
    """

    path: str
    size: int
    mtime: int

    @property
    def folder(self) -> str:
        """Path of the folder that holds the file; empty at the top of the tree."""
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        """Base name."""
        return self.path.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """Suffix in lower case with its dot, empty if there is none."""
        stem, dot, suffix = self.name.rpartition(".")
        return (dot + suffix).lower() if stem else ""
