"""The files of the site page as text: well-formed for whatever a document holds, and the chart's geometry."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlsplit

import pytest
from clr_client.text import UNSAFE
from clr_client.web import pages
from clr_client.web.pages import chart
from hypothesis import given
from hypothesis import strategies as st
from support import documents
from support.showcase import SITES, showcase

VOID = {"meta", "link", "br", "img", "input", "hr"}
TAGS = {
    "a", "bdi", "body", "button", "caption", "code", "dd", "details", "div", "dl", "dt", "figure", "footer", "g", "h1",
    "h2", "head", "header", "html", "li", "link", "main", "meta", "nav", "noscript", "ol", "p", "path", "progress",
    "rect", "script", "section", "span", "strong", "summary", "svg", "table", "tbody", "td", "th", "thead", "time",
    "title", "tr", "ul", "circle",
}  # fmt: skip


class Reader(HTMLParser):
    """Reads HTML as strictly as it can be written: every element that is opened is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.attributes: set[str] = set()
        self.scripts = 0
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        self.attributes.update(names)
        self.ids += [str(value) for name, value in attrs if name == "id"]
        self.links += [str(value) for name, value in attrs if name in {"href", "src"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        assert self.open[-1:] != ["script"], "there is a script in the page"

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)


def page(document: dict[str, Any]) -> str:
    return pages.render(document)["index.html"].decode()


texts = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="<>&\"'`=/\\{}%#;-!$() ax\u202e\u0590\ud800", max_size=30),
    st.sampled_from(
        ["</title><script>", "<!--", "]]>", "{{7*7}}", "{% raw %}", "javascript:x", "//evil.example/", "x" * 5000]
    ),
)
counts = st.integers(0, 2**62)


@st.composite
def hostile(draw: st.DrawFn) -> dict[str, Any]:
    """A document with all its texts chosen by somebody else."""

    def replaced(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {key: replaced(member, key) for key, member in value.items()}
        if isinstance(value, list):
            return [replaced(member) for member in value[:2]]
        if isinstance(value, str) and name not in {"state", "result", "kind"}:
            return draw(texts)
        if isinstance(value, int) and not isinstance(value, bool):
            return draw(counts)
        return value

    made = replaced(showcase(draw(st.sampled_from(list(SITES)))))
    assert isinstance(made, dict)
    return made


@given(hostile())
def test_whatever_a_document_holds_the_page_is_well_formed_and_has_nothing_else_in_it(document: dict[str, Any]) -> None:
    read = Reader(page(document))
    assert set(read.tags) <= TAGS
    assert read.tags.count("script") == 1
    assert not [name for name in read.attributes if name.startswith("on") or name == "style"]
    assert len(read.ids) == len(set(read.ids))
    for link in read.links:
        found = urlsplit(link)
        assert (found.scheme, found.netloc) == ("", "")
        assert link.startswith("#") or re.fullmatch(r"/([^/\\].*)?", link, re.ASCII)


@given(st.lists(texts, min_size=1, max_size=5))
def test_names_are_shown_as_they_are(names: list[str]) -> None:
    document = documents.document()
    document["items"] = [{**document["items"][0], "name": name} for name in names]

    class Names(Reader):
        def __init__(self, text: str) -> None:
            self.found: list[str] = []
            super().__init__(text)

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            super().handle_starttag(tag, attrs)
            if self.open[-4:] == ["tr", "th", "a", "bdi"]:
                self.found.append("")

        def handle_data(self, data: str) -> None:
            if self.open[-4:] == ["tr", "th", "a", "bdi"]:
                self.found[-1] += data

    expected = [name.encode("utf-8", "backslashreplace").decode() for name in names]
    assert [text.replace("\r", "\n") for text in Names(page(document)).found] == [
        text.replace("\r", "\n") for text in expected
    ]


@given(texts)
def test_a_link_to_a_folder_stays_on_this_site(url: str) -> None:
    link = pages.folder(url)
    assert re.fullmatch(r"/|/[A-Za-z0-9_.~%-][A-Za-z0-9_.~%/-]*", link, re.ASCII)


@pytest.mark.parametrize("name", SITES)
def test_every_state_has_a_sentence_and_no_policy_is_needed_for_the_page(name: str) -> None:
    document = showcase(name)
    explained = pages.explain(document)
    assert explained[0].isupper()
    assert explained.endswith(".")
    assert ".." not in explained
    files = pages.render(document)
    assert set(files) == {"index.html", "style.css", "page.js", "icon.svg"}
    for other in re.findall(rb"(?:https?:)?//[a-z][^\s\"'<]*", files["style.css"] + files["page.js"]):
        raise AssertionError(other)


def test_documents_of_a_site_that_knows_nothing_can_be_shown() -> None:
    document = showcase("never")
    document |= {
        "library": dict.fromkeys(("name", "id", "version", "generation", "items", "bytes", "url", "changed")),
        "published": True,
        "disk": {"free_bytes": None, "total_bytes": None},
        "versions": {"clr": "1.0.0", "rsync": "", "ssh": "", "caddy": ""},
        "running": {
            "run": "r", "trigger": "start", "since": "2026-11-22T02:25:00+00:00", "stage": "listing",
            **dict.fromkeys(("done_bytes", "total_bytes", "rate", "file", "left_seconds")),
        },
        "state": "syncing",
        "items": [{**documents.document()["items"][0], "url": None, "changed": None}],
    }  # fmt: skip
    text = page(document)
    Reader(text)
    assert "unknown free" in text
    assert re.search(r"<progress [^>]*max=\"100\"></progress>", text)


def test_a_run_that_was_killed_is_told_as_such() -> None:
    document = {**showcase("healthy"), "state": "failed"}
    assert "ended before it could say why" in pages.explain(document)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "nothing had changed"),
        ({"added": ["a"], "removed": ["b", "c"]}, "added a; removed b, c"),
        ({"updated": list("abcde")}, "updated a, b, c and 2 more"),
        ({"held": [documents.held("x")], "error": "the line broke"}, "held x; the line broke"),
        ({"mended": [documents.damage("p")], "damaged": [documents.damage("q")] * 2},
         "1 damaged file mended; 2 damaged files left"),
    ],
)  # fmt: skip
def test_what_a_run_did_is_told_by_names(fields: dict[str, Any], text: str) -> None:
    assert pages.deed(documents.run(**fields)) == text
    assert text in page({**documents.document(), "runs": [documents.run(**fields)]})


def test_the_pages_files_are_of_the_package() -> None:
    """What is in the package's folder gets into the wheel and, by COPY, into the image."""
    for name in (*pages.FIXED, "index.html"):
        assert (pages.FOLDER / name).is_file()
        assert pages.FOLDER.is_relative_to(pages.FOLDER.parents[2])


values = st.lists(st.tuples(counts, counts), max_size=30)


@given(values)
def test_bars_lie_within_the_chart_beside_each_other_and_in_proportion(pairs: list[tuple[int, int]]) -> None:
    drawn = chart.stacked(pairs, pages.ROUND_BYTES)
    assert len(drawn.bars) == len(pairs)
    end = 0.0
    for (lower, upper), bar in zip(pairs, drawn.bars, strict=True):
        assert bar.x >= end
        end = bar.x + bar.width
        assert 0 < bar.width <= chart.WIDEST
        assert bar.lower >= 0 <= bar.upper
        assert bar.y + bar.upper + bar.lower == pytest.approx(chart.HEIGHT)
        assert bar.is_cut == (lower + upper > drawn.ceiling)
        if not bar.is_cut and drawn.ceiling:
            assert bar.lower == pytest.approx(lower / drawn.ceiling * chart.HEIGHT)
            assert bar.upper == pytest.approx(upper / drawn.ceiling * chart.HEIGHT)
        elif bar.is_cut:
            assert bar.y == pytest.approx(0)
            assert bar.lower * upper == pytest.approx(bar.upper * lower)
    assert end <= chart.WIDTH


@given(values)
def test_upper_edge_is_the_smallest_round_number_that_fits(pairs: list[tuple[int, int]]) -> None:
    wholes = [sum(pair) for pair in pairs]
    drawn = chart.stacked(pairs, pages.ROUND_BYTES)
    shown = [whole for whole, bar in zip(wholes, drawn.bars, strict=True) if not bar.is_cut and whole]
    assert bool(shown) == bool(any(wholes))
    if shown and max(shown) < pages.ROUND_BYTES[-1]:
        smaller = [step for step in pages.ROUND_BYTES if step < drawn.ceiling]
        assert drawn.ceiling in pages.ROUND_BYTES
        assert max(shown) > max(smaller, default=0)


def test_a_first_sync_leaves_the_others_to_be_seen() -> None:
    drawn = chart.stacked([(400e9, 0), (2e9, 20e9), (1e9, 30e9), (0, 0), (3e9, 38e9)], pages.ROUND_BYTES)
    assert drawn.ceiling == 50e9
    assert [bar.is_cut for bar in drawn.bars] == [True, False, False, False, False]
    assert drawn.bars[2].lower + drawn.bars[2].upper == pytest.approx(62)


def test_round_numbers_rise() -> None:
    for steps in (pages.ROUND_BYTES, pages.ROUND_SECONDS):
        assert list(steps) == sorted(set(steps))


def test_no_text_of_the_script_depends_on_what_cannot_be_printed() -> None:
    for name in pages.FIXED:
        assert not UNSAFE.search((pages.FOLDER / name).read_text(encoding="utf-8").replace("\n", ""))
