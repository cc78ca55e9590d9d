"""Runs rsync in a process group of its own, watches it, and leaves nothing of it behind."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import resource
import shutil
import signal
from collections import deque
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from clr_client import text
from clr_client.errors import TransportError
from clr_client.transport.relay import NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


GRACE_SECONDS = 5.0
MEMORY_LIMIT = 2 << 30
CARRIERS = (b"ssh", NAME.encode())
"""The line's own programs, by what /proc/PID/comm says: what they move is no sign of life, nor written here."""
_NEVER = timedelta(0)
CAPTURE_LIMIT = 1 << 20
CAPTURE_SECONDS = 120.0
STDERR_LINES = 100
STDERR_LIMIT = 64 << 20
TOO_MUCH = "the server sends more than it listed"
LOOK_AT_SERVER = "Look at the server: do its files grow just now, or is it no longer the one that was set up?"
LINE_LENGTH = 1000
_inherited: ContextVar[tuple[int, ...]] = ContextVar("inherited", default=())


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended: its exit status (negative: the signal) and its last lines on stderr, made
    printable.
    """

    code: int
    stderr: tuple[str, ...]


@contextlib.contextmanager
def inheriting(descriptor: int) -> Iterator[None]:
    """Let the programs that are run meanwhile inherit an open file, and so the lock on it: flock(2) ties a lock to the
    open file, so it lasts until the last of them is gone, also when this process is killed.
    """
    token = _inherited.set((*_inherited.get(), descriptor))
    try:
        yield
    finally:
        _inherited.reset(token)


def environment() -> dict[str, str]:
    """The whole environment of a child: no setting, secret or preference of this process or of its user.

    popt reads ``$HOME/.popt``, so the home is one that cannot exist.
    """
    path = os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin")
    return {"PATH": path, "TZ": "UTC", "LC_ALL": "C", "HOME": "/nonexistent"}


def printable(line: bytes) -> str:
    """A line of another program as text without control characters, of at most ``LINE_LENGTH`` bytes."""
    return text.printable(line[:LINE_LENGTH].decode("utf-8", "surrogateescape"))


async def run(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    on_output: Callable[[bytes], None],
    idle: timedelta,
    memory: int = MEMORY_LIMIT,
    most_written: int | None = None,
    limits_files: bool = True,
) -> Ended:
    """Run a program until it ends; feed it ``stdin``, hand each piece of its stdout to ``on_output``.

    However this ends, no process of the program's group is left: SIGTERM, so that rsync keeps what arrived as
    partial files, and SIGKILL after ``GRACE_SECONDS``. If this process is killed, the kernel sends the SIGTERM.

    :param idle: longest time without a sign of life: output, or a byte read by a member of the group that is
        not ssh or its relay (ssh's keep-alive messages are answered by the server's sshd, whatever the server's
        rsync does). Zero: no limit.
    :param memory: address space that each process of the program may take, in bytes.
    :param most_written: bytes that all of them but ssh may write, to files, pipes and sockets.
    :param limits_files: whether no file may be longer than that either; not for one that is sparse.
    :raises TransportError: not installed (final), or silent for longer than ``idle`` and a margin, in which
        rsync's own ``--timeout`` has the first word (retryable), said more than ``STDERR_LIMIT`` bytes on stderr
        (final), or wrote more than it may (retryable).
    :raises Exception: whatever ``on_output`` raises.
    """
    loop = asyncio.get_running_loop()
    if shutil.which(argv[0], path=environment()["PATH"]) is None:
        raise TransportError(f"{argv[0]} is not installed", "Install it", retryable=False)
    transport, child = await loop.subprocess_exec(
        lambda: _Child(on_output),
        *_tied(),
        *argv,
        env=environment(),
        cwd="/",
        start_new_session=True,
        pass_fds=_inherited.get(),
    )
    group = transport.get_pid()
    try:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            resource.prlimit(group, resource.RLIMIT_AS, (memory, memory))
            if most_written is not None and limits_files:
                resource.prlimit(group, resource.RLIMIT_FSIZE, (most_written, most_written))
        _feed(transport, stdin)
        await _outcome(child, group, idle.total_seconds(), most_written)
        await _end(child, group)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_SECONDS):
                await child.closed.wait()
        if child.failure is not None:
            raise child.failure
        return Ended(transport.get_returncode() or 0, child.tail())
    finally:
        try:
            await _end(child, group)
        finally:
            transport.close()


def _tied() -> list[str]:
    """What to start a program with that the kernel is to end when this process is killed."""
    setpriv = shutil.which("setpriv", path=environment()["PATH"])
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []


async def capture(argv: Sequence[str]) -> tuple[int, str, str]:
    """Run a small program and return its exit status, stdout and stderr, both bounded.

    :raises TransportError: not installed, more output than ``CAPTURE_LIMIT`` bytes, or slower than two
        minutes.
    """
    output = bytearray()

    def keep(data: bytes) -> None:
        output.extend(data)
        if len(output) > CAPTURE_LIMIT:
            raise TransportError(f"{argv[0]} wrote more than {CAPTURE_LIMIT} bytes", retryable=False)

    try:
        async with asyncio.timeout(CAPTURE_SECONDS):
            ended = await run(argv, on_output=keep, idle=_NEVER)
    except TimeoutError:
        raise TransportError(f"{argv[0]} did not end within {CAPTURE_SECONDS:.0f} seconds") from None
    return ended.code, output.decode("utf-8", "backslashreplace"), "\n".join(ended.stderr)


class _Child(asyncio.SubprocessProtocol):
    """Takes what a child writes, as it comes: nothing is ever queued up here."""

    def __init__(self, on_output: Callable[[bytes], None]) -> None:
        self.on_output = on_output
        self.outcome = asyncio.Event()
        self.exited = asyncio.Event()
        self.closed = asyncio.Event()
        self.failure: Exception | None = None
        self.received = 0
        self._said = 0
        self._open = {1, 2}
        self._lines: deque[bytes] = deque(maxlen=STDERR_LINES)
        self._line = b""

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.received += len(data)
        if fd == 2:
            *lines, rest = (self._line + data.replace(b"\r", b"\n")).split(b"\n")
            self._lines.extend(line for line in lines if line.strip())
            self._line = rest[:LINE_LENGTH]
            self._said += len(data)
            if self._said > STDERR_LIMIT:
                told = f"the server sent more than {STDERR_LIMIT} bytes of messages"
                self._fail(TransportError(told, retryable=False))
        elif self.failure is None:
            try:
                self.on_output(data)
            except Exception as error:  # noqa: BLE001 - whatever it is, it ends the run and is raised there
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.failure = self.failure or error
        self.outcome.set()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002
        self._open.discard(fd)
        if not self._open:
            self.closed.set()

    def process_exited(self) -> None:
        self.exited.set()
        self.outcome.set()

    def tail(self) -> tuple[str, ...]:
        return tuple(printable(line) for line in (*self._lines, self._line) if line.strip())


def _feed(transport: asyncio.SubprocessTransport, stdin: bytes) -> None:
    pipe = transport.get_pipe_transport(0)
    if isinstance(pipe, asyncio.WriteTransport):
        pipe.write(stdin)
        pipe.write_eof()


async def _outcome(child: _Child, group: int, idle: float, most_written: int | None) -> None:
    """Wait until the child has ended or its output was refused."""
    loop = asyncio.get_running_loop()
    limit = idle + min(max(idle / 10, 1.0), 30.0) if idle else math.inf
    life, since = (-1, -1), loop.time()
    while not child.outcome.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(limit / 4, 5.0)):
                await child.outcome.wait()
        read, written = _bytes_moved(group)
        if most_written is not None and written > most_written:
            raise TransportError(f"{TOO_MUCH}: {written:,} bytes until now", LOOK_AT_SERVER)
        now = (child.received, read)
        if now != life:
            life, since = now, loop.time()
        elif loop.time() - since > limit and not child.outcome.is_set():
            raise TransportError(f"nothing moved on the line for {limit:.0f} seconds; given up")


async def _end(child: _Child, group: int) -> None:
    """End every process of a group and wait until they are gone. A cancel meanwhile only makes it quicker."""
    ending = asyncio.ensure_future(_end_politely(child, group))
    cancelled = None
    while not ending.done():
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError as error:
            cancelled = error
            _signal(group, signal.SIGKILL)
    if cancelled is not None:
        raise cancelled


async def _end_politely(child: _Child, group: int) -> None:
    _signal(group, signal.SIGTERM)
    await _gone(group, GRACE_SECONDS)
    _signal(group, signal.SIGKILL)
    await _gone(group, GRACE_SECONDS)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GRACE_SECONDS):
            await child.exited.wait()


async def _gone(group: int, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while _members(group) and loop.time() < deadline:  # noqa: ASYNC110 - nothing tells of a group's end
        await asyncio.sleep(0.02)


def _signal(group: int, number: signal.Signals) -> None:
    if _members(group):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)


def _members(group: int) -> list[Path]:
    """Folders in /proc of a group's processes. Zombies do not count: they hold nothing, and PID 1 may not
    reap them.
    """
    found: list[Path] = []
    with contextlib.suppress(PermissionError):  # of others' processes
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return found  # without a look at all processes of the machine
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                state, _, member_of, *_ = (process / "stat").read_bytes().rpartition(b") ")[2].split()
                if int(member_of) == group and state not in (b"Z", b"X"):
                    found.append(process)
    return found


def _bytes_moved(group: int) -> tuple[int, int]:
    """Bytes that rsync's processes in the group have read and written so far: files, pipes and sockets."""
    read = written = 0
    for process in _members(group):
        with contextlib.suppress(OSError):
            if (process / "comm").read_bytes().strip() not in CARRIERS:
                counters = (process / "io").read_bytes().split()
                read += int(counters[counters.index(b"rchar:") + 1])
                written += int(counters[counters.index(b"wchar:") + 1])
    return read, written
