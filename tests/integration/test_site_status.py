"""The status of a site that really runs: the same wherever it is read, live, honest after a kill, and as documented."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import threading
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from clr_client.integrity.damages import Damage, note
from clr_client.integrity.verification import verify
from clr_client.reporting import context
from clr_client.reporting.document import describe, dump
from clr_client.reporting.running import Running
from support import caddy
from support.documents import document
from support.server import wait_until
from support.site import CLR, Site, cli_environment, get, running
from support.templates import fake_template

if TYPE_CHECKING:
    from support.server import Server

PATIENCE = 200.0
"""Seconds that whatever is waited for may take on a machine that does much else."""
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "status.md"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "primary"
    for name in ("alpha", "beta"):
        fake_template(folder / name, disk_bytes=300_000)
    return folder


def told(site: Site, name: str = "status.json") -> dict[str, Any]:
    """What the running site tells; empty while it tells nothing."""
    status, body = get(site, f"_clr/{name}")
    found: dict[str, Any] = json.loads(body) if status == 200 else {}
    return found


def progress(site: Site) -> int:
    """Bytes that the running sync has brought, as the running site tells."""
    at_work = told(site, "progress.json").get("running") or {}
    return at_work.get("done_bytes") or 0


def by_command(site: Site) -> dict[str, Any]:
    done = subprocess.run([CLR, "status", "--json"], env=cli_environment(site), capture_output=True, check=True)
    assert not done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def lasting(found: dict[str, Any]) -> dict[str, Any]:
    """A document without what differs from second to second on a disk that others use, too."""
    assert isinstance(found["disk"]["free_bytes"], int)
    return {**found, "written": "", "disk": found["disk"]["total_bytes"]}


def grow(library: Path, name: str = "large", size: int = 12_000_000) -> None:
    (library / name).mkdir()
    (library / name / "disk.bin").write_bytes(os.urandom(size))


def spoil(library: Path) -> None:
    """Add a template that has to be held."""
    fake_template(library / "broken", disk_bytes=1000)
    next((library / "broken").glob("*.vmdk")).unlink()


# ---------------------------------------------------------------- the same everywhere


def test_the_site_and_the_command_tell_the_same_whether_or_not_the_daemon_runs(library: Path, site: Site) -> None:
    spoil(library)
    site.environment |= {"SITE_NAME": "Berlin <b>", "LIBRARY_BROWSE": "true", "VERIFY_SCHEDULE": "0 3 * * *"}
    with running(site):
        wait_until(lambda: told(site).get("state") == "partial", PATIENCE, "the first sync")
        served = told(site)
        assert lasting(served) == lasting(by_command(site))
        page = get(site, "_clr/")[1].decode()
        assert "Berlin &lt;b&gt;" in page
        for item in served["items"]:
            assert get(site, item["url"])[0] == 200
    assert get(site, "_clr/status.json")[0] == 0
    assert lasting(by_command(site)) == lasting(served)
    assert [item["name"] for item in served["items"]] == ["alpha", "beta"]
    assert [held["key"] for held in served["held"]] == ["broken"]
    assert served["runs"][0]["run"]
    words = subprocess.run([CLR, "status"], env=cli_environment(site), capture_output=True, text=True, check=True)
    lines = words.stdout.splitlines()
    assert lines[0] == "Berlin <b>: partial"
    assert any(line.startswith("disk: ") for line in lines)


# ---------------------------------------------------------------- live


def test_a_sync_of_another_process_is_seen_while_it_runs_and_a_killed_one_has_failed(library: Path, site: Site) -> None:
    with running(site):
        wait_until(lambda: told(site).get("state") == "success", PATIENCE, "the first sync")
        grow(library)
        with subprocess.Popen([CLR, "sync"], env=cli_environment(site) | {"SYNC_MAX_BW": "300k"}) as process:
            try:
                before = wait_until(lambda: progress(site), PATIENCE, "progress")
                wait_until(
                    lambda: (told(site)["running"] or {}).get("done_bytes"), PATIENCE, "progress in the document"
                )
                now = told(site)
                assert now["state"] == "syncing"
                shown = now["running"]
                assert (shown["trigger"], shown["total_bytes"]) == ("hand", 12_000_000)
                assert shown["stage"].startswith("fetching 1 files")
                assert 0 < shown["done_bytes"] < 12_000_000
                assert by_command(site)["running"]["run"] == shown["run"]
                wait_until(lambda: progress(site) > before, PATIENCE, "more progress")
            finally:
                process.kill()
        wait_until(lambda: told(site)["state"] == "failed", PATIENCE, "that it was killed")
        assert told(site)["running"] is None
        assert by_command(site)["state"] == "failed"
        assert told(site)["published"] is True
        done = subprocess.run([CLR, "sync"], env=cli_environment(site), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        wait_until(lambda: told(site)["state"] == "success", PATIENCE, "the end")
        assert told(site)["running"] is None
        assert not site.store.running.exists()
        assert len(told(site)["items"]) == 3
        assert told(site)["totals"]["runs"]["success"] == 2


def test_a_first_sync_shows_the_page_with_its_progress_and_subscribers_get_the_fields_of_the_protocol(
    library: Path, site: Site
) -> None:
    grow(library)
    with running(site, SYNC_MAX_BW="300k") as process:
        wait_until(lambda: progress(site), PATIENCE, "progress")
        status, page = get(site, "")
        assert (status, b"<html" in page) == (200, True)
        status, waiting = get(site, "lib.json")
        assert status == 503
        assert json.loads(waiting).keys() == {"status", "progress", "message"}
        assert told(site)["published"] is False
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert by_command(site)["running"] is None
    assert by_command(site)["state"] == "partial"


# ---------------------------------------------------------------- whole files


@pytest.mark.parametrize("name", caddy.PROGRAMS)
def test_a_reader_never_meets_half_a_file(tmp_path: Path, name: str) -> None:
    from clr_client.web.page import Page

    item = document()["items"][0]
    with caddy.web(tmp_path, caddy.program(name)) as web:
        page, done = Page(web.settings), threading.Event()
        page.tell(document(failures_in_row=1, items=[item]))
        wrong: list[str] = []
        seen: set[int] = set()

        def read() -> None:
            while not done.is_set():
                answer = web.ask("/_clr/status.json")
                try:
                    found = json.loads(answer.body)
                    seen.add(found["failures_in_row"])
                    if len(found["items"]) != found["failures_in_row"]:
                        wrong.append("a mixture")
                except ValueError as error:
                    wrong.append(f"{answer.status} {error}")

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        try:
            for number in range(80):
                count = 1 + number * 37 % 60
                page.tell(document(failures_in_row=count, items=[item] * count))
        finally:
            done.set()
            for reader in readers:
                reader.join()
        assert wrong == []
        assert len(seen) > 3


# ---------------------------------------------------------------- as documented


def documented() -> dict[str, str]:
    """The fields that the reference names, with their types."""
    rows = re.findall(r"^\| `([a-z0-9_.\[\]]+)` \| ([a-z ]+) \| \S", PAGE.read_text(), re.MULTILINE)
    assert len(rows) == len(dict(rows)), "a field is named twice"
    return dict(rows)


LISTS_OF = {"runs[].held": "held", "runs[].mended": "damaged", "runs[].damaged": "damaged"}
LISTS_OF |= {f"verification.{name}": "damaged" for name in ("found", "mended", "damaged")}


def flat(value: Any, path: str = "") -> dict[str, list[Any]]:
    """The values of a document by the path of their field."""
    found: dict[str, list[Any]] = {path: [value]} if path and not path.endswith("[]") else {}
    members: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        members = [(f"{path}.{name}" if path else name, member) for name, member in value.items()]
    elif isinstance(value, list) and path not in LISTS_OF:
        members = [(f"{path}[]", member) for member in value if isinstance(member, dict)]
    for below, member in members:
        for name, values in flat(member, below).items():
            found[name] = found.get(name, []) + values
    return found


def is_time(value: object) -> bool:
    return value == "" or (isinstance(value, str) and datetime.fromisoformat(value).utcoffset() is not None)


TYPES = {
    "number": lambda value: type(value) is int,
    "bytes": lambda value: type(value) is int and value >= 0,
    "seconds": lambda value: type(value) in {int, float},
    "boolean": lambda value: type(value) is bool,
    "text": lambda value: isinstance(value, str) and value.isprintable(),
    "label": lambda value: isinstance(value, str) and value.isprintable(),
    "time": is_time,
    "object": lambda value: isinstance(value, dict),
    "list": lambda value: isinstance(value, list),
}


def test_the_document_of_a_real_site_has_the_fields_that_are_documented_with_their_types(
    library: Path, server: Server, tmp_path: Path
) -> None:
    spoil(library)
    site = Site(tmp_path / "site", server, TLS_NAME="library.example.com", TLS_CUSTOM_CERT="true")
    caddy.make_pair(tmp_path / "site" / "certs")
    settings = site.settings(VERIFY_SCHEDULE="@daily", LIBRARY_BROWSE="true")
    before = [describe(settings)]
    site.sync()
    note(site.store, Damage("items/x/1/disk.vmdk", "is not what was published", "alpha"))
    asyncio.run(verify(settings, trigger="hand", repairing=False))
    site.store.keep_to(1, 0)
    store = site.store
    with (
        context.running() as run,
        store.locked("hand"),
        Running(store.running, run, "hand", site.document()["created"]) as at_work,
    ):
        at_work.transfer(5, 10, 1.0, "alpha/disk.vmdk")
        found = describe(settings)
    values = flat(json.loads(dump(found)))
    assert values.keys() == documented().keys()
    for early in before:
        values = {name: values[name] + flat(early).get(name, []) for name in values}
    for name, type_ in documented().items():
        fits, _, or_null = type_.partition(" or ")
        for value in values[name]:
            assert (value is None and or_null == "null") or TYPES[fits](value), f"{name}: {value!r} is no {type_}"
    assert flat(document()).keys() <= documented().keys()
