"""The page of a site that really runs: `clr run`, a real server, and one page that is left open."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect
from support.browser import View, chromium
from support.server import free_port, wait_until
from support.site import CLR, Site, cli_environment, get, running
from support.templates import fake_template

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

PASSWORD = "a password for subscribers"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "primary"
    fake_template(folder / "alpha", disk_bytes=100_000)
    fake_template(folder / "beta & <i>", disk_bytes=100_000)
    (folder / "large.iso").write_bytes(os.urandom(4_000_000))
    return folder


def _clr(site: Site, *words: str, **environment: str) -> int:
    return subprocess.run([CLR, *words], env=cli_environment(site) | environment, capture_output=True).returncode


def _becomes(page: Page, word: str) -> None:
    """The page's own clock goes faster than ours, so that nobody waits for it to look again."""

    def shown() -> bool:
        page.clock.run_for(10_000)
        return page.locator("#word").inner_text() == word

    wait_until(shown, 60, f"the page to say: {word}")


def test_one_open_page_sees_all_that_happens_to_a_site(library: Path, site: Site, browser: Browser) -> None:
    address = f"http://127.0.0.1:{site.environment['HTTP_PORT']}/"
    password = {"LIBRARY_PASSWORD": PASSWORD, "SITE_NAME": "berlin", "LIBRARY_BROWSE": "true"}
    credentials = {"username": "vcsp", "password": PASSWORD}
    with running(site, SYNC_MAX_BW="150", **password), View(browser, http_credentials=credentials) as view:
        wait_until(lambda: get(site, "_clr/")[0] == 401, 60, "the web server")
        page = view.page
        page.goto(f"{address}_clr/")
        page.evaluate("window.sameAsBefore = true")
        assert "berlin" in page.locator("header").inner_text()
        expect(page.get_by_role("heading", name="Syncing")).to_be_visible(timeout=30_000)
        values = []

        def done() -> bool:
            values.append(page.evaluate("document.getElementById('bar')?.value ?? 100"))
            page.wait_for_timeout(300)
            return bool(values[-1] == 100)

        wait_until(done, 60, "the end of the first sync")
        assert values == sorted(values)
        assert len({value for value in values if 0 < value < 100}) > 1
        expect(page.get_by_role("heading", name="Up to date")).to_be_visible(timeout=30_000)
        assert page.locator("h1").inner_text() == "Test"
        assert page.locator("#url").inner_text() == f"{address}lib.json"
        names = page.locator("#items tbody th")
        assert names.all_inner_texts() == ["alpha", "beta & <i>", "large.iso"]

        page.clock.install()
        page.reload()
        page.evaluate("window.sameAsBefore = true")
        (library / "alpha" / "alpha-disk1.vmdk").write_bytes(b"not what the .mf says")
        fake_template(library / "gamma", disk_bytes=10_000)
        assert _clr(site, "sync") == 6
        _becomes(page, "Partly up to date")
        held = page.locator("#held li").inner_text()
        assert "alpha" in held
        assert "Version 1 stays published" in held
        assert names.all_inner_texts() == ["alpha", "beta & <i>", "gamma", "large.iso"]

        assert _clr(site, "sync", SYNC_PORT=str(free_port())) != 0
        _becomes(page, "Sync failed")
        assert "127.0.0.1" in page.locator("#state").inner_text()
        assert page.locator("#held li").count() == 1

        assert _clr(site, "rollback") == 0
        _becomes(page, "Paused")
        assert names.all_inner_texts() == ["alpha", "beta & <i>", "large.iso"]
        assert page.evaluate("window.sameAsBefore")
        assert view.complaints == []
        assert all(url.startswith(address) for url in view.requests)
