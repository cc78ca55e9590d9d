"""The site page as people see it: a real Chromium reads it from a real Caddy, in every state of a site."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from clr_client.web.page import Page as Writer
from playwright.sync_api import expect
from support import caddy, documents
from support.browser import HOST, View, chromium
from support.server import wait_until
from support.showcase import HELD, SITES, showcase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page
    from support.caddy import Web

WORDS = {
    "never": "Never synced",
    "syncing": "Syncing",
    "success": "Up to date",
    "partial": "Partly up to date",
    "failed": "Sync failed",
    "paused": "Paused",
}
PHONE = {"width": 320, "height": 640}
LONG = "a-very-long-name-without-any-space-" * 8
HOSTILE = [
    "<script>fetch('http://evil.example/')</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><svg onload=alert(1)>",
    "{{ 7*7 }} {% raw %} ${7*7}",
    "</td></table></main><h1>gone",
    "javascript:alert(1)",
    "\\\\evil.example\\share",
    "//evil.example/x",
    "إصدار عربي من القالب",
    "evil\\u202egnp.exe",
    "&amp;lt; &#x3c; %3Cscript%3E",
    "]]><!-- -->",
    LONG,
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


class Shown:
    """A site's web server, and what its page is told."""

    def __init__(self, web: Web) -> None:
        self.web = web
        self.tell = Writer(web.settings).tell
        self.url = f"http://127.0.0.1:{web.http}/_clr/"


@contextmanager
def _serving(**environment: str) -> Iterator[Shown]:
    with (
        TemporaryDirectory(prefix="clr") as home,
        caddy.web(Path(home), caddy.program("debian-12"), **environment) as web,
    ):
        yield Shown(web)


@pytest.fixture(scope="module")
def site() -> Iterator[Shown]:
    with _serving() as shown:
        yield shown


@pytest.fixture(scope="module")
def browsed() -> Iterator[Shown]:
    """A site whose folders can be listed."""
    with _serving(LIBRARY_BROWSE="true") as shown:
        shown.web.publish(1, {"disk.vmdk": b"disk", f"{LONG[:200]}.vmdk": b"disk"})
        shown.tell(showcase("healthy"))
        yield shown


def _open(view: View, site: Shown, document: dict[str, Any]) -> Page:
    site.tell(document)
    view.page.goto(site.url)
    return view.page


def _is_well_behaved(view: View, site: Shown) -> None:
    """Nothing was refused by the policy, nothing went wrong, and no other host was asked for anything."""
    assert view.complaints == []
    assert view.requests
    assert [url for url in view.requests if not url.startswith(site.url.removesuffix("_clr/"))] == []


def _width(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth"))


@pytest.mark.parametrize("name", SITES)
def test_each_state_is_told_in_words_with_what_is_to_know(browser: Browser, site: Shown, name: str) -> None:
    document = showcase(name)
    with View(browser) as view:
        page = _open(view, site, document)
        word = WORDS[document["state"]]
        expect(page.get_by_role("heading", name=word, exact=True)).to_be_visible()
        assert page.title().startswith(word)
        state = page.locator("#state")
        assert state.locator("svg").count() == 1
        assert len(state.locator("p").first.inner_text()) > 20
        rows = page.locator("#items tbody tr")
        assert rows.count() == len(document["items"])
        for row, item in zip(rows.all()[:2], document["items"], strict=False):
            cells = row.locator("th, td").all_inner_texts()
            assert cells[0] == item["name"]
            assert cells[1] in {"OVF template", "ISO image"}
            assert cells[3] == str(item["version"])
        assert page.locator("#held li").count() == len(document["held"])
        assert page.locator("#damaged li").count() == len(document["damaged"])
        assert page.get_by_role("progressbar").count() == (1 if document["running"] else 0)
        _is_well_behaved(view, site)


def test_held_items_say_why_and_which_version_stays(browser: Browser, site: Shown) -> None:
    with View(browser) as view:
        page = _open(view, site, showcase("held"))
        texts = page.locator("#held li").all_inner_texts()
        for text, held in zip(texts, HELD, strict=True):
            assert held["key"] in text
            assert held["reason"] in text
        assert "No version of it is published" in texts[0]
        assert "Version 7 stays published" in texts[1]


def test_a_failure_says_its_reason_its_remedy_and_that_the_library_stays(browser: Browser, site: Shown) -> None:
    document = showcase("failed")
    with View(browser) as view:
        told = _open(view, site, document).locator("#state").inner_text()
    assert document["runs"][0]["error"] in told
    assert "stays published" in told
    assert "3 syncs in a row" in told


def test_progress_moves_without_a_reload_and_becomes_success(browser: Browser, site: Shown) -> None:
    document = showcase("syncing")
    with View(browser) as view:
        page = _open(view, site, document)
        page.evaluate("window.sameAsBefore = true")
        bar = page.get_by_role("progressbar")
        expect(bar).to_have_accessible_name("transferring 92 files")
        expect(bar).to_have_js_property("value", 39)
        document["running"] |= {"done_bytes": document["running"]["total_bytes"] * 3 // 4, "left_seconds": 4000}
        site.tell(document)
        expect(page.locator("#percent")).to_have_text(re.compile("7[45] %"), timeout=20_000)
        expect(page.locator("#left")).to_have_text("1 h 6 min left")
        expect(page.locator("#news")).to_have_text("transferring 92 files: 70 %")
        site.tell(showcase("healthy"))
        expect(page.get_by_role("heading", name="Up to date")).to_be_visible(timeout=20_000)
        expect(bar).to_have_count(0)
        assert page.title().startswith("Up to date")
        expect(page.locator("#news")).to_have_text(re.compile("Up to date"))
        assert page.evaluate("window.sameAsBefore")
        _is_well_behaved(view, site)


def test_a_page_left_open_follows_the_site(browser: Browser, site: Shown) -> None:
    """A sync begins, ends so soon that nobody saw it running, and something else changes without a sync."""
    many = [
        {**item, "name": f"{item['name']} {number}"} for number in range(2) for item in showcase("healthy")["items"]
    ]
    document = {**showcase("healthy"), "items": many}
    with View(browser) as view:
        view.page.clock.install()
        page = _open(view, site, document)
        page.get_by_label("Filter by name").fill("debian")
        page.get_by_text("As a table").click()
        page.clock.run_for(11_000)
        site.tell({**document, "items": many[:-1], "runs": [documents.run(950), *document["runs"]]})
        page.clock.run_for(11_000)
        expect(page.get_by_role("status").filter(has_text="6 of")).to_have_text("6 of 59")
        expect(page.get_by_label("Filter by name")).to_have_value("debian")
        assert page.locator("details").get_attribute("open") is not None
        site.tell({**document, "state": "syncing", "running": showcase("syncing")["running"]})
        page.clock.run_for(11_000)
        expect(page.get_by_role("progressbar")).to_be_visible()
        _is_well_behaved(view, site)


def test_a_page_that_lost_its_site_says_so(browser: Browser) -> None:
    with _serving() as lost, View(browser) as view:
        view.page.clock.install()
        page = _open(view, lost, showcase("healthy"))
        view.context.set_offline(True)
        page.clock.run_for(11_000)
        expect(page.locator("#news")).to_have_text(re.compile("lost its site"))
        view.context.set_offline(False)
        page.clock.run_for(11_000)
        expect(page.locator("#zone")).not_to_have_text(re.compile("lost"))


@pytest.mark.parametrize("host", ["127.0.0.1", HOST])
def test_copy_button_copies_the_address_also_over_plain_http(browser: Browser, site: Shown, host: str) -> None:
    """Browsers have a clipboard for scripts only where they trust the connection; the name here they do not."""
    document = showcase("healthy")
    document["library"]["url"] = None
    with View(browser, permissions=["clipboard-read", "clipboard-write"]) as view:
        site.tell(document)
        origin = f"http://{host}:{site.web.http}"
        page = view.page
        page.goto(f"{origin}/")
        assert page.evaluate("isSecureContext") == (host == "127.0.0.1")
        button = page.get_by_role("button", name="Copy subscription URL")
        button.focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Copied subscription URL")).to_be_visible()
        page.goto(site.url)
        page.bring_to_front()
        assert page.evaluate("navigator.clipboard.readText()") == f"{origin}/lib.json"
        assert view.complaints == []


def test_address_that_the_site_knows_is_shown_as_it_is(browser: Browser, site: Shown) -> None:
    with View(browser) as view:
        page = _open(view, site, showcase("healthy"))
        assert page.locator("#url").inner_text() == "https://library.berlin.example.com/lib.json"
        assert page.locator("#sha1").inner_text() == showcase("healthy")["certificate"]["sha1"]


def test_times_are_the_readers_own(browser: Browser, site: Shown) -> None:
    document = {**showcase("healthy"), "next_sync": "2027-07-01T23:30:00+00:00"}
    with View(browser, timezone_id="Europe/Berlin") as view:
        page = _open(view, site, document)
        time = page.locator("time[datetime='2027-07-01T23:30:00+00:00']")
        assert time.inner_text() == "2027-07-02 01:30"
        assert time.get_attribute("title") == "2027-07-01 23:30 UTC"
        assert "Europe/Berlin" in page.locator("#zone").inner_text()


@pytest.mark.parametrize("name", ["first-sync", "held", "empty"])
def test_everything_can_be_read_without_javascript(browser: Browser, site: Shown, name: str) -> None:
    document = showcase(name)
    with View(browser, java_script_enabled=False) as view:
        page = _open(view, site, document)
        text = page.locator("body").inner_text()
        assert WORDS[document["state"]] in text
        address = document["library"].get("url") or "http://<this host>/lib.json"
        for known in (
            address,
            "2026-11-23 01:00 UTC",
            (document["certificate"] or {}).get("sha1", ""),
            "Times are UTC",
        ):
            assert known in text
        for item in [*document["items"], *({"name": held["key"]} for held in document["held"])]:
            assert item["name"] in text
        assert page.get_by_role("button").count() == 0
        if document["running"]:
            assert page.get_by_role("progressbar").get_attribute("value") == "39"
            assert "39 %" in text
            assert page.locator("head meta[http-equiv=refresh]").get_attribute("content") == "5"
        else:
            assert page.locator("meta[http-equiv=refresh]").count() == 0
        _is_well_behaved(view, site)


def test_without_javascript_a_running_sync_is_seen_to_end(browser: Browser, site: Shown) -> None:
    with View(browser, java_script_enabled=False) as view:
        page = _open(view, site, showcase("syncing"))
        site.tell(showcase("healthy"))
        expect(page.get_by_role("heading", name="Up to date")).to_be_visible(timeout=30_000)


@pytest.mark.parametrize("name", SITES)
def test_nothing_is_wider_than_a_small_phone(browser: Browser, site: Shown, name: str) -> None:
    document = showcase(name)
    document["items"] = [*document["items"][:3], *documents.document()["items"]]
    document["items"][0] |= {"name": LONG, "bytes": 999_900_000_000_000, "version": 123456789}
    document["held"] = document["held"] and [documents.held(LONG, f"{LONG} is missing", 3)]
    document["site"] = LONG
    if document["running"]:
        document["running"] |= {"file": LONG, "stage": LONG}
    for options in ({}, {"java_script_enabled": False})[: 2 if document["held"] or document["running"] else 1]:
        with View(browser, viewport=PHONE, **options) as view:
            page = _open(view, site, document)
            for summary in page.locator("summary").all():
                summary.click()
            size = page.locator("html").bounding_box()
            assert size is not None
            assert size["width"] == PHONE["width"]
            for part in ("body", "main", "footer"):
                box = page.locator(part).bounding_box()
                assert box is not None
                assert box["x"] >= 0
                assert box["x"] + box["width"] <= PHONE["width"]
            if not options:
                assert _width(page) == PHONE["width"]


def test_colours_follow_the_readers_wish_and_differ_by_state(browser: Browser, site: Shown) -> None:
    with View(browser) as view:
        page = view.page
        tones: dict[str, set[str]] = {"light": set(), "dark": set()}
        states = ("never", "syncing", "healthy", "held", "failed", "paused")
        for name in states:
            _open(view, site, showcase(name))
            for scheme, seen in tones.items():
                page.emulate_media(color_scheme=scheme)
                seen.add(page.locator("#word").evaluate("element => getComputedStyle(element).color"))
                ground = page.locator("body").evaluate("element => getComputedStyle(element).backgroundColor")
                brightness = sum(map(int, re.findall(r"\d+", ground)))
                assert brightness > 600 if scheme == "light" else brightness < 150
        assert [len(seen) for seen in tones.values()] == [len(states)] * 2


def test_keyboard_reaches_everything_in_the_order_in_which_it_is_read(browser: Browser, site: Shown) -> None:
    with View(browser) as view:
        page = _open(view, site, {**showcase("healthy"), "items": showcase("healthy")["items"][:2]})
        seen = []
        for _ in range(9):
            page.keyboard.press("Tab")
            focused = page.locator(":focus")
            seen.append(focused.inner_text().replace("\n", " "))
            assert focused.evaluate("element => getComputedStyle(element).outlineStyle") != "none"
            expect(focused).to_be_in_viewport(ratio=1)
        assert seen == [
            "Skip to the items",
            "Folders",
            "Status",
            "Metrics",
            "Copy subscription URL",
            "Copy SHA-1 thumbprint",
            "Copy SHA-256 thumbprint",
            "As a table",
            "AlmaLinux 10.0",
        ]
        page.reload()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        assert page.locator(":focus").inner_text() == "AlmaLinux 10.0"


def test_ten_thousand_items_can_be_filtered(browser: Browser, site: Shown) -> None:
    items = [{**documents.document()["items"][0], "name": f"Template {number:05}"} for number in range(10_000)]
    with View(browser) as view:
        page = _open(view, site, {**showcase("healthy"), "items": items})
        page.get_by_label("Filter by name").fill("0999")
        expect(page.locator("#filter").get_by_role("status")).to_have_text("11 of 10000")
        shown = "[...document.querySelectorAll('#items tbody tr')].filter(row => row.offsetHeight).length"
        assert page.evaluate(shown) == 11
        _is_well_behaved(view, site)


def test_whatever_got_into_the_page_could_neither_run_nor_reach_another_host(browser: Browser, site: Shown) -> None:
    intruders = [
        "s => s.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))",
        "s => s.append(Object.assign(document.createElement('script'), {src: 'http://127.0.0.2/x.js'}))",
        "s => s.append(Object.assign(document.createElement('img'), {src: 'http://127.0.0.2/x.png'}))",
        "s => s.append(Object.assign(document.createElement('style'), {textContent: 'body {display: none}'}))",
        "s => s.append(Object.assign(document.createElement('iframe'), {src: 'http://127.0.0.2/'}))",
        "s => s.insertAdjacentHTML('beforeend', '<p style=\"color: red\" onclick=\"window.ran = 1\">x</p>')",
        "s => s.insertAdjacentHTML('beforeend', '<base href=\"http://127.0.0.2/\">')",
        "() => { fetch('http://127.0.0.2/').catch(() => 0) }",
    ]
    with View(browser) as view:
        page = _open(view, site, showcase("healthy"))
        page.evaluate("window.refused = []; addEventListener('securitypolicyviolation', e => window.refused.push(e))")
        for intruder in intruders:
            page.locator("#items").evaluate(intruder)
            wait_until(lambda: page.evaluate("window.refused.length"), 30, "the refusal")
            page.evaluate("window.refused = []")
        page.get_by_text("x", exact=True).click()
        assert page.evaluate("window.ran") is None
        assert page.url == site.url


def test_hostile_names_stay_text(browser: Browser, site: Shown) -> None:
    document = showcase("syncing")
    document |= {
        "site": HOSTILE[0],
        "items": [
            {**document["items"][0], "name": name, "type": name, "url": f"{name}/", "changed": name} for name in HOSTILE
        ],
        "held": [documents.held(name, name, 1) for name in HOSTILE],
        "damaged": [documents.damage(name, name, name) for name in HOSTILE],
        "runs": [documents.run(number, "failed", error=name, summary=name) for number, name in enumerate(HOSTILE)],
    }
    document["library"] |= {"name": HOSTILE[1], "url": HOSTILE[2]}
    document["running"] |= {"file": HOSTILE[0], "stage": HOSTILE[1]}
    with View(browser) as view:
        page = _open(view, site, document)
        assert page.locator("#items tbody th").all_inner_texts() == HOSTILE
        assert page.locator("h1").all_inner_texts() == [HOSTILE[1]]
        assert page.locator("main img, main script, main [onload]").count() == 0
        origin = site.url.removesuffix("_clr/")
        assert all(link.startswith(origin) for link in page.locator("a").evaluate_all("all => all.map(a => a.href)"))
        document["running"] |= {"file": HOSTILE[2], "stage": HOSTILE[4]}
        site.tell(document)
        expect(page.locator("#file")).to_have_text(HOSTILE[2], timeout=20_000)
        expect(page.locator("#stage")).to_have_text(HOSTILE[4])
        assert page.locator("h1").all_inner_texts() == [HOSTILE[1]]
        site.tell({**document, "state": "failed", "running": None})
        expect(page.get_by_role("heading", name="Sync failed")).to_be_visible(timeout=20_000)
        assert page.locator("#items tbody th").all_inner_texts() == HOSTILE
        assert page.locator("main img, main script, main [onload]").count() == 0
        _is_well_behaved(view, site)


@pytest.mark.parametrize("name", SITES)
def test_axe_finds_no_violation(browser: Browser, site: Shown, name: str) -> None:
    document = showcase(name)
    document |= {"items": document["items"][-6:], "runs": document["runs"][:6]}
    for scheme, size in (("light", {"width": 1120, "height": 900}), ("dark", PHONE)):
        with View(browser, color_scheme=scheme, viewport=size, bypass_csp=True, reduced_motion="reduce") as view:
            page = _open(view, site, document)
            for summary in page.locator("summary").all():
                summary.click()
            assert view.violations() == []


def test_items_lead_to_their_folders_and_folders_back_to_the_page(browser: Browser, browsed: Shown) -> None:
    document = documents.document()
    document["items"][0] |= {"name": "Tmpl one", "url": "Tmpl%20one/"}
    with View(browser) as view:
        page = _open(view, browsed, document)
        page.get_by_role("link", name="Tmpl one").click()
        expect(page.get_by_role("heading", name="/Tmpl one/")).to_be_visible()
        expect(page.get_by_role("link", name="disk.vmdk", exact=True)).to_be_visible()
        page.get_by_role("link", name="State and subscription").click()
        expect(page.get_by_role("heading", name="Up to date")).to_be_visible()
        _is_well_behaved(view, browsed)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_listing_is_in_the_same_style_and_as_accessible(browser: Browser, browsed: Shown, scheme: str) -> None:
    with View(browser, color_scheme=scheme, viewport=PHONE, bypass_csp=True) as view:
        view.page.goto(browsed.url.replace("_clr/", "Tmpl%20one/"))
        assert view.violations() == []
        assert _width(view.page) == PHONE["width"]
        look = "element => getComputedStyle(element).backgroundColor"
        ground = view.page.locator("body").evaluate(look)
        view.page.goto(browsed.url)
        assert view.page.locator("body").evaluate(look) == ground
    with View(browser) as view:
        view.page.goto(browsed.url.replace("_clr/", ""))
        expect(view.page.get_by_role("link", name="Tmpl one/")).to_be_visible()
        _is_well_behaved(view, browsed)


def test_page_says_nothing_that_the_document_does_not(browser: Browser, site: Shown) -> None:
    """What the page links to as status is the document that it was made from."""
    document = showcase("held")
    with View(browser) as view:
        page = _open(view, site, document)
        page.get_by_role("link", name="Status").click()
        assert json.loads(page.locator("body").inner_text()) == document
