"""Several transfers at once: what one of them meets, and what that means to the others."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from clr_client.errors import TransportError
from clr_client.files import FileInfo
from clr_client.transport import Batch, Progress, Transfer, fetch_all

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

DONE = Transfer(literal=10, matched=0, sent=1, received=11, complete=True, problems=())
BATCHES = [Batch((FileInfo(f"{number}", 10, 1),), 4096) for number in range(6)]


class Line:
    """Brings batches as told: ``fails`` by number; notes what began, what ended and how many at once."""

    def __init__(self, fails: dict[int, Exception] | None = None) -> None:
        self.fails = fails or {}
        self.begun: list[int] = []
        self.cancelled: list[int] = []
        self.running = self.most = 0

    async def bring(self, batch: Batch, tell: Callable[[Progress], None]) -> Transfer:
        number = int(batch.files[0].path)
        self.begun.append(number)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for done in (2, 6, 10):
                await asyncio.sleep(0.002 * (number + 1))
                tell(Progress(done, 5.0, batch.files[0].path))
                if number in self.fails:
                    raise self.fails[number]
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        finally:
            self.running -= 1
        return DONE


def run(line: Line | LongLine, at_once: int, seen: list[Progress] | None = None) -> list[Transfer]:
    done: list[Transfer] = []
    told: Callable[[Progress], None] = (seen if seen is not None else []).append
    work: Awaitable[None] = fetch_all(BATCHES, line.bring, at_once=at_once, on_transfer=done.append, on_progress=told)

    async def main() -> None:
        await work

    try:
        asyncio.run(main())
    finally:
        line.done = done  # type: ignore[union-attr]
    return done


@pytest.mark.parametrize("at_once", [1, 3, 16])
def test_all_batches_are_brought_in_order_by_as_many_as_told_and_progress_adds_up(at_once: int) -> None:
    line, seen = Line(), []
    assert len(run(line, at_once, seen)) == len(BATCHES)
    assert line.begun == sorted(line.begun)
    assert line.most == min(at_once, len(BATCHES))
    sums = [progress.done_bytes for progress in seen]
    assert sums == sorted(sums)
    assert sums[-1] == 60
    assert max(progress.rate for progress in seen) <= 5.0 * line.most


def test_a_line_that_breaks_costs_its_batch_and_the_others_go_on_and_then_it_is_told() -> None:
    line = Line({1: TransportError("cut")})
    with pytest.raises(TransportError, match="cut"):
        run(line, 2)
    assert line.begun == [0, 1, 2, 3, 4, 5]
    assert len(line.done) == 5  # type: ignore[attr-defined]


def test_when_all_lines_break_nothing_more_is_begun() -> None:
    line = Line({0: TransportError("cut"), 1: TransportError("cut")})
    with pytest.raises(TransportError, match="cut"):
        run(line, 2)
    assert line.begun == [0, 1]


class LongLine:
    """Brings batches of which each takes a while to begin, and notes what begins and ends, in order."""

    def __init__(self, fails: int | None = None) -> None:
        self.fails, self.events = fails, list[str]()
        self.open = self.most_open = 0

    async def bring(self, batch: Batch, tell: Callable[[Progress], None]) -> Transfer:
        name = batch.files[0].path
        self.events.append(f"begin {name}")
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        await asyncio.sleep(0.05)
        tell(Progress(2, 40.0, name))
        tell(Progress(9, 40.0, name))
        await asyncio.sleep(0.05)
        self.open -= 1
        self.events.append(f"end {name}")
        if name == str(self.fails):
            raise TransportError("cut")
        return DONE


def test_the_next_batch_begins_before_the_one_before_it_ends_so_that_the_line_is_never_idle() -> None:
    line = LongLine()
    assert len(run(line, 2)) == len(BATCHES)
    for number in range(2, 6):
        assert line.events.index(f"begin {number}") < line.events.index(f"end {number - 2}")
    assert line.most_open <= 4


def test_one_at_a_time_is_one_at_a_time() -> None:
    line = LongLine()
    assert len(run(line, 1)) == len(BATCHES)
    assert line.most_open == 1


def test_a_line_that_breaks_after_the_next_one_began_ends_that_worker_and_takes_nothing_from_the_others() -> None:
    line = LongLine(fails=0)
    with pytest.raises(TransportError, match="cut"):
        run(line, 2)
    assert sorted(line.events) == sorted(f"{what} {number}" for what in ("begin", "end") for number in range(6))
    assert line.events.index("end 3") < line.events.index("begin 5"), "two workers where one is left"


def test_what_no_retry_can_mend_ends_all() -> None:
    line = Line({0: TransportError("the volume is full", retryable=False)})
    with pytest.raises(TransportError, match="full"):
        run(line, 3)
    assert line.begun == [0, 1, 2]
    assert sorted(line.cancelled) == [1, 2]


def test_an_error_in_what_is_told_ends_all_and_comes_through() -> None:
    line = Line({2: ZeroDivisionError()})
    with pytest.raises(ZeroDivisionError):
        run(line, 3)
    assert line.running == 0


def test_a_hundred_thousand_small_files_cost_their_progress_no_more_than_one() -> None:
    files = tuple(FileInfo(f"{number}", 1, 1) for number in range(100_000))
    seen: list[Progress] = []

    async def bring(batch: Batch, tell: Callable[[Progress], None]) -> Transfer:
        for done, file in enumerate(batch.files):
            tell(Progress(done, 1.0, file.path))
        return DONE

    async def main() -> None:
        batches = [Batch(files, 4096)]
        await fetch_all(batches, bring, at_once=1, on_transfer=lambda _: None, on_progress=seen.append)

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < 30
    assert len(seen) == len(files)


def test_a_cancel_ends_all() -> None:
    line = Line()

    async def main() -> None:
        work = fetch_all(BATCHES, line.bring, at_once=3, on_transfer=lambda _: None, on_progress=lambda _: None)
        task = asyncio.create_task(work)
        await asyncio.sleep(0.003)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert line.running == 0
    assert len(line.cancelled) == 3
