"""The bar on a terminal: what it says, where it is silent, and how it makes way for others."""

from __future__ import annotations

import io
import math
import os
import signal
import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from clr_client.reporting import bar
from clr_client.reporting.bar import Bar, TransferBar, progress
from clr_client.reporting.progress import LINE_SECONDS, LogLines, Observers
from clr_client.text import columns, shortened
from hypothesis import given
from hypothesis import strategies as st
from support.terminal import screen

if TYPE_CHECKING:
    from collections.abc import Iterator


class Screen(io.StringIO):
    """A standard error that is a terminal."""

    wide = 100
    is_gone = False

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.is_gone:
            raise OSError(5, "Input/output error")
        return super().write(text)

    @property
    def lines(self) -> list[str]:
        return screen(self.getvalue(), self.wide)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    made = Screen()
    monkeypatch.setattr(bar, "sys", SimpleNamespace(stdout=sys.stdout, stderr=made, exit=sys.exit))
    monkeypatch.setattr(bar, "_terminal_columns", lambda: made.wide)
    monkeypatch.setenv("TERM", "xterm")
    yield made
    bar._drawn.clear()


def moved(shown: Screen, steps: list[tuple[int, int, str]], *, unit: str = "bytes", seconds: float = 1.0) -> Bar:
    """A bar that was moved once a second."""
    clock = Clock()
    made = Bar("reading", unit, clock)
    for step in steps:
        clock.now += seconds
        made.move(*step)
    return made


def test_it_says_how_far_how_fast_how_long_still_and_what_is_worked_on(shown: Screen) -> None:
    moved(shown, [(100_000_000 * step, 1_000_000_000, "web/disk1.vmdk") for step in range(1, 4)])
    assert shown.lines == [
        "reading [#########---------------------]  30%  300.0 MB of 1.0 GB  100.0 MB/s  7 s left  disk1.vmdk"
    ]


def test_at_its_end_it_says_how_long_it_took_and_gives_the_cursor_back(shown: Screen) -> None:
    made = moved(shown, [(500, 1000, "a"), (1000, 1000, "a")])
    made.close()
    made.close()
    made.move(1, 1000, "late")
    assert shown.lines == [f"reading [{'#' * 30}] 100%  1.0 kB of 1.0 kB  500 B/s  in 2 s", ""]
    assert shown.getvalue().endswith("\x1b[?25h\n")


def test_files_are_counted_where_bytes_are_not_known(shown: Screen) -> None:
    moved(shown, [(10, 40, ""), (20, 40, "")], unit="files")
    assert "50%  20 of 40 files  10/s  2 s left" in shown.lines[0]


def test_without_an_end_it_promises_no_time(shown: Screen) -> None:
    moved(shown, [(10, 0, ""), (20, 0, "")], unit="files")
    assert shown.lines[0].endswith("0%  20 files  10/s")
    moved(shown, [(0, 1000, "a"), (0, 1000, "a")])
    assert "left" not in shown.lines[-1]


def test_the_rate_is_that_of_the_last_seconds_and_not_of_what_was_there_already(shown: Screen) -> None:
    clock = Clock()
    made = Bar("reading", clock=clock)
    for second in range(60):
        clock.now += 1
        made.move(900_000_000 + second * 1_000_000, 1_000_000_000, "a")
    assert "1.0 MB/s  41 s left" in shown.lines[0]


def test_what_begins_anew_is_measured_anew(shown: Screen) -> None:
    moved(shown, [(900, 1000, "a"), (100, 1000, "b"), (200, 1000, "b"), (300, 1000, "b")])
    assert "30%" in shown.lines[0]
    assert "100 B/s  7 s left" in shown.lines[0]


@pytest.mark.parametrize("wide", [10, 20, 30, 40, 60, 79, 80, 100, 200])
def test_it_never_takes_more_than_one_line(shown: Screen, wide: int) -> None:
    shown.wide = wide
    name = "a-very-long-name-of-a-template-disk-" * 4 + ".vmdk"
    steps = [(123_456_789_012 * step, 999_999_999_999, name) for step in range(9)]
    made = moved(shown, steps)
    made.move(999_999_999_999, 999_999_999_999, name)
    made.close()
    lines = shown.lines
    if wide >= 30:
        assert len(lines) == 2
        assert all(columns(line) < wide for line in lines)
    if wide >= 79:
        assert "in 9 s" in lines[0]


def test_a_terminal_that_becomes_narrow_gets_a_narrow_line(shown: Screen) -> None:
    clock = Clock()
    made = Bar("reading", clock=clock)
    for step in range(1, 30):
        clock.now += 1
        if step == 10:
            shown.truncate(0)
            shown.seek(0)
            shown.wide = 40
        made.move(step, 100, "disk.vmdk")
    assert len(shown.lines) == 1


def test_hostile_names_do_not_reach_the_terminal(shown: Screen) -> None:
    moved(shown, [(1, 10, "a/\x1b[31m\x07\ndisk\u202e.vmdk"), (2, 10, "a/\x1b[31m\x07\ndisk\u202e.vmdk")])
    assert "\x1b[31m" not in shown.getvalue()
    assert "\x07" not in shown.getvalue()
    assert "\n" not in shown.getvalue()
    assert r"\x1b[31m" in shown.lines[0]


@given(
    st.lists(st.tuples(st.integers(-10, 2**63), st.integers(-10, 2**63), st.text(max_size=40)), max_size=20),
    st.integers(1, 200),
)
def test_whatever_it_is_told_it_draws_a_line(steps: list[tuple[int, int, str]], wide: int) -> None:
    made = Screen()
    made.wide = wide
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bar, "sys", SimpleNamespace(stderr=made))
        patch.setattr(bar, "_terminal_columns", lambda: wide)
        moved(made, steps).close()
    assert made.getvalue().count("\n") == 1


def test_others_write_above_it(shown: Screen) -> None:
    made = moved(shown, [(30, 100, "a"), (40, 100, "a")])
    with bar.above():
        shown.write("a line\n")
        shown.write("another line\n")
    made.move(100, 100, "a")
    made.close()
    assert [line[:9] for line in shown.lines] == ["a line", "another l", "reading [", ""]
    assert "100%" in shown.lines[2]


def test_many_threads_draw_and_write_and_no_line_is_garbled(shown: Screen) -> None:
    made = Bar("reading")
    texts = [f"line {number} {'x' * 40}" for number in range(300)]

    def write() -> None:
        for text in texts:
            with bar.above():
                shown.write(f"{text}\n")

    threads = [threading.Thread(target=write)]
    threads += [
        threading.Thread(target=lambda: [made.move(done, 2000, f"disk{done}") for done in range(2001)])
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made.close()
    assert [line for line in shown.lines if "reading [" not in line] == [*texts, ""]
    assert len(shown.lines) == 302


def test_there_is_one_bar_at_a_time(shown: Screen) -> None:
    first = Bar("verifying")
    second = Bar("fetching")
    first.move(1, 2, "")
    second.move(2, 2, "")
    second.close()
    assert [line.split(" ")[0] for line in shown.lines] == ["verifying", "fetching", ""]


def test_a_terminal_that_is_gone_ends_the_bar_and_nothing_else(shown: Screen) -> None:
    with progress("reading") as advance:
        advance(1, 10, "a")
        shown.is_gone = True
        for done in range(10):
            advance(done, 10, "a")
        with bar.above():
            pass
        advance(10, 10, "a")
    assert bar._drawn == []


def test_without_a_terminal_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading") as advance:
        advance(5, 10, "a")
    assert bar.observer() is None
    assert capsys.readouterr() == ("", "")


def test_a_terminal_that_knows_no_bar_gets_none(shown: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with progress("reading") as advance:
        advance(5, 10, "a")
    assert bar.observer() is None
    assert shown.getvalue() == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_work_and_gives_the_cursor_back(shown: Screen, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as caught, progress("reading") as advance:
            advance(1, 10, "a")
            os.kill(os.getpid(), number)
            signal.pause()
        assert caught.value.code == 128 + number
        assert signal.getsignal(number) is signal.SIG_DFL
        assert shown.getvalue().endswith("\x1b[?25h\n")
    finally:
        signal.signal(number, before)


def test_signals_that_mean_something_already_keep_their_meaning(shown: Screen) -> None:
    def handler(*_: object) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGHUP, handler)
    try:
        with progress("reading"):
            assert signal.getsignal(signal.SIGHUP) is handler
        assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_sync_gets_a_bar_for_each_transfer(shown: Screen) -> None:
    watching = TransferBar()
    watching.stage("listing")
    watching.transfer(50, 100, 5.0, "a/disk1.vmdk")
    watching.transfer(150, 100, 5.0, None)
    watching.stage("listing")
    watching.transfer(0, 10, 0.0, None)
    watching.finish("the line dropped")
    watching.finish()
    lines = shown.lines
    assert [line.split(" ")[0] for line in lines] == ["fetching", "fetching", ""]
    assert "100%" in lines[0]
    assert "0%" in lines[1]


@pytest.mark.parametrize(("is_terminal", "every"), [(True, math.inf), (False, LINE_SECONDS)])
def test_lines_in_a_log_say_how_far_a_sync_is_unless_the_bar_does(
    shown: Screen, monkeypatch: pytest.MonkeyPatch, is_terminal: bool, every: float
) -> None:
    monkeypatch.setattr(bar.sys.stdout, "isatty", lambda: is_terminal)
    watching = bar.observer()
    assert isinstance(watching, Observers)
    lines, _ = watching.observers
    assert isinstance(lines, LogLines)
    assert lines.every == every


@pytest.mark.parametrize(
    ("text", "width", "short"),
    [
        *(("disk.vmdk", 9, "disk.vmdk"), ("disk.vmdk", 8, "disk.vm…"), ("disk", 1, "…"), ("disk", 0, "")),
        *(("東京都", 6, "東京都"), ("東京都", 5, "東京…"), ("e\u0301a", 2, "e\u0301a")),
    ],
)
def test_a_text_is_shortened_to_the_columns_that_it_takes(text: str, width: int, short: str) -> None:
    assert shortened(text, width) == short
    assert columns(short) <= width
