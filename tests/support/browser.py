"""A real browser that looks at real pages: Chromium, driven by playwright, with a new and empty profile."""

from __future__ import annotations

import contextlib
import os
import shutil
from importlib import resources
from typing import TYPE_CHECKING, Any

from playwright.sync_api import expect, sync_playwright

from support.caddy import missing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

AXE = resources.files("axe_playwright_python").joinpath("axe.min.js")
HOST = "library.example.com"
"""A name for this machine that only the browser knows; other than for loopback, plain HTTP to it is not trusted."""
QUIET = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
STILL = ("--disable-component-update", "--disable-sync", f"--host-resolver-rules=MAP {HOST} 127.0.0.1")
expect.set_options(timeout=30_000)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run the system's Chromium; the test is skipped where there is none."""
    program = shutil.which("chromium")
    if program is None:
        missing("chromium is not installed")
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*QUIET, *STILL, *as_root])
        try:
            yield browser
        finally:
            browser.close()


class View:
    """A page in a profile of its own. Whatever it asks for, complains about or sends elsewhere is written down."""

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.context = browser.new_context(**{"locale": "en-GB", "timezone_id": "Europe/Berlin", **options})
        self.page: Page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def violations(self) -> list[str]:
        """What axe-core has against the page as it is now. It needs a context with ``bypass_csp``."""
        self.page.add_script_tag(content=AXE.read_text(encoding="utf-8"))
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        assert found["passes"]
        return [
            f"{violation['id']}: {violation['help']}: {node['html']} {node['failureSummary']}"
            for violation in found["violations"]
            for node in violation["nodes"]
        ]
