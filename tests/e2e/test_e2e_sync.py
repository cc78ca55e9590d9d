"""The promise of the README: a key, two compose files, and the templates of one site are a library at the other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from clr_client.vcsp.subscriber import Subscriber
from support.server import wait_until
from support.templates import fake_template

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.engine import Pair

MIB = 1 << 20


def identity(pair: Pair) -> dict[str, Any]:
    """What must outlive any restart: the manifests, ids and versions in them included."""
    return {name: json.loads(pair.fetch(name)) for name in ("lib.json", "items.json")}


def test_templates_travel_and_stay_with_either_compose(
    each_compose: str, make_pair: Callable[..., Pair], tmp_path: Path
) -> None:
    pair = make_pair(compose=each_compose, environment={"LIBRARY_NAME": "Golden images"})
    for name in ("photon-web", "debian 12 # base"):
        fake_template(pair.templates / name, disk_bytes=4 * MIB)

    pair.up()
    first = pair.wait_runs(1)[0]
    assert first["result"] == "success"
    assert first["received_bytes"] > 8 * MIB
    pair.wait_healthy()

    before = identity(pair)
    assert before["lib.json"]["name"] == "Golden images"
    assert {item["name"] for item in before["items.json"]["items"]} == {"photon-web", "debian 12 # base"}
    pair.clr("check", "http://localhost/lib.json", "--full")
    subscriber = Subscriber(tmp_path / "vcenter")
    url = f"http://127.0.0.1:{pair.http_port}/lib.json"
    assert subscriber.sync(url).added
    disk = "debian 12 # base-disk1.vmdk"
    received = subscriber.files()["debian 12 # base"][disk].read_bytes()
    assert received == (pair.templates / "debian 12 # base" / disk).read_bytes()

    fingerprints = pair.host_keys()
    assert len(fingerprints) == 2
    pair.down()
    pair.up()
    again = pair.wait_runs(2)[0]
    assert again["result"] == "success"
    assert again["received_bytes"] < 100_000, "a recreated client fetched templates again"
    assert identity(pair) == before
    assert pair.host_keys() == fingerprints
    assert subscriber.sync(url).files == ()
    pair.wait_healthy()


def test_a_changed_template_reaches_the_subscriber_by_a_sync_by_hand(
    make_pair: Callable[..., Pair], tmp_path: Path
) -> None:
    pair = make_pair()
    fake_template(pair.templates / "photon-web", disk_bytes=4 * MIB)
    pair.up()
    pair.wait_runs(1)
    url = f"http://127.0.0.1:{pair.http_port}/lib.json"
    subscriber = Subscriber(tmp_path / "vcenter")
    subscriber.sync(url)

    fake_template(pair.templates / "photon-web", disk_bytes=4 * MIB, revision=1)
    assert "update  photon-web" in pair.clr("plan")
    pair.clr("sync")

    assert pair.runs()[0]["received_bytes"] < MIB, "the whole disk crossed for 4 KiB of change"
    assert subscriber.sync(url).updated == ("photon-web",)
    disk = subscriber.files()["photon-web"]["photon-web-disk1.vmdk"]
    assert disk.read_bytes() == (pair.templates / "photon-web/photon-web-disk1.vmdk").read_bytes()


def test_a_sync_by_hand_owns_its_files_like_the_daemon(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    fake_template(pair.templates / "one")
    pair.up()
    pair.wait_runs(1)
    fake_template(pair.templates / "two")

    pair.clr("sync")  # docker exec is root

    foreign = pair.exec("client", "find", "/syncer/library", "!", "-uid", "31337")
    assert foreign == ""


def test_a_key_that_the_server_does_not_know_is_named_in_the_log(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(environment={"SYNC_RETRIES": "0"})
    fake_template(pair.templates / "one")
    for key in (pair.server_data / "ssh").iterdir():
        key.unlink()

    pair.up()
    failed = pair.wait_runs(1)[0]

    assert failed["result"] == "failed"
    assert "id_syncer" in failed["error"]
    wait_until(lambda: failed["error"] in pair.logs("client"), 10, "the reason in the log")
    with pytest.raises(OSError, match="503"):
        pair.fetch("lib.json")
