"""Pictures of the site page for the documentation: ``python -m support.screenshots`` (make screenshots).

Each is taken by a real Chromium from a real Caddy, of a site from showcase.py, as it is at the time that the site has.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from clr_client.web.page import Page

from support.browser import View, chromium
from support.caddy import web
from support.showcase import NOW, showcase

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route

IMAGES = Path(__file__).parents[2] / "docs" / "images"
ADDRESS = "http://library.berlin.example.com/"
WIDE, PHONE = {"width": 1120, "height": 1000}, {"width": 375, "height": 812}
PICTURES = {
    "healthy": ("healthy", "light", WIDE),
    "healthy-dark": ("healthy", "dark", WIDE),
    "first-sync": ("first-sync", "light", WIDE),
    "first-sync-dark": ("first-sync", "dark", WIDE),
    "held": ("held", "light", WIDE),
    "failed": ("failed", "light", WIDE),
    "failed-dark": ("failed", "dark", WIDE),
    "empty": ("empty", "light", WIDE),
    "phone": ("healthy", "light", PHONE),
    "phone-dark": ("syncing", "dark", PHONE),
}


def take(folder: Path, names: list[str], *, whole: bool = False) -> None:
    """Take pictures into ``folder``; ``whole`` pages, or as much as is seen at once."""
    program = shutil.which("caddy") or sys.exit("caddy is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="clr") as home, chromium() as browser:
        for name in names:
            state, scheme, size = PICTURES[name]
            with web(Path(home) / name, program, LIBRARY_BROWSE="true") as site:
                Page(site.settings).tell(showcase(state))
                _take(browser, site.http, folder / f"{name}.png", scheme, size, whole)


def _take(browser: Browser, port: int, picture: Path, scheme: str, size: dict[str, int], whole: bool) -> None:
    def ask(route: Route) -> None:
        """The site's name is not this machine's, and its port is another each time."""
        route.fulfill(response=route.fetch(url=route.request.url.replace(ADDRESS, f"http://127.0.0.1:{port}/")))

    with View(browser, color_scheme=scheme, viewport=size, reduced_motion="reduce") as view:
        view.context.route(f"{ADDRESS}**", ask)
        view.page.clock.set_fixed_time(NOW)
        view.page.goto(f"{ADDRESS}_clr/")
        view.page.screenshot(path=picture, full_page=whole)
    print(f"{picture.name}: {picture.stat().st_size // 1000} kB")


if __name__ == "__main__":
    take(IMAGES, sys.argv[1:] or list(PICTURES))
