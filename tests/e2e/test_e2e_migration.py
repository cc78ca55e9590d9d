"""A site of the original Content Library Rsync changes its images: what its users and vCenter know stays."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest
from support.original import leave_original
from support.templates import fake_template

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.engine import Pair

MIB = 1 << 20


def test_the_originals_data_folder_keeps_its_ids_and_is_not_transferred_again(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(environment={"SYNC_MAX_KBPS": "0"})
    for name in ("Template_1", "Template_2"):
        fake_template(pair.templates / name, disk_bytes=4 * MIB)
    shutil.copytree(pair.templates, pair.library, dirs_exist_ok=True)
    ids = leave_original(pair.library)
    original = json.loads((pair.library / "lib.json").read_text())

    pair.up()
    first = pair.wait_runs(1)[0]

    assert first["result"] == "success"
    assert first["received_bytes"] < 100_000, "templates that were there crossed again"
    library = json.loads(pair.fetch("lib.json"))
    assert library["id"] == original["id"]
    assert int(library["version"]) > int(original["version"])
    items = json.loads(pair.fetch("items.json"))["items"]
    assert {item["name"]: item["id"] for item in items} | {"": library["id"]} == ids
    assert all(int(item["version"]) > 7 for item in items)
    pair.clr("check", "http://localhost/lib.json", "--full")
    assert "SYNC_MAX_BW" in pair.logs("client")


def test_a_data_folder_of_root_is_handed_over_once(make_pair: Callable[..., Pair]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can leave files of root")
    pair = make_pair()
    fake_template(pair.templates / "Template_1")
    shutil.copytree(pair.templates, pair.library, dirs_exist_ok=True)
    leave_original(pair.library)

    pair.up()
    pair.wait_runs(1)
    assert pair.exec("client", "find", "/syncer/library", "!", "-uid", "31337") == ""
    pair.run_compose("client", "restart")
    pair.wait_runs(2)

    assert pair.logs("client").count("/syncer/library: handing it over") == 1
