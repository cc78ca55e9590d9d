"""What people and machines are told: log lines, progress, status, and names that cannot harm a terminal."""

from __future__ import annotations

import contextvars
import dataclasses
import json
import logging
import os
import re
import subprocess
import sys
import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from clr_client.reporting import context, logs, overview, status, verdict
from clr_client.reporting.document import describe
from clr_client.reporting.progress import LogLines, Observer, Observers, ProgressFile
from clr_client.reporting.status import FAILED, PARTIAL, PAUSED, SUCCESS, Held, Report, Status
from clr_client.settings import load
from clr_client.text import printable, size, span
from clr_client.vcsp.checking import CheckReport
from clr_client.vcsp.reader import Thumbprints
from clr_client.vcsp.rules import Problem
from hypothesis import given
from hypothesis import strategies as st
from support.documents import damage, document, held, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BERLIN = ZoneInfo("Europe/Berlin")
EVIL = "a\nfake line\x1b[2J\x07\r\x9b\u202egnp.exe\u2028\udcff"


# ---------------------------------------------------------------- text


@pytest.mark.parametrize(
    "text", ["plain", "with space", "ünïcödé", "日本語", "emoji 👍🏽", "a\u00a0b", "e\u0301", "#%?'\""]
)
def test_what_people_write_in_names_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_what_steers_a_terminal_ends_a_line_or_is_not_utf_8_is_escaped() -> None:
    assert printable(EVIL) == r"a\x0afake line\x1b[2J\x07\x0d\x9b\u202egnp.exe\u2028\xff"


@given(st.text(st.characters(), max_size=60))
def test_printable_text_is_harmless_and_can_be_encoded(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in shown)
    shown.encode("utf-8")
    assert printable(shown) == shown


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_940, "999.9 kB"),
        (999_960, "1.0 MB"),
        (1_500_000_000, "1.5 GB"),
        (2e12, "2.0 TB"),
        (3e15, "3000.0 TB"),
    ],
)
def test_sizes_are_in_powers_of_1000(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_lengths_of_time_have_two_units(seconds: float, text: str) -> None:
    assert span(seconds) == text


# ---------------------------------------------------------------- log lines


@pytest.fixture
def restored() -> Iterator[None]:
    """Put logging back as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    root.handlers = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level = handlers, level


class Pipe:
    """A stream whose other end the test reads."""

    def __init__(self) -> None:
        self.reader, writer = os.pipe()
        self.stream = os.fdopen(writer, "w")

    def lines(self) -> list[str]:
        for handler in logging.getLogger().handlers:
            handler.close()
        self.stream.close()
        with os.fdopen(self.reader, encoding="utf-8") as reader:
            return reader.read().splitlines()


@pytest.fixture
def pipe(restored: None) -> Pipe:
    return Pipe()


def test_a_line_has_local_time_with_offset_its_level_when_it_matters_and_its_text(pipe: Pipe) -> None:
    logs.configure(BERLIN, stream=pipe.stream)
    logging.getLogger("clr.sync").info("published %s", "generation 1")
    logging.getLogger("clr.sync").warning("held")
    logging.getLogger("clr.sync").debug("not shown")
    first, second = pipe.lines()
    time, _, text = first.partition(" ")
    assert text == "published generation 1"
    assert time.endswith(("+01:00", "+02:00"))
    assert second.partition(" ")[2] == "warning: held"


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_name_can_forge_a_line_or_steer_a_terminal(pipe: Pipe, form: str) -> None:
    logs.configure(BERLIN, form=form, stream=pipe.stream)
    logging.getLogger("clr.sync").info("%s is held", EVIL)
    try:
        raise ValueError(EVIL)
    except ValueError:
        logging.getLogger("clr.sync").exception("defect")
    lines = pipe.lines()
    assert not any(set(line) & set("\x1b\x07\r\x9b\u202e\u2028") for line in lines)
    assert all(line.startswith(("20", "  ", "{")) for line in lines)
    assert r"a\x0afake line\x1b[2J" in (json.loads(lines[0])["message"] if form == "json" else lines[0])


def test_json_lines_have_time_level_logger_and_message(pipe: Pipe) -> None:
    logs.configure(ZoneInfo("UTC"), form="json", level="warning", stream=pipe.stream)
    logging.getLogger("clr.x").info("not shown")
    logging.getLogger("clr.x").error("ünï")
    try:
        raise KeyError("k")
    except KeyError:
        logging.getLogger("clr.x").exception("it broke")
    first, second = (json.loads(line) for line in pipe.lines())
    assert (first["level"], first["logger"], first["message"]) == ("error", "clr.x", "ünï")
    assert first["time"].endswith("+00:00")
    assert "KeyError" in second["traceback"]


def test_lines_of_a_run_bear_its_id_and_lines_of_a_named_site_its_name(pipe: Pipe) -> None:
    logs.configure(BERLIN, stream=pipe.stream, site="berlin")
    logging.getLogger("clr").info("before")
    with context.running() as run:
        logging.getLogger("clr").warning("within")
        thread = threading.Thread(target=contextvars.copy_context().run, args=(logging.getLogger("clr").info, "beside"))
        thread.start()
        thread.join()
    logging.getLogger("clr").info("after")
    shown = [line.partition(" ")[2] for line in pipe.lines()]
    assert shown == [
        "berlin before",
        f"berlin [{run[-6:]}] warning: within",
        f"berlin [{run[-6:]}] beside",
        "berlin after",
    ]


def test_json_lines_have_site_run_item_and_numbers(pipe: Pipe) -> None:
    logs.configure(BERLIN, form="json", stream=pipe.stream, site="berlin")
    with context.running() as run:
        logging.getLogger("clr").warning("%s is held", EVIL, extra=context.about(item=EVIL, bytes=5))
    logging.getLogger("clr").info("after")
    within, after = (json.loads(line) for line in pipe.lines())
    assert (within["site"], within["run"], within["bytes"]) == ("berlin", run, 5)
    assert within["item"] == printable(EVIL)
    assert (after["site"], after["run"]) == ("berlin", "")
    assert "item" not in after


LINE = re.compile(r"\S+ berlin (?:\[(?P<run>[0-9a-f]{6})\] )?(?:(?P<level>warning|error|debug): )?(?P<text>.*)")
PRETENDED = st.sampled_from(["[abcdef] ", "error: ", "Warning: ", "[abcdef] error: ", "[] ", "[::1]:22: "])


@given(
    st.sampled_from(["INFO", "WARNING", "ERROR"]), st.booleans(), st.builds("".join, st.lists(PRETENDED | st.text()))
)
def test_no_text_can_pass_for_what_stands_before_it(level: str, is_run: bool, text: str) -> None:
    record = logging.LogRecord("clr", getattr(logging, level), "", 0, "%s", (text,), None)
    with context.running() if is_run else nullcontext("") as run:
        found = LINE.fullmatch(logs._Lines(BERLIN, "berlin").format(record))
    assert found
    assert (found["run"] or "") == run[-6:]
    assert (found["level"] or "info") == level.lower()
    assert found["text"][:1] in {printable(text)[:1], "\\"}


def test_a_reader_that_stands_still_stops_nobody(restored: None) -> None:
    pipe = Pipe()
    logs.configure(BERLIN, stream=pipe.stream)
    done = threading.Event()

    def shout() -> None:
        for number in range(logs.WAITING_LINES + 5000):
            logging.getLogger("clr.sync").info("line %d %s", number, "x" * 100)
        done.set()

    threading.Thread(target=shout, daemon=True).start()
    assert done.wait(60)
    found: list[str] = []

    def catch_up() -> None:
        with os.fdopen(pipe.reader, encoding="utf-8") as reader:
            found.extend(reader)

    catching_up = threading.Thread(target=catch_up)
    catching_up.start()
    for handler in logging.getLogger().handlers:
        handler.close()
    pipe.stream.close()
    catching_up.join(60)
    assert logs.WAITING_LINES <= len(found) < logs.WAITING_LINES + 5000


def test_a_reader_that_is_gone_ends_nothing_and_the_exit_code_stays() -> None:
    text = (
        "import logging, sys; from zoneinfo import ZoneInfo; from clr_client.reporting import logs\n"
        "logs.configure(ZoneInfo('UTC'))\n"
        "sys.stdin.readline()\n"
        "for number in range(1000): logging.getLogger('clr').info('line %d', number)\n"
        "sys.exit(7)\n"
    )
    with subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, errors = process.communicate(b"go\n", timeout=60)
        assert process.returncode == 7
        assert errors is None


def test_lines_that_were_logged_last_are_written_before_the_process_ends() -> None:
    text = (
        "import logging; from zoneinfo import ZoneInfo; from clr_client.reporting import logs\n"
        "logs.configure(ZoneInfo('UTC'))\n"
        "for number in range(500): logging.getLogger('clr').info('line %d', number)\n"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1].endswith("line 499")
    assert len(done.stdout.splitlines()) == 500
    assert done.stderr == ""


# ---------------------------------------------------------------- progress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_line_every_few_seconds_says_how_far_how_fast_and_how_long_still(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    clock = Clock()
    lines = LogLines(every=10, clock=clock)
    lines.stage("fetching")
    for second in range(1, 26):
        clock.now = 1000.0 + second
        lines.transfer(second * 1_000_000, 100_000_000, 1_000_000.0, "web/disk.vmdk")
    assert [record.getMessage() for record in caplog.records] == [
        "fetching",
        "10 % (10.0 MB of 100.0 MB), 1.0 MB/s, 1 min 30 s left, web/disk.vmdk",
        "20 % (20.0 MB of 100.0 MB), 1.0 MB/s, 1 min 20 s left, web/disk.vmdk",
    ]


@pytest.mark.parametrize(
    ("done", "total", "rate", "text"),
    [
        (0, 0, 0.0, "100 % (0 B of 0 B), 0 B/s"),
        (5, 10, 0.0, "50 % (5 B of 10 B), 0 B/s"),
        (20, 10, 5.0, "100 % (20 B of 10 B), 5 B/s"),
    ],
)
def test_a_line_without_rate_or_end_promises_no_time(
    caplog: pytest.LogCaptureFixture, done: int, total: int, rate: float, text: str
) -> None:
    caplog.set_level("INFO")
    LogLines(every=0).transfer(done, total, rate, None)
    assert caplog.records[-1].getMessage() == text


def test_all_observers_are_told() -> None:
    told: list[tuple[Any, ...]] = []

    class Spy(Observer):
        def stage(self, text: str) -> None:
            told.append(("stage", text))

        def transfer(self, done: int, total: int, rate: float, file: str | None) -> None:
            told.append(("transfer", done, total, rate, file))

        def finish(self, failure: str = "") -> None:
            told.append(("finish", failure))

    both = Observers(Spy(), Observer(), Spy())
    both.stage("x")
    both.transfer(1, 2, 3.0, "f")
    both.finish("why")
    assert told == [event for event in (("stage", "x"), ("transfer", 1, 2, 3.0, "f"), ("finish", "why")) for _ in "12"]


def body(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def test_subscribers_get_true_progress_while_nothing_was_ever_published(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    clock = Clock()
    file = ProgressFile(path, clock)
    assert body(path) == {"status": "TRANSFERRING", "progress": 0, "message": ""}
    file.transfer(500, 1000, 1.0, "x")
    assert body(path)["progress"] == 50
    clock.now += 0.5
    file.transfer(700, 1000, 1.0, "x")
    assert body(path)["progress"] == 50
    clock.now += 1
    file.transfer(1000, 1000, 1.0, "x")
    assert body(path)["progress"] == 99
    file.stage("verifying")
    assert body(path) == {"status": "TRANSFERRING", "progress": 99, "message": ""}
    clock.now += 1
    file.transfer(0, 0, 0.0, None)
    assert body(path)["progress"] == 0


def test_a_message_means_failure_and_only_then_is_there_one(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    file = ProgressFile(path)
    file.finish(f"the server {EVIL}")
    assert body(path)["status"] == "FAILED"
    assert "the server" in body(path)["message"]
    assert path.read_bytes().isascii()
    file.finish()
    assert body(path)["message"] == ""
    assert [entry.name for entry in tmp_path.iterdir()] == ["progress.json"]


def test_a_full_volume_costs_the_progress_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    file = ProgressFile(tmp_path / "missing" / "progress.json", clock)
    for _ in range(5):
        clock.now += 2
        file.transfer(1, 2, 1.0, None)
    assert len(caplog.records) == 1


# ---------------------------------------------------------------- status


def report(result: str = SUCCESS, **fields: Any) -> Report:
    return Report(
        trigger="schedule",
        started="2026-11-21T20:00:00+00:00",
        ended="2026-11-21T20:05:00+00:00",
        result=result,
        **fields,
    )


LIBRARY = {"name": "L", "id": "urn:uuid:x", "version": 7, "generation": 4, "items": 2, "bytes": 5_000_000}


def test_a_run_in_one_line() -> None:
    done = report(
        added=("a", "b"), updated=("c",), held=(Held("d", "why"),), sent_bytes=400, received_bytes=600,
        planned_bytes=5_000_000, literal_bytes=2_000_000, matched_bytes=3_000_000, version=7, seconds=75.0,
    )  # fmt: skip
    assert done.summary == (
        "success: 2 added, 1 updated, 0 removed, 1 held; 1.0 kB crossed the line for 5.0 MB of changed files"
        " (2.0 MB new, 3.0 MB saved); library version 7; 1 min 15 s"
    )
    assert done.facts == {
        "result": "success",
        "error": "",
        "trigger": "schedule",
        "peer": "",
        "generation": None,
        "version": 7,
        "added": 2,
        "updated": 1,
        "removed": 0,
        "held": 1,
        "went_back": 0,
        "mended": 0,
        "damaged": 0,
        "planned_bytes": 5_000_000,
        "literal_bytes": 2_000_000,
        "matched_bytes": 3_000_000,
        "saved_bytes": 3_000_000,
        "sent_bytes": 400,
        "received_bytes": 600,
        "seconds": 75.0,
    }
    assert report(PARTIAL, error="the line dropped").summary.endswith("nothing published yet; 0 s (the line dropped)")
    assert report(PAUSED, error="rolled back").summary == "paused: rolled back"
    assert "; no file had to be fetched; " in report(version=7).summary
    assert "; the transfer of 5.0 MB of changed files was cut; " in report(PARTIAL, planned_bytes=5_000_000).summary


def test_the_history_is_newest_first_and_bounded() -> None:
    found = Status()
    for number in range(60):
        found = found.after(report(version=number + 1, added=(str(number),)), LIBRARY)
    assert len(found.runs) == 50
    assert found.runs[0]["added"] == ("59",)
    assert found.published
    assert found.library == LIBRARY


def test_failures_are_counted_until_a_run_does_not_fail_and_what_is_held_stays_told() -> None:
    held = (Held("a", "broken", 3),)
    found = Status().after(report(PARTIAL, held=held, version=1), LIBRARY)
    assert found.last_success == ""
    for count in (1, 2, 3):
        found = found.after(report(FAILED, error="x"), LIBRARY)
        assert found.failures_in_row == count
    for result in (PAUSED, PARTIAL):
        assert found.after(report(result, error="stopped"), LIBRARY).held == found.held
    assert found.held == (dataclasses.asdict(held[0]),)
    found = found.after(report(version=2), LIBRARY)
    assert (found.failures_in_row, found.held) == (0, ())
    assert found.last_success == "2026-11-21T20:05:00+00:00"


def test_nothing_published_is_told_as_that() -> None:
    found = Status(published=True, library=LIBRARY).after(report(FAILED), None)
    assert (found.published, found.library) == (False, {})


def test_the_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    found = Status().after(report(held=(Held(EVIL, EVIL, 3),), version=1, error=EVIL), LIBRARY)
    path.write_bytes(status.dump(found))
    again = status.load(path)
    assert status.dump(again) == status.dump(found)
    assert again.held[0]["serves"] == 3
    document = json.loads(path.read_bytes())
    assert document["schema"] == 1
    assert set(document) == {field.name for field in dataclasses.fields(Status)}


DAMAGED = [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b'"text"', b"5", b"[" * 100_000, b'{"runs": 5}', b'{"held": [1, {}]}',
    b'{"runs": [{}, 5, {"started": 1, "trigger": 2, "result": "failed", "error": 3, "summary": 4}]}',
    b'{"library": [1]}', b'{"published": true, "library": {"bytes": "many", "name": "\\u001b[2J"}}',
    b'{"failures_in_row": "x"}', b'{"failures_in_row": null, "runs": {}}', b'{"published": true}',
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_status_file_costs_history_only(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "status.json"
    path.write_bytes(content)
    found = status.load(path)
    after = found.after(report(version=1), LIBRARY)
    assert after.runs[0]["result"] == "success"
    settings = load({"CLR_LIBRARY_DIR": str(tmp_path)})[0]
    told = describe(settings)
    text = overview.as_text(told, settings.tz)
    assert "next: " in text
    assert "\x1b" not in text
    assert all(entry.keys() == run().keys() for entry in told["runs"])
    assert told["totals"].keys() == document()["totals"].keys()


def test_a_missing_status_file_is_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert status.load(tmp_path / "status.json") == Status()
    assert caplog.records == []


def test_the_overview_tells_how_the_site_is_what_is_held_and_why_the_last_runs_and_what_comes_next() -> None:
    failed = run(9, "failed", error="no line")
    told = document(
        state="failed",
        held=[held("web", "no disk", 3), held("new", "no ovf")],
        damaged=[damage("items/x/1/disk.vmdk", hindrance="no server has it")],
        verification={"ended": "2026-11-21T20:00:00+00:00", "summary": "1.0 GB read in 5 s; 1 found damaged"},
        runs=[failed, *(run(number) for number in range(8, 0, -1))],
        certificate={"kind": "own", "not_after": "2027-01-31T12:00:00+00:00", "sha256": "AB:CD", "sha1": "EF"},
        next_verification="2026-12-01T03:00:00+00:00",
    )
    lines = overview.as_text(told, ZoneInfo("Europe/Berlin"), (2, 3, 4)).splitlines()
    assert lines[:7] == [
        "berlin: failed",
        "Library: version 41, generation 41, 3 items, 20.2 MB",
        "generations kept: 2, 3, 4",
        "held: web: no disk (version 3 stays published)",
        "held: new: no ovf",
        "damaged: items/x/1/disk.vmdk: is not what was published; no server has it",
        "verified 2026-11-21 21:00: 1.0 GB read in 5 s; 1 found damaged",
    ]
    assert lines[7] == "2026-11-01 10:00 (schedule) failed: no line"
    assert lines[8].startswith("2026-11-01 09:00 (schedule) success: ")
    assert lines[7 + overview.SHOWN_RUNS :] == [
        "next: Sun 2026-11-22 06:00 CET",
        "next verification: Tue 2026-12-01 04:00 CET",
        "certificate: own, until 2027-01-31 13:00, SHA-256 AB:CD",
        "disk: 800.0 GB of 1.0 TB free",
    ]


def test_the_overview_says_what_is_at_work_or_that_syncs_are_paused() -> None:
    at_work = {
        "run": "x",
        "trigger": "hand",
        "since": "21:00",
        "stage": "fetching",
        "file": "a/b.vmdk",
        "done_bytes": 500_000,
        "total_bytes": 2_000_000,
        "rate": 250_000,
        "left_seconds": 90,
    }
    lines = overview.as_text(document(state="syncing", running=at_work), ZoneInfo("UTC")).splitlines()
    assert lines[2] == ("running since 21:00 (hand): fetching; 25 % (500.0 kB of 2.0 MB), 250.0 kB/s, 1 min 30 s left")
    lines = overview.as_text(document(), ZoneInfo("UTC"), (), "21:00 (rollback)").splitlines()
    assert lines[2] == "running since 21:00 (rollback)"
    paused = overview.as_text(document(state="paused", paused_at=3), ZoneInfo("UTC")).splitlines()
    assert paused[2] == "syncs are paused at generation 3; clr rollback --release ends that"


# ---------------------------------------------------------------- verdict


def check_report(**changes: Any) -> CheckReport:
    return dataclasses.replace(
        CheckReport(
            "http://x/lib.json", "SUCCESS", "Golden", "urn:uuid:x", 7, 2, 5, 6_000_000, (), None, "govc library.create"
        ),
        **changes,
    )


def test_the_verdict_comes_last_and_the_thumbprints_of_http_are_said_to_be_none() -> None:
    lines = verdict.text(check_report()).splitlines()
    assert lines[0] == "http://x/lib.json: SUCCESS"
    assert lines[1] == "Golden, version 7: 2 items, 5 files, 6.0 MB"
    assert lines[-2:] == ["subscribe: govc library.create", "vSphere can subscribe to it"]
    assert verdict.thumbprints(check_report()) == "no certificate: the library is served over HTTP"


def test_a_problem_turns_the_verdict_and_is_harmless_to_the_terminal() -> None:
    text = verdict.text(check_report(problems=(Problem("error", EVIL, EVIL),), thumbprints=Thumbprints("AA", "BB")))
    assert "vSphere would refuse it" in text.splitlines()[-1]
    assert not set(text) & set("\x1b\x07\r\x9b\u202e\u2028")
    assert "SHA-1 thumbprint: " in text
