"""Makes the checks one after the other, each within its time, and passes over those that can tell nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import logging
import threading
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from clr_client import settings
from clr_client.doctor.case import Case
from clr_client.doctor.checks import CHECKS
from clr_client.doctor.finding import Check, Finding, Result, failed, problem, skipped
from clr_client.errors import ClrError, Trouble

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence

    from clr_client.values import Peer

log = logging.getLogger("clr.doctor")

TOO_SLOW = Trouble(
    "this did not end within {seconds:.0f} s", "Something hangs: a disk, a network file system or the network itself"
)
CANNOT_LOOK = Trouble("this cannot be looked at: {error}", "See the reason; it is the system's own")
DEFECT = Trouble("this check has a defect: {error}", "Please report it; the other checks do not depend on it")


async def examine(environ: Mapping[str, str], checks: Sequence[Check] = CHECKS) -> AsyncIterator[Finding]:
    """Check everything, in order. Nothing is changed, and nothing left behind.

    :param environ: the settings, in whatever state they are.
    """
    with TemporaryDirectory(prefix="clr-doctor-") as scratch:
        case = Case(environ, settings.survey(environ), Path(scratch))
        bad: set[str] = set()
        for of_server, grouped in groupby(checks, key=lambda check: check.of_server):
            group = tuple(grouped)
            for peer in _servers(case) if of_server else (None,):
                case.peer = peer
                here = set(bad)
                for check in group:
                    for finding in await _look(check, case, here):
                        yield finding
                if not of_server:
                    bad = here


def _servers(case: Case) -> tuple[Peer | None, ...]:
    with suppress(AttributeError):
        return case.settings.peers or (None,)
    return (None,)


async def _look(check: Check, case: Case, bad: set[str]) -> list[Finding]:
    """Make one check; note in ``bad`` that what depends on it is to be skipped."""
    findings = await _findings(check, case, bad)
    if any(finding.result in {Result.PROBLEM, Result.SKIPPED} for finding in findings):
        bad.add(check.name)
    return [
        dataclasses.replace(
            finding,
            check=check.name,
            remedy=finding.remedy or (check.remedy if finding.result in {Result.PROBLEM, Result.WARNING} else ""),
        )
        for finding in findings
    ]


async def _findings(check: Check, case: Case, bad: Collection[str]) -> list[Finding]:
    first = next((name for name in check.needs if name in bad), None)
    if first is not None:
        return [skipped(f"{_of(case)}not before this is in order: {first}")]
    if check.of_server and case.peer is None:
        return [skipped("no server is known: SYNC_PEER")]
    try:
        async with asyncio.timeout(check.seconds):
            if inspect.iscoroutinefunction(check.look):
                return list(await check.look(case))
            return await _in_thread(lambda: list(check.look(case)))  # type: ignore[arg-type]
    except ClrError as error:
        return [failed(error)]
    except TimeoutError:
        return [problem(TOO_SLOW, seconds=check.seconds)]
    except OSError as error:
        return [problem(CANNOT_LOOK, error=error)]
    except Exception as error:
        if isinstance(error, AttributeError) and error.obj is case.settings and error.name in case.survey.broken:
            return [skipped(f"not before this setting is in order: {error.name.upper()}")]
        log.debug("%s", check.name, exc_info=True)
        return [problem(DEFECT, error=repr(error))]


def _of(case: Case) -> str:
    return f"{case.peer}: " if case.peer else ""


async def _in_thread(work: Callable[[], list[Finding]]) -> list[Finding]:
    """Run blocking work in a thread that the program does not wait for at its end: a dead file system never answers."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[list[Finding]] = loop.create_future()

    def settle(result: list[Finding] | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result or [])
        else:
            done.set_exception(error)

    def go() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - it is raised where the work is waited for
            failure = error
        with suppress(RuntimeError):  # nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=go, daemon=True).start()
    return await done
