"""Sending what is to be told: once over restarts, again where nobody took it, and never in anybody's way."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from clr_client import settings as clr_settings
from clr_client.errors import SettingsError
from clr_client.reporting import messenger
from clr_client.reporting.messenger import Heartbeat, Messenger, greet
from clr_client.store import Store
from support.documents import document, held, run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from clr_client.reporting.messages import Message

FAILED = document(runs=[run(509, "failed"), *document()["runs"]])


class Post:
    """Services that take messages, or do not: ``reasons`` by URL."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, Message]] = []
        self.reasons: dict[str, str] = {}
        self.calls = 0

    async def send(self, urls: Sequence[str], message: Message) -> list[str]:
        self.calls += 1
        await asyncio.sleep(0)
        self.taken += [(url, message) for url in urls if not self.reasons.get(url)]
        return [self.reasons.get(url, "") for url in urls]


class Site:
    """Messengers on one volume, one after the other, and a clock."""

    def __init__(self, folder: Path, **environment: str) -> None:
        (folder / "library").mkdir()
        self.store = Store(folder / "library")
        self.settings = clr_settings.load(
            {"NOTIFY_URLS": "json://one.example.com/secret slack://two", "SITE_NAME": "berlin", **environment}
        )[0]
        self.post = Post()
        self.now = datetime(2026, 11, 22, 4, 30, tzinfo=UTC)
        self.restart()

    def restart(self) -> None:
        self.messenger = Messenger(self.settings, self.store, self.post.send, lambda: self.now)

    def tell(self, *documents: dict[str, Any]) -> None:
        async def all_of_them() -> None:
            for made in documents:
                await self.messenger.tell(made)
                if self.messenger.sending:
                    await self.messenger.sending

        asyncio.run(all_of_them())

    @property
    def subjects(self) -> list[str]:
        return [message.subject for _, message in self.post.taken]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_an_event_goes_to_all_once_also_over_fifty_restarts(site: Site) -> None:
    for _ in range(50):
        site.tell(FAILED, FAILED)
        site.restart()
    assert [url for url, _ in site.post.taken] == list(site.settings.notify_urls)
    assert set(site.subjects) == {"berlin: sync failed: no connection to 192.0.2.7:2222. Is the line up?"}


def test_only_what_was_chosen_is_told_and_what_was_not_is_not_told_later(tmp_path: Path) -> None:
    site = Site(tmp_path, NOTIFY_EVENTS="held")
    site.tell(FAILED, document(runs=FAILED["runs"], held=[held("x")]))
    assert set(site.subjects) == {"berlin: x is held"}
    site.settings = clr_settings.load({"NOTIFY_URLS": "json://a"})[0]
    site.restart()
    site.tell(document(runs=FAILED["runs"], held=[held("x")]))
    assert set(site.subjects) == {"berlin: x is held"}


def test_a_message_has_the_sites_page_where_its_name_is_known(tmp_path: Path) -> None:
    site = Site(tmp_path, TLS_NAME="berlin.example.com", HTTPS_PORT="8443")
    site.tell(FAILED)
    assert site.post.taken[0][1].body.endswith("\n\nhttps://berlin.example.com:8443/_clr/")


def test_a_service_that_did_not_take_it_gets_it_later_and_the_others_not_twice(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = site.settings.notify_urls
    site.post.reasons[first] = "no connection"
    site.tell(FAILED, FAILED)
    assert site.post.calls == 1, "it is not its turn yet"
    site.restart()
    site.now += timedelta(seconds=61)
    site.post.reasons = {}
    site.tell(FAILED)
    assert [url for url, _ in site.post.taken] == [second, first]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning == "entry 1 (json) of NOTIFY_URLS took no message: no connection; trying again in 1 min 0 s"
    assert "secret" not in caplog.text


def test_a_service_that_never_takes_it_is_given_up_after_some_hours(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.post.reasons = dict.fromkeys(site.settings.notify_urls, "the service answered 500")
    for _ in range(24 * 6):
        site.tell(FAILED)
        site.now += timedelta(minutes=10)
    assert site.post.calls == 1 + len(messenger.WAITS)
    assert caplog.text.count("was given up") == 2
    assert caplog.text.count("trying again") == 2
    assert json.loads(site.store.told.read_text())["parcels"] == []


def test_only_the_newest_messages_wait_for_a_service_that_is_away(site: Site) -> None:
    site.post.reasons = dict.fromkeys(site.settings.notify_urls, "no connection")
    for number in range(30):
        site.tell(document(held=[held(f"item {number}", "reason " + "x" * number)]))
    waiting = json.loads(site.store.told.read_text())["parcels"]
    assert [parcel["subject"] for parcel in waiting] == [f"berlin: item {number} is held" for number in range(20, 30)]


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[]", b"{}", b'{"told": {}, "parcels": []}', b'{"told": null}', b"[" * 10_000, b"NaN"],
)
def test_a_damaged_memory_is_no_flood(site: Site, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    site.store.told.write_bytes(content)
    site.tell(document(runs=FAILED["runs"], held=[held(f"item {number}") for number in range(1000)], paused_at=3))
    assert set(site.subjects) == {"berlin: sync failed: no connection to 192.0.2.7:2222. Is the line up? (and 2 more)"}
    assert len(site.post.taken) == 2
    assert "told.json cannot be read" in caplog.text


def test_a_volume_that_cannot_be_written_to_keeps_nobody_from_being_told(
    site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(site.store, "write_down", full)
    site.tell(FAILED, FAILED, document(runs=[run(510), *FAILED["runs"]]))
    assert len(site.post.taken) == 4
    assert caplog.text.count("what was told cannot be kept") == 1


def test_on_a_full_volume_the_reserve_is_given_up_for_what_was_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.store.reserve.write_bytes(b"x")
    written = os.fsync

    def until_there_is_room(descriptor: int) -> None:
        if site.store.reserve.exists():
            raise OSError(28, "No space left on device")
        written(descriptor)

    monkeypatch.setattr(os, "fsync", until_there_is_room)
    site.tell(FAILED)
    assert json.loads(site.store.told.read_text())["told"]["failing"] is True


def test_a_service_less_than_before_is_no_trouble_for_what_waits(site: Site) -> None:
    site.post.reasons = dict.fromkeys(site.settings.notify_urls, "no connection")
    site.tell(FAILED)
    site.settings = clr_settings.load({"NOTIFY_URLS": "json://only"})[0]
    site.restart()
    site.now += timedelta(minutes=5)
    site.tell(FAILED)
    assert [url for url, _ in site.post.taken] == ["json://only"]
    assert json.loads(site.store.told.read_text())["parcels"] == []


def test_a_service_that_hangs_holds_up_neither_the_watcher_nor_what_comes_next(tmp_path: Path) -> None:
    site = Site(tmp_path)
    hangs = asyncio.Event()

    async def send(urls: Sequence[str], message: Message) -> list[str]:
        await hangs.wait()
        return await site.post.send(urls, message)

    async def play() -> None:
        site.messenger = Messenger(site.settings, site.store, send, lambda: site.now)
        async with asyncio.timeout(5):
            await site.messenger.tell(FAILED)
            await site.messenger.tell(document(runs=FAILED["runs"], held=[held("x")]))
            hangs.set()
            assert site.messenger.sending
            await site.messenger.sending
            await site.messenger.tell(FAILED)
            await site.messenger.sending

    asyncio.run(play())
    assert len(site.post.taken) == 4


def test_a_message_for_a_try_names_each_entry_and_needs_one(site: Site) -> None:
    site.post.reasons = {"slack://two": "no connection"}

    async def unchecked(_urls: Sequence[str]) -> str:
        return ""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(messenger.delivery, "check", unchecked)
        told = asyncio.run(greet(site.settings, site.post.send))
    assert told == [("1 (json)", ""), ("2 (slack)", "no connection")]
    assert site.subjects == ["berlin: a message for a try"]
    with pytest.raises(SettingsError, match="NOTIFY_URLS is not set"):
        asyncio.run(greet(clr_settings.load({})[0]))


# ---------------------------------------------------------------- heartbeat


class Monitor:
    """Keeps what a heartbeat sends; ``reason`` is why it takes nothing."""

    def __init__(self, began: str = "2026-11-22T04:30:00+00:00") -> None:
        self.got: list[tuple[str, str]] = []
        self.reason = ""
        settings = clr_settings.load({"HEARTBEAT_URL": "https://hc.example.com/secret"})[0]
        now = datetime.fromisoformat(began)
        self.heartbeat = Heartbeat(settings, self.ping, lambda: now, waits=(0.01, 0.01))

    async def ping(self, url: str, sign: str, body: str) -> str:
        assert url == "https://hc.example.com/secret"
        await asyncio.sleep(0)
        self.got.append((sign, body))
        return self.reason

    def tell(self, *documents: dict[str, Any]) -> list[str]:
        """Tell documents; what was sent then."""
        before = len(self.got)

        async def all_of_them() -> None:
            self.heartbeat.news = asyncio.Event()
            for made in documents:
                await self.heartbeat.tell(made)
            if self.heartbeat.sending:
                await self.heartbeat.sending

        asyncio.run(all_of_them())
        return [sign for sign, _ in self.got[before:]]


def at_work(number: int) -> dict[str, Any]:
    return {"run": run(number)["run"], "trigger": "hand", "since": run(number)["started"], "stage": "listing"}


def test_a_run_beats_at_its_start_and_at_its_end() -> None:
    monitor, runs = Monitor(), document()["runs"]
    assert monitor.tell(document()) == []
    working = document(running=at_work(509))
    assert monitor.tell(working, working) == ["start"]
    assert monitor.tell(document(runs=[run(509), *runs])) == [""]
    assert monitor.got[-1][1] == "success: 0 added, 1 updated, 0 removed, 0 held; library version 41; 12 s\n"
    assert monitor.tell(document(running=at_work(510), runs=[run(509), *runs])) == ["start"]
    assert monitor.tell(document(runs=[run(510, "failed"), run(509), *runs])) == ["fail"]
    assert monitor.got[-1][1] == "failed: no connection to 192.0.2.7:2222. Is the line up?\n"
    assert monitor.tell(document(runs=[run(511, "partial"), run(510, "failed"), run(509)])) == [""]


def test_a_run_too_short_to_be_seen_beats_once_and_the_next_one_starts_after_it() -> None:
    monitor = Monitor()
    monitor.tell(document())
    assert monitor.tell(document(runs=[run(509), *document()["runs"]], running=at_work(510))) == ["", "start"]


def test_of_what_ended_before_this_process_began_nothing_is_told_and_of_the_first_run_everything() -> None:
    assert Monitor("2026-11-22T04:00:13+00:00").tell(document()) == []
    assert Monitor("2026-11-22T04:00:12+00:00").tell(document()) == [""]
    monitor = Monitor()
    assert monitor.tell(document(runs=[])) == []
    assert monitor.tell(document(runs=[run(0)])) == [""]


def test_a_monitor_that_takes_nothing_is_asked_a_few_times_and_warned_about_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    monitor = Monitor()
    monitor.tell(document())
    monitor.reason = "the service answered 404"
    assert monitor.tell(document(runs=[run(509), *document()["runs"]])) == ["", "", ""]
    assert [record.getMessage() for record in caplog.records] == [
        "HEARTBEAT_URL took no success: the service answered 404"
    ]


def test_a_newer_sign_does_not_wait_for_an_older_one() -> None:
    monitor = Monitor()
    monitor.heartbeat.waits = (3600,)
    monitor.tell(document())
    monitor.reason = "no connection"

    async def play() -> None:
        monitor.heartbeat.news = asyncio.Event()
        await monitor.heartbeat.tell(document(running=at_work(509)))
        await asyncio.sleep(0.01)
        monitor.reason = ""
        await monitor.heartbeat.tell(document(runs=[run(509), *document()["runs"]]))
        async with asyncio.timeout(10):
            assert monitor.heartbeat.sending
            await monitor.heartbeat.sending

    asyncio.run(play())
    assert [sign for sign, _ in monitor.got] == ["start", ""]
