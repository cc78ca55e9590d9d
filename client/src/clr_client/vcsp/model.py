"""What a published library consists of, free of any file format."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

TYPES: Final = ("vcsp.ovf", "vcsp.iso", "vcsp.other")
HREF_STYLES: Final = ("tree", "plain")
ADOPTED: Final = "adopted"
NAME_LIMIT: Final = 80
DESCRIPTION_LIMIT: Final = 2000
LARGEST: Final = 2**63 - 1
"""Readers keep versions, etags and generation numbers in a signed 64-bit integer."""

_NO_SEGMENTS = frozenset(("", ".", ".."))
_ID = re.compile(r"urn:uuid:[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


@dataclass(frozen=True, slots=True)
class FileContent:
    """A file to publish: base name, size in bytes, a digest that changes with the content ("" unknown)."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class ItemContent:
    """An item to publish, before it has an id or a version.

    ``key`` is where it lies in the library, relative, with ``/``: a folder, or a file for an item made of
    that file. ``key_is_file`` says which. None derives it: the key is taken for a file when its last segment
    is the name of the only file, or when it ends in ``.ova`` and an OVF is among the files (an archive that
    was unpacked). A folder that looks like that needs an explicit False, or its plain hrefs miss a segment.
    """

    key: str
    name: str
    description: str
    type: str
    is_vapp_template: bool
    files: tuple[FileContent, ...]
    key_is_file: bool | None = None


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file as subscribers know it. ``generation_num`` grows when it changes; ``digest`` "" is unknown."""

    name: str
    size: int
    digest: str
    generation_num: int


@dataclass(frozen=True, slots=True)
class PublishedItem:
    """An item as subscribers know it: ``id`` is ``urn:uuid:…``, ``etag`` holds for all its files and is
    no less than their generation numbers.

    ``created`` is UTC as ``%Y-%m-%dT%H:%MZ``; ``files`` are sorted by name. ``key_is_file`` as in
    ``ItemContent``.
    """

    key: str
    id: str
    name: str
    description: str
    type: str
    is_vapp_template: bool
    version: int
    content_version: int
    created: str
    etag: int
    files: tuple[PublishedFile, ...]
    key_is_file: bool = False

    @property
    def uuid(self) -> str:
        """The id without ``urn:uuid:``; names the item's folder among the item trees."""
        return self.id.removeprefix("urn:uuid:")


@dataclass(frozen=True, slots=True)
class PublishedLibrary:
    """A library as subscribers know it; ``items`` are sorted by name, ignoring case.

    ``href_style`` is one of ``HREF_STYLES``, or ``ADOPTED`` for one that was read from published manifests.
    """

    id: str
    name: str
    version: int
    created: str
    href_style: str
    items: tuple[PublishedItem, ...]


@dataclass(frozen=True, slots=True)
class Manifests:
    """The files that describe a library: ``lib.json``, ``items.json`` and, by item id, each ``item.json``."""

    lib: bytes
    items: bytes
    item: Mapping[str, bytes]


def is_id(text: str) -> bool:
    """Whether ``text`` is ``urn:uuid:`` and a UUID in its usual form, hence safe as the name of a folder."""
    return _ID.fullmatch(text) is not None


def same_name(name: str) -> str:
    """A form in which two names are equal when they differ only in case or composition of characters."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def derives_file(key: str, names: Collection[str]) -> bool:
    """Whether ``key`` reads as the path of a file, given the item's file names; see ``ItemContent``."""
    last = key.rpartition("/")[2]
    unpacked = last.lower().endswith(".ova") and any(name.lower().endswith(".ovf") for name in names)
    return set(names) == {last} or unpacked


def is_safe_path(path: str) -> bool:
    """Whether ``path`` is relative, stays inside its root and has no empty, ``.`` or ``..`` segment."""
    if "/" not in path:
        return path not in _NO_SEGMENTS and "\0" not in path
    return "\0" not in path and _NO_SEGMENTS.isdisjoint(path.split("/"))


def as_content(item: PublishedItem) -> ItemContent:
    """A published item as it is, for a library in which it stays."""
    return ItemContent(
        key=item.key,
        name=item.name,
        description=item.description,
        type=item.type,
        is_vapp_template=item.is_vapp_template,
        files=tuple(FileContent(file.name, file.size, file.digest) for file in item.files),
        key_is_file=item.key_is_file,
    )
