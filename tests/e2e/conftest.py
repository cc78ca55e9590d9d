"""Tests in containers: they need an engine that answers, and are skipped with one line where none does."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from support import engine

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

REQUIRED = os.environ.get("CLR_E2E") == "required"
PAIRS: pytest.StashKey[list[engine.Pair]] = pytest.StashKey()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The first test also waits for the images
    for item in items:
        if "/e2e/" in str(item.path):
            item.add_marker(pytest.mark.timeout(1200))


@pytest.fixture(scope="session", autouse=True)
def answering_engine() -> None:
    if not engine.engine_answers():
        if REQUIRED:
            pytest.exit("CLR_E2E=required, and no container engine answers", returncode=1)
        pytest.skip("no container engine answers: tests/support/engine.sh start FILE starts Debian's")


@pytest.fixture(scope="session")
def compose(answering_engine: None) -> str:
    """The Compose that this machine has: 1.29 as the documentation types it, else v2."""
    return engine.compose_v1() or engine.compose_v2()


@pytest.fixture(scope="session")
def images(compose: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Both images, built from their Dockerfiles."""
    engine.remove_leftovers()
    engine.run(engine.SUPPORT / "base-image.sh", timeout=900)
    engine.build(compose, *engine.ROLES, folder=tmp_path_factory.mktemp("build"))


@pytest.fixture(params=["v1", "v2"])
def each_compose(request: pytest.FixtureRequest, answering_engine: None) -> str:
    """Compose 1.29, then v2."""
    if request.param == "v2":
        return engine.compose_v2()
    path = engine.compose_v1()
    if path is None:
        if REQUIRED:
            pytest.fail("CLR_E2E=required, and docker-compose is not Compose 1.29")
        pytest.skip("docker-compose is not Compose 1.29")
    return path


@pytest.fixture
def make_pair(
    images: None, compose: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., engine.Pair]]:
    """Make pairs that are removed at the test's end: ``make_pair(environment={…}, service={…})``."""
    pairs = request.node.stash[PAIRS] = []

    def make(**options: Any) -> engine.Pair:
        folder = tmp_path / f"pair{len(pairs)}"
        folder.mkdir()
        pairs.append(engine.Pair(folder, **{"compose": compose, **options}))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.remove()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and report.when == "call":
        for pair in item.stash.get(PAIRS, []):
            report.sections += [(f"docker logs {pair.name(role)}", pair.logs(role)[-8000:]) for role in engine.ROLES]
    return report
