"""Settings for all tests."""

import os
import signal
from collections.abc import Generator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# How long one example takes says something about the machine, not about the code.
settings.register_profile("clr", deadline=None)
settings.register_profile("few", deadline=None, max_examples=10)
settings.register_profile("long", deadline=None, max_examples=20_000)
settings.load_profile({"1": "long", "0": "few"}.get(os.environ.get("CLR_FULL", ""), "clr"))

# A shell's background job ignores Ctrl-C, and so would every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make a report fit for the line between parallel processes, which carries UTF-8 only."""
    report = yield
    report.sections = [(name, _encodable(text)) for name, text in report.sections]
    if report.failed and str(report.longrepr) != _encodable(str(report.longrepr)):
        report.longrepr = _encodable(str(report.longrepr))
    return report


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


class Together(LoadScopeScheduling):
    """Gives each process one test after the other; those in containers, or with a fixture of a module, together."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if "e2e/" in file:
            return "containers"
        return file if _shares_a_fixture(self.config.rootpath / file) else nodeid


@cache
def _shares_a_fixture(file: Path) -> bool:
    return 'scope="module"' in file.read_text(encoding="utf-8")


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Together:
    return Together(config, log)
