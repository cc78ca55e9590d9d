"""The watcher tells what is new to whoever shows it, and nobody who is slow or broken keeps another from hearing it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from clr_client import watch
from clr_client.reporting.status import Report
from clr_client.store import Store
from clr_client.sync import record
from clr_client.watch import Watcher
from clr_client.web import page as pages
from clr_client.web.page import Page
from support.documents import document
from support.volume import Volume, publish_contents

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from clr_client.settings import Settings

PATIENCE = 30.0
RUNNING = {
    "run": "1122-0430-00ff00",
    "trigger": "hand",
    "since": "2026-11-22T04:30:00+00:00",
    "stage": "fetching",
    "done_bytes": 1,
    "total_bytes": 10,
    "rate": 1,
    "file": None,
    "left_seconds": 9,
}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(watch, "LOOK", 0.01)
    (tmp_path / "library").mkdir()
    return Volume(tmp_path / "library", CLR_RUN_DIR=str(tmp_path / "run")).settings()


class Ear:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []

    def tell(self, document: dict[str, Any]) -> None:
        self.heard.append(document)


def watching(settings: Settings, listeners: list[Any], during: Callable[[], Awaitable[None]]) -> None:
    """Watch while something is done."""

    async def both() -> None:
        watcher = Watcher(settings, listeners)
        await watcher.begin()
        task = asyncio.create_task(watcher.go())
        try:
            await during()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(both())


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


def sync(settings: Settings, result: str = "success") -> None:
    """What a sync leaves that another process did."""
    report = Report("hand", "2026-11-22T04:30:00+00:00", result=result)
    record(Store(settings.clr_library_dir), lambda status: status.after(report, {}))


def test_everything_new_is_told_and_nothing_else(settings: Settings) -> None:
    ear = Ear()

    async def during() -> None:
        assert [document["state"] for document in ear.heard] == ["never"], "it was told before anybody asks"
        await asyncio.sleep(0.2)
        assert len(ear.heard) == 1
        sync(settings)
        await until(lambda: ear.heard[-1]["state"] == "success")
        publish_contents(Store(settings.clr_library_dir), {"a": {"a.bin": b"1"}})
        await until(lambda: ear.heard[-1]["items"])
        await asyncio.sleep(0.2)
        told = len(ear.heard)
        await asyncio.sleep(0.2)
        assert len(ear.heard) == told

    watching(settings, [ear], during)


def test_a_site_is_described_anew_each_minute_even_if_nothing_changed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "RENEW", 0.05)
    ear = Ear()

    async def during() -> None:
        await until(lambda: len(ear.heard) > 3)

    watching(settings, [ear], during)


def test_a_slow_or_broken_listener_keeps_no_other_waiting_and_is_named_once(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    ear, go_on = Ear(), threading.Event()

    class Slow:
        def __init__(self) -> None:
            self.states: list[str] = []

        def tell(self, document: dict[str, Any]) -> None:
            if self.states:
                go_on.wait(PATIENCE)
            self.states.append(document["state"])

    class Waiting:
        async def tell(self, document: dict[str, Any]) -> None:
            if document["state"] != "never":
                await asyncio.sleep(PATIENCE * 10)

    class Broken:
        calls = 0

        def tell(self, document: dict[str, Any]) -> None:
            self.calls += 1
            raise ValueError("a defect")

    slow, broken = Slow(), Broken()

    async def during() -> None:
        for result in ("success", "failed", "partial"):
            sync(settings, result)
            await until(lambda: ear.heard[-1]["state"] == result)  # noqa: B023 - asked at once
        await until(lambda: broken.calls >= 4)
        go_on.set()
        await until(lambda: slow.states[-1] == "partial")
        assert len(slow.states) < 5

    watching(settings, [slow, Waiting(), broken, ear], during)
    assert [record.getMessage() for record in caplog.records] == ["Broken: a defect"]


def test_a_volume_that_hangs_delays_the_start_but_does_not_prevent_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released = threading.Event()
    monkeypatch.setattr(watch, "FIRST", 0.1)
    monkeypatch.setattr(watch, "signs", lambda _settings: released.wait(PATIENCE))

    async def begin() -> None:
        try:
            await Watcher(settings, []).begin()
        finally:
            released.set()

    asyncio.run(begin())
    assert "could not be described" in caplog.text


# ---------------------------------------------------------------- the files


def test_the_page_is_written_with_all_its_files_below_the_run_folder(settings: Settings) -> None:
    Page(settings).tell(document())
    folder = settings.clr_run_dir / "site"
    assert json.loads((folder / "status.json").read_bytes()) == document()
    assert {path.name for path in folder.iterdir()} >= {"index.html", "status.json", "progress.json", "style.css"}
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_progress_of_a_large_library_is_always_written_and_the_rest_a_small_part_of_the_time(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[int] = []

    def render(document: dict[str, Any]) -> dict[str, bytes]:
        rendered.append(document["running"]["done_bytes"] if document["running"] else -1)
        time.sleep(0.05)
        return {"index.html": b"page"}

    monkeypatch.setattr(pages, "render", render)
    page = Page(settings)
    page.tell(document())
    for done in range(1, 8):
        page.tell(document(state="syncing", running=RUNNING | {"done_bytes": done}))
        live = json.loads((settings.clr_run_dir / "site" / "progress.json").read_bytes())
        assert live["running"]["done_bytes"] == done
    assert rendered[:2] == [-1, 1], "the beginning of a sync is shown at once"
    assert len(rendered) < 5
    page.tell(document(state="failed"))
    assert rendered[-1] == -1, "and so is its end"
    assert json.loads((settings.clr_run_dir / "site" / "status.json").read_bytes())["state"] == "failed"


def test_files_that_somebody_removed_are_written_again(settings: Settings) -> None:
    page = Page(settings)
    page.tell(document())
    for path in (settings.clr_run_dir / "site").iterdir():
        path.unlink()
    page.tell(document())
    assert (settings.clr_run_dir / "site" / "style.css").exists()
