"""The log lines that README and reference show are what `clr run` says: a first sync, a second one, one that fails."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.examples import blocks, normalised
from support.server import Server, free_port, wait_until
from support.site import Site, running
from support.templates import TemplateMaker, sample_library

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
README, REFERENCE = ROOT / "README.md", ROOT / "docs/reference/log-lines.md"
END = "the next sync is due"


def syncs(site: Site, server: Server, change: Callable[[], None], form: str) -> Path:
    """Run a site through three syncs: everything, a change, a server that is away. Returns its log."""
    log = site.home / "run.log"
    log.unlink(missing_ok=True)

    def ended(number: int) -> bool:
        return log.read_text().count(END) == number

    with running(site, LOG_FORMAT=form) as process:
        wait_until(lambda: ended(1), 120, "the first sync")
        change()
        process.send_signal(signal.SIGUSR1)
        wait_until(lambda: ended(2), 120, "the second sync")
        server.stop()
        process.send_signal(signal.SIGUSR1)
        wait_until(lambda: ended(3), 120, "the third sync")
    return log


@pytest.fixture
def library(tmp_path: Path) -> Path:
    (tmp_path / "library").mkdir()
    return tmp_path / "library"


@pytest.fixture
def site(server: Server, tmp_path: Path) -> Iterator[Site]:
    yield Site(tmp_path / "site", server, HTTP_PORT=str(free_port()), HTTPS_PORT=str(free_port()), LIBRARY_NAME="Demo")


def test_the_examples_are_what_is_really_said(site: Site, server: Server, library: Path, tmp_path: Path) -> None:
    def change() -> None:
        sample_library(library, tmp_path / "cache", revision=1)
        TemplateMaker(tmp_path / "cache", megabytes=2).template(library / "Jump host", name="jump", flavour="jump")
        (library / "tools.iso").unlink()

    sample_library(library, tmp_path / "cache")
    site.environment["SYNC_MAX_BW"] = "1.5m"  # slow enough for a line of progress
    log = syncs(site, server, change, "text").read_text().splitlines()
    (shown,) = blocks(README)
    first = next(number for number, line in enumerate(log) if "sync starts" in line)
    second = next(number for number, line in enumerate(log) if "sync starts (hand)" in line)
    third = next(number for number, line in enumerate(log) if number > second and "sync starts (hand)" in line)
    stops = next(number for number, line in enumerate(log) if "SIGTERM: stopping" in line)
    assert normalised(shown) == normalised(log[first:third])
    start, change, away = blocks(REFERENCE)[:3]
    assert normalised(start) == normalised(log[:second])
    assert normalised(change) == normalised(log[second:third])
    assert normalised(away) == normalised(log[third:stops])
    assert any(re.search(r"\d+ % \(\S+ MB of \S+ MB\), \S+ MB/s, \d+ s left, ", line) for line in log)
    ids = [set(re.findall(r" \[([0-9a-f]{6})\] ", "\n".join(part))) for part in (log[:second], log[second:third])]
    assert [len(found) for found in ids] == [1, 1], "each run has one id, and all of its lines bear it"
    assert not ids[0] & ids[1]


def test_as_json_each_run_ends_in_one_line_with_all_its_numbers(site: Site, server: Server, library: Path) -> None:
    def change() -> None:
        (library / "a.iso").write_bytes(content[:-10] + b"0123456789")
        (library / "b.iso").unlink()
        (library / "d.iso").write_bytes(content[:1000])

    content = os.urandom(300_000)
    for name in "abc":
        (library / f"{name}.iso").write_bytes(content)
    site.environment["SITE_NAME"] = "berlin"
    events = [json.loads(line) for line in syncs(site, server, change, "json").read_text().splitlines()]
    assert {event["site"] for event in events} == {"berlin"}
    first, second, third = (event for event in events if "result" in event)
    history = {run["run"]: run for run in json.loads((site.library / "status.json").read_text())["runs"]}
    for event, message in ((first, "success: 3 added, "), (second, "success: 1 added, "), (third, "sync failed: ")):
        run = history[event["run"]]
        assert event["message"].startswith(message)
        assert event["result"] == run["result"]
        assert [event[name] for name in ("added", "updated", "removed")] == [
            len(run[name]) for name in ("added", "updated", "removed")
        ]
        for name in ("planned_bytes", "literal_bytes", "matched_bytes", "sent_bytes", "received_bytes", "seconds"):
            assert event[name] == run[name]
        assert (event["version"], event["generation"]) == (run["version"], run["generation"])
    assert second["saved_bytes"] > 250_000
    assert second["next_sync"].endswith("T21:00:00+00:00")
    about = {(event["item"], event["message"]) for event in events if event["run"] == second["run"] and "item" in event}
    assert about == {("d.iso", "d.iso: added"), ("a.iso", "a.iso: updated"), ("b.iso", "b.iso: removed")}
