"""A bar on the last line of a terminal: how far, how fast, how long still. Drawn by click, and only on a terminal.

There is one bar at a time. Log lines are written above it, see ``above``.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import click

from clr_client.reporting.progress import LINE_SECONDS, LogLines, Observer, Observers
from clr_client.text import columns, printable, shortened, size, span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

OnProgress: TypeAlias = "Callable[[int, int, str], None]"
"""Told how much is done, how much there is, and the name of what is worked on now."""

STEPS = 1000
DRAW_SECONDS = 0.1
RATE_SECONDS = 10.0
SAMPLE_SECONDS = 0.2
MOST_WIDE, LEAST_WIDE, LEAST_NAME = 30, 10, 8
ERASE = "\r\x1b[K"

_turn = threading.RLock()
"""Held by whoever writes to the terminal."""
_drawn: list[Bar] = []


def is_possible() -> bool:
    """Whether there is a terminal that can show a bar: standard error, since standard output is for answers."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class Bar:
    """Usable from several threads. A terminal that is gone ends the bar and nothing else.

    :param unit: what is counted; bytes are shown as MB and the like.
    """

    def __init__(self, label: str, unit: str = "bytes", clock: Callable[[], float] = time.monotonic) -> None:
        """Draw an empty bar, in the place of one that is there."""
        self._clock, self._unit = clock, unit
        self._speed = _Speed(clock)
        self._done, self._total, self._name = 0, 0, ""
        self._started, self._last = clock(), -math.inf
        self._columns = 0
        self._info = ""
        self._shown: Any = click.progressbar(
            length=STEPS,
            label=printable(label),
            file=sys.stderr,
            show_eta=False,
            item_show_func=lambda _: self._info,
            bar_template="%(label)s [%(bar)s] %(info)s",
        )
        with _turn:
            for other in _drawn.copy():
                other.close()
            _drawn.append(self)
            self._draw()

    def move(self, done: int, total: int, name: str = "") -> None:
        """Show how much is done, how much there is, and what is worked on."""
        with _turn:
            if self not in _drawn:
                return
            self._done, self._total, self._name = done, total, name
            self._speed.add(done)
            if 0 < total <= done or self._clock() - self._last >= DRAW_SECONDS:
                self._draw()

    def close(self) -> None:
        """Leave the bar as it is and give the line and the cursor back."""
        with _turn:
            if self in _drawn:
                self._draw(is_last=True)
                with self._on_terminal():
                    self._shown.render_finish()
            if self in _drawn:
                _drawn.remove(self)

    def _draw(self, *, is_last: bool = False) -> None:
        with self._on_terminal():
            wide = _terminal_columns()
            if wide != self._columns:
                self._shown.max_width, self._columns = None, wide
            self._shown.pos = min(STEPS, self._done * STEPS // self._total) if self._total > 0 else 0
            self._shown.width, self._info = self._layout(wide, is_last=is_last)
            self._shown.render_progress()
            self._last = self._clock()

    def _layout(self, wide: int, *, is_last: bool) -> tuple[int, str]:
        """The width of the bar, and what stands behind it: as much as there is room for."""
        parts = self._parts(is_last=is_last)
        room = wide - 1 - columns(self._shown.label) - len(" [] 100%")
        while parts and room - _width(parts) < LEAST_WIDE:
            parts.pop(0)
        room -= _width(parts)
        bar = max(0, min(MOST_WIDE, room))
        name = printable(self._name.rpartition("/")[2])
        if room - LEAST_WIDE - 2 >= LEAST_NAME and name and not is_last:
            bar = min(bar, max(LEAST_WIDE, room - 2 - columns(name)))
            parts.append(shortened(name, room - bar - 2))
        return bar, "  ".join(parts)

    def _parts(self, *, is_last: bool) -> list[str]:
        seconds = self._clock() - self._started
        if not self._total:
            return [f"{self._done} {self._unit}", f"{self._speed.rate:.0f}/s"] if self._done else []
        is_done = self._done >= self._total
        rate = self._done / seconds if is_done and seconds > 0 else self._speed.rate
        if self._unit == "bytes":
            parts = [f"{size(self._done)} of {size(self._total)}", f"{size(rate)}/s"]
        else:
            parts = [f"{self._done} of {self._total} {self._unit}", f"{rate:.0f}/s"]
        if rate <= 0:
            return parts[:1]
        if is_done:
            return [*parts, f"in {span(seconds)}"]
        return parts if is_last else [*parts, f"{span((self._total - self._done) / rate)} left"]

    def erase(self) -> None:
        """Take the bar off the terminal for a moment."""
        with self._on_terminal():
            sys.stderr.write(ERASE)
            sys.stderr.flush()

    def draw_again(self) -> None:
        """Draw the bar where it is not any more."""
        self._shown._last_line = None  # noqa: SLF001 - click draws only what differs from what it drew last
        self._draw()

    @contextlib.contextmanager
    def _on_terminal(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # the terminal was closed; what waits to be written goes nowhere, or it would be a failure
            _drawn.clear()
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class _Speed:
    """How fast something grows, over the last seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)])
        self.rate = 0.0

    def add(self, done: int) -> None:
        now = self._clock()
        if done < self._samples[-1][1]:  # it began anew
            self._samples.clear()
            self._samples.append((now, done))
            self.rate = 0.0
            return
        while len(self._samples) > 1 and now - self._samples[1][0] >= RATE_SECONDS:
            self._samples.popleft()
        since, before = self._samples[0]
        if now - since >= SAMPLE_SECONDS:
            self.rate = (done - before) / (now - since)
        if now - self._samples[-1][0] >= SAMPLE_SECONDS:
            self._samples.append((now, done))


def _width(parts: list[str]) -> int:
    return sum(2 + columns(part) for part in parts)


def _terminal_columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


@contextlib.contextmanager
def above() -> Iterator[None]:
    """Keep the bar off the terminal while the block writes whole lines to it."""
    with _turn:
        for bar in _drawn.copy():
            bar.erase()
        try:
            yield
        finally:
            for bar in _drawn.copy():
                bar.draw_again()


@contextlib.contextmanager
def progress(label: str, unit: str = "bytes") -> Iterator[OnProgress]:
    """Show a bar, on a terminal only, for as long as the block runs. Yields what to tell how far it is."""
    if not is_possible():
        yield lambda _done, _total, _name: None
        return
    with _orderly_end():
        bar = Bar(label, unit)
        try:
            yield bar.move
        finally:
            bar.close()


@contextlib.contextmanager
def _orderly_end() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the program by an exception, so that the cursor comes back, unless they mean more."""

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    ours = []
    if threading.current_thread() is threading.main_thread():
        ours = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


class TransferBar(Observer):
    """A bar for each transfer of a sync."""

    def __init__(self) -> None:
        self._bar: Bar | None = None

    def stage(self, text: str) -> None:  # noqa: ARG002 - a log line says it
        """A transfer, if there was one, is over."""
        self.finish()

    def transfer(self, done: int, total: int, rate: float, file: str | None) -> None:  # noqa: ARG002 - bars measure it
        """Move the bar."""
        self._bar = self._bar or Bar("fetching")
        self._bar.move(min(done, total), total, file or "")

    def finish(self, failure: str = "") -> None:  # noqa: ARG002 - the log says why
        """Close the bar."""
        if self._bar:
            self._bar.close()
        self._bar = None


def observer() -> Observer | None:
    """Who watches a sync that a person started: a bar and log lines above it; None without a terminal."""
    if not is_possible():
        return None
    return Observers(LogLines(every=math.inf if sys.stdout.isatty() else LINE_SECONDS), TransferBar())
