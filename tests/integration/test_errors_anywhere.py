"""The disk fails at any step of anything the client does to a volume: the run says why, readers notice nothing."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from support.faultpoints import Fail
from support.scenarios import SCENARIOS, Bench, Reference, chosen, hold_against, shown

if TYPE_CHECKING:
    from pathlib import Path

    from support.faultpoints import Ended

REASONS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_error_at_any_step_is_told_with_its_reason_and_the_next_run_comes_to_the_same_volume(
    tmp_path: Path, name: str
) -> None:
    bench = Bench(tmp_path, SCENARIOS[name])
    good = Reference(bench)
    for turn, number in enumerate(chosen(good.points, f"errors in {name}")):
        fault = Fail(number, REASONS[turn % 4], sticky=turn % 8 < 4)
        bench.reset()
        ended = bench.do(bench.scenario.work, fault)
        print(f"{fault} at {ended.struck}: {ended.error} {ended.text}")
        hold_error(bench, good, ended, fault)
        hold_against(bench, good, in_part=True)


def hold_error(bench: Bench, good: Reference, ended: Ended, fault: Fail) -> None:
    """Check what a run says that met an error: a typed error with the reason, or what it did without the disk."""
    reason = os.strerror(fault.reason)
    for defect in ("Traceback", "unraisable", "never retrieved"):
        assert defect not in ended.log, ended.log
    if ended.error:
        assert "ClrError" in ended.bases, f"{ended.error} left the run"
        assert reason in ended.text, ended.text
    elif shown(bench.served()) != shown(good.stages[-1]):
        assert reason in ended.text + ended.log, f"{ended.text}\n{ended.log}"
