"""Kills a piece of work, or makes the disk fail under it, at any of the calls by which it changes a folder.

The work runs in a child process (a fork of this one, so it costs milliseconds) in which every call that changes
something below a folder is a numbered *point*: names and links made, renamed and removed, files opened for writing,
each write (first half, second half), flushes to disk, closing. Without a fault a run counts its points; with one, the
child kills itself right before the point, or the call fails there.

::

    for fault in each(Kill):                        # Kill(1), Kill(2), ...
        ended = run(work, folder, fault)
        ...                                         # hold what is on the disk against what must be true
        if not ended.struck:
            break                                   # the work has fewer points than that

Nothing of the program under test is replaced: Python's audit events tell of the system calls before they happen, and
what raises no event (write, fsync, copy_file_range, sendfile) is counted by a thin layer over ``os`` and ``io``.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import itertools
import logging
import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# Which arguments of an event are paths, each with the position of the descriptor that it is relative to.
EVENTS = {
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),),
    "os.remove": ((0, 1),),
    "os.truncate": ((0, -1),),
    "os.utime": ((0, 3),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "open": ((0, -1),),
}


@dataclass(frozen=True)
class Kill:
    """SIGKILL right before point ``at``."""

    at: int

    def strike(self, path: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)


@dataclass(frozen=True)
class Fail:
    """OSError ``reason`` (an errno) instead of point ``at``, and from then on if ``sticky``."""

    at: int
    reason: int
    sticky: bool = False

    def strike(self, path: str) -> None:
        raise OSError(self.reason, os.strerror(self.reason), path)


@dataclass(frozen=True)
class Ended:
    """How the work ended.

    ``struck`` tells at which point the fault was, as "12 rename mirror/a"; empty when the work ended before it.
    ``error`` is the type of an exception, ``bases`` its ancestors' names, ``text`` its text, or that of the result.
    ``log`` is everything logged, tracebacks included.
    """

    struck: str
    killed: bool = False
    points: tuple[str, ...] = ()
    text: str = ""
    error: str = ""
    bases: tuple[str, ...] = ()
    log: str = ""


T = TypeVar("T")


def each(fault: Callable[[int], T]) -> Iterator[T]:
    """Yield the fault at the first point, at the second, and so on without end."""
    return (fault(number) for number in itertools.count(1))


def run(work: Callable[[], object], below: Path, fault: Kill | Fail | None = None) -> Ended:
    """Do ``work`` in a child process, with a fault among the calls that change something below a folder.

    The child inherits all that this process has in memory and hands nothing back but what ``Ended`` tells.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: none of ours does anything now
        child = os.fork()
    if child == 0:
        os.close(reading)
        _live(work, _Points(below, fault, writing))
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        ended: Ended = pickle.load(told)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) == ended.killed, f"the child ended with status {status}"
    return ended


def _live(work: Callable[[], object], points: _Points) -> None:
    """Be the child."""
    text = error = ""
    bases: tuple[str, ...] = ()
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.getLogger().handlers = [handler]
    logging.getLogger().setLevel(logging.INFO)
    sys.unraisablehook = lambda unraisable: log.write(f"unraisable: {unraisable.exc_value!r}\n")
    try:
        points.install()
        text = repr(work())
    except BaseException as raised:  # noqa: BLE001 - whatever it is, it is told
        error, text = type(raised).__name__, str(raised)
        bases = tuple(base.__name__ for base in type(raised).__mro__)
        points.active = False
        log.write("".join(traceback.format_exception(raised)) if "ClrError" not in bases else "")
    finally:
        points.active = False
        ended = Ended(points.struck, False, tuple(points.passed), text, error, bases, log.getvalue())
        points.tell(ended)
        os._exit(0)


class _Points:
    """Counts what changes something below a folder, and lets the fault strike."""

    def __init__(self, below: Path, fault: Kill | Fail | None, pipe: int) -> None:
        self.below, self.fault, self.pipe = str(below), fault, pipe
        self.active = False
        self.passed: list[str] = []
        self.struck = ""
        self.write = os.write

    def tell(self, ended: Ended) -> None:
        """Tell the parent how the work ended."""
        data = pickle.dumps(ended)
        while data:
            data = data[self.write(self.pipe, data) :]

    def install(self) -> None:
        """Watch from now on. There is no way back: the process is for this alone."""
        sys.addaudithook(self._heard)
        for name in ("fsync", "fdatasync", "write", "pwrite", "copy_file_range", "sendfile"):
            setattr(os, name, self._watched(getattr(os, name), 1 if name == "copy_file_range" else 0))
        io.open = builtins.open = self._opened
        self.active = True

    def reach(self, call: str, path: str) -> None:
        """Be at a point."""
        if not self.active:
            return
        number = len(self.passed) + 1
        point = f"{number} {call} {os.path.relpath(path, self.below)}"
        self.passed.append(point)
        if self.fault is None or number < self.fault.at:
            return
        if not self.struck:
            self.struck = point
        elif not (isinstance(self.fault, Fail) and self.fault.sticky):
            return
        if isinstance(self.fault, Kill):
            self.tell(Ended(point, killed=True))
        self.fault.strike(path)

    def path_of(self, path: Any, folder: Any = -1) -> str:
        """Return the path if it lies below the folder, else an empty text."""
        with contextlib.suppress(OSError):
            text = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fsdecode(path)
            if not text.startswith("/"):
                text = f"{os.readlink(f'/proc/self/fd/{folder}') if folder not in (-1, None) else os.getcwd()}/{text}"
            if text == self.below or text.startswith(f"{self.below}/"):
                return text
        return ""

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active or event not in EVENTS:
            return
        if event == "open":
            if not arguments[2] & WRITING or arguments[2] & os.O_DIRECTORY:
                return
            relative = not isinstance(arguments[0], int) and not os.fsdecode(arguments[0]).startswith("/")
            if relative:  # to a descriptor that the event does not name; only unpacking an archive does that
                self.reach("open", f"{self.below}/{os.fsdecode(arguments[0])}")
                return
        for which, base in EVENTS[event]:
            folder = arguments[base] if 0 <= base < len(arguments) else -1
            if path := self.path_of(arguments[which], folder):
                self.reach(event.removeprefix("os."), path)
                return

    def _watched(self, real: Callable[..., Any], which: int) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if self.active and (path := self.path_of(arguments[which])):
                self.reach(real.__name__, path)
            return real(*arguments, **named)

        return call

    def _opened(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        raw = _File(self, file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        stream: Any
        if "+" in mode:
            stream = io.BufferedRandom(raw)
        else:
            stream = io.BufferedReader(raw) if "r" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return stream
        return io.TextIOWrapper(stream, io.text_encoding(encoding), errors, newline, line_buffering=buffering == 1)


class _File(io.FileIO):
    """A file of which every write comes in two parts, so that a fault can be between them."""

    def __init__(self, points: _Points, file: Any, mode: str, closefd: bool, opener: Any) -> None:
        self._points: _Points | None = None  # while opening fails
        super().__init__(file, mode, closefd, opener)
        self._path = points.path_of(self.fileno()) if self.writable() else ""
        self._points = points
        self._is_short = False

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        if self._points is not None and self._path:
            self._points.reach("write", self._path)
            self._is_short = not self._is_short and len(view) > 1
            if self._is_short:
                view = view[: len(view) // 2]
        return super().write(view) or 0

    def close(self) -> None:
        try:
            if not self.closed and self._points is not None and self._path:
                self._points.reach("close", self._path)
        finally:
            super().close()
