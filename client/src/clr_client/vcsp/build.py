"""From what lies in the library to what is published: which ids stay, which versions grow.

Versions follow from comparing contents with what was published before, never from the clock; the clock only
lifts etags and generation numbers, which producers of VMware fill with seconds since the epoch.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from clr_client.errors import ManifestError
from clr_client.vcsp.model import (
    ADOPTED,
    DESCRIPTION_LIMIT,
    HREF_STYLES,
    NAME_LIMIT,
    TYPES,
    FileContent,
    ItemContent,
    PublishedFile,
    PublishedItem,
    PublishedLibrary,
    derives_file,
    is_safe_path,
    same_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


def random_id() -> str:
    """A new ``urn:uuid:…``."""
    return uuid.uuid4().urn


def timestamp(instant: datetime) -> str:
    """``instant``, which must know its zone, in the form that manifests use: UTC, to the minute."""
    if instant.tzinfo is None:
        raise ValueError("a time without a zone cannot be published")
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%MZ")


def next_library(
    previous: PublishedLibrary | None,
    name: str,
    contents: Sequence[ItemContent],
    *,
    now: datetime,
    href_style: str = "tree",
    per_item_generations: bool = False,
    new_id: Callable[[], str] = random_id,
) -> PublishedLibrary:
    """The library to publish after ``previous`` (None: the first), holding exactly ``contents`` in any order.

    Returns ``previous`` itself when nothing that a subscriber can see has changed. An item keeps its id as
    long as its key stays. Its version grows with every visible change, its content version, etag and the
    generation numbers of its new and changed files only with its content; ``per_item_generations`` moves the
    numbers of all its files, as the specification's letter has it. A file of unknown digest counts as changed
    as soon as its digest is known; a library that was adopted changes in every item, for it was written in
    another way. Descriptions are cut at 2000 characters.

    Raises ManifestError when ``contents`` would make vSphere reject the library: equal names, names that are
    empty or too long, unknown types, unsafe paths. Raises ValueError for a ``now`` without zone or an unknown
    style.
    """
    if href_style not in HREF_STYLES:
        raise ValueError(f"unknown href style {href_style!r}")
    created = timestamp(now)
    seconds = max(1, int(now.timestamp()))
    wanted = sorted((_normal(content) for content in contents), key=lambda content: content.key)
    _check(name, wanted)
    if previous is None:
        items = [_new_item(content, new_id(), created, seconds) for content in wanted]
        return PublishedLibrary(new_id(), name, 1, created, href_style, _sorted(items))

    known = _match(previous.items, wanted)
    restyled = href_style != previous.href_style
    items = []
    for content in wanted:
        old = known.get(content.key)
        if old is None:
            items.append(_new_item(content, new_id(), created, seconds))
        else:
            items.append(_next_item(old, content, seconds, restyled=restyled, all_files=per_item_generations))
    published = replace(previous, name=name, href_style=href_style, items=_sorted(items))
    if published == previous:
        return previous
    if (published.items, published.name) == (previous.items, previous.name) and previous.href_style != ADOPTED:
        return published  # only the style of hrefs is another, and there are none
    return replace(published, version=previous.version + 1)


def _normal(content: ItemContent) -> ItemContent:
    """``content`` with its files in order, and nothing left to derive."""
    files = tuple(sorted(content.files, key=lambda file: file.name))
    is_file = content.key_is_file
    if is_file is None:
        is_file = derives_file(content.key, [file.name for file in files])
    return replace(content, description=content.description[:DESCRIPTION_LIMIT], files=files, key_is_file=is_file)


def _check(name: str, contents: Iterable[ItemContent]) -> None:
    if not name:
        raise ManifestError("The library has no name")
    keys: set[str] = set()
    names: dict[str, str] = {}
    for content in contents:
        if content.key in keys:
            raise ManifestError(f"Two items lie at {content.key!r}")
        keys.add(content.key)
        if not 1 <= len(content.name) <= NAME_LIMIT:
            raise ManifestError(f"The item at {content.key!r} has a name of {len(content.name)} characters")
        twin = names.setdefault(same_name(content.name), content.key)
        if twin != content.key:
            raise ManifestError(f"The items at {twin!r} and {content.key!r} have the same name {content.name!r}")
        _check_content(content)


def _check_content(content: ItemContent) -> None:
    if content.type not in TYPES:
        raise ManifestError(f"The item at {content.key!r} has the unknown type {content.type!r}")
    if not is_safe_path(content.key):
        raise ManifestError(f"An item cannot lie at {content.key!r}")
    files: set[str] = set()
    for file in content.files:
        if "/" in file.name or not is_safe_path(file.name):
            raise ManifestError(f"The item at {content.key!r} has a file with the impossible name {file.name!r}")
        if file.name in files:
            raise ManifestError(f"The item at {content.key!r} has two files of the name {file.name!r}")
        files.add(file.name)
        if file.size < 0:
            raise ManifestError(f"The file {file.name!r} of the item at {content.key!r} has a negative size")
    for text in (content.key, content.name, content.description, *files):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ManifestError(f"The item at {content.key!r} has text that is not UTF-8: {text!r}") from error


def _match(items: Iterable[PublishedItem], contents: Sequence[ItemContent]) -> dict[str, PublishedItem]:
    """Content keys to the published items they continue.

    Keys decide. Only items adopted from foreign manifests, whose digests are unknown, may be matched less
    strictly, because foreign producers keyed a file by its folder and our own manifests do not name the key
    at all: by folder and file name first, by name then. An id that can be kept saves every subscriber a full
    download.
    """
    keys = {content.key for content in contents}
    matched = {item.key: item for item in items if item.key in keys}
    adopted = [item for item in items if item.key not in matched and _is_adopted(item)]
    criteria: tuple[tuple[Callable[[PublishedItem], object], Callable[[ItemContent], object]], ...] = (
        (lambda item: (item.key, _names(item.files)), lambda content: (_folder(content), _names(content.files))),
        (lambda item: same_name(item.name), lambda content: same_name(content.name)),
    )
    for of_item, of_content in criteria:
        free = {of_content(content): content.key for content in reversed(contents) if content.key not in matched}
        rest = []
        for item in adopted:
            key = free.pop(of_item(item), None)
            if key is None:
                rest.append(item)
            else:
                matched[key] = item
        adopted = rest
    return matched


def _is_adopted(item: PublishedItem) -> bool:
    return all(not file.digest for file in item.files)


def _names(files: Iterable[FileContent] | Iterable[PublishedFile]) -> frozenset[str]:
    return frozenset(file.name for file in files)


def _folder(content: ItemContent) -> str:
    return content.key.rpartition("/")[0]


def _new_item(content: ItemContent, item_id: str, created: str, seconds: int) -> PublishedItem:
    return PublishedItem(
        key=content.key,
        id=item_id,
        name=content.name,
        description=content.description,
        type=content.type,
        is_vapp_template=content.is_vapp_template,
        version=1,
        content_version=1,
        created=created,
        etag=seconds,
        files=tuple(PublishedFile(file.name, file.size, file.digest, seconds) for file in content.files),
        key_is_file=bool(content.key_is_file),
    )


def _next_item(
    old: PublishedItem, content: ItemContent, seconds: int, *, restyled: bool, all_files: bool
) -> PublishedItem:
    """``old`` with ``content``; the same object when nothing about it changed and its hrefs stay."""
    before = {file.name: file for file in old.files}
    changed = {file.name for file in content.files if not _unchanged(before.get(file.name), file)}
    content_changed = bool(
        changed
        or before.keys() != {file.name for file in content.files}
        or (old.type, old.is_vapp_template) != (content.type, content.is_vapp_template)
    )
    described = replace(
        old,
        key=content.key,
        name=content.name,
        description=content.description,
        key_is_file=bool(content.key_is_file),
    )
    if not content_changed:
        return old if described == old and not restyled else replace(described, version=old.version + 1)
    etag = max(1 + old.etag, seconds)
    return replace(
        described,
        type=content.type,
        is_vapp_template=content.is_vapp_template,
        version=old.version + 1,
        content_version=old.content_version + 1,
        etag=etag,
        files=tuple(
            PublishedFile(
                file.name,
                file.size,
                file.digest,
                etag if all_files or file.name in changed else before[file.name].generation_num,
            )
            for file in content.files
        ),
    )


def _unchanged(old: PublishedFile | None, new: FileContent) -> bool:
    return old is not None and (old.size, old.digest) == (new.size, new.digest)


def _sorted(items: Iterable[PublishedItem]) -> tuple[PublishedItem, ...]:
    return tuple(sorted(items, key=lambda item: (same_name(item.name), item.name)))
