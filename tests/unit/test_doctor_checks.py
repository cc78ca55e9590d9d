"""The doctor itself: the order of its checks, what it passes over, its catalogue and its words."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from clr_client.doctor import CHECKS, Check, Finding, Result, examine, report
from clr_client.doctor.finding import ok, problem, warning
from clr_client.errors import StoreError, Trouble
from support.examining import examined

if TYPE_CHECKING:
    from collections.abc import Callable

BAD = Trouble("{thing} is bad", "Mend {thing}")
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "troubleshooting.md"


def check(name: str, look: Callable[..., object], **options: object) -> Check:
    return Check(name, "?", look, (BAD,), **options)  # type: ignore[arg-type]


def results(*checks: Check, **environ: str) -> list[Finding]:
    async def all_of_it() -> list[Finding]:
        return [finding async for finding in examine(environ, checks)]

    return asyncio.run(all_of_it())


def fail(error: Exception) -> Callable[..., object]:
    def look(_case: object) -> list[Finding]:
        raise error

    return look


# ---------------------------------------------------------------- the catalogue


def test_each_check_comes_after_those_that_it_needs_and_has_a_name_of_its_own() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    for number, each in enumerate(CHECKS):
        assert set(each.needs) <= set(names[:number]), each.name


def test_each_trouble_has_a_remedy_and_a_line_in_the_documentation() -> None:
    text = PAGE.read_text()
    for each in CHECKS:
        section = text.partition(f"\n## {each.name}\n")[2].partition("\n## ")[0]
        rows = re.findall(r"^\| (.*?) \| (.*) \|$", section, re.MULTILINE)[1:]
        assert len(rows) == len(each.troubles), each.name
        assert each.question in section
        for trouble, (said, to_do) in zip(each.troubles, rows, strict=True):
            assert trouble.remedy or each.remedy, trouble
            for template, shown in ((trouble.text, said), (trouble.remedy or "see above", to_do)):
                fixed = [part for part in re.split(r"\{\w+[^}]*\}", template.replace("*", "\\*")) if part.strip()]
                assert all(part in shown for part in fixed), shown


def test_no_two_troubles_of_a_check_read_alike() -> None:
    for each in CHECKS:
        assert len({trouble.text for trouble in each.troubles}) == len(each.troubles), each.name


# ---------------------------------------------------------------- the order


def test_what_needs_something_that_is_wrong_is_skipped_with_the_reason_and_so_is_what_needs_that() -> None:
    found = results(
        check("first", lambda _: [problem(BAD, thing="key")]),
        check("second", lambda _: [ok("never")], needs=("first",)),
        check("third", lambda _: [ok("never")], needs=("second",)),
        check("other", lambda _: [warning(BAD, thing="x")]),
        check("last", lambda _: [ok("made")], needs=("other",)),
    )
    assert [finding.result for finding in found] == ["problem", "skipped", "skipped", "warning", "ok"]
    assert found[0] == Finding(Result.PROBLEM, "key is bad", "Mend key", "first")
    assert found[1].text == "not before this is in order: first"


def test_a_setting_that_is_broken_skips_what_reads_it_and_nothing_else() -> None:
    found = results(
        check("reads it", lambda case: [ok(str(case.settings.sync_schedule))]),
        check("reads another", lambda case: [ok(str(case.settings.sync_port))]),
        SYNC_SCHEDULE="often",
    )
    assert [(finding.result, finding.text) for finding in found] == [
        ("skipped", "not before this setting is in order: SYNC_SCHEDULE"),
        ("ok", "2222"),
    ]


def test_each_server_is_looked_at_on_its_own() -> None:
    found = results(
        check("port", lambda case: [ok("") if case.server.host == "b" else problem(BAD, thing="a")], of_server=True),
        check("login", lambda case: [ok(str(case.server))], needs=("port",), of_server=True),
        check("after", lambda case: [ok("made")]),
        SYNC_PEER="a,b:22",
    )
    assert [(finding.check, finding.result) for finding in found] == [
        ("port", "problem"),
        ("login", "skipped"),
        ("port", "ok"),
        ("login", "ok"),
        ("after", "ok"),
    ]
    assert found[1].text.startswith("a:2222: ")


# ---------------------------------------------------------------- what goes wrong while looking


def test_an_error_with_a_remedy_of_its_own_keeps_it_and_another_gets_the_checks() -> None:
    found = results(
        check("a", fail(StoreError("full", "Make room")), remedy="Ask"),
        check("b", fail(StoreError("odd")), remedy="Ask"),
        check("c", fail(OSError(5, "Input/output error"))),
    )
    assert [(finding.text, finding.remedy) for finding in found[:2]] == [("full", "Make room"), ("odd", "Ask")]
    assert "Input/output error" in found[2].text


@pytest.mark.parametrize("kind", ["blocking", "waiting"])
def test_a_check_that_hangs_is_given_up_and_the_next_one_made(kind: str) -> None:
    async def wait(_case: object) -> list[Finding]:
        await asyncio.sleep(3600)
        return []

    def block(_case: object) -> list[Finding]:
        time.sleep(30)
        return []

    began = time.monotonic()
    hanging = check("hangs", block if kind == "blocking" else wait, seconds=0.2)
    found = results(hanging, check("next", lambda _: [ok("made")]))
    assert [finding.result for finding in found] == ["problem", "ok"]
    assert "did not end within" in found[0].text
    assert time.monotonic() - began < 20


def test_a_defect_in_a_check_is_said_and_the_next_one_made() -> None:
    found = results(check("broken", fail(ZeroDivisionError())), check("next", lambda _: [ok("made")]))
    assert [finding.result for finding in found] == ["problem", "ok"]
    assert "ZeroDivisionError" in found[0].text


# ---------------------------------------------------------------- words


def test_a_finding_is_one_line_and_its_remedy_one_more_whatever_a_server_said() -> None:
    finding = Finding(Result.PROBLEM, "it says \x1b[2J\nok all is well", "Do\nthis", "port")
    lines = report.lines(finding).splitlines()
    assert lines == ["problem port: it says \\x1b[2J\\x0aok all is well", "        Do\\x0athis"]
    document = json.loads(report.document([finding]))
    assert (document["ok"], document["counts"]["problem"]) == (False, 1)
    assert "\x1b" not in document["findings"][0]["text"]


def test_the_last_line_counts_and_says_where_to_begin() -> None:
    findings = [
        Finding(Result.OK, "", check="a"),
        Finding(Result.WARNING, "", check="b"),
        Finding(Result.PROBLEM, "", check="c"),
        Finding(Result.PROBLEM, "", check="d"),
        Finding(Result.SKIPPED, "", check="e"),
    ]
    assert report.verdict(findings) == "1 ok, 1 warning, 2 problems, 1 skipped: begin with the first problem, c"
    assert report.verdict(findings[:2]) == "1 ok, 1 warning: nothing keeps this site from working"


def test_with_no_setting_at_all_it_gets_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = examined({})
    assert {check.name for check in CHECKS} == {finding.check for finding in findings}
    assert findings[0].text.startswith("SYNC_PEER is not set")
