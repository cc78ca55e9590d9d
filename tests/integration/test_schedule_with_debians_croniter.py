"""The schedule's tests again, with the croniter that Debian 13 ships."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.caddy import missing

ROOT = Path(__file__).parents[2]
CRONITER = ROOT / ".cache" / "croniter-2.0"


@pytest.fixture(scope="session")
def debians_croniter() -> Path:
    """A folder with croniter 2.0, fetched once."""
    if not (CRONITER / "croniter").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(CRONITER)]
        fetched = subprocess.run([*pip, "croniter==2.0.*", "pytz"], capture_output=True, text=True, timeout=120)
        if fetched.returncode:
            missing(f"croniter 2.0 cannot be fetched: {fetched.stderr.strip()[-200:]}")
    return CRONITER


def test_runs_are_right_with_croniter_2_0_as_well(debians_croniter: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(debians_croniter), "CLR_FULL": "0"}
    version = "import importlib.metadata as m; print(m.version('croniter'))"
    shown = subprocess.run([sys.executable, "-c", version], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("2.0.")
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-c", "tests/pytest.ini", "tests/unit/test_schedule.py"]
    # croniter 2.0 itself calls what Python 3.12 deprecates.
    pytest_ += ["-p", "no:cacheprovider", "-W", "ignore::DeprecationWarning:croniter"]
    run = subprocess.run(pytest_, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stdout
