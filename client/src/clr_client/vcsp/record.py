"""What was published, for the next run: our own record, or what published manifests tell."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from clr_client.errors import ManifestError
from clr_client.vcsp.model import (
    ADOPTED,
    HREF_STYLES,
    LARGEST,
    NAME_LIMIT,
    TYPES,
    PublishedFile,
    PublishedItem,
    PublishedLibrary,
    is_id,
    is_safe_path,
    same_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FORMAT: Final = 1
_ITEM_FIELDS: Final = [field.name for field in dataclasses.fields(PublishedItem)]
_FILE_FIELDS: Final = [field.name for field in dataclasses.fields(PublishedFile)]
_CREATED = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}Z")
_MOMENT = re.compile(r"(\d{4}-\d{2}-\d{2}T\d{2}:\d{2})(?::\d{2}(?:\.\d+)?)?Z")
_UUID_AT_END = re.compile(r"(?:^|:)([0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})$")
_SEALED = re.compile(rb'\{"sha256": "([0-9a-f]{64})", ')
_LONG_AGO = "1970-01-01T00:00Z"


def dump(library: PublishedLibrary) -> bytes:
    """``library`` with everything that ``manifests`` leaves out: keys, digests, the style of its hrefs.

    It begins with its own digest, so that ``load`` takes no version from a record that has rotted.
    """
    head = {
        "format": FORMAT,
        "id": library.id,
        "name": library.name,
        "version": library.version,
        "created": library.created,
        "href_style": library.href_style,
    }
    items = ",\n".join(json.dumps(_as_fields(item)) for item in library.items)
    text = f'{json.dumps(head)[:-1]}, "items": [\n{items}\n]}}\n'.encode("ascii")
    return b'{"sha256": "%s", %s' % (hashlib.sha256(text).hexdigest().encode(), text[1:])


def _as_fields(item: PublishedItem) -> dict[str, Any]:
    fields = {name: getattr(item, name) for name in _ITEM_FIELDS}
    return {**fields, "files": [{name: getattr(file, name) for name in _FILE_FIELDS} for file in item.files]}


def load(data: bytes) -> PublishedLibrary:
    """The library that ``dump`` wrote. Raises ManifestError, with the reason, for anything else."""
    record = _Fields(_parse(data, "The record"), "The record")
    version = record.integer("format", 1)
    if version > FORMAT:
        raise ManifestError(
            f"The record has format {version}, written by a newer release; this one reads up to {FORMAT}",
            "Use the newer release, or remove the record to start from the published manifests",
        )
    library = PublishedLibrary(
        id=record.identity("id"),
        name=record.text("name"),
        version=record.integer("version", 1),
        created=record.moment("created"),
        href_style=record.one_of("href_style", (*HREF_STYLES, ADOPTED)),
        items=tuple(_load_item(fields) for fields in record.objects("items")),
    )
    _refuse_twins("items of the id", (item.id.lower() for item in library.items))
    _refuse_twins("items of the key", (item.key for item in library.items))
    _refuse_twins("items of the name", (same_name(item.name) for item in library.items))
    sealed = _SEALED.match(data)
    if sealed and sealed[1].decode() != hashlib.sha256(b"{" + data[sealed.end() :]).hexdigest():
        raise ManifestError("The record is not what was written: its digest is another")
    return library


def _load_item(fields: _Fields) -> PublishedItem:
    files = tuple(_load_file(file) for file in fields.objects("files"))
    _refuse_twins("files of the name", (file.name for file in files))
    etag = fields.integer("etag", max([1, *(file.generation_num for file in files)]))
    return PublishedItem(
        key=fields.path("key", separators=True),
        id=fields.identity("id"),
        name=fields.text("name"),
        description=fields.text("description"),
        type=fields.one_of("type", TYPES),
        is_vapp_template=fields.truth("is_vapp_template"),
        version=fields.integer("version", 1),
        content_version=fields.integer("content_version", 1),
        created=fields.moment("created"),
        etag=etag,
        files=files,
        key_is_file=fields.truth("key_is_file"),
    )


def _load_file(fields: _Fields) -> PublishedFile:
    return PublishedFile(
        name=fields.path("name", separators=False),
        size=fields.integer("size", 0),
        digest=fields.text("digest"),
        generation_num=fields.integer("generation_num", 1),
    )


def _refuse_twins(what: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise ManifestError(f"The record has two {what} {value!r}")
        seen.add(value)


class _Fields:
    """One JSON object of a record, read field by field; each reader raises ManifestError naming the field."""

    __slots__ = ("_label", "_number", "_parent", "_value")

    def __init__(self, value: object, parent: str | _Fields, label: str = "", number: int = 0) -> None:
        """All but ``value`` is for messages, and put together when needed: a record may hold very many objects."""
        self._parent = parent
        self._label = label
        self._number = number
        if not isinstance(value, dict):
            raise ManifestError(f"{self._where()} is not a JSON object")
        self._value: dict[str, object] = value

    def _where(self) -> str:
        if isinstance(self._parent, str):
            return self._parent
        return f"{self._parent._where()}, {self._label} no. {self._number}"  # noqa: SLF001 - of the same class

    def _unusable(self, name: str, wanted: str) -> ManifestError:
        told = _shown(self._value.get(name))
        return ManifestError(f"{self._where()} has no usable {name}: {told} is not {wanted}")

    def text(self, name: str) -> str:
        value = self._value.get(name)
        if isinstance(value, str) and _is_text(value):
            return value
        raise self._unusable(name, "text")

    def truth(self, name: str) -> bool:
        value = self._value.get(name)
        if isinstance(value, bool):
            return value
        raise self._unusable(name, "true or false")

    def integer(self, name: str, least: int) -> int:
        value = self._value.get(name)
        if type(value) is int and least <= value <= LARGEST:
            return value
        raise self._unusable(name, f"a whole number from {least} to {LARGEST}")

    def identity(self, name: str) -> str:
        value = self._value.get(name)
        if isinstance(value, str) and is_id(value):
            return value
        raise self._unusable(name, "urn:uuid: and a UUID")

    def moment(self, name: str) -> str:
        value = self._value.get(name)
        if isinstance(value, str) and _CREATED.fullmatch(value):
            return value
        raise self._unusable(name, "a time like 2026-11-21T19:54Z")

    def one_of(self, name: str, allowed: tuple[str, ...]) -> str:
        value = self._value.get(name)
        if isinstance(value, str) and value in allowed:
            return value
        raise self._unusable(name, "one of " + ", ".join(allowed))

    def path(self, name: str, *, separators: bool) -> str:
        value = self._value.get(name)
        if isinstance(value, str) and _is_text(value) and is_safe_path(value) and (separators or "/" not in value):
            return value
        raise self._unusable(name, "a safe path in the library")

    def objects(self, name: str) -> Iterator[_Fields]:
        values = self._value.get(name)
        if not isinstance(values, list):
            raise self._unusable(name, "a list")
        for number, value in enumerate(values, 1):
            yield _Fields(value, self, name, number)


def _is_text(value: object) -> bool:
    """Whether ``value`` is text that can be written as UTF-8 (JSON may hold halves of surrogate pairs)."""
    if not isinstance(value, str):
        return False
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:60] + "…"


def _parse(data: bytes, what: str) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{what} is not JSON: {error}") from error


def adopt(lib: bytes, items: bytes | None, item_manifests: Iterable[bytes] = ()) -> PublishedLibrary:
    """The library that published manifests describe, so that ids stay and versions go on from where they are.

    Reads our own manifests and those of the original CLR, the make_vcsp scripts and
    artifactory-content-library: numbers may be strings or integers, etags hexadecimal, generation numbers
    missing. Digests are unknown (""), so the next library counts every file as changed. ``items`` None or
    damaged gives what is left of it, completed from ``item_manifests``, the item.json files that may still be
    found; without any the library has no items, but keeps its id and version. An item without a usable id is
    left out.

    Keys come from selfHref and hrefs. Our own hrefs of style ``tree`` do not tell the key: then it is the
    item's name, or its tree if that is taken, unless the caller knows better; ``next_library`` finds such
    items by name.

    Raises ManifestError when ``lib`` gives no library id.
    """
    library = _parse(lib, "lib.json")
    if not isinstance(library, dict):
        raise ManifestError("lib.json is not a JSON object")
    library_id = _adopted_id(library.get("id"))
    if library_id is None:
        raise ManifestError(f"lib.json has no usable id: {_shown(library.get('id'))} is not urn:uuid: and a UUID")
    entries, complete = _entries(items or b"")
    if not complete:
        entries += [entry for data in item_manifests for entry in _entries(b'{"items": [' + data + b"]}")[0]]
    adopted = _adopt_items(entries)
    name = library.get("name")
    return PublishedLibrary(
        id=library_id,
        name=str(name) if _is_text(name) else "",
        version=_number(library.get("version"), 1),
        created=_adopted_moment(library.get("created")),
        href_style=ADOPTED,
        items=tuple(sorted(adopted, key=lambda item: (same_name(item.name), item.name))),
    )


def _entries(items: bytes) -> tuple[list[dict[str, Any]], bool]:
    """The item objects of an items.json, as far as it can be read, and whether that is all of it."""
    text = items.decode("utf-8", "replace")
    try:
        found = json.loads(text)["items"]
        if isinstance(found, list):
            return [entry for entry in found if isinstance(entry, dict)], True
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    entries: list[dict[str, Any]] = []
    decoder = json.JSONDecoder()
    start = re.match(r'\s*\{\s*"items"\s*:\s*\[\s*', text)
    position = start.end() if start else len(text)
    while position < len(text):
        try:
            entry, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            break
        if isinstance(entry, dict):
            entries.append(entry)
        comma = re.compile(r"\s*,\s*").match(text, position)
        position = comma.end() if comma else len(text)
    return entries, False


def _adopt_items(entries: Iterable[dict[str, Any]]) -> list[PublishedItem]:
    """Each item once, at the highest version it is found with, under keys and names that differ."""
    newest: dict[str, PublishedItem] = {}
    for entry in entries:
        item_id = _adopted_id(entry.get("id"))
        if item_id is None or not entry.get("name") or not _is_text(entry["name"]):
            continue
        item = _adopt_item(entry, item_id)
        if item_id.lower() not in newest or newest[item_id.lower()].version < item.version:
            newest[item_id.lower()] = item
    keys: set[str] = set()
    names: set[str] = set()
    items = []
    for item in newest.values():
        unique = item
        if item.key in keys:
            unique = dataclasses.replace(unique, key=f"_items/{item.uuid}", key_is_file=False)
        if same_name(item.name) in names or len(item.name) > NAME_LIMIT:
            mark = hashlib.sha256(item.id.encode()).hexdigest()[:8]
            unique = dataclasses.replace(unique, name=f"{item.name[: NAME_LIMIT - 9]}-{mark}")
        keys.add(unique.key)
        names.add(same_name(unique.name))
        items.append(unique)
    return items


def _adopt_item(entry: dict[str, Any], item_id: str) -> PublishedItem:
    found = [file for file in _list(entry.get("files")) if isinstance(file, dict) and _is_file_name(file.get("name"))]
    named = {file["name"]: file for file in found}
    generations = {name: _number(file.get("generationNum"), 1) for name, file in named.items()}
    key, is_file = _adopted_key(entry, named.values())
    vapp = re.search(r"""isVappTemplate\W+true""", str(entry.get("metadata"))) is not None
    description = entry.get("description")
    return PublishedItem(
        key=key,
        id=item_id,
        name=entry["name"],
        description=str(description) if _is_text(description) else "",
        type=entry["type"] if entry.get("type") in TYPES else "vcsp.other",
        is_vapp_template=vapp,
        version=_number(entry.get("version"), 1),
        content_version=_number(entry.get("contentVersion"), 1),
        created=_adopted_moment(entry.get("created")),
        etag=max([1, *generations.values(), *(_number(file.get("etag"), 1) for file in named.values())]),
        files=tuple(
            PublishedFile(name, _number(named[name].get("size"), 0), "", generations[name]) for name in sorted(named)
        ),
        key_is_file=is_file,
    )


def _adopted_key(entry: dict[str, Any], files: Iterable[dict[str, Any]]) -> tuple[str, bool]:
    """The key that an item's hrefs tell, else its name; and whether that is a file."""
    home = _path(entry.get("selfHref")).rpartition("/")[0]
    places = [_path(href) for file in files for href in _list(file.get("hrefs"))[:1]]
    folders = {place.rpartition("/")[0] for place in places}
    if not _is_in_tree(entry):
        if len(places) == 1 and is_safe_path(places[0]) and home not in folders:
            return places[0], True
        for folder in (home, *sorted(folders)):
            if is_safe_path(folder):
                return folder, False
    name = str(entry["name"])
    return (name if is_safe_path(name) else f"_items/{name.encode().hex()}"), False


def _is_in_tree(entry: dict[str, Any]) -> bool:
    """Whether the item's files are reached through item trees, so that hrefs do not tell its key."""
    files = [file for file in _list(entry.get("files")) if isinstance(file, dict)]
    return any(_path(href).startswith("_items/") for file in files for href in _list(file.get("hrefs")))


def _adopted_id(value: object) -> str | None:
    """An id in our form; producers have been seen to leave the prefix out or to double it."""
    found = _UUID_AT_END.search(value) if isinstance(value, str) else None
    return f"urn:uuid:{found[1]}" if found else None


def _adopted_moment(value: object) -> str:
    found = _MOMENT.fullmatch(value) if isinstance(value, str) else None
    return f"{found[1]}Z" if found else _LONG_AGO


def _number(value: object, least: int) -> int:
    """A whole number, also as a decimal string; ``least`` for anything else or out of range."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,19}", value):
        value = int(value)
    return value if type(value) is int and least <= value <= LARGEST else least


def _path(href: object) -> str:
    return unquote(href, errors="replace") if isinstance(href, str) else ""


def _is_file_name(value: object) -> bool:
    return isinstance(value, str) and _is_text(value) and is_safe_path(value) and "/" not in value


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
