"""The client is killed at any step of what it does to a volume: readers have a whole library, the next run mends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.faultpoints import Kill
from support.scenarios import SCENARIOS, Bench, Reference, chosen, hold_against

if TYPE_CHECKING:
    from pathlib import Path

SAMPLE = 12


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_kill_at_any_step_leaves_a_whole_library_and_the_next_run_comes_to_the_same_volume(
    tmp_path: Path, name: str
) -> None:
    bench = Bench(tmp_path, SCENARIOS[name])
    good = Reference(bench)
    for number in chosen(good.points, SAMPLE, name):
        bench.reset()
        ended = bench.do(bench.scenario.work, Kill(number))
        assert ended.killed, f"the run had fewer than {number} steps"
        print(f"killed before {ended.struck}")
        hold_against(bench, good)
