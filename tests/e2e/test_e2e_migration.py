"""A site of the original Content Library Rsync changes its images: what its users and vCenter know stays."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from support.templates import fake_template

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.engine import Pair

MIB = 1 << 20


def as_the_original(library: Path) -> dict[str, Any]:
    """Write the manifests that the original writes (hexadecimal etags, no generationNum); return lib.json."""
    entries = []
    for item in sorted(folder for folder in library.iterdir() if folder.is_dir()):
        files = [
            {
                "name": file.name,
                "size": file.stat().st_size,
                "etag": hashlib.md5(file.read_bytes()).hexdigest(),
                "hrefs": [f"{item.name}/{file.name}"],
            }
            for file in sorted(item.iterdir())
        ]
        entry = {
            "created": "2022-08-07T02:53Z",
            "description": "",
            "version": "4",
            "files": files,
            "id": f"urn:uuid:{uuid.uuid4()}",
            "name": item.name,
            "metadata": [{"key": "type-metadata", "value": "{}", "type": "String", "domain": "SYSTEM"}],
            "properties": {},
            "selfHref": f"{item.name}/item.json",
            "type": "vcsp.ovf",
            "contentVersion": "4",
        }
        (item / "item.json").write_text(json.dumps(entry))
        entries.append(entry)
    original: dict[str, Any] = {
        "vcspVersion": "2",
        "version": "7",
        "contentVersion": "1",
        "name": "Library",
        "id": f"urn:uuid:{uuid.uuid4()}",
        "created": "2022-08-07T02:53Z",
        "capabilities": {"transferIn": ["httpGet"], "transferOut": ["httpGet"]},
        "itemsHref": "items.json",
    }
    (library / "lib.json").write_text(json.dumps(original))
    (library / "items.json").write_text(json.dumps({"items": entries}))
    return original


def test_the_originals_data_folder_keeps_its_ids_and_is_not_transferred_again(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(environment={"SYNC_MAX_KBPS": "0"})
    for name in ("Template_1", "Template_2"):
        fake_template(pair.templates / name, disk_bytes=4 * MIB)
    shutil.copytree(pair.templates, pair.library, dirs_exist_ok=True)
    original = as_the_original(pair.library)
    ids = {entry["name"]: entry["id"] for entry in json.loads((pair.library / "items.json").read_text())["items"]}

    pair.up()
    first = pair.wait_runs(1)[0]

    assert first["result"] == "success"
    assert first["received_bytes"] < 100_000, "templates that were there crossed again"
    library = json.loads(pair.fetch("lib.json"))
    assert library["id"] == original["id"]
    assert int(library["version"]) > int(original["version"])
    items = json.loads(pair.fetch("items.json"))["items"]
    assert {item["name"]: item["id"] for item in items} == ids
    assert all(int(item["version"]) > 4 for item in items)
    pair.clr("check", "http://localhost/lib.json", "--full")
    assert "SYNC_MAX_BW" in pair.logs("client")


def test_a_data_folder_of_root_is_handed_over_once(make_pair: Callable[..., Pair]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can leave files of root")
    pair = make_pair()
    fake_template(pair.templates / "Template_1")
    shutil.copytree(pair.templates, pair.library, dirs_exist_ok=True)
    as_the_original(pair.library)

    pair.up()
    pair.wait_runs(1)
    assert pair.exec("client", "find", "/syncer/library", "!", "-uid", "31337") == ""
    pair.run_compose("client", "restart")
    pair.wait_runs(2)

    assert pair.logs("client").count("/syncer/library: handing it over") == 1
