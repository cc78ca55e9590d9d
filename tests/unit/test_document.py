"""The one document about a site: its state, its numbers, its items, and that it costs nothing to make again."""

from __future__ import annotations

import json
import os
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from clr_client import adopt, lock
from clr_client.reporting import context
from clr_client.reporting import status as statuses
from clr_client.reporting.document import Known, describe, dump, signs
from clr_client.reporting.running import Running
from clr_client.reporting.status import COUNTED, Held, Report, Status
from clr_client.store import Store
from clr_client.sync import record
from clr_client.text import UNSAFE
from clr_client.threads import in_background
from support.documents import document
from support.volume import Volume, publish_contents

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STARTED = "2026-11-21T20:00:00+00:00"
EVIL = "a\nfake\x1b[2J\x07\x9b\u202e\udcff"


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    (tmp_path / "library").mkdir()
    return Volume(tmp_path / "library", CLR_RUN_DIR=str(tmp_path / "run"))


def told(volume: Volume, known: Known | None = None, **settings: str) -> dict[str, Any]:
    """The document, as a reader gets it."""
    found: dict[str, Any] = json.loads(dump(describe(volume.settings(**settings), known or programs())))
    return found


def programs() -> Known:
    """What is known before any look: no program is asked for its version."""
    known = Known()
    known.get("versions", (), lambda: {"clr": "1", "rsync": "3", "ssh": "9", "caddy": "2"})
    return known


def ran(volume: Volume, result: str = "success", **changes: Any) -> Report:
    """Add a run to the history."""
    report = Report(**{"trigger": "hand", "started": STARTED, "ended": STARTED, "result": result, **changes})
    record(volume.store, lambda status: status.after(report, {}))
    return report


@contextmanager
def working(volume: Volume, trigger: str = "schedule") -> Iterator[tuple[str, Running]]:
    """Be a sync that is at work: its id, and what it shows of itself."""
    store = volume.store
    with context.running() as run, store.locked(trigger), Running(store.running, run, trigger, STARTED) as shown:
        yield run, shown


# ---------------------------------------------------------------- state


def test_a_site_that_never_synced_says_so_and_its_document_has_all_fields(volume: Volume) -> None:
    found = told(volume, SITE_NAME="berlin", VERIFY_SCHEDULE="0 3 * * *")
    assert found.keys() == document().keys()
    assert (found["state"], found["published"], found["site"], found["running"]) == ("never", False, "berlin", None)
    assert found["totals"] == statuses.totals_since(None)
    now = datetime.now(UTC)
    assert now < datetime.fromisoformat(found["next_sync"]) < now + timedelta(days=8)
    assert now < datetime.fromisoformat(found["next_verification"]) < now + timedelta(days=2)


def test_a_site_without_a_volume_is_described_and_nothing_is_made(tmp_path: Path) -> None:
    found = told(Volume(tmp_path / "none"))
    assert (found["state"], found["disk"]) == ("never", {"free_bytes": None, "total_bytes": None})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("result", ["success", "partial", "failed", "paused"])
def test_the_state_is_what_became_of_the_last_run(volume: Volume, result: str) -> None:
    ran(volume)
    ran(volume, result)
    assert told(volume)["state"] == result


def test_a_rollback_pauses_whatever_became_of_the_last_run(volume: Volume) -> None:
    ran(volume, "failed")
    publish_contents(volume.store, {"a": {"a.bin": b"1"}})
    volume.store.keep_to(1, 0)
    found = told(volume)
    assert (found["state"], found["paused_at"]) == ("paused", 1)


def test_a_running_sync_is_shown_while_it_holds_the_lock_until_its_result_is_written_down(volume: Volume) -> None:
    ran(volume, "failed")
    store = volume.store
    with working(volume) as (run, shown):
        found = told(volume)
        assert found["state"] == "syncing"
        assert (found["running"]["stage"], found["running"]["done_bytes"]) == ("starting", None)
        shown.stage(f"listing {EVIL}")
        shown.transfer(25, 100, 5.0, f"{EVIL}/disk.vmdk")
        running = told(volume)["running"]
        assert running.keys() == {
            *("run", "trigger", "since", "stage", "done_bytes", "total_bytes", "rate", "file", "left_seconds")
        }
        assert (running["run"], running["trigger"], running["since"]) == (run, "schedule", STARTED)
        assert (running["done_bytes"], running["total_bytes"]) == (25, 100)
        assert (running["rate"], running["left_seconds"]) == (5, 15)
        assert running["file"].endswith(r"\xff/disk.vmdk")
        shown.stage("verifying")
        assert told(volume)["running"] | {"run": ""} == {
            "run": "",
            "trigger": "schedule",
            "since": STARTED,
            "stage": "verifying",
            "done_bytes": 25,
            "total_bytes": 100,
            "rate": None,
            "file": None,
            "left_seconds": None,
        }
        ran(volume, run=run)
        assert (told(volume)["state"], told(volume)["running"]) == ("success", None)
    assert (told(volume)["state"], told(volume)["running"]) == ("success", None)
    assert not store.running.exists()


def test_a_sync_that_was_killed_has_failed_and_leaves_no_ghost(volume: Volume) -> None:
    store = volume.store
    with context.running() as run, store.locked("schedule"):
        Running(store.running, run, "schedule", STARTED).stage("fetching")
        assert told(volume)["state"] == "syncing"
    assert (told(volume)["state"], told(volume)["running"]) == ("failed", None)
    ran(volume)
    assert told(volume)["state"] == "failed", "an older run ended well"
    with store.locked("rollback"):
        assert told(volume)["running"] is None, "whoever holds the lock now is not that run"
    with working(volume) as (run, _):
        assert told(volume)["running"]["run"] == run
        ran(volume, run=run)
    assert told(volume)["state"] == "success"


# ---------------------------------------------------------------- numbers


def test_the_totals_grow_with_every_run_and_are_kept_with_the_volume(volume: Volume) -> None:
    sizes = {"planned_bytes": 100, "literal_bytes": 30, "matched_bytes": 70, "sent_bytes": 5, "received_bytes": 40}
    ran(volume, seconds=1.5, **sizes)
    ran(volume, "partial", seconds=2.0, **sizes | {"matched_bytes": 270})
    ran(volume, "failed")
    found = told(volume)
    assert found["runs"][1]["saved_bytes"] == 100, "no more than there was to bring"
    assert found["totals"] == {
        "since": STARTED,
        "runs": {"success": 1, "partial": 1, "failed": 1, "paused": 0},
        "literal_bytes": 60,
        "matched_bytes": 340,
        "saved_bytes": 170,
        "sent_bytes": 10,
        "received_bytes": 80,
        "seconds": 3.5,
    }
    for _ in range(60):
        ran(volume)
    assert told(volume)["totals"]["runs"]["success"] == 61, "more runs than the history keeps"


@pytest.mark.parametrize(
    "totals",
    [None, 5, {}, {"since": "x"}, {**statuses.totals_since(STARTED), "seconds": "many"}]
    + [{**statuses.totals_since(STARTED), "sent_bytes": value} for value in (-1, 1e300, float("nan"), [])]
    + [{**statuses.totals_since(STARTED), "runs": {"success": 1}}],
    ids=repr,
)
def test_totals_that_are_missing_or_damaged_start_anew_and_cost_nothing_else(volume: Volume, totals: object) -> None:
    ran(volume, literal_bytes=5)
    content = json.loads(volume.store.status.read_text())
    content["totals"] = totals
    volume.store.status.write_text(json.dumps(content))
    assert told(volume)["totals"] == statuses.totals_since(None)
    assert len(told(volume)["runs"]) == 1
    ran(volume, literal_bytes=7)
    assert told(volume)["totals"]["literal_bytes"] == 7


def test_the_history_of_an_earlier_release_is_shown_with_all_fields(volume: Volume) -> None:
    ran(volume, matched_bytes=9, planned_bytes=10, held=(Held("a", "why"),))
    content = json.loads(volume.store.status.read_text())
    del content["totals"]
    for name in ("run", "saved_bytes", "went_back"):
        del content["runs"][0][name]
    volume.store.status.write_text(json.dumps(content))
    found = told(volume)["runs"][0]
    assert found.keys() == document()["runs"][0].keys()
    assert (found["run"], found["saved_bytes"], found["went_back"]) == ("", 9, [])
    assert found["held"] == [{"key": "a", "reason": "why", "serves": None}]


def test_every_sum_is_one_of_a_runs_numbers() -> None:
    report = Report("hand", STARTED)
    assert all(getattr(report, name) == 0 for name in COUNTED)


# ---------------------------------------------------------------- items


def test_items_are_described_with_what_people_reach_them_by(volume: Volume) -> None:
    store = volume.store
    publish_contents(store, {"web/a b#c?é": {"a.ovf": b"12", "b.vmdk": b"345"}})
    shown = told(volume, LIBRARY_BROWSE="true")
    (item,) = shown["items"]
    assert item["url"] == "web/a%20b%23c%3F%C3%A9/"
    assert (item["files"], item["bytes"], item["version"], item["type"]) == (2, 5, 1, "vcsp.other")
    age = datetime.now(UTC) - datetime.fromisoformat(item["changed"])
    assert timedelta(minutes=-1) < age < timedelta(minutes=1)
    assert shown["library"].keys() == document()["library"].keys()
    assert (shown["library"]["items"], shown["library"]["bytes"], shown["library"]["generation"]) == (1, 5, 1)
    assert shown["library"]["url"] is None
    assert told(volume, TLS_NAME="x.example.com")["library"]["url"] == "https://x.example.com/lib.json"
    assert told(volume)["items"][0]["url"] is None, "folders are not shown"


def test_an_item_that_is_a_file_is_reached_without_browsing_and_one_without_a_readable_path_is_not(
    volume: Volume,
) -> None:
    publish_contents(volume.store, {"tools.iso": {"tools.iso": b"1"}, "_clr": {"_clr": b"2"}}, single=True)
    urls = {item["name"]: item["url"] for item in told(volume)["items"]}
    assert urls == {"tools.iso": "tools.iso", "_clr": None}


def test_an_unchanged_item_keeps_the_time_of_its_change(volume: Volume) -> None:
    store = volume.store
    publish_contents(store, {"a": {"a.bin": b"1"}, "b": {"b.bin": b"1"}})
    for path in store.items.glob("*/*/item.json"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    publish_contents(store, {"a": {"a.bin": b"1"}, "b": {"b.bin": b"2"}})
    changed = {item["name"]: item["changed"] for item in told(volume)["items"]}
    assert changed["a"] == "2023-11-14T22:13:20+00:00"
    assert changed["b"] > changed["a"]


def test_a_library_of_ten_thousand_items_is_read_once_for_each_generation(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_contents(volume.store, {"a": {"a.bin": b"1"}})
    reads = []
    published = Store.published
    monkeypatch.setattr(Store, "published", lambda store: reads.append(1) or published(store))
    known = programs()
    first = describe(volume.settings(), known)
    for _ in range(5):
        assert describe(volume.settings(), known)["items"] is first["items"]
    assert len(reads) == 1
    publish_contents(volume.store, {"a": {"a.bin": b"2"}})
    reads.clear()
    assert describe(volume.settings(), known)["items"][0]["version"] == 2
    assert describe(volume.settings(LIBRARY_BROWSE="true"), known)["library"]["generation"] == 2
    assert len(reads) == 1


def test_a_library_that_cannot_be_read_is_described_by_what_the_last_run_said(volume: Volume) -> None:
    publish_contents(volume.store, {"a": {"a.bin": b"1"}})
    record(volume.store, lambda status: status.after(Report("hand", STARTED), {"name": "L", "version": 7}))
    for path in volume.store.current.resolve().iterdir():
        if path.is_file():
            path.write_bytes(b"{")
    found = told(volume)
    assert (found["published"], found["items"]) == (True, [])
    assert found["library"] | {"name": "L", "version": 7} == found["library"]
    assert found["library"].keys() == document()["library"].keys()


def test_no_text_from_a_server_can_harm_a_terminal_or_the_encoding(volume: Volume) -> None:
    names = {"added": (EVIL,), "held": (Held(EVIL, EVIL),), "error": EVIL, "peer": EVIL}
    ran(volume, "failed", version=1, **names)
    found = describe(volume.settings(), programs())
    assert not UNSAFE.search(dump(found).decode().replace("\n", ""))
    assert found["runs"][0]["added"] == [r"a\x0afake\x1b[2J\x07\x9b\u202e\xff"]
    assert found["held"][0]["key"] == found["runs"][0]["error"] == found["runs"][0]["added"][0]


# ---------------------------------------------------------------- signs


def test_signs_change_with_everything_that_is_told_and_stand_still_otherwise(volume: Volume) -> None:
    settings, store = volume.settings(), volume.store
    seen = [signs(settings)]

    def is_new() -> bool:
        seen.append(signs(settings))
        return seen[-1] != seen[-2]

    assert not is_new()
    ran(volume)
    assert is_new()
    publish_contents(store, {"a": {"a.bin": b"1"}})
    assert is_new()
    with context.running() as run, store.locked("hand"):
        ghost = Running(store.running, run, "hand", STARTED)
        ghost.stage("fetching")
        assert is_new()
        assert not is_new()
        ghost.stage("verifying")
        assert is_new()
    assert is_new(), "it was killed"
    assert not is_new()
    store.keep_to(1, 0)
    assert is_new()


def test_whoever_looks_never_keeps_a_run_from_beginning(volume: Volume) -> None:
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            lock.holder(volume.root)

    threads = [threading.Thread(target=look) for _ in range(3)]
    with volume.store.locked("first"):
        assert lock.holder(volume.root) is not None
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            with volume.store.locked("hand"):
                pass
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert lock.holder(volume.root) is None


# ---------------------------------------------------------------- the running state, and the run's id


def test_the_running_state_is_written_at_most_once_a_second_and_is_gone_at_the_end(tmp_path: Path) -> None:
    now = 100.0
    with Running(tmp_path / "running.json", "id", "hand", STARTED, lambda: now) as shown:
        written = (tmp_path / "running.json").stat().st_ino
        for number in range(1000):
            shown.transfer(number, 1000, 10.0, "a")
        first = json.loads((tmp_path / "running.json").read_text())
        assert (first["done_bytes"], first["pid"]) == (0, os.getpid())
        assert (tmp_path / "running.json").stat().st_ino != written
        now += 1.1
        shown.transfer(1001, 1000, 0.0, None)
        last = json.loads((tmp_path / "running.json").read_text())
        assert (last["done_bytes"], last["left_seconds"], last["file"]) == (1000, None, None)
    assert not list(tmp_path.iterdir())


def test_a_running_state_that_cannot_be_written_is_said_once_and_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Running(tmp_path / "none" / "running.json", "id", "hand", STARTED) as shown:
        shown.stage("fetching")
        shown.transfer(1, 2, 3.0, None)
    assert len(caplog.records) == 1


def test_a_damaged_running_state_is_as_good_as_none(volume: Volume) -> None:
    for content in (b"", b"{", b"[]", b'{"run": "x"}', b"[" * 100_000, b"\xff"):
        volume.store.running.write_bytes(content)
        assert (told(volume)["state"], told(volume)["running"]) == ("never", None)


def test_each_run_has_an_id_of_its_own_that_its_threads_know() -> None:
    import asyncio

    ids = []
    for _ in range(50):
        with context.running() as run:
            assert context.run_id() == run
            ids.append(run)
    assert context.run_id() == ""
    assert len(set(ids)) == 50
    assert all(len(run) <= 16 for run in ids)

    async def in_threads() -> tuple[str, list[str]]:
        with context.running() as run:
            beside = await in_background(lambda _stop: context.run_id())
            return run, [await asyncio.to_thread(context.run_id), beside]

    run, seen = asyncio.run(in_threads())
    assert seen == [run, run]


def test_a_volume_with_all_our_files_is_not_taken_for_that_of_somebody_else(tmp_path: Path) -> None:
    store = Store(tmp_path)
    names = {path.name for path in vars(store).values() if hasattr(path, "name") and path != store.root}
    assert {name for name in names if not name.startswith(".")} <= adopt.OURS | adopt.OUR_FILES


def test_a_status_is_what_it_was_when_it_is_read_back(tmp_path: Path) -> None:
    status = Status().after(Report("hand", STARTED, run="x", literal_bytes=3, seconds=0.5), {"name": "L"})
    path = tmp_path / "status.json"
    path.write_bytes(statuses.dump(status))
    assert statuses.dump(statuses.load(path)) == path.read_bytes()
