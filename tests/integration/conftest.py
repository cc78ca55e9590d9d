"""The pair that most tests need: a server of the module's ``library``, and a site that syncs from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.server import Server, free_port
from support.site import Site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server(library: Path, tmp_path: Path) -> Iterator[Server]:
    with Server(library, tmp_path / "server") as running:
        yield running


@pytest.fixture
def site(server: Server, tmp_path: Path) -> Site:
    return Site(tmp_path / "site", server, HTTP_PORT=str(free_port()), HTTPS_PORT=str(free_port()))
