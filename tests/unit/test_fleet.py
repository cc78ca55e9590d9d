"""All sites at a glance: the file that names them, what their answers mean, the table, the page and the exit code."""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from clr_client import cli
from clr_client.errors import SitesError
from clr_client.fleet import page, reading, rows, show, table
from clr_client.fleet.reading import UNREACHABLE, UNREADABLE, Reading
from clr_client.fleet.sites import Site, read_sites
from clr_client.text import columns, printable
from hypothesis import given
from hypothesis import strategies as st
from support.documents import NOW, damage, document, held, run

if TYPE_CHECKING:
    from pathlib import Path

    from clr_client.fleet.rows import Row

AT = datetime.fromisoformat(NOW)
PIN = "AB:" * 31 + "CD"
EVIL = "a\x1b[2J<script>alert(1)</script>\u202e\n\"'&"


def site(name: str = "berlin", **fields: Any) -> Site:
    return Site(name, f"http://{name}.example.com/", **fields)


def one(found: Any = None, *, max_age: timedelta | None = None, **fields: Any) -> Row:
    """The row of a single site that answered with a document."""
    answer = Reading(site(), document() if found is None else found, **fields)
    return rows.rows([answer], AT, max_age)[0]


# ---------------------------------------------------------------- the file of sites


def sites(tmp_path: Path, text: str, **options: Any) -> tuple[Site, ...]:
    file = tmp_path / "sites.txt"
    file.write_bytes(text.encode())
    return read_sites(file, **options)


def test_a_line_is_a_name_and_a_url_and_what_the_site_needs(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("pass word\n")
    (tmp_path / "my ca.pem").write_text("certificate")
    found = sites(
        tmp_path,
        "\ufeff# all of them\n"
        "\n"
        "berlin http://berlin.example.com/lib.json   # the first\r\n"
        "'São Paulo' https://10.0.0.1:8443 password-file=secret pin=" + PIN + "\n"
        "oslo https://oslo/sub/ 'ca-file=my ca.pem'\n",
    )
    assert found == (
        Site("berlin", "http://berlin.example.com/"),
        Site("São Paulo", "https://10.0.0.1:8443/", "pass word", PIN),
        Site("oslo", "https://oslo/sub/", ca_file=tmp_path / "my ca.pem"),
    )
    assert found[1].status_url == "https://10.0.0.1:8443/_clr/status.json"
    assert "pass word" not in repr(found)


@pytest.mark.parametrize(
    "url",
    [
        *("http://h", "http://h/", "http://h/lib.json", "http://h/_clr/", "http://h/_clr/status.json"),
    ],
)
def test_any_address_of_a_site_that_people_have_at_hand_leads_to_its_status(tmp_path: Path, url: str) -> None:
    assert sites(tmp_path, f"x {url}")[0].status_url == "http://h/_clr/status.json"


def test_a_ca_file_for_all_sites_gives_way_to_one_of_a_site(tmp_path: Path) -> None:
    (tmp_path / "own.pem").write_text("x")
    found = sites(tmp_path, "a https://a/\nb https://b/ ca-file=own.pem\nc http://c/", ca_file=tmp_path / "all.pem")
    assert [each.ca_file and each.ca_file.name for each in found] == ["all.pem", "own.pem", None]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("berlin", "'berlin' has no URL"),
        ("berlin ftp://h/", "'ftp://h/' is not a URL"),
        ("berlin http://h:99999/", "is not a URL"),
        ("berlin http://user:secret@h/", "holds a user name"),
        ("berlin http://h/?x=1", "more than a path"),
        ("berlin http://h/ passwort-file=x", "'passwort-file=x' is not understood"),
        ("berlin http://h/ secret", "'secret' is not understood"),
        ("berlin http://h/ pin=", "'pin=' is not understood"),
        ("berlin http://h/ password-file=missing", "missing' cannot be read: No such file"),
        ("berlin https://h/ ca-file=missing", "missing' cannot be read: No such file"),
        ("berlin https://h/ pin=AB:CD", "'AB:CD' is no thumbprint"),
        ("berlin http://h/ pin=" + PIN, "pin= is for https"),
        ("berlin https://h/ pin=" + PIN + " pin=" + PIN, "pin= is there twice"),
        ("'berlin http://h/", "No closing quotation"),
        ("oslo http://other/", "'oslo' is there already"),
    ],
)
def test_what_is_wrong_with_a_line_is_said_with_its_number_and_no_secret(tmp_path: Path, line: str, why: str) -> None:
    with pytest.raises(SitesError) as caught:
        sites(tmp_path, f"# sites\noslo http://oslo/\n{line}\n")
    assert f"{tmp_path}/sites.txt, line 3: " in str(caught.value)
    assert why in str(caught.value)
    assert "user:secret" not in str(caught.value)


@pytest.mark.parametrize(("text", "why"), [("# none\n", "names no site"), ("a http://a/\n\udcff", "utf-8")])
def test_a_file_without_sites_is_refused(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "sites.txt"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SitesError, match=why):
        read_sites(file)
    with pytest.raises(SitesError, match="cannot be read"):
        read_sites(tmp_path / "missing")


@given(st.text(max_size=80))
def test_whatever_a_line_says_it_is_a_site_or_an_error_with_its_number(tmp_path_factory: Any, line: str) -> None:
    file = tmp_path_factory.getbasetemp() / "some-sites.txt"
    file.write_bytes(line.encode("utf-8", "surrogatepass"))
    try:
        for found in read_sites(file):
            assert found.status_url.endswith("/_clr/status.json")
    except SitesError as error:
        assert str(error) == printable(str(error))


# ---------------------------------------------------------------- what an answer means


def test_a_healthy_site_is_well_and_nothing_is_noted() -> None:
    row = one()
    assert (row.level, row.state, row.note) == ("good", "success", "")
    assert (row.library, row.version, row.items, row.held, row.damaged) == ("Library", 41, 3, 0, 0)
    assert (row.crossed_bytes, row.saved_bytes, row.free_bytes) == (1_300_000, 18_800_000, 800_000_000_000)
    assert row.last_success == datetime(2026, 11, 22, 4, 0, 12, tzinfo=UTC)
    assert row.clr == "1.0.0"
    assert row.page == "http://berlin.example.com/_clr/"


OWN = {"kind": "own", "sha256": "", "sha1": ""}
BAD = {
    "failed": (
        {"state": "failed", "failures_in_row": 3, "runs": [run(9, "failed")]},
        "failed",
        "no connection to 192.0.2.7:2222. Is the line up? (3 times in a row)",
    ),
    "held": ({"state": "partial", "held": [held("web")]}, "partial", "held: web: disk.vmdk is missing"),
    "two held": (
        {"state": "partial", "held": [held("web"), held("db")]},
        "partial",
        "held: web: disk.vmdk is missing and 1 more",
    ),
    "held while syncing": ({"state": "syncing", "held": [held("web")]}, "syncing", "held: web: disk.vmdk is missing"),
    "damaged": (
        {"state": "partial", "damaged": [damage("items/x/disk.vmdk")]},
        "partial",
        "damaged: items/x/disk.vmdk: is not what was published",
    ),
    "cut short": ({"state": "partial", "runs": [run(9, "partial", error="window ended")]}, "partial", "window ended"),
    "empty": ({"state": "never", "published": False, "runs": [], "last_success": ""}, "never", "published nothing yet"),
    "frozen": ({"written": "2026-11-22T02:30:00+00:00"}, "stale", "its status is 2 h 0 min old: nobody keeps it"),
    "overdue": ({"next_sync": "2026-11-22T03:29:00+00:00"}, "stale", "due 1 h 1 min ago did not begin"),
    "expired": (
        {"certificate": {**OWN, "not_after": "2026-11-21T04:30:00+00:00"}},
        "success",
        "its certificate expired 1 d 0 h ago",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_site_that_is_not_well_says_why(case: str) -> None:
    changes, state, why = BAD[case]
    row = one(document(**changes))
    assert (row.level, row.state) == ("bad", state)
    assert why in row.note


def test_a_site_that_failed_is_failed_also_when_it_is_stale() -> None:
    row = one(document(state="failed", next_sync="2026-11-21T00:00:00+00:00"))
    assert row.state == "failed"
    assert len(row.problems) == 2


def test_a_running_sync_is_shown_with_how_far_it_is() -> None:
    running = {"stage": "fetching", "done_bytes": 45, "total_bytes": 100, "left_seconds": 200}
    row = one(document(state="syncing", running=running))
    assert (row.level, row.state, row.note) == ("good", "syncing", "45 % of 100 B, 3 min 20 s left")
    assert one(document(state="syncing", running={"stage": "listing"})).note == "listing"
    first = one(document(state="syncing", published=False, last_success="", runs=[], library={}))
    assert first.level == "good"


@pytest.mark.parametrize(
    ("max_age", "state"), [(None, "success"), (timedelta(hours=1), "success"), (timedelta(minutes=20), "stale")]
)
def test_a_last_success_longer_ago_than_is_wanted_is_stale(max_age: timedelta | None, state: str) -> None:
    row = one(max_age=max_age)
    assert row.state == state
    assert row.note == ("last success 29 min 48 s ago" if state == "stale" else "")


def test_a_site_that_never_succeeded_is_stale_for_whoever_names_an_age() -> None:
    row = one(document(last_success=""), max_age=timedelta(days=30))
    assert (row.level, row.state, row.note) == ("bad", "stale", "last success never")


NOTICED = {
    "expires soon": ({"certificate": {**OWN, "not_after": "2026-11-25T04:30:00+00:00"}}, "expires in 3 d 0 h"),
    "little room": ({"disk": {"free_bytes": 40, "total_bytes": 1000}}, "only 40 B of 1.0 kB free"),
    "rolled back": ({"state": "paused", "paused_at": 7}, "rolled back to generation 7"),
    "ahead of the time": ({"written": "2026-11-22T05:30:00+00:00"}, "its clock is 1 h 0 min ahead"),
}


@pytest.mark.parametrize("case", NOTICED)
def test_what_only_deserves_a_look_is_noted_and_the_site_counts_as_well(case: str) -> None:
    changes, why = NOTICED[case]
    row = one(document(**changes))
    assert (row.level, row.problems) == ("notice", ())
    assert why in row.note


def test_certificates_that_caddy_renews_by_itself_may_end_soon() -> None:
    soon = {"kind": "internal", "not_after": "2026-11-22T12:30:00+00:00"}
    assert one(document(certificate=soon)).level == "good"


def test_a_clock_that_is_wrong_is_noted_and_ages_are_counted_by_it() -> None:
    row = one(ahead=-7200.0)
    assert (row.level, row.note) == ("notice", "its clock is 2 h 0 min behind")
    late = document(next_sync="2026-11-22T03:00:00+00:00", written="2026-11-22T02:30:00+00:00")
    assert one(late).state == "stale"
    assert one(late, ahead=-7200.0).state == "success"


def test_a_certificate_that_nobody_vouches_for_is_noted() -> None:
    assert one(unverified="The certificate is not trusted").note == "The certificate is not trusted"


def test_a_site_that_runs_an_older_release_than_another_one_is_noted() -> None:
    def versions(clr: str) -> dict[str, Any]:
        return document(versions={"clr": clr})

    found = rows.rows(
        [
            Reading(site("a"), versions("1.9.0")),
            Reading(site("b"), versions("1.10.0")),
            Reading(site("c"), versions("dev")),
            Reading(site("d"), None, UNREACHABLE, "gone"),
        ],
        AT,
    )
    notes = {row.name: (row.level, row.note) for row in found}
    assert notes["a"] == ("notice", "runs clr 1.9.0, others 1.10.0")
    assert [notes[name][0] for name in "bcd"] == ["good", "good", "bad"]


@pytest.mark.parametrize(
    "found",
    [
        *(
            None,
            [],
            "text",
            7,
            {},
            {"schema": 1},
            {"schema": 2, "state": "success"},
            {"schema": True, "state": "failed"},
        ),
        *({"schema": 1, "state": "splendid"}, {"schema": 1, "state": ["success"]}, {"schema": 1, "state": "stale"}),
    ],
)
def test_what_is_no_status_is_unreadable_and_says_so(found: Any) -> None:
    row = one([] if found is None else found)
    assert (row.level, row.state) == ("bad", UNREADABLE)
    assert "not with a status" in row.note


# What a site may put in the place of any value.
STRANGE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**4000)
    | st.floats()
    | st.text(max_size=30)
    | st.sampled_from([EVIL, "x" * 5000, NOW, "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-11-22"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def hostile(draw: Any) -> Any:
    """A document some of whose values, at any depth, are not what they should be."""
    found = document(
        running={"stage": "s", "done_bytes": 1, "total_bytes": 2, "left_seconds": 3},
        certificate={"kind": "own", "not_after": NOW},
        held=[held("a")],
        damaged=[damage("b")],
        paused_at=3,
    )
    found["state"] = draw(st.sampled_from(sorted(rows.STATES)))
    for _ in range(draw(st.integers(1, 6))):
        place: Any = found
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or draw(st.booleans()):
                place[key] = draw(STRANGE)
                break
            place = place[key]
    return found


@given(hostile(), st.floats(-reading.MOST_AHEAD, reading.MOST_AHEAD), st.sampled_from([None, timedelta(days=1)]))
def test_whatever_a_site_answers_it_becomes_a_row_that_harms_nobody(
    found: Any, ahead: float, max_age: timedelta | None
) -> None:
    row = one(found, ahead=ahead, max_age=max_age)
    shown = table.lines([row], AT, width=100)
    assert len(shown) == 2
    assert all(line.isprintable() or not re.search(r"[\x00-\x1f\x7f-\x9f\u202e]", line) for line in shown)
    assert all(columns(line) <= 100 for line in shown)
    json.loads(json.dumps(rows.as_document([row], AT), allow_nan=False))
    html = page.render([row], AT).decode()
    assert "<script" not in html


@given(STRANGE)
def test_whatever_is_not_a_document_becomes_a_row_too(found: Any) -> None:
    assert one([] if found is None else found).level == "bad"


# ---------------------------------------------------------------- order and exit code


def several() -> tuple[Row, ...]:
    answers = [
        Reading(site("Ada"), document()),
        Reading(site("bob"), document(state="failed")),
        Reading(site("cyd"), None, UNREACHABLE, "did not answer within 3 s"),
        Reading(site("dee"), document(state="partial", held=[held("x")])),
        Reading(site("eve"), document(state="paused", paused_at=3)),
        Reading(site("fay"), document(state="syncing")),
        Reading(site("gil"), None, UNREADABLE, "has no status"),
        Reading(site("hal"), document()),
        Reading(site("ian"), document(next_sync="2026-11-20T00:00:00+00:00")),
    ]
    return rows.rows(answers, AT)


def test_the_worst_comes_first_or_the_order_is_that_of_the_names() -> None:
    assert [row.name for row in several()] == ["cyd", "gil", "bob", "ian", "dee", "eve", "fay", "Ada", "hal"]
    assert [row.name for row in rows.by_name(several())] == [
        *("Ada", "bob", "cyd", "dee", "eve", "fay", "gil", "hal", "ian"),
    ]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Reading(site(), document()), 0),
        (Reading(site(), document(state="syncing")), 0),
        (Reading(site(), document(state="paused", paused_at=3)), 0),
        (Reading(site(), document(state="failed")), 4),
        (Reading(site(), document(state="partial", held=[held("x")])), 4),
        (Reading(site(), document(written="2026-11-22T01:00:00+00:00")), 4),
        (Reading(site(), None, UNREACHABLE, "gone"), 4),
    ],
)
def test_the_exit_code_tells_a_monitor(
    answer: Reading, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return AT

    monkeypatch.setattr(show, "datetime", Clock)
    monkeypatch.setattr(show.Fleet, "read", lambda _: (answer,))
    file = tmp_path / "sites"
    file.write_text("berlin http://berlin.example.com/\n")
    done = CliRunner().invoke(cli.main, ["fleet", str(file)])
    assert done.exit_code == code, done.output
    assert done.output.splitlines()[0].split()[:2] == ["SITE", "STATE"]
    again = CliRunner().invoke(cli.main, ["fleet", str(file), "--json"])
    assert again.exit_code == code
    assert json.loads(again.output)["bad"] == (1 if code else 0)


def test_a_file_that_cannot_be_understood_is_exit_code_3(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.main, ["fleet", "-"], input="berlin\n")
    assert done.exit_code == 3
    assert done.output == "clr: -, line 1: the site 'berlin' has no URL. A line is: NAME URL\n"


# ---------------------------------------------------------------- for people and programs


def test_the_table_has_a_line_for_each_site_with_what_people_ask_for() -> None:
    shown = table.lines(several(), AT)
    assert len(shown) == 10
    ada = next(line for line in shown if line.startswith("Ada"))
    assert " ".join(ada.split()) == "Ada success 41 3 0 29 min 30 min 1.3 MB 18.8 MB 800.0 GB -"
    dead = next(line for line in shown if line.startswith("cyd"))
    assert dead.split()[:4] == ["cyd", "unreachable", "-", "-"]
    assert dead.endswith("did not answer within 3 s")
    assert table.summary(several(), AT).startswith("9 sites: 3 well, 1 to look at, 5 not well (read ")
    assert table.summary(several()[-1:], AT).startswith("1 site: 1 well (read ")


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120, 200])
def test_the_table_fits_the_terminal_and_keeps_what_matters_most(width: int) -> None:
    wide = dataclasses.replace(several()[2], name="東京" * 20, problems=("日本語" * 60,))
    shown = table.lines([wide, *several()], AT, width=width)
    if width >= 60:
        assert all(columns(line) <= width for line in shown)
        assert shown[0].split()[:2] == ["SITE", "STATE"]
        assert shown[0].split()[-1] == "NOTE"
    assert ("CERT" in shown[0]) == (width >= 200)


def test_colours_only_where_they_are_wanted_and_the_state_always_in_words() -> None:
    plain = table.lines(several(), AT)
    coloured = table.lines(several(), AT, colour=True)
    assert not any("\x1b" in line for line in plain)
    assert "\x1b[31m" in next(line for line in coloured if "unreachable" in line)
    assert "\x1b[33m" in next(line for line in coloured if "paused" in line)
    assert "\x1b[32m" in next(line for line in coloured if "Ada" in line)
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in coloured] == plain


def test_a_name_cannot_steer_the_terminal_or_become_markup(tmp_path: Path) -> None:
    file = tmp_path / "sites"
    file.write_text("'a\x1b[2J<b>' http://h/\n")
    answer = Reading(read_sites(file)[0], document(state="failed", runs=[run(1, "failed", error=EVIL)]))
    found = rows.rows([answer], AT)
    assert not any("\x1b" in line or "\u202e" in line for line in table.lines(found, AT))
    html = page.render(found, AT).decode()
    assert "<b>" not in html
    assert "<script" not in html
    assert "\x1b" not in html


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (7200, "2 h"), (172_799, "47 h")),
        *((172_800, "2 d"), (-0.5, "0 s"), (-90, "-1 min"), (86_400 * 4000, "4000 d")),
    ],
)
def test_ages_have_one_unit(seconds: float, text: str) -> None:
    assert table.brief(seconds) == text


def test_programs_get_a_schema_that_stays() -> None:
    found = rows.as_document(several(), AT)
    assert found.keys() == {"schema", "read", "good", "notice", "bad", "sites"}
    assert (found["schema"], found["read"]) == (1, NOW)
    assert (found["good"], found["notice"], found["bad"]) == (3, 1, 5)
    assert found["sites"][0]["name"] == "cyd"
    assert found["sites"][-1] == {
        "name": "hal",
        "url": "http://hal.example.com/",
        "state": "success",
        "level": "good",
        "problems": (),
        "notes": (),
        "library": "Library",
        "version": 41,
        "generation": 41,
        "items": 3,
        "bytes": 20_200_000,
        "held": 0,
        "damaged": 0,
        "last_success": "2026-11-22T04:00:12+00:00",
        "next_sync": "2026-11-22T05:00:00+00:00",
        "crossed_bytes": 1_300_000,
        "saved_bytes": 18_800_000,
        "free_bytes": 800_000_000_000,
        "certificate_until": None,
        "clr": "1.0.0",
    }


class Elements(HTMLParser):
    """The elements of a page, with their attributes, and the text of its cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_the_page_stands_alone_names_every_site_in_words_and_links_to_its_page() -> None:
    html = page.render(several(), AT).decode()
    read = Elements(html)
    assert not read.all("script")
    assert not read.all("link")
    assert not read.all("img")
    (policy,) = [each["content"] for each in read.all("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert not any("style" in attributes for _, attributes in read.found)
    links = [each["href"] for each in read.all("a")]
    assert "http://Ada.example.com/_clr/" in links
    for row in several():
        assert row.name in read.text
        assert row.state in read.text
    assert not [each for each in read.all("meta") if each.get("http-equiv") == "refresh"]
    again = Elements(page.render(several(), AT, refresh=30).decode())
    assert [each["content"] for each in again.all("meta") if each.get("http-equiv") == "refresh"] == ["30"]


def test_an_html_file_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show.Fleet, "read", lambda _: (Reading(site(), document()),))
    file = tmp_path / "sites"
    file.write_text("berlin http://berlin.example.com/\n")
    done = CliRunner().invoke(cli.main, ["fleet", str(file), "--html", str(tmp_path / "no" / "fleet.html")])
    assert done.exit_code == 3
    assert "fleet.html cannot be written: No such file or directory" in done.output
