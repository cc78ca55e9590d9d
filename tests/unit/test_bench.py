"""The benchmark's registry of cases and its table of results; no case runs here."""

from __future__ import annotations

import re

import pytest
from bench import __main__ as runner
from bench import table
from bench.bench import SIZES, Bench
from bench.rows import CASES, Row, RunError, UnavailableError, chosen

WITHIN = Row(name="patched", ours=90, baseline=100, unit="MB", against="rsync", target=0.96, limit=80)
BEYOND = Row(name="rebuilt", ours=90, baseline=100, unit="MB", against="rsync", target=0.72)


def test_every_case_says_what_it_measures() -> None:
    assert len(CASES) > 10
    assert all((function.__doc__ or "").strip() for function in CASES.values())


def test_cases_are_chosen_by_name_and_an_unknown_name_is_refused() -> None:
    assert chosen("") == list(CASES)
    assert chosen("renamed, patched") == ["patched", "renamed"]
    with pytest.raises(ValueError, match="no case is called nonsense; there are patched"):
        chosen("patched,nonsense")


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (WITHIN, "pass"),
        (BEYOND, "MISS"),
        (Row(name="limit itself", ours=96, baseline=100, unit="MB", target=0.96), "pass"),
        (Row(name="no baseline", ours=0, unit="bytes", target=0), "pass"),
        (Row(name="no baseline", ours=1, unit="bytes", target=0), "MISS"),
        (Row(name="at least", ours=0.95, unit="", target=0.9, at_least=True), "pass"),
        (Row(name="at least", ours=0.5, unit="", target=0.9, at_least=True), "MISS"),
        (Row(name="no target", ours=5, baseline=1, unit="s"), ""),
    ],
)
def test_a_row_is_judged_by_its_ratio_or_by_itself(row: Row, verdict: str) -> None:
    assert row.verdict == verdict


def test_the_table_shows_what_was_measured_beside_its_target() -> None:
    lines = table.table([WITHIN, BEYOND]).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert "| patched | 90 MB | 100 MB | rsync | 0.9 | ≤ 0.96 | pass | 80 MB |" in lines[2]
    assert "| MISS |" in lines[3]


def test_a_row_is_kept_and_read_again() -> None:
    assert table.load(table.dump(WITHIN)) == WITHIN


def test_the_page_has_a_block_for_every_size_and_only_that_is_replaced() -> None:
    page = table.PAGE.read_text()
    for size in SIZES:
        changed = table.into_page(page, size, "NEW\n")
        assert f"<!-- bench {size}: begin -->\nNEW\n<!-- bench {size}: end -->" in changed
        assert re.sub(r"(?s)begin -->.*?<!--", "", changed) == re.sub(r"(?s)begin -->.*?<!--", "", page)
    with pytest.raises(ValueError, match="0 blocks"):
        table.into_page(page, "huge", "")


def test_the_block_names_the_command_the_day_and_the_targets_that_were_missed() -> None:
    text = table.block([WITHIN, BEYOND], ["2026-11-22"], "Debian", "make bench")
    assert text.startswith("`make bench`, 2026-11-22: ")
    assert text.endswith("1 targets met, 1 missed: rebuilt.\n")


def test_a_failing_case_keeps_what_it_measured_and_says_why_it_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_bench: Bench):
        """Broken."""
        yield WITHIN
        raise RunError("clr ended with 1")

    def elsewhere(_bench: Bench):
        """Elsewhere."""
        raise UnavailableError("no root")
        yield

    def surprising(_bench: Bench):
        """Surprising."""
        yield BEYOND
        raise KeyError("x")

    bench = Bench(SIZES["small"], cache=tmp_path)
    results = runner.Results(tmp_path / "results.json")
    for function, said in ((broken, "clr ended with 1"), (elsewhere, "no root"), (surprising, "KeyError")):
        monkeypatch.setitem(CASES, function.__name__, function)
        assert said in runner.run(function.__name__, bench, results)
        assert said in capsys.readouterr().out
    assert runner.Results(tmp_path / "results.json").rows() == [WITHIN, BEYOND]
