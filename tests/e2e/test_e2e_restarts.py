"""Containers come and go; the library stays as it is and is served."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from support.engine import docker
from support.server import wait_until
from support.templates import fake_template

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.engine import Pair

MIB = 1 << 20
SERVER_GRACE, CLIENT_GRACE = 10, 30


def stop(pair: Pair, role: str) -> tuple[float, int]:
    """`docker stop` with the compose file's grace; return the seconds it took and the exit code."""
    began = time.monotonic()
    docker("stop", pair.name(role))
    return time.monotonic() - began, int(pair.inspect(role)["State"]["ExitCode"])


def answers(pair: Pair, path: str) -> bytes | None:
    """The body of a page; None while there is none."""
    try:
        return pair.fetch(path)
    except OSError:
        return None


def test_browsing_works_after_three_restarts_and_nothing_is_published_anew(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(environment={"LIBRARY_BROWSE": "true"})
    fake_template(pair.templates / "photon-web")
    pair.up()
    pair.wait_runs(1)
    before = pair.fetch("lib.json"), pair.fetch("items.json")

    for count in range(2, 5):
        pair.run_compose("client", "restart")
        pair.wait_runs(count)
        page = wait_until(lambda: answers(pair, "photon-web/"), 30, "the listing").decode()
        assert "photon-web.ovf" in page
        assert (pair.fetch("lib.json"), pair.fetch("items.json")) == before
        assert pair.clr("schedule").count("0 21 * * 5") == 1


def test_a_recreated_client_serves_at_once_while_its_server_is_away(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    fake_template(pair.templates / "photon-web")
    pair.up()
    pair.wait_runs(1)
    before = pair.fetch("lib.json")
    pair.down("server")

    pair.run_compose("client", "up", "-d", "--no-build", "--force-recreate")

    assert wait_until(lambda: answers(pair, "lib.json"), 20, "lib.json") == before
    pair.wait_healthy("client")


def test_both_stop_cleanly_well_within_their_grace(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    fake_template(pair.templates / "photon-web")
    pair.up()
    pair.wait_runs(1)

    seconds, code = stop(pair, "client")
    assert (seconds < CLIENT_GRACE / 3, code) == (True, 0)
    seconds, code = stop(pair, "server")
    assert (seconds < 2 + 1, code) == (True, 0)


def test_a_client_stopped_in_mid_transfer_goes_on_where_it_was(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(environment={"SYNC_MAX_BW": "2m"})
    fake_template(pair.templates / "photon-web", disk_bytes=24 * MIB)
    pair.up()
    mirror = pair.library / "mirror"

    def arrived() -> int:
        return sum(file.stat().st_size for file in mirror.rglob("*") if file.is_file())

    wait_until(lambda: mirror.is_dir() and arrived() > 4 * MIB, 60, "a part of the disk")
    seconds, code = stop(pair, "client")
    assert (seconds < CLIENT_GRACE / 2, code) == (True, 0)
    assert arrived() > 4 * MIB, "what had arrived was thrown away"

    docker("start", pair.name("client"))
    wait_until(lambda: any(run["result"] == "success" for run in pair.runs()), 90, "the rest")

    assert pair.runs()[0]["literal_bytes"] < 21 * MIB, "it began anew"
    assert json.loads(pair.fetch("items.json"))["items"][0]["name"] == "photon-web"


def test_a_killed_client_comes_back_by_itself_with_its_library(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    fake_template(pair.templates / "photon-web")
    pair.up()
    pair.wait_runs(1)
    before = pair.fetch("lib.json")

    docker("exec", "--user", "31337", pair.name("client"), "sh", "-c", "kill -9 -1", check=False)

    wait_until(lambda: pair.inspect("client")["RestartCount"] == 1, 30, "the engine's restart")
    assert wait_until(lambda: answers(pair, "lib.json"), 30, "lib.json") == before
    pair.wait_runs(2)
    assert pair.runs()[0]["result"] == "success"
