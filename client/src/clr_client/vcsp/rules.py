"""The rules of the subscription protocol, applied to the documents of a library, whoever wrote them.

Every departure becomes a ``Problem``: an error where vSphere fails or stops to notice changes, a warning
where some reader does. What can be read in spite of it is returned, so that one check finds everything.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias
from urllib.parse import unquote, unquote_to_bytes

import defusedxml.ElementTree

from clr_client.text import printable
from clr_client.vcsp.model import (
    DESCRIPTION_LIMIT,
    LARGEST,
    NAME_LIMIT,
    TYPES,
    is_id,
    is_safe_path,
    same_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Severity: TypeAlias = Literal["error", "warning"]
JsonObject: TypeAlias = dict[str, Any]

_METADATA: Final = {"type": "String", "domain": "SYSTEM", "visibility": "READONLY"}
_DECIMAL: Final = re.compile(r"[0-9]{1,19}")
_HREF: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=@/-]|%[0-9A-Fa-f]{2})+")
_CREATED: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?Z")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something to stumble over. ``where`` names the document, item or file, ``text`` what and why."""

    severity: Severity
    where: str
    text: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.severity}: {self.where}: {self.text}"


@dataclass(slots=True)
class Findings:
    """The problems found so far, in the order in which they were met."""

    problems: list[Problem] = field(default_factory=list)

    def error(self, where: str, text: str) -> None:
        """Add something that makes vSphere fail, or miss changes."""
        self.problems.append(Problem("error", where, text))

    def warning(self, where: str, text: str) -> None:
        """Add something that makes some reader fail."""
        self.problems.append(Problem("warning", where, text))


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as a manifest describes it. ``generation`` is None when there is no usable generationNum."""

    name: str
    size: int
    etag: str
    generation: int | None
    href: str


@dataclass(frozen=True, slots=True)
class RemoteItem:
    """An item as a manifest describes it; ``raw`` is its whole JSON object, ``self_href`` "" when missing."""

    id: str
    name: str
    type: str
    version: int
    self_href: str
    files: tuple[RemoteFile, ...]
    raw: JsonObject


@dataclass(frozen=True, slots=True)
class RemoteLibrary:
    """What lib.json says."""

    id: str
    name: str
    version: int
    items_href: str


def shown(value: object) -> str:
    """``value`` for a message: quoted, without control characters, cut when long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
    safe = printable(text)
    return f"'{safe}'" if len(safe) <= 100 else f"'{safe[:100]}…'"


def read_json(data: bytes, where: str, findings: Findings) -> JsonObject | None:
    """The object that a document holds; None, with a finding, when it holds none."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(data.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        findings.error(where, f"is not JSON in UTF-8 ({error})")
        return None
    if isinstance(value, dict):
        return value
    findings.error(where, "is not a JSON object")
    return None


def read_library(data: bytes, findings: Findings) -> RemoteLibrary | None:
    """What the bytes of a lib.json say; None when a subscriber could not even start."""
    where = "lib.json"
    value = read_json(data, where, findings)
    if value is None:
        return None
    version = _version(value, "version", where, findings)
    _version(value, "contentVersion", where, findings, needed=False)
    if value.get("vcspVersion") != "2":
        told = shown(value.get("vcspVersion"))
        findings.error(where, f'vcspVersion is {told} instead of "2": vSphere does not take this for a library')
    library_id = _id(value, where, findings)
    name = value.get("name")
    if not isinstance(name, str) or not name:
        findings.error(where, "has no name")
    _created(value, where, findings)
    _capabilities(value, findings)
    if value.get("maintenanceMessage"):
        told = shown(value["maintenanceMessage"])
        findings.error(where, f"says maintenance, so every sync fails with this text: {told}")
    href = value.get("itemsHref")
    if not isinstance(href, str) or not _href(href, "itemsHref", where, findings):
        if not isinstance(href, str):
            findings.error(where, "has no itemsHref: a subscriber cannot find the items")
        return None
    if library_id is None or version is None:
        return None
    return RemoteLibrary(library_id, name if isinstance(name, str) else "", version, href)


def read_items(data: bytes, library: RemoteLibrary, findings: Findings) -> tuple[RemoteItem, ...]:
    """The items that the bytes of an items.json describe, without those that have no usable id or version."""
    value = read_json(data, "items.json", findings)
    if value is None:
        return ()
    entries = value.get("items")
    if not isinstance(entries, list):
        findings.error("items.json", "has no list of items")
        return ()
    items = []
    for number, entry in enumerate(entries, 1):
        item = _read_item(entry, number, library, findings)
        if item is not None:
            items.append(item)
    _find_twins(items, findings)
    return tuple(items)


def _find_twins(items: Iterable[RemoteItem], findings: Findings) -> None:
    ids: set[str] = set()
    names: set[str] = set()
    for item in items:
        if item.id.lower() in ids:
            findings.error(item_place(item.name), f"has the id {item.id} of another item")
        ids.add(item.id.lower())
        if same_name(item.name) in names:
            text = "has the name of another item: vSphere rejects the whole library (KB 90707)"
            findings.error(item_place(item.name), text)
        names.add(same_name(item.name))


def item_place(name: str) -> str:
    """How problems name an item."""
    return f"item {shown(name)}"


def file_place(where: str, name: str) -> str:
    """How problems name a file of the item ``where``."""
    return f"{where}, file {shown(name)}"


def _read_item(entry: object, number: int, library: RemoteLibrary, findings: Findings) -> RemoteItem | None:
    if not isinstance(entry, dict):
        findings.error(f"items.json, item no. {number}", "is not a JSON object")
        return None
    name = entry.get("name")
    where = item_place(name) if isinstance(name, str) and name else f"items.json, item no. {number}"
    _item_texts(entry, where, findings)
    version = _version(entry, "version", where, findings)
    _version(entry, "contentVersion", where, findings, needed=False)
    item_id = _id(entry, where, findings)
    _created(entry, where, findings)
    kind = entry.get("type")
    if kind not in TYPES:
        findings.error(where, f"has the unknown type {shown(kind)}; known are {', '.join(TYPES)}")
    if not isinstance(entry.get("properties"), dict):
        findings.warning(where, "has no properties object")
    self_href = ""
    if not isinstance(entry.get("selfHref"), str):
        findings.error(where, "has no selfHref: vSphere does not sync it (KB 397243)")
    elif _href(entry["selfHref"], "selfHref", where, findings):
        self_href = entry["selfHref"]
    files = _read_files(entry.get("files"), where, findings)
    _by_type(kind, files, where, findings)
    if item_id is None or version is None:
        return None
    if kind == "vcsp.ovf":
        _metadata(entry, item_id, version, library, where, findings)
    return RemoteItem(
        id=item_id,
        name=name if isinstance(name, str) else "",
        type=str(kind),
        version=version,
        self_href=self_href,
        files=files,
        raw=entry,
    )


def _item_texts(entry: JsonObject, where: str, findings: Findings) -> None:
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        findings.error(where, "has no name")
    elif len(name) > NAME_LIMIT:
        findings.error(where, f"has a name of {len(name)} characters; vSphere allows {NAME_LIMIT}")
    elif len(name.encode("utf-16-le", "surrogatepass")) > 2 * NAME_LIMIT:
        text = f"has a name that vSphere counts as more than {NAME_LIMIT} characters, for it counts some twice"
        findings.warning(where, text)
    elif not name.isprintable():
        findings.warning(where, "has control characters in its name")
    description = entry.get("description")
    if not isinstance(description, str):
        findings.warning(where, 'has no description; an empty one is ""')
    elif len(description) > DESCRIPTION_LIMIT:
        findings.error(where, f"has a description of more than {DESCRIPTION_LIMIT} characters")


def _by_type(kind: object, files: Iterable[RemoteFile], where: str, findings: Findings) -> None:
    """What an item of this type has to consist of."""
    names = [file.name.lower() for file in files]
    envelopes = sum(name.endswith(".ovf") for name in names)
    if not names:
        findings.warning(where, "has no files")
    elif kind == "vcsp.ovf" and envelopes != 1:
        findings.error(where, f"is a template but has {envelopes} .ovf files instead of one")
    elif kind == "vcsp.iso" and not any(name.endswith(".iso") for name in names):
        findings.warning(where, "is of type vcsp.iso but has no .iso file")
    elif kind == "vcsp.iso" and len(names) > 1:
        findings.warning(where, "has several files: Cloud Director takes one file for an ISO")
    if any(name.endswith(".ova") for name in names):
        text = "holds an .ova: a subscribed library keeps it as a plain file, so it cannot be deployed from"
        findings.warning(where, text)


def _read_files(value: object, where: str, findings: Findings) -> tuple[RemoteFile, ...]:
    if not isinstance(value, list):
        findings.error(where, "has no list of files")
        return ()
    files = [file for number, entry in enumerate(value, 1) if (file := _read_file(entry, number, where, findings))]
    names: set[str] = set()
    for file in files:
        if file.name in names:
            findings.error(file_place(where, file.name), "is listed twice")
        names.add(file.name)
    if len({file.etag for file in files}) > 1:
        findings.warning(where, "has files with different etags; producers of VMware give all files one")
    return tuple(files)


def _read_file(entry: object, number: int, where: str, findings: Findings) -> RemoteFile | None:
    if not isinstance(entry, dict):
        findings.error(where, f"file no. {number} is not a JSON object")
        return None
    name = entry.get("name")
    if not isinstance(name, str) or "/" in name or not is_safe_path(name):
        findings.error(where, f"file no. {number} has the impossible name {shown(name)}")
        return None
    place = file_place(where, name)
    if "\\" in name or not name.isprintable():
        findings.warning(place, "has a backslash or control character in its name")
    size = entry.get("size")
    if type(size) is not int or not 0 <= size <= LARGEST:
        findings.error(place, f"has the size {shown(size)} instead of a number of bytes")
        return None
    generation = _generation(entry, place, findings)
    hrefs = entry.get("hrefs")
    if not isinstance(hrefs, list) or len(hrefs) != 1 or not isinstance(hrefs[0], str):
        findings.error(place, "has no hrefs with exactly one address")
        return None
    if not _href(hrefs[0], "its address", place, findings):
        return None
    return RemoteFile(name, size, str(entry.get("etag", "")), generation, hrefs[0])


def _generation(entry: JsonObject, place: str, findings: Findings) -> int | None:
    """The generationNum, having checked it together with the etag that stands in for it."""
    generation = entry.get("generationNum")
    valid = type(generation) is int and 1 <= generation <= LARGEST
    if generation is not None and not valid:
        findings.error(place, f"has the generationNum {shown(generation)} instead of a whole number from 1")
    etag = entry.get("etag")
    if not is_decimal(etag):
        problem = f"has the etag {shown(etag)}, which is not a decimal number in a string"
        if valid:
            findings.warning(place, f"{problem}, as some readers need it")
        else:
            findings.error(
                place,
                f"{problem}, and no generationNum: the first sync works, but vCenter fails at every later update"
                " of the item (NumberFormatException)",
            )
    elif generation is None:
        findings.warning(place, "has no generationNum: every change makes vSphere load all files of the item")
    return generation if valid else None


def _metadata(
    entry: JsonObject, item_id: str, version: int, library: RemoteLibrary, where: str, findings: Findings
) -> None:
    listed = entry.get("metadata")
    found = [
        each
        for each in (listed if isinstance(listed, list) else [])
        if isinstance(each, dict) and each.get("key") == "type-metadata"
    ]
    if not found:
        findings.warning(where, "has no type-metadata: vSphere cannot tell a VM from a vApp template by it")
        return
    for key, right in _METADATA.items():
        if found[0].get(key) != right:
            findings.warning(where, f"has type-metadata with the {key} {shown(found[0].get(key))} instead of {right}")
    try:
        value = json.loads(str(found[0].get("value")))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        findings.warning(where, "has type-metadata whose value is not JSON")
        return
    expected = {"id": item_id, "version": str(version), "libraryIdParent": library.id}
    for key, right in expected.items():
        if value.get(key) != right:
            findings.warning(where, f"has type-metadata with the {key} {shown(value.get(key))} instead of {right}")
    if value.get("isVappTemplate") not in ("true", "false"):
        findings.warning(where, 'has type-metadata whose isVappTemplate is neither "true" nor "false"')


def _capabilities(value: JsonObject, findings: Findings) -> None:
    capabilities = value.get("capabilities")
    for name in ("transferIn", "transferOut"):
        listed = capabilities.get(name) if isinstance(capabilities, dict) else None
        if not isinstance(listed, list) or "httpGet" not in listed:
            text = f"has no capabilities.{name} with httpGet: vSphere says that there is no library"
            findings.error("lib.json", text)


def is_decimal(value: object) -> bool:
    """Whether ``value`` is a string of a decimal number that fits 64 bits."""
    return isinstance(value, str) and _DECIMAL.fullmatch(value) is not None and int(value) <= LARGEST


def _version(value: JsonObject, name: str, where: str, findings: Findings, *, needed: bool = True) -> int | None:
    told = value.get(name)
    report: Callable[[str, str], None] = findings.error if needed else findings.warning
    if type(told) is int and 1 <= told <= LARGEST:
        findings.warning(where, f"has the {name} {told} as a number; it has to be a string")
        return told
    if not is_decimal(told) or int(str(told)) < 1:
        report(where, f"has the {name} {shown(told)} instead of a whole number from 1 in a string")
        return None
    return int(str(told))


def _id(value: JsonObject, where: str, findings: Findings) -> str | None:
    told = value.get("id")
    if isinstance(told, str) and is_id(told):
        return told
    findings.error(where, f"has the id {shown(told)} instead of urn:uuid: and a UUID")
    return None


def _created(value: JsonObject, where: str, findings: Findings) -> None:
    told = value.get("created")
    if isinstance(told, str) and _CREATED.fullmatch(told):
        try:
            datetime.fromisoformat(told)
        except ValueError:
            pass
        else:
            return
    findings.warning(where, f"has the created {shown(told)} instead of a time like 2026-11-21T19:54Z")


def _href(href: str, what: str, where: str, findings: Findings) -> bool:
    """Whether ``href`` is percent-encoded and stays in the library's folder."""
    if href.startswith("/") or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", href):
        findings.error(where, f"{what} {shown(href)} is not relative to the folder of lib.json")
        return False
    if not _HREF.fullmatch(href):
        findings.error(where, f"{what} {shown(href)} is not percent-encoded")
        return False
    segments = [unquote_to_bytes(segment) for segment in href.split("/")]
    if any(segment in (b"", b".", b"..") or b"/" in segment or b"\0" in segment for segment in segments):
        findings.error(where, f"{what} {shown(href)} does not stay in the folder of lib.json")
        return False
    try:
        b"/".join(segments).decode()
    except UnicodeDecodeError:
        findings.error(where, f"{what} {shown(href)} does not encode UTF-8")
        return False
    return True


def check_envelope(data: bytes, item: RemoteItem, findings: Findings) -> None:
    """Whether the files that an OVF envelope references are the item's, with the sizes it declares."""
    where = item_place(item.name)
    try:
        root = defusedxml.ElementTree.fromstring(data)
    except (ValueError, SyntaxError, LookupError) as error:
        findings.error(where, f"has an .ovf that cannot be read ({shown(str(error))})")
        return
    sizes = {file.name: file.size for file in item.files}
    for element in root.iter():
        if not isinstance(element.tag, str) or element.tag.rpartition("}")[2] != "File":
            continue
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        href = attributes.get("href", "")
        name = href if href in sizes else unquote(href)
        if attributes.get("chunkSize") and f"{name}.{0:09}" in sizes:
            continue
        if name not in sizes:
            findings.error(where, f"lacks {shown(href)}, which its .ovf references: it cannot be deployed")
        elif is_decimal(attributes.get("size")) and int(attributes["size"]) != sizes[name]:
            told = f"{attributes['size']} bytes where the file has {sizes[name]}"
            findings.error(file_place(where, name), f"is declared by the .ovf with {told}")
