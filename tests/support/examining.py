"""What `clr doctor` finds at a site; whatever it says must be in its catalogue, and so in the documentation."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from clr_client.doctor import CHECKS, Check, Finding, Result, examine
from clr_client.doctor.examination import CANNOT_LOOK, DEFECT, TOO_SLOW

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clr_client.errors import Trouble

ANYWHERE = (TOO_SLOW, CANNOT_LOOK)
USING = {
    "clock": ("listing",),
    "plan": ("listing", "file system"),
    "space": ("plan",),
    "ports": ("clr run",),
    "subscriber": ("clr run",),
}
"""Checks that are told more by others, and make sense without them."""


def examined(environ: Mapping[str, str], checks: Sequence[Check] = CHECKS) -> list[Finding]:
    """Everything that is found, in order."""

    async def all_of_it() -> list[Finding]:
        return [finding async for finding in examine(environ, checks)]

    findings = asyncio.run(all_of_it())
    for finding in findings:
        if finding.result in {Result.WARNING, Result.PROBLEM}:
            assert_documented(finding)
    return findings


def findings_of(environ: Mapping[str, str], name: str) -> list[Finding]:
    """What one check finds, made with those that it needs."""
    wanted = {name, *_before(name)}
    checks = [check for check in CHECKS if check.name in wanted]
    return [finding for finding in examined(environ, checks) if finding.check == name]


def found(environ: Mapping[str, str], name: str) -> Finding:
    """The one thing that a check finds."""
    findings = findings_of(environ, name)
    assert len(findings) == 1, findings
    return findings[0]


def _before(name: str) -> set[str]:
    check = next(check for check in CHECKS if check.name == name)
    first = {*check.needs, *USING.get(name, ())}
    return first.union(*map(_before, first))


def assert_documented(finding: Finding) -> None:
    """Text and remedy are those of one trouble of the check."""
    check = next(check for check in CHECKS if check.name == finding.check)
    assert not re.fullmatch(_pattern(DEFECT.text), finding.text, re.DOTALL), finding
    for trouble in (*check.troubles, *ANYWHERE):
        if _matches(finding, trouble, check.remedy):
            return
    raise AssertionError(f"not in the catalogue: {finding}")


def _matches(finding: Finding, trouble: Trouble, otherwise: str) -> bool:
    remedy = trouble.remedy or otherwise
    assert remedy, f"no remedy: {trouble}"
    texts = ((trouble.text, finding.text), (remedy, finding.remedy))
    return all(re.fullmatch(_pattern(template), text, re.DOTALL) for template, text in texts)


def _pattern(template: str) -> str:
    return "(?s:.*)".join(re.escape(part) for part in re.split(r"\{\w+[^}]*\}", template))
