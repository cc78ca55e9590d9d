"""Builds published libraries for tests: contents from bytes, and a folder as any web server would serve it."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from clr_client.vcsp.build import next_library
from clr_client.vcsp.manifests import file_path, manifests, self_path
from clr_client.vcsp.model import FileContent, ItemContent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from clr_client.vcsp.model import PublishedLibrary

NOW = datetime(2026, 11, 21, 19, 54, 30, tzinfo=UTC)
SECONDS = int(NOW.timestamp())


def content(
    key: str,
    files: Mapping[str, bytes] | None = None,
    *,
    name: str | None = None,
    description: str = "",
    kind: str = "vcsp.other",
    vapp: bool = False,
    key_is_file: bool | None = None,
) -> ItemContent:
    """An item's content, with true sizes and digests."""
    found = {"disk.vmdk": b"disk"} if files is None else files
    return ItemContent(
        key=key,
        name=key.replace("/", " ") if name is None else name,
        description=description,
        type=kind,
        is_vapp_template=vapp,
        files=tuple(FileContent(each, len(data), hashlib.sha256(data).hexdigest()) for each, data in found.items()),
        key_is_file=key_is_file,
    )


def library(*contents: ItemContent, previous: PublishedLibrary | None = None, **options: Any) -> PublishedLibrary:
    """The library after ``previous``."""
    name = options.pop("name", "Templates")
    return next_library(previous, name, contents, **{"now": NOW, **options})


def parsed(data: bytes) -> dict[str, Any]:
    """A manifest as an object."""
    value = json.loads(data)
    assert isinstance(value, dict)
    return value


def item_entries(published: PublishedLibrary) -> dict[str, dict[str, Any]]:
    """What items.json says, by item name."""
    return {entry["name"]: entry for entry in parsed(manifests(published).items)["items"]}


def write_site(root: Path, published: PublishedLibrary, files: Mapping[str, Mapping[str, bytes]]) -> None:
    """Everything that ``published`` refers to, in the order in which it has to appear; ``files`` by item key."""
    texts = manifests(published)
    for item in published.items:
        for file in item.files:
            place = root / file_path(published, item, file)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(files[item.key][file.name])
        own = root / self_path(published, item)
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_bytes(texts.item[item.id])
    (root / "items.json").write_bytes(texts.items)
    (root / "lib.json").write_bytes(texts.lib)


def ids(published: PublishedLibrary) -> dict[str, str]:
    """Item ids by key."""
    return {item.key: item.id for item in published.items}


def by_key(published: PublishedLibrary, key: str) -> Any:
    """The published item at ``key``."""
    return next(item for item in published.items if item.key == key)


def shuffled(contents: Iterable[ItemContent]) -> list[ItemContent]:
    """The same contents in another order, files too."""
    import dataclasses

    return [dataclasses.replace(each, files=each.files[::-1]) for each in reversed(list(contents))]
