"""Blocking work beside the event loop."""

from __future__ import annotations

import asyncio
import threading

import pytest
from clr_client.threads import to_end


def test_the_result_and_the_error_of_the_work_are_passed_on() -> None:
    def fail() -> None:
        raise OSError("full")

    assert asyncio.run(to_end(lambda: 42)) == 42
    with pytest.raises(OSError, match="full"):
        asyncio.run(to_end(fail))


def test_a_cancellation_waits_for_the_end_of_the_work() -> None:
    begun, finish, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        finish.wait(10)
        ended.set()

    async def main() -> bool:
        task = asyncio.ensure_future(to_end(work))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        await asyncio.sleep(0.05)
        assert not task.done()
        finish.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        return ended.is_set()

    assert asyncio.run(main())
