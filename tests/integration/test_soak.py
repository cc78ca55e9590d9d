"""A short `make soak`, and that it would find something."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.soak import Soak, ViolationError, seconds, soak

if TYPE_CHECKING:
    from pathlib import Path


def test_a_pair_that_random_faults_befall_keeps_every_promise(tmp_path: Path) -> None:
    summary = soak(tmp_path, seed=3, duration=15)
    assert "nothing lost" in summary


def test_a_file_lost_from_the_published_library_is_noticed_at_once(tmp_path: Path) -> None:
    with Soak(tmp_path, seed=1) as run:
        next(run.site.store.items.rglob("*.vmdk")).unlink()
        with pytest.raises((ViolationError, FileNotFoundError)):
            run.run(10)


def test_a_version_that_goes_back_is_noticed_by_subscribers_and_on_the_disk(tmp_path: Path) -> None:
    with Soak(tmp_path, seed=1) as run:
        lib = run.site.library / "current" / "lib.json"
        document = lib.read_text()
        lib.write_text(document.replace('"version": "1"', '"version": "9"'))
        run.tally.clear()
        while not run.tally["subscriptions"]:
            pass
        lib.write_text(document)
        with pytest.raises(ViolationError, match="went back from 9 to 1"):
            run.run(10)


def test_a_time_that_is_none_is_refused() -> None:
    assert [seconds("90s"), seconds("10m"), seconds("1h")] == [90, 600, 3600]
    with pytest.raises(ValueError, match="write 90s, 10m or 1h"):
        seconds("10 minutes")
