"""What `clr doctor` prints."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from clr_client.doctor.examination import examine
from clr_client.doctor.finding import Finding, Result
from clr_client.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MARK_WIDTH = max(map(len, Result)) + 1


async def tell(environ: Mapping[str, str], say: Callable[[str], None], *, as_json: bool = False) -> bool:
    """Examine everything and say what is found, each thing as soon as it is known. Returns whether all is well."""
    findings = []
    async for finding in examine(environ):
        findings.append(finding)
        if not as_json:
            say(lines(finding))
    say(document(findings) if as_json else verdict(findings))
    return is_well(findings)


def is_well(findings: Sequence[Finding]) -> bool:
    """Whether nothing found keeps the site from working."""
    return all(finding.result is not Result.PROBLEM for finding in findings)


def lines(finding: Finding) -> str:
    """A finding in one line, its remedy in a second one."""
    text = f"{finding.result:{MARK_WIDTH}}{finding.check}: {printable(finding.text)}"
    return f"{text}\n{'':{MARK_WIDTH}}{printable(finding.remedy)}" if finding.remedy else text


def verdict(findings: Sequence[Finding]) -> str:
    """The last line: how many of each, and what that means."""
    counted = Counter(finding.result for finding in findings)
    counts = ", ".join(f"{counted[result]} {_plural(result, counted[result])}" for result in Result if counted[result])
    first = next((finding.check for finding in findings if finding.result is Result.PROBLEM), "")
    return f"{counts}: {f'begin with the first problem, {first}' if first else 'nothing keeps this site from working'}"


def _plural(result: Result, count: int) -> str:
    countable = {Result.WARNING, Result.PROBLEM}
    return f"{result}s" if result in countable and count != 1 else str(result)


def document(findings: Sequence[Finding]) -> str:
    """The same as JSON."""
    counted = Counter(finding.result for finding in findings)
    told = [
        {
            "check": finding.check,
            "result": finding.result.value,
            "text": printable(finding.text),
            "remedy": printable(finding.remedy),
        }
        for finding in findings
    ]
    counts = {result.value: counted[result] for result in Result}
    return json.dumps({"schema": 1, "ok": is_well(findings), "counts": counts, "findings": told}, indent=2)
