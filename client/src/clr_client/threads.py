"""Blocking work beside the event loop."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")

LEAST_PRIORITY = 19
IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282, "armv7l": 314, "i686": 289}
"""The number of the system call, which the C library has no function for."""
IOPRIO_WHO_PROCESS, IOPRIO_CLASS_IDLE, IOPRIO_CLASS_SHIFT = 1, 3, 13


async def to_end(work: Callable[[], Result]) -> Result:
    """Run blocking work in a thread. A cancellation waits for its end, so what guards it, the lock, outlasts it."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def in_background(work: Callable[[threading.Event], Result]) -> Result:
    """Run blocking work in a thread that lets everybody else go first. A cancellation sets the event it is given."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(1, initializer=step_back)
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, contextvars.copy_context().run, work, stop)
    finally:
        stop.set()
        pool.shutdown(wait=False)


def step_back() -> None:
    """Give the calling thread processor and disk only when nobody else wants them, for good.

    Source: ioprio_set(2); its idle class is what ``ionice -c 3`` sets, and counts where the disk's scheduler knows it.
    """
    import ctypes
    import platform

    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEAST_PRIORITY)
    if number := IOPRIO_SET.get(platform.machine()):
        ctypes.CDLL(None).syscall(number, IOPRIO_WHO_PROCESS, 0, IOPRIO_CLASS_IDLE << IOPRIO_CLASS_SHIFT)
