"""What will happen without anybody doing anything, who is told, and how it went until now."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from clr_client.doctor.finding import Finding, Findings, Result, ok, skipped, warning
from clr_client.errors import Trouble
from clr_client.reporting import delivery
from clr_client.reporting import status as statuses
from clr_client.text import span
from clr_client.transport.loss import LOSSY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clr_client.doctor.case import Case

SHOWN = 5

DELAYED = Trouble(
    "SYNC_DELAY_MAX_SECONDS={seconds} is longer than the {interval} between two syncs, and is cut to that",
    "Set it to less, or sync less often",
)
FAILED = Trouble(
    "the last {count} syncs failed: {reason}", "If all above is in order now: docker exec clr-client clr sync"
)
PAUSED = Trouble(
    "syncs are paused at generation {generation}, since somebody rolled back to it",
    "Let them publish again: docker exec clr-client clr rollback --release",
)
HELD = Trouble("{key} is held: {reason}", "See docs/how-to/refused-or-held.md; the other items are published")
DAMAGED = Trouble(
    "{path} is damaged on this site's disk: {reason}", "The next sync mends it, or at once: clr verify --repair"
)


def schedule(case: Case) -> Iterator[Finding]:
    """When the next sync is."""
    settings, now = case.settings, datetime.now(UTC)
    first = settings.sync_schedule.next_after(now, settings.tz)
    interval = (settings.sync_schedule.next_after(first, settings.tz) - first).total_seconds()
    if settings.sync_delay and settings.sync_delay_max_seconds > interval:
        yield warning(DELAYED, seconds=settings.sync_delay_max_seconds, interval=span(interval))
    delay = f", and up to {span(settings.sync_delay_max_seconds)} later" if settings.sync_delay else ""
    yield ok(f"the next sync is {first.astimezone(settings.tz):%a %Y-%m-%d %H:%M %Z}{delay}")


def line(case: Case) -> Findings:
    """What the newest sync that fetched something found out about the line."""
    runs = statuses.load(case.store.status).runs
    run = next((run for run in runs if run.get("line") or run.get("literal_bytes")), None)
    if run is None:
        return [skipped("no sync has fetched anything yet")]
    if text := run.get("line"):
        return [Finding(Result.WARNING, str(text), LOSSY.remedy)]
    return [ok("the last transfer showed no loss that slows it down")]


async def messages(case: Case) -> Findings:
    """Whether somebody is told when something fails."""
    settings = case.settings
    if text := await delivery.check(settings.notify_urls):
        return [Finding(Result.WARNING, text, delivery.NOT_LOOKED_AT.remedy)]
    monitor = "a monitor gets a heartbeat" if settings.heartbeat_url else "no monitor gets a heartbeat (HEARTBEAT_URL)"
    told = f"{len(settings.notify_urls)} services are told of failures" if settings.notify_urls else ""
    return [ok(f"{told or 'nobody is told of failures (NOTIFY_URLS)'}; {monitor}")]


def history(case: Case) -> Findings:
    """How syncs went until now, and what is held."""
    status = statuses.load(case.store.status)
    if not status.runs:
        return [skipped("there was no sync yet")]
    return list(_history(case, status)) or [ok(f"the last sync: {status.runs[0]['summary']}")]


def _history(case: Case, status: statuses.Status) -> Iterator[Finding]:
    if status.failures_in_row:
        yield warning(FAILED, count=status.failures_in_row, reason=status.runs[0]["error"])
    if (generation := case.store.rolled_back_to()) is not None:
        yield warning(PAUSED, generation=generation)
    yield from (warning(HELD, key=held["key"], reason=held["reason"]) for held in status.held[:SHOWN])
    yield from (warning(DAMAGED, path=one["path"], reason=one["reason"]) for one in status.damaged[:SHOWN])
