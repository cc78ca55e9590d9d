"""Tests in containers: they need an engine that answers, and are skipped with one line where none does."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from support import engine

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

T = TypeVar("T")
REQUIRED = os.environ.get("CLR_E2E") == "required"
PAIRS: pytest.StashKey[list[engine.Pair]] = pytest.StashKey()


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.timeout(1200))  # the first one also waits for the images


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = [item for item in items if "/e2e/" in item.path.as_posix()]
    if not here or engine.engine_answers():
        return
    if REQUIRED:
        pytest.exit("CLR_E2E=required, and no container engine answers", returncode=1)
    reason = f"{len(here)} tests in containers are left out: no container engine answers"
    here[0].add_marker(pytest.mark.skip(reason=reason))
    config.hook.pytest_deselected(items=here[1:])
    items[:] = [item for item in items if item not in here[1:]]


def need(what: str, action: Callable[[], T]) -> T:
    """Return what ``action`` returns; when it cannot, fail the test where CI requires it, and skip it elsewhere."""
    try:
        return action()
    except (OSError, subprocess.SubprocessError) as error:
        reason = f"{what} cannot be had: {error}"
    if REQUIRED:
        pytest.fail(f"CLR_E2E=required, and {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def compose() -> str:
    """The Compose that this machine has: 1.29 as the documentation types it, else v2."""
    return engine.compose_v1() or need("Compose", engine.compose_v2)


@pytest.fixture(scope="session")
def images(compose: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Both images, built from their Dockerfiles."""
    engine.remove_leftovers()
    need("the base image", lambda: engine.run(engine.SUPPORT / "base-image.sh", timeout=900))
    engine.build(compose, *engine.ROLES, folder=tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="session")
def compose2() -> str:
    """Compose v2."""
    return need("Compose v2", engine.compose_v2)


@pytest.fixture(params=["v1", "v2"])
def each_compose(request: pytest.FixtureRequest) -> str:
    """Compose 1.29, then v2."""
    if request.param == "v2":
        return str(request.getfixturevalue("compose2"))
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
