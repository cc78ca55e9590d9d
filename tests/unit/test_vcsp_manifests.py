"""The JSON that subscribers read: fields, types, hrefs."""

from __future__ import annotations

import json
import re
from urllib.parse import unquote

import pytest
from clr_client.vcsp.manifests import file_path, manifests, self_path
from clr_client.vcsp.model import is_safe_path
from clr_client.vcsp.rules import Findings, read_items, read_library
from hypothesis import given
from hypothesis import strategies as st
from support.libraries import NOW, SECONDS, content, item_entries, library, parsed, shuffled

OVF = {"debian.ovf": b"<Envelope/>", "disk 1.vmdk": b"disk"}


def test_lib_json_has_every_field_in_its_exact_type() -> None:
    published = library(content("a"), name="Golden ünïcode")
    assert parsed(manifests(published).lib) == {
        "vcspVersion": "2",
        "version": "1",
        "contentVersion": "1",
        "name": "Golden ünïcode",
        "id": published.id,
        "created": "2026-11-21T19:54Z",
        "capabilities": {"transferIn": ["httpGet"], "transferOut": ["httpGet"]},
        "itemsHref": "items.json",
    }


def test_an_item_has_every_field_in_its_exact_type() -> None:
    published = library(content("linux/debian", OVF, name="Debian", description="d", kind="vcsp.ovf", vapp=True))
    item = published.items[0]
    entry = item_entries(published)["Debian"]
    value = json.loads(entry["metadata"][0].pop("value"))
    assert entry == {
        "id": item.id,
        "name": "Debian",
        "description": "d",
        "version": "1",
        "contentVersion": "1",
        "created": "2026-11-21T19:54Z",
        "type": "vcsp.ovf",
        "files": [
            {
                "name": "debian.ovf",
                "size": 11,
                "etag": str(SECONDS),
                "generationNum": SECONDS,
                "hrefs": [f"_items/{item.uuid}/1/debian.ovf"],
            },
            {
                "name": "disk 1.vmdk",
                "size": 4,
                "etag": str(SECONDS),
                "generationNum": SECONDS,
                "hrefs": [f"_items/{item.uuid}/1/disk%201.vmdk"],
            },
        ],
        "properties": {},
        "selfHref": f"_items/{item.uuid}/1/item.json",
        "metadata": [{"key": "type-metadata", "type": "String", "domain": "SYSTEM", "visibility": "READONLY"}],
    }
    assert value == {
        "id": item.id,
        "version": "1",
        "libraryIdParent": published.id,
        "isVappTemplate": "true",
        "vmTemplate": None,
        "vappTemplate": None,
        "networks": [],
        "storagePolicyGroups": None,
    }


def test_the_metadata_keeps_in_step_with_the_items_version() -> None:
    first = library(content("a", OVF, kind="vcsp.ovf"))
    second = library(content("a", OVF, kind="vcsp.ovf", name="renamed"), previous=first)
    value = json.loads(item_entries(second)["renamed"]["metadata"][0]["value"])
    assert (value["version"], value["isVappTemplate"]) == ("2", "false")


@pytest.mark.parametrize("kind", ["vcsp.iso", "vcsp.other"])
def test_only_templates_have_metadata(kind: str) -> None:
    assert "metadata" not in item_entries(library(content("a", kind=kind)))["a"]


def test_each_item_json_equals_its_entry_in_items_json() -> None:
    published = library(content("a", OVF, kind="vcsp.ovf"), content("b"))
    texts = manifests(published)
    entries = parsed(texts.items)["items"]
    assert [parsed(texts.item[entry["id"]]) for entry in entries] == entries
    assert len(texts.item) == 2


@pytest.mark.parametrize("style", ["tree", "plain"])
def test_equal_input_gives_equal_bytes(style: str) -> None:
    contents = [content("b", OVF, kind="vcsp.ovf"), content("a"), content("ü.iso", {"ü.iso": b"1"})]
    first = library(*contents, href_style=style)
    again = library(*shuffled(contents), previous=first, href_style=style)
    assert manifests(again) == manifests(first)
    text = manifests(first).items
    assert text.isascii()
    assert text.endswith(b"}\n")


def test_plain_hrefs_are_where_people_find_the_files() -> None:
    published = library(
        content("linux/debian 12", OVF, name="folder", kind="vcsp.ovf"),
        content("iso/net inst.iso", {"net inst.iso": b"1"}, name="file", kind="vcsp.iso"),
        content("tool.zip", {"tool.zip": b"1"}, name="folder of its file's name", key_is_file=False),
        content("appliance.ova", {"appliance.ovf": b"1"}, name="unpacked"),
        href_style="plain",
    )
    uuids = {item.name: item.uuid for item in published.items}
    found = {
        name: ([file["hrefs"][0] for file in entry["files"]], entry["selfHref"])
        for name, entry in item_entries(published).items()
    }
    assert found == {
        "folder": (
            ["linux/debian%2012/debian.ovf", "linux/debian%2012/disk%201.vmdk"],
            "linux/debian%2012/item.json",
        ),
        "file": (["iso/net%20inst.iso"], f"_items/{uuids['file']}/1/item.json"),
        "folder of its file's name": (["tool.zip/tool.zip"], "tool.zip/item.json"),
        "unpacked": (
            [f"_items/{uuids['unpacked']}/1/appliance.ovf"],
            f"_items/{uuids['unpacked']}/1/item.json",
        ),
    }


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=40).filter(
    is_safe_path
)


@given(folder=NAMES, names=st.sets(NAMES, min_size=1, max_size=4), style=st.sampled_from(["tree", "plain"]))
def test_every_href_decodes_to_exactly_its_file(folder: str, names: set[str], style: str) -> None:
    published = library(content(folder, dict.fromkeys(names, b"1"), name="n"), href_style=style)
    item = published.items[0]
    entry = item_entries(published)["n"]
    assert [each["name"] for each in entry["files"]] == sorted(names)
    for file, each in zip(item.files, entry["files"], strict=True):
        assert re.fullmatch(r"[A-Za-z0-9._~/%-]+", each["hrefs"][0])
        assert unquote(each["hrefs"][0], errors="strict") == file_path(published, item, file)
        segments = [unquote(segment) for segment in each["hrefs"][0].split("/")]
        assert segments[-1] == file.name
    assert unquote(entry["selfHref"]) == self_path(published, item)
    if style == "tree":
        assert file_path(published, item, item.files[0]) == f"_items/{item.uuid}/1/{item.files[0].name}"
    findings = Findings()
    read = read_library(manifests(published).lib, findings)
    assert read is not None
    assert len(read_items(manifests(published).items, read, findings)) == 1
    assert [problem for problem in findings.problems if problem.severity == "error"] == []


def test_the_item_tree_of_each_version_is_another_place() -> None:
    first = library(content("a"))
    second = library(content("a", description="new"), previous=first, now=NOW)
    assert self_path(first, first.items[0]) != self_path(second, second.items[0])
