"""What people are told: each event once, whatever the documents, in words that no name can turn into others."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from clr_client import settings as clr_settings
from clr_client.reporting import messages
from clr_client.reporting.messages import (
    CERTIFICATE,
    DAMAGED,
    FAILURE,
    FIRST,
    HELD,
    KINDS,
    PAUSED,
    RECOVERY,
    STALE,
    Event,
    Told,
    compose,
    events,
)
from clr_client.reporting.messenger import Memory, Parcel, _dump, patience
from clr_client.reporting.messenger import load as read
from hypothesis import given
from hypothesis import strategies as st
from support.documents import damage, document, held, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = datetime(2026, 11, 22, 4, 30, tzinfo=UTC)
EVIL = "a\nfake: line\x1b[2J @everyone <!channel> [x](http://evil.example)\u202e"


def never(_last: datetime, _is_syncing: bool) -> None:
    return None


class Reader:
    """Somebody who gets every document, and keeps what was told."""

    def __init__(self, stale_at: Callable[[datetime, bool], datetime | None] = never) -> None:
        self.told, self.stale_at = Told(), stale_at

    def read(self, made: dict[str, Any], now: datetime = NOW) -> list[Event]:
        found, self.told = events(self.told, made, now, self.stale_at)
        return list(found)

    def kinds(self, made: dict[str, Any], now: datetime = NOW) -> list[str]:
        return [event.kind for event in self.read(made, now)]


def history(*results: str) -> list[dict[str, Any]]:
    """Return runs with these results, the last one first, as a document has them."""
    return [run(number, result) for number, result in enumerate(results)][::-1]


def test_a_healthy_site_that_has_long_been_there_is_no_news() -> None:
    reader = Reader()
    assert reader.kinds(document()) == []
    assert reader.kinds(document()) == []


def test_a_failure_is_told_once_until_a_sync_works_again_and_then_that() -> None:
    reader = Reader()
    results: list[str] = ["success", "success"]
    told = []
    for result in ("success", "failed", "failed", "failed", "success", "success", "failed", "partial"):
        results.append(result)
        told.append(reader.kinds(document(runs=history(*results))))
    assert told == [[], [FAILURE], [], [], [RECOVERY], [], [FAILURE], [RECOVERY]]


def test_fifty_failures_in_a_row_are_one_message() -> None:
    reader = Reader()
    told = [reader.kinds(document(runs=history("success", *["failed"] * n)[:50])) for n in range(1, 60)]
    assert [kinds for kinds in told if kinds] == [[FAILURE]]


def test_a_failure_and_its_recovery_between_two_looks_are_both_told() -> None:
    reader = Reader()
    reader.read(document(runs=history("success")))
    assert reader.kinds(document(runs=history("success", "failed", "success"))) == [FAILURE, RECOVERY]


@pytest.mark.parametrize(
    "stopped",
    [run(9, "partial", version=None, error="stopped; the next run goes on from here"), run(9, "paused", version=None)],
    ids=["stopped", "paused"],
)
def test_a_run_that_got_nowhere_is_no_recovery(stopped: dict[str, Any]) -> None:
    reader = Reader()
    assert reader.kinds(document(runs=history("failed"))) == [FAILURE]
    assert reader.kinds(document(runs=[stopped, *history("failed")])) == []
    assert reader.kinds(document(runs=[run(10), stopped, *history("failed")])) == [RECOVERY]


def test_of_a_history_that_is_met_for_the_first_time_only_the_newest_run_counts() -> None:
    assert Reader().kinds(document(runs=history("failed", "failed", "success", "success"))) == []
    (failure,) = Reader().read(document(runs=history("success", "success", "failed")))
    assert failure.kind == FAILURE


def test_a_history_that_was_lost_tells_nothing_twice() -> None:
    reader = Reader()
    reader.read(document(runs=history("success", "failed")))
    assert reader.kinds(document(runs=[])) == []
    assert reader.kinds(document(runs=[run(90, "failed")])) == []
    assert reader.kinds(document(runs=[run(91), run(90, "failed")])) == [RECOVERY]


def totals(success: int) -> dict[str, Any]:
    return {"runs": {"success": success, "partial": 0, "failed": 0, "paused": 0}}


def test_the_first_success_is_told_once_ever() -> None:
    reader = Reader()
    assert reader.kinds(document(runs=[], totals=totals(0), published=False, last_success="")) == []
    (event,) = reader.read(document(runs=[run(0)], totals=totals(1)))
    assert event.kind == FIRST
    assert "'Library' is published: 3 items" in "\n".join(event.lines)
    assert "http://berlin.example.com/lib.json" in "\n".join(event.lines)
    assert reader.kinds(document(runs=history("success", "success"), totals=totals(2))) == []
    # what was told is lost, or messages were only now asked for
    assert Reader().kinds(document(runs=history("success", "success"), totals=totals(2))) == []
    assert Reader().kinds(document(runs=[run(900)], totals=totals(900))) == []


def test_each_held_item_is_told_once_until_it_is_released_or_its_reason_changes() -> None:
    reader = Reader()
    one, two = held("one", "a.vmdk has 1000 bytes, but the envelope says 9999", 3), held("two")
    (event,) = reader.read(document(held=[one]))
    assert event.headline == "one is held"
    assert event.lines[0] == "- one: a.vmdk has 1000 bytes, but the envelope says 9999 (version 3 stays published)"
    assert reader.kinds(document(held=[one])) == []
    (event,) = reader.read(document(held=[two, one]))
    assert event.headline == "two is held"
    assert "one" not in event.lines[0]
    grows = {**one, "reason": "a.vmdk has 2500 bytes, but the envelope says 9999"}
    assert reader.kinds(document(held=[grows, two])) == [], "a file that is still being written is no news each time"
    assert reader.kinds(document(held=[{**one, "reason": "a.mf does not fit"}, two])) == [HELD]
    assert reader.kinds(document(held=[two])) == []
    assert reader.kinds(document(held=[one, two])) == [HELD]


def test_many_held_items_are_one_message_with_their_number_and_the_first_ten() -> None:
    (event,) = Reader().read(document(held=[held(f"item {number:04}") for number in range(1000)]))
    assert event.headline == "1000 items are held"
    assert [line for line in event.lines if line.startswith("- item")] == [
        f"- item {number:04}: disk.vmdk is missing" for number in range(10)
    ]
    assert "- and 990 more: clr status" in event.lines


def test_rot_is_told_once_and_so_is_that_it_was_mended() -> None:
    reader = Reader()
    reader.read(document())
    (event,) = reader.read(document(damaged=[damage("items/x/1/disk.vmdk", hindrance="no connection")]))
    assert event.kind == DAMAGED
    assert event.lines[0] == "- items/x/1/disk.vmdk (Ubuntu 24.04): is not what was published; no connection"
    assert reader.kinds(document(damaged=[damage("items/x/1/disk.vmdk")])) == []
    assert reader.kinds(document(damaged=[damage("items/x/1/disk.vmdk"), damage("lib.json", item="")])) == [DAMAGED]
    mended = run(509, mended=[damage("items/x/1/disk.vmdk")])
    (event,) = reader.read(document(runs=[mended, *document()["runs"]]))
    assert event.headline == "a file had rotted on the disk and is mended"
    assert reader.kinds(document(runs=[mended, *document()["runs"]])) == []


def test_what_a_verification_mended_at_once_is_told_but_not_what_it_mended_long_ago() -> None:
    def verified(ended: str) -> dict[str, Any]:
        return {"ended": ended, "summary": "…", "found": [damage("x")], "mended": [damage("x")], "damaged": []}

    reader = Reader()
    assert reader.kinds(document(verification=verified("2026-11-20T03:00:00+00:00"))) == []
    assert reader.kinds(document(verification=verified("2026-11-27T03:00:00+00:00"))) == [DAMAGED]
    assert reader.kinds(document(verification=verified("2026-11-27T03:00:00+00:00"))) == []


@pytest.mark.parametrize(("kind", "days"), [("own", 21), ("acme", 7), ("internal", 0)])
def test_a_certificate_is_news_when_it_should_have_been_renewed_and_when_it_expired(kind: str, days: int) -> None:
    ends = NOW + timedelta(days=30)
    made = document(certificate={"kind": kind, "not_after": ends.isoformat(), "sha256": "x", "sha1": "x"})
    reader = Reader()
    assert reader.kinds(made, ends - timedelta(days=days, seconds=1)) == []
    if days:
        (event,) = reader.read(made, ends - timedelta(days=days) + timedelta(seconds=1))
        assert event.headline == "the certificate expires on 2026-12-22 04:30 UTC"
        assert ("taken up without a restart" in event.lines[1]) is (kind == "own")
        assert reader.kinds(made, ends - timedelta(days=days - 1)) == []
    (event,) = reader.read(made, ends)
    assert event.headline == "the certificate expired on 2026-12-22 04:30 UTC"
    assert reader.kinds(made, ends + timedelta(days=9)) == []
    renewed = {"kind": kind, "not_after": (ends + timedelta(days=90)).isoformat(), "sha256": "y", "sha1": "y"}
    assert reader.kinds(document(certificate=renewed), ends) == []
    assert reader.kinds(document(certificate=renewed), ends + timedelta(days=91)) == [CERTIFICATE]


def test_a_pause_is_told_once_and_so_is_its_end() -> None:
    reader = Reader()
    assert reader.kinds(document(paused_at=40)) == [PAUSED]
    assert reader.kinds(document(paused_at=40)) == []
    assert reader.kinds(document(paused_at=39)) == [PAUSED]
    (event,) = reader.read(document())
    assert event.headline == "syncs publish again"
    assert reader.kinds(document()) == []


# ---------------------------------------------------------------- staleness


def load(**environment: str) -> clr_settings.Settings:
    return clr_settings.load(environment)[0]


LAST = datetime(2026, 11, 13, 22, 10, tzinfo=UTC)
"""A Friday."""


def test_a_site_is_stale_when_two_scheduled_syncs_in_a_row_brought_nothing() -> None:
    weekly = patience(load(SYNC_SCHEDULE="0 21 * * 5"))
    assert weekly(LAST, False) == datetime(2026, 11, 27, 21, 5, tzinfo=UTC)
    workdays = patience(load(SYNC_SCHEDULE="0 21 * * 1-5"))
    assert workdays(LAST, False) == datetime(2026, 11, 17, 21, 5, tzinfo=UTC), "nobody is woken for a week-end"
    delayed = patience(load(SYNC_SCHEDULE="0 21 * * 5", SYNC_DELAY="true"))
    assert delayed(LAST, False) == datetime(2026, 11, 28, 3, 5, tzinfo=UTC)
    often = patience(load(SYNC_SCHEDULE="*/5 * * * *"))
    assert often(LAST, False) == datetime(2026, 11, 13, 22, 25, tzinfo=UTC)
    assert often(LAST, True) is None, "a long transfer is at work"


def test_how_long_may_be_said_and_nothing_at_all() -> None:
    assert patience(load(NOTIFY_STALE_AFTER="3d"))(LAST, True) == LAST + timedelta(days=3)
    assert patience(load(NOTIFY_STALE_AFTER="0"))(LAST, False) is None


def test_staleness_is_told_once_until_a_sync_succeeds() -> None:
    reader = Reader(lambda last, _is_syncing: last + timedelta(days=2))
    made = document(last_success=LAST.isoformat(), runs=[run(0, "failed", started=LAST.isoformat()), run(0)])
    assert reader.kinds(made, LAST + timedelta(days=1)) == [FAILURE]
    (event,) = reader.read(made, LAST + timedelta(days=2))
    assert event.headline == "no sync succeeded since 2026-11-13 22:10 UTC"
    assert reader.kinds(made, LAST + timedelta(days=3)) == []
    again = document(last_success=(LAST + timedelta(days=4)).isoformat(), runs=[run(99), *made["runs"]])
    assert reader.kinds(again, LAST + timedelta(days=4)) == [RECOVERY]
    assert reader.kinds(again, LAST + timedelta(days=7)) == [STALE]


def test_a_site_that_never_synced_is_stale_too_and_one_with_a_held_item_is_not() -> None:
    reader = Reader(lambda last, _is_syncing: last + timedelta(days=2))
    made = document(last_success="", runs=[], totals=totals(0), published=False)
    assert reader.kinds(made, NOW) == []
    (event,) = reader.read(made, NOW + timedelta(days=2))
    assert event.headline == "no sync succeeded so far"
    ended = (NOW + timedelta(days=3)).isoformat()
    partial = run(1, "partial", ended=ended, held=[held("x")])
    assert reader.kinds(document(last_success="", runs=[partial]), NOW + timedelta(days=4)) == []
    cut = run(2, "partial", ended=(NOW + timedelta(days=5)).isoformat(), error="SYNC_WINDOW ended")
    assert reader.kinds(document(last_success="", runs=[cut, partial]), NOW + timedelta(days=6)) == [STALE]


# ---------------------------------------------------------------- any sequence

RESULT = st.sampled_from(["success", "partial", "failed", "paused"])
STEP = st.fixed_dictionaries(
    {
        "results": st.lists(RESULT, max_size=3),
        "held": st.sets(st.sampled_from("abcdef")),
        "damaged": st.sets(st.sampled_from("uvw")),
        "paused_at": st.sampled_from([None, 1, 2]),
        "forgets": st.booleans(),
    }
)


@given(st.lists(STEP, min_size=1, max_size=15))
def test_each_event_is_told_exactly_at_its_edge(steps: list[dict[str, Any]]) -> None:
    """The rules, written down a second time: what happened since the look before."""
    reader, results = Reader(), ["success", "success"]
    failing, here, rotten, paused = False, set[str](), set[str](), None
    reader.read(document(runs=history(*results)))
    for step in steps:
        expected = []
        for result in step["results"]:
            results.append(result)
            if result == "failed" and not failing:
                expected.append(FAILURE)
            elif result in {"success", "partial"} and failing:
                expected.append(RECOVERY)
            failing = result == "failed" or (failing and result == "paused")
        expected += [HELD] * bool(step["held"] - here) + [DAMAGED] * bool(step["damaged"] - rotten)
        expected += [PAUSED] * (step["paused_at"] != paused)
        here, rotten, paused = step["held"], step["damaged"], step["paused_at"]
        made = document(
            runs=history(*results)[:50],
            held=[held(key) for key in sorted(here)],
            damaged=[damage(path) for path in sorted(rotten)],
            paused_at=paused,
        )
        found = reader.read(made)
        assert [event.kind for event in found] == expected
        assert reader.read(made) == [], "told twice"
        if found:
            message = compose(found, "berlin")
            assert message.subject.isprintable()
            assert len(message.body) <= messages.BODY_LENGTH


# ---------------------------------------------------------------- words


def test_a_message_has_the_site_the_reason_what_to_do_and_the_page() -> None:
    found = Reader().read(
        document(runs=history("success", "failed"), held=[held("Jump host")], last_success=LAST.isoformat())
    )
    message = compose(found, "berlin", "https://berlin.example.com/_clr/")
    assert message.subject == ("berlin: sync failed: no connection to 192.0.2.7:2222. Is the line up? (and 1 more)")
    assert message.tone == "failure"
    assert message.body == (
        "berlin: sync failed: no connection to 192.0.2.7:2222. Is the line up?\n"
        "The sync that began at 2026-11-01T01:00:00+00:00 failed: no connection to 192.0.2.7:2222. Is the line up?\n"
        "What was published before is served on.\n"
        "To find the cause: clr doctor\n"
        "\n"
        "berlin: Jump host is held\n"
        "- Jump host: disk.vmdk is missing\n"
        "Mend them at the source; the next sync takes them. The other items go on.\n"
        "\n"
        "https://berlin.example.com/_clr/"
    )


def test_the_gravest_event_leads() -> None:
    message = compose([Event(kind, kind) for kind in KINDS], "berlin")
    assert message.subject == "berlin: failure (and 7 more)"
    assert [compose([Event(kind, kind)], "x").tone for kind in KINDS] == [
        "failure", "success", "warning", "success", "warning", "warning", "warning", "info",
    ]  # fmt: skip


def test_no_name_or_reason_can_call_people_link_elsewhere_or_break_a_line() -> None:
    made = document(
        site=EVIL,
        held=[held(EVIL, EVIL)],
        damaged=[damage(EVIL, EVIL, EVIL)],
        runs=[run(9, "failed", error=EVIL, mended=[damage(EVIL)]), *history("success")],
    )
    message = compose(Reader().read(made), EVIL)
    for text in (message.subject, *message.body.split("\n")):
        assert not any(steering in text for steering in ("@everyone", "<!channel", "](", "\x1b", "\u202e", "\r"))
        assert not text.startswith("fake")


@given(st.text(max_size=3000), st.integers(1, 200))
def test_a_text_from_elsewhere_is_bounded_and_printable(text: str, length: int) -> None:
    shown = messages.clip(text, length)
    assert len(shown.replace("\u2060", "")) <= length
    assert len(shown.splitlines()) <= 1


def test_nothing_is_lost_of_what_was_told_when_it_is_written_down_and_read(tmp_path: Path) -> None:
    told = Told("a", "b", True, True, ("c", "d"), ("e",), "f", "g", "h", 4)
    assert len(dataclasses.astuple(told)) == len({repr(value) for value in dataclasses.astuple(told)}) + 1
    memory = Memory(told, (Parcel("s", "b", "info", (0, 2), 3, NOW.isoformat()),))
    path = tmp_path / "told.json"
    path.write_bytes(_dump(memory))
    assert read(path) == memory
