"""Tells people by mail and chat, and a monitor by heartbeats: listeners of the site that send, and never stop anything.

What was told is kept on the library volume, so that a restart tells nothing twice. A message that nobody took is tried
again for some hours.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from clr_client.errors import SettingsError
from clr_client.reporting import delivery
from clr_client.reporting.messages import (
    NAME_LENGTH,
    Message,
    Told,
    clip,
    compose,
    events,
    identity,
    new_runs,
    time_of,
)
from clr_client.reporting.status import FAILED
from clr_client.text import printable, span
from clr_client.values import Services

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from clr_client.settings import Settings
    from clr_client.store import Store

    Send = Callable[[Sequence[str], Message], Awaitable[list[str]]]
    Ping = Callable[[str, str, str], Awaitable[str]]

log = logging.getLogger("clr.messages")

SCHEMA = 1
WAITS = (60, 300, 1800, 7200)
"""Seconds before each further attempt to deliver a message."""
BEAT_WAITS = (5, 30, 120)
"""Seconds before each further attempt to deliver a heartbeat, unless a newer one is due by then."""
BEGINNING = timedelta(minutes=5)
"""What a sync that is due gets to show itself."""
MOST_WAITING = 10
"""Messages that wait for a service; older ones are dropped."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message under way. ``left``: the indices of the services that have not taken it; ``due``: UTC, ISO 8601."""

    subject: str
    body: str
    tone: str
    left: tuple[int, ...]
    tries: int = 0
    due: str = ""

    @property
    def message(self) -> Message:
        """What is sent."""
        return Message(self.subject, self.body, self.tone)


@dataclass(frozen=True, slots=True)
class Memory:
    """What outlasts a restart: what was told, and what still has to go out."""

    told: Told = Told()
    parcels: tuple[Parcel, ...] = ()


class Messenger:
    """Sends each event once to NOTIFY_URLS."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        send: Send = delivery.send,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.settings, self.store, self.send, self.now = settings, store, send, now
        self.link = f"https://{_host(settings)}/_clr/" if settings.tls_name else ""
        self.memory: Memory | None = None
        self.sending: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()
        self._is_broken = False

    async def tell(self, document: Mapping[str, Any]) -> None:
        """Note what is new, and have what is due sent meanwhile."""
        if self.memory is None:
            self.memory = await asyncio.to_thread(load, self.store.told)
        found, told = events(self.memory.told, document, self.now(), patience(self.settings))
        chosen = [event for event in found if event.kind in self.settings.notify_events]
        memory = dataclasses.replace(self.memory, told=told)
        if chosen:
            message = compose(chosen, document["site"], self.link)
            everybody = tuple(range(len(self.settings.notify_urls)))
            due = self.now().isoformat()
            memory = _with(memory, Parcel(message.subject, message.body, message.tone, everybody, due=due))
        await self._keep(memory)
        if self._due() and (self.sending is None or self.sending.done()):
            self.sending = asyncio.create_task(self._send_due())

    def _due(self) -> list[Parcel]:
        now = self.now()
        parcels = self.memory.parcels if self.memory else ()
        return [parcel for parcel in parcels if (time_of(parcel.due) or now) <= now]

    async def _send_due(self) -> None:
        for parcel in self._due():
            targets = {index: self.settings.notify_urls[index] for index in parcel.left if index < self._count}
            reasons = await self.send(list(targets.values()), parcel.message) if targets else []
            failed = {index: reason for index, reason in zip(targets, reasons, strict=True) if reason}
            if taken := [delivery.scheme(url) for index, url in targets.items() if index not in failed]:
                log.info("told %s: %s", ", ".join(taken), parcel.subject)
            again = dataclasses.replace(parcel, left=tuple(failed), tries=parcel.tries + 1)
            for index, reason in failed.items():
                self._warn(again, index, reason)
            await self._replace(parcel, again)

    @property
    def _count(self) -> int:
        return len(self.settings.notify_urls)

    def _warn(self, parcel: Parcel, index: int, reason: str) -> None:
        """Say once that a message waits, and once that it is given up."""
        shown = delivery.named(index, self.settings.notify_urls[index])
        if parcel.tries > len(WAITS):
            log.warning("a message was given up, because entry %s of NOTIFY_URLS did not take it: %s", shown, reason)
        elif parcel.tries == 1:
            wait = span(WAITS[0])
            log.warning("entry %s of NOTIFY_URLS took no message: %s; trying again in %s", shown, reason, wait)

    async def _replace(self, old: Parcel, new: Parcel) -> None:
        assert self.memory is not None  # noqa: S101 - there was a parcel in it
        kept: tuple[Parcel, ...] = ()
        if new.left and new.tries <= len(WAITS):
            due = self.now() + timedelta(seconds=WAITS[new.tries - 1])
            kept = (dataclasses.replace(new, due=due.isoformat(timespec="seconds")),)
        parcels = tuple(one for parcel in self.memory.parcels for one in (kept if parcel == old else (parcel,)))
        await self._keep(dataclasses.replace(self.memory, parcels=parcels))

    async def _keep(self, memory: Memory) -> None:
        """Remember, and write it down where the volume allows."""
        if memory == self.memory:
            return
        self.memory = memory
        async with self._writing:
            try:
                await asyncio.to_thread(self.store.write_down, self.store.told, _dump(self.memory))
                self._is_broken = False
            except OSError as error:
                if not self._is_broken:
                    log.warning("what was told cannot be kept, so a restart may tell it again: %s", error)
                self._is_broken = True


def _with(memory: Memory, parcel: Parcel) -> Memory:
    parcels = (*memory.parcels, parcel)
    if len(parcels) > MOST_WAITING:
        log.warning("a message was given up, because %d newer ones wait: %s", MOST_WAITING, parcels[0].subject)
    return dataclasses.replace(memory, parcels=parcels[-MOST_WAITING:])


def _host(settings: Settings) -> str:
    host = f"[{settings.tls_name}]" if ":" in settings.tls_name else settings.tls_name
    return host if settings.https_port == 443 else f"{host}:{settings.https_port}"


def patience(settings: Settings) -> Callable[[datetime, bool], datetime | None]:
    """Return what says when a site is stale that last succeeded at a time, and whether a sync runs; None for never."""
    after = settings.notify_stale_after
    schedule, tz = settings.sync_schedule, settings.tz
    longest = timedelta(seconds=settings.sync_delay_max_seconds if settings.sync_delay else 0)

    def stale_at(last: datetime, is_syncing: bool) -> datetime | None:
        if after is not None:
            return last + after if after else None
        if is_syncing:
            return None
        first = schedule.next_after(last, tz)
        second = schedule.next_after(first, tz)
        return second + min(longest, second - first) + BEGINNING

    return stale_at


def load(path: Path) -> Memory:
    """Read what was told; nothing, if it cannot be read."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        told, parcels = data["told"], data["parcels"]
        known = Told(
            since=_text(told["since"]),
            run=_text(told["run"]),
            failing=told["failing"] is True,
            succeeded=told["succeeded"] is True,
            held=tuple(map(_text, told["held"])),
            damaged=tuple(map(_text, told["damaged"])),
            verification=_text(told["verification"]),
            stale=_text(told["stale"]),
            certificate=_text(told["certificate"]),
            paused=None if told["paused"] is None else int(told["paused"]),
        )
        return Memory(known, tuple(map(_parcel, parcels)))
    except FileNotFoundError:
        return Memory()
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        log.warning("%s cannot be read (%s); what is wrong now is told again", path, error)
        return Memory()


def _parcel(data: Mapping[str, Any]) -> Parcel:
    texts = {name: _text(data[name]) for name in ("subject", "body", "tone", "due")}
    return Parcel(**texts, left=tuple(int(index) for index in data["left"]), tries=int(data["tries"]))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _dump(memory: Memory) -> bytes:
    return (json.dumps({"schema": SCHEMA, **dataclasses.asdict(memory)}, indent=2) + "\n").encode()


async def greet(settings: Settings, send: Send = delivery.send) -> list[tuple[str, str]]:
    """Send a message for a try. Returns for each entry of NOTIFY_URLS its number and scheme, and why it failed, if so.

    :raises SettingsError: there is no entry, or one that cannot be used.
    """
    if not settings.notify_urls:
        raise SettingsError(f"NOTIFY_URLS is not set; allowed: {Services.allowed}")
    await delivery.check(settings.notify_urls)
    name = clip(settings.site, NAME_LENGTH)
    body = f"{name} can send messages. It tells, each event once: {', '.join(settings.notify_events)}."
    reasons = await send(settings.notify_urls, Message(f"{name}: a message for a try", body, "info"))
    shown = [delivery.named(number, url) for number, url in enumerate(settings.notify_urls)]
    return list(zip(shown, reasons, strict=True))


class Heartbeat:
    """Tells HEARTBEAT_URL how runs go: start, success or failure, in this order, also of runs of other processes."""

    def __init__(
        self,
        settings: Settings,
        ping: Ping = delivery.ping,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        waits: Sequence[float] = BEAT_WAITS,
    ) -> None:
        self.url, self.ping, self.waits = settings.heartbeat_url, ping, waits
        self.began = now().replace(microsecond=0)
        self.last: str | None = None
        """The newest run that was told of; None before the first look."""
        self.started = ""
        """The run whose start was told."""
        self.signs: deque[tuple[str, str]] = deque()
        self.news = asyncio.Event()
        self.sending: asyncio.Task[None] | None = None

    async def tell(self, document: Mapping[str, Any]) -> None:
        """Send what is new meanwhile: the result of the newest run, and the start of the one that is running."""
        runs, running = document["runs"], document["running"]
        if runs and self._is_news(runs):
            self._send(*result_sign(runs[0]))
        self.last = identity(runs[0]) if runs else ""
        if running and running["run"] != self.started:
            self.started = running["run"]
            self._send("start", "")

    def _is_news(self, runs: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the newest run is new. What ended before this program began was told by its predecessor."""
        if self.last is None:
            return (time_of(runs[0]["ended"]) or self.began) >= self.began
        return bool(new_runs(self.last, runs))

    def _send(self, sign: str, body: str) -> None:
        self.signs.append((sign, body))
        self.news.set()
        if self.sending is None or self.sending.done():
            self.sending = asyncio.create_task(self._send_all())

    async def _send_all(self) -> None:
        while self.signs:
            sign, body = self.signs.popleft()
            self.news.clear()
            await self._insist(sign, body)

    async def _insist(self, sign: str, body: str) -> None:
        for attempt, wait in enumerate((*self.waits, None)):
            reason = await self.ping(self.url, sign, body)
            if not reason:
                return
            if not attempt:
                log.warning("HEARTBEAT_URL took no %s: %s", sign or "success", reason)
            if wait is None or await self._has_news(wait):
                return

    async def _has_news(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self.news.wait(), seconds)
        except TimeoutError:
            return bool(self.signs)
        return True


def result_sign(run: Mapping[str, Any]) -> tuple[str, str]:
    """Return what a monitor is told of a run: what is added to its URL, and the body.

    An item that is held is no failure: the sync did its work.
    """
    failed = run["result"] == FAILED
    summary = f"failed: {run['error']}" if failed else run["summary"]
    return "fail" if failed else "", f"{printable(str(summary))}\n"
