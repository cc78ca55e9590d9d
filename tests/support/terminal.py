"""A terminal for programs, and what a person sees on it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from support.server import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_PIECES = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]|\x1b")


@dataclass
class Terminal:
    """A program whose standard error is a terminal; its standard output is one too, or is kept apart as ``output``."""

    columns: int
    process: subprocess.Popen[bytes]
    seen: bytearray = field(default_factory=bytearray)
    output: bytearray = field(default_factory=bytearray)

    @property
    def text(self) -> str:
        """All that was written to the terminal."""
        return self.seen.decode("utf-8", "replace")

    @property
    def screen(self) -> list[str]:
        """The lines that a person sees now, also those that went by."""
        return screen(self.text, self.columns)

    @property
    def has_cursor(self) -> bool:
        """Whether the cursor can be seen."""
        return self.text.rfind("\x1b[?25h") >= self.text.rfind("\x1b[?25l")

    def shows(self, pattern: str, seconds: float = 30) -> None:
        """Wait until something was written."""
        wait_until(lambda: re.search(pattern, self.text), seconds, f"{pattern!r} on the terminal")

    def end(self, seconds: float = 120) -> int:
        """Wait for the program's end; its exit code."""
        return self.process.wait(seconds)


def screen(text: str, columns: int) -> list[str]:
    """The lines on a terminal that got this text; a line that is too long goes on in the next one."""
    lines, row, column = [""], 0, 0
    for piece in _PIECES.finditer(text):
        if piece[0] == "\r":
            column = 0
        elif piece[0] == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif piece[2] == "K":
            lines[row] = lines[row][:column]
        elif piece[0][0] != "\x1b":
            if column >= columns:
                row, column = row + 1, 0
                lines += [""] * (row + 1 - len(lines))
            lines[row] = f"{lines[row][:column]:{column}}{piece[0]}{lines[row][column + 1 :]}"
            column += 1
    return [line.rstrip() for line in lines]


@contextlib.contextmanager
def terminal(
    argv: Sequence[str], environment: Mapping[str, str], *, columns: int = 100, shared: bool = False
) -> Iterator[Terminal]:
    """Run a program with a terminal for as long as the block runs. ``shared``: standard output is the terminal too."""
    controller, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    settings = {"TERM": "xterm", **environment}
    process = subprocess.Popen(
        argv, env=settings, stdin=subprocess.DEVNULL, stdout=its if shared else subprocess.PIPE, stderr=its
    )
    os.close(its)
    found = Terminal(columns, process)

    def drain(descriptor: int, into: bytearray) -> None:
        with contextlib.suppress(OSError):  # a terminal that nobody has open any more
            while piece := os.read(descriptor, 65536):
                into += piece

    threads = [threading.Thread(target=drain, args=(controller, found.seen))]
    if process.stdout:
        threads.append(threading.Thread(target=drain, args=(process.stdout.fileno(), found.output)))
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)
        for thread in threads:
            thread.join(30)
        os.close(controller)
        if process.stdout:
            process.stdout.close()
