"""Hashing files once, and remembering digests so that unchanged files are never opened again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import stat
import threading
import zlib
from typing import TYPE_CHECKING

from clr_client.disk import UNFINISHED
from clr_client.errors import HeldError
from clr_client.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

log = logging.getLogger("clr.content")

_HEADER = "content-library-rsync digests 2"
_BUFFER = 1 << 20
"""hashlib releases the interpreter's lock while it works on a buffer of this many bytes."""


class DigestCache:
    """What was found out about files whose size, modification time and inode are still the same.

    Facts are strings by name: hex digests by algorithm, and whatever else reading the file told; none holds a
    line break. Usable from several threads. Damage costs a second look at the files, nothing else.
    """

    def __init__(self) -> None:
        # A library may have hundreds of thousands of files, so an entry is one string: the identity, then a
        # line "name=value" for each fact.
        self._files: dict[str, str] = {}
        self._asked: set[str] = set()
        self._changed = False
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: Path) -> DigestCache:
        """The cache saved at ``path``; an empty one if there is none or it cannot be read."""
        cache = cls()
        with contextlib.suppress(OSError, ValueError), path.open(encoding="ascii") as stream:
            if json.loads(stream.readline()) == _HEADER:
                for line in stream:
                    with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
                        name, entry, check = json.loads(line)
                        if check == _check(name, entry):
                            cache._files[name] = entry
        return cache

    def get(self, path: str | Path, info: os.stat_result | None = None) -> dict[str, str]:
        """The facts known about the file as it is now (``info``, or asked of the disk); empty if none."""
        name = str(path)
        if info is None:
            try:
                info = os.lstat(name)
            except OSError:
                return {}
        with self._lock:
            self._asked.add(name)
            entry = self._files.get(name, "")
        identity = _identity(info)
        return _facts(entry) if entry.startswith(identity) else {}

    def put(self, path: str | Path, info: os.stat_result, facts: Mapping[str, str]) -> None:
        """Add facts about the file that ``info`` was taken of before its content was read."""
        name = str(path)
        with self._lock:
            self._asked.add(name)
            entry = self._files.get(name, "")
            identity = _identity(info)
            known = _facts(entry) if entry.startswith(identity) else {}
            lines = [f"{fact}={value}\n" for fact, value in (known | dict(facts)).items()]
            self._files[name] = identity + "".join(lines)
            self._changed = True

    def save(self, path: Path) -> None:
        """Write the cache, if it changed, with temporary file, fsync and rename.

        Entries that nobody asked for are dropped once their file is gone or another. A cache that cannot be
        written is only worth a warning: files are hashed again next time.
        """
        with self._lock:
            gone = [name for name in self._files if name not in self._asked and not self._current(name)]
            for name in gone:
                del self._files[name]
            if not gone and not self._changed:
                return
            files = list(self._files.items())
            self._changed = False
        temporary = path.with_name(f"{UNFINISHED}{path.name}")
        try:
            with temporary.open("w", encoding="ascii") as stream:
                stream.write(json.dumps(_HEADER) + "\n")
                stream.writelines(json.dumps([*entry, _check(*entry)]) + "\n" for entry in files)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except OSError as error:
            log.warning("digests could not be kept, so files will be hashed again: %s", error.strerror)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _current(self, name: str) -> bool:
        try:
            return self._files[name].startswith(_identity(os.lstat(name)))
        except (OSError, ValueError):
            return False


def _check(name: str, entry: str) -> int:
    """What tells a line that was damaged since it was written."""
    return zlib.crc32(f"{name}\n{entry}".encode("utf-8", "surrogatepass"))


def _identity(info: os.stat_result) -> str:
    return f"{info.st_size} {info.st_mtime_ns} {info.st_ino}\n"


def _facts(entry: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in entry.split("\n")[1:-1])
    return {name: value for name, _, value in pairs}


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[tuple[int, os.stat_result]]:
    """Open a regular file for reading, never through a link: its descriptor and status.

    Raises HeldError if it is missing, not a regular file or unreadable, and at the end if it is not the same
    file any more or changed while it was open.
    """
    shown = _base_name(path)
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HeldError(f"{shown} cannot be read: {error.strerror}") from error
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise HeldError(f"{shown} is not a regular file")
        yield descriptor, before
        try:
            after = os.lstat(path)
        except OSError as error:
            raise HeldError(f"{shown} vanished while it was read") from error
        if not _identity(before) == _identity(os.fstat(descriptor)) == _identity(after):
            raise HeldError(f"{shown} changed while it was read")
    except OSError as error:
        raise HeldError(f"{shown} cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def hash_range(
    descriptor: int,
    offset: int,
    size: int,
    algorithms: Collection[str],
    *,
    sink: Callable[[memoryview], object] | None = None,
    stop: threading.Event | None = None,
) -> dict[str, str]:
    """Hex digests of ``size`` bytes of an open file, by algorithm, from one read; ``sink`` gets each piece.

    Raises HeldError if the file ends early or ``stop`` is set, OSError if it cannot be read.
    """
    hashes = {algorithm: hashlib.new(algorithm, usedforsecurity=False) for algorithm in algorithms}
    buffer = memoryview(bytearray(min(_BUFFER, size)))
    done = 0
    while done < size:
        if stop is not None and stop.is_set():
            raise HeldError("verification was stopped")
        count = os.preadv(descriptor, [buffer[: size - done]], offset + done)
        if count == 0:
            raise HeldError("a file became shorter while it was read")
        for digest in hashes.values():
            digest.update(buffer[:count])
        if sink is not None:
            sink(buffer[:count])
        done += count
    return {algorithm: digest.hexdigest() for algorithm, digest in hashes.items()}


def hash_file(
    path: str | Path,
    algorithms: Collection[str],
    cache: DigestCache,
    *,
    info: os.stat_result | None = None,
    sink: Callable[[memoryview], object] | None = None,
    stop: threading.Event | None = None,
) -> dict[str, str]:
    """Hex digests of a file by algorithm; read at most once, and not at all if the cache knows them all.

    ``info`` spares asking for its status, ``sink`` gets each piece that is read. Raises HeldError for what cannot be
    read, is not a regular file, or changes meanwhile.
    """
    known = cache.get(path, info)
    missing = [algorithm for algorithm in algorithms if algorithm not in known]
    if missing:
        with opened(path) as (descriptor, now):
            found = hash_range(descriptor, 0, now.st_size, missing, sink=sink, stop=stop)
        cache.put(path, now, found)
        known |= found
    return {algorithm: known[algorithm] for algorithm in algorithms}


def read_small(path: str | Path, limit: int) -> tuple[bytes, os.stat_result]:
    """Content and status of a file of at most ``limit`` bytes. Raises HeldError."""
    with opened(path) as (descriptor, info):
        if info.st_size > limit:
            raise HeldError(f"{_base_name(path)} is larger than {limit >> 10} KiB")
        content = b"".join(iter(lambda: os.read(descriptor, _BUFFER), b""))
    return content, info


def _base_name(path: str | Path) -> str:
    return printable(str(path).rpartition("/")[2])
