"""`clr run` with a sync that only pretends, as a process of its own for tests of signals.

Arguments: how long a sync takes in seconds, and what becomes of it: ok, fail, crash or stubborn. A third is what the
clock shows at the start, for the schedule.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import sys
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from clr_client import daemon
from clr_client import settings as clr_settings
from clr_client.errors import TransportError
from clr_client.reporting import logs

if TYPE_CHECKING:
    from clr_client.settings import Settings

log = logging.getLogger("pretended")


async def sync(settings: Settings, *, trigger: str) -> None:
    log.info("sync began: %s", trigger)
    seconds, end = float(sys.argv[1]), sys.argv[2]
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        log.info("sync was cancelled")
        if end == "stubborn":
            await asyncio.sleep(3600)
        raise
    if end == "fail":
        raise TransportError("the server is away", "Wait for it")
    if end == "crash":
        raise RuntimeError("a defect")
    log.info("sync ended")


if __name__ == "__main__":
    loaded, _warnings = clr_settings.load(os.environ)
    logs.configure(loaded.tz, form=loaded.log_format, level=loaded.log_level)
    if len(sys.argv) > 3:
        began = datetime.fromisoformat(sys.argv[3])
        start = functools.cache(time.monotonic)  # when the schedule looks at the clock first, however long that took
        shown = functools.partial(daemon.Work, now=lambda: began + timedelta(seconds=-start() + time.monotonic()))
        daemon.Work = shown  # type: ignore[assignment,misc]
    sys.exit(asyncio.run(daemon.run(loaded, sync)))
