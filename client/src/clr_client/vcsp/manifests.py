"""The JSON files that a subscriber reads, as bytes that depend on nothing but the library.

The field types are those of VMware's own producers: versions and etags are strings of decimal integers, sizes
and generation numbers are integers. Text is ASCII with ``\\u`` escapes, so no reader can mistake the
encoding. Each item is one line of items.json, which Python writes ten times faster than an indented tree.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from clr_client.vcsp.model import Manifests, PublishedFile, PublishedItem, PublishedLibrary

ITEM_TREES = "_items"
"""The folder beside lib.json through which the item trees are reached."""


def manifests(library: PublishedLibrary) -> Manifests:
    """The manifests of ``library``; equal libraries give equal bytes, and each item.json equals its entry."""
    entries = {item.id: json.dumps(_item(library, item)).encode("ascii") for item in library.items}
    return Manifests(
        lib=json.dumps(_library(library), indent=2).encode("ascii") + b"\n",
        items=b'{"items": [\n' + b",\n".join(entries.values()) + b"\n]}\n",
        item={item_id: entry + b"\n" for item_id, entry in entries.items()},
    )


def file_path(library: PublishedLibrary, item: PublishedItem, file: PublishedFile) -> str:
    """Where subscribers find ``file``: a path relative to lib.json, not percent-encoded.

    In style ``tree`` that is inside the item's own tree, so that a reader of an older items.json finishes
    with the older files. In style ``plain`` it is where people find it: the key's folder, or the key of a
    single-file item. An item whose key is a file but which has several files (an unpacked archive) has no
    plain place and stays in its tree.
    """
    if _is_plain(library, item):
        return item.key if item.key_is_file else f"{item.key}/{file.name}"
    return f"{_tree(item)}/{file.name}"


def self_path(library: PublishedLibrary, item: PublishedItem) -> str:
    """Where the item's item.json has to lie: a path relative to lib.json, not percent-encoded."""
    if not _is_plain(library, item) or item.key_is_file:
        return f"{_tree(item)}/item.json"
    return f"{item.key}/item.json"


def _is_plain(library: PublishedLibrary, item: PublishedItem) -> bool:
    unpacked = item.key_is_file and [file.name for file in item.files] != [item.key.rpartition("/")[2]]
    return library.href_style == "plain" and not unpacked


def _tree(item: PublishedItem) -> str:
    return f"{ITEM_TREES}/{item.uuid}/{item.version}"


def _quoted(path: str) -> str:
    return quote(path, safe="/")


def _library(library: PublishedLibrary) -> dict[str, Any]:
    return {
        "vcspVersion": "2",
        "version": str(library.version),
        "contentVersion": "1",
        "name": library.name,
        "id": library.id,
        "created": library.created,
        "capabilities": {"transferIn": ["httpGet"], "transferOut": ["httpGet"]},
        "itemsHref": "items.json",
    }


def _item(library: PublishedLibrary, item: PublishedItem) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": item.id,
        "name": item.name,
        "description": item.description,
        "version": str(item.version),
        "contentVersion": str(item.content_version),
        "created": item.created,
        "type": item.type,
        "files": [
            {
                "name": file.name,
                "size": file.size,
                "etag": str(item.etag),
                "generationNum": file.generation_num,
                "hrefs": [_quoted(file_path(library, item, file))],
            }
            for file in item.files
        ],
        "properties": {},
        "selfHref": _quoted(self_path(library, item)),
    }
    if item.type == "vcsp.ovf":
        entry["metadata"] = [_metadata(library, item)]
    return entry


def _metadata(library: PublishedLibrary, item: PublishedItem) -> dict[str, Any]:
    """What lets a subscriber show an OVF as VM or vApp template before it has read the envelope."""
    value: dict[str, Any] = {
        "id": item.id,
        "version": str(item.version),
        "libraryIdParent": library.id,
        "isVappTemplate": "true" if item.is_vapp_template else "false",
        "vmTemplate": None,
        "vappTemplate": None,
        "networks": [],
        "storagePolicyGroups": None,
    }
    return {
        "key": "type-metadata",
        "value": json.dumps(value),
        "type": "String",
        "domain": "SYSTEM",
        "visibility": "READONLY",
    }
