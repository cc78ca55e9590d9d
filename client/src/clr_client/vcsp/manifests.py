"""The JSON files that a subscriber reads, as bytes that depend on nothing but the library.

The field types are those of VMware's own producers: versions and etags are strings of decimal integers, sizes
and generation numbers are integers. Text is ASCII with ``\\u`` escapes, so no reader can mistake the
encoding. Each item is one line of items.json, which Python writes ten times faster than an indented tree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from clr_client.vcsp.model import Manifests, PublishedFile, PublishedItem, PublishedLibrary

if TYPE_CHECKING:
    from collections.abc import Iterator

ITEM_TREES = "_items"
"""The folder beside lib.json through which the item trees are reached."""


class _ItemManifests(Mapping[str, bytes]):
    """Each item.json by the item's id, made when it is asked for: a sync needs those of new versions only."""

    def __init__(self, library: PublishedLibrary) -> None:
        self._library = library
        self._items = {item.id: item for item in library.items}

    def __getitem__(self, item_id: str) -> bytes:
        return _entry(self._library, self._items[item_id]) + b"\n"

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


def manifests(library: PublishedLibrary) -> Manifests:
    """The manifests of ``library``; equal libraries give equal bytes, and each item.json equals its entry."""
    return Manifests(
        lib=json.dumps(_library(library), indent=2).encode("ascii") + b"\n",
        items=_items(library),
        item=_ItemManifests(library),
    )


def _items(library: PublishedLibrary) -> bytes:
    text = BytesIO()
    text.write(b'{"items": [')
    for number, item in enumerate(library.items):
        text.write(b",\n" if number else b"\n")
        text.write(_entry(library, item))
    text.write(b"\n]}\n")
    return text.getvalue()


def _entry(library: PublishedLibrary, item: PublishedItem) -> bytes:
    return json.dumps(_item(library, item)).encode("ascii")


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
