"""Reads a volume's published library strictly, remembers what readers saw, and lists a volume without what may differ.

Nothing of the client takes part: what is read here is what is on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Item:
    """A published item: per file its SHA-256 and its generationNum."""

    id: str
    version: int
    etag: int
    files: dict[str, tuple[str, int]]


@dataclass(frozen=True)
class Served:
    """A whole published library; items by name."""

    id: str
    version: int
    items: dict[str, Item]
    texts: tuple[bytes, bytes]

    @property
    def contents(self) -> dict[str, dict[str, str]]:
        """SHA-256 of each file by item and file name."""
        return {name: {file: sha for file, (sha, _) in item.files.items()} for name, item in self.items.items()}

    @property
    def versions(self) -> tuple[int, dict[str, int]]:
        """The version of the library, and of each item by name."""
        return self.version, {name: item.version for name, item in self.items.items()}


def read(current: Path) -> Served | None:
    """Read what ``current`` leads to, by hrefs alone, each promise held against the disk; None without a library."""
    if not current.is_symlink():
        return None
    root = current.resolve(strict=True)
    texts = (root / "lib.json").read_bytes(), (root / "items.json").read_bytes()
    library = json.loads(texts[0])
    record = json.loads((root / ".state.json").read_bytes())
    assert library["itemsHref"] == "items.json"
    assert (record["id"], str(record["version"])) == (library["id"], library["version"])
    digests = {item["id"]: {file["name"]: file["digest"] for file in item["files"]} for item in record["items"]}
    items: dict[str, Item] = {}
    for entry in json.loads(texts[1])["items"]:
        assert json.loads((root / unquote(entry["selfHref"])).read_bytes()) == entry
        assert entry["name"] not in items
        items[entry["name"]] = _item(root, entry, digests.pop(entry["id"]))
    assert not digests
    return Served(library["id"], int(library["version"]), items, texts)


def _item(root: Path, entry: dict[str, Any], digests: dict[str, str]) -> Item:
    files = {}
    for file in entry["files"]:
        path = root / unquote(file["hrefs"][0])
        info = path.lstat()
        assert stat.S_ISREG(info.st_mode), path
        assert info.st_size == file["size"], path
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        assert digests[file["name"]] == f"sha256:{sha}", path
        files[file["name"]] = sha, file["generationNum"]
    assert digests.keys() == files.keys()
    (etag,) = {int(file["etag"]) for file in entry["files"]}
    assert etag >= max(number for _, number in files.values())
    return Item(entry["id"], int(entry["version"]), etag, files)


class Witness:
    """A subscriber's memory: whatever it is shown, no version may go back, and no id may change hands."""

    def __init__(self) -> None:
        self.last: Served | None = None
        self.known: dict[str, tuple[str, Item]] = {}

    def see(self, served: Served | None) -> None:
        """Look at what is published now; AssertionError for what the protocol forbids after what was seen before."""
        if served is None:
            assert self.last is None, "the library is gone"
            return
        if self.last is not None:
            assert served.id == self.last.id
            assert served.version >= self.last.version
            if served.version == self.last.version:
                assert served.texts == self.last.texts, "a change that no subscriber would notice"
        for name, item in served.items.items():
            if item.id in self.known:
                _follows(*self.known[item.id], name, item)
            self.known[item.id] = name, item
        self.last = served


def _follows(old_name: str, old: Item, name: str, new: Item) -> None:
    assert name == old_name, f"{new.id} was {old_name}"
    if new.version == old.version:
        assert new == old, f"{name}: another content under the same version"
        return
    assert new.version > old.version, name
    assert new.etag >= old.etag, name
    for file, (sha, number) in new.files.items():
        old_sha, old_number = old.files.get(file, ("", 0))
        assert number > old_number or (number == old_number and sha == old_sha), f"{name}/{file}"


_OF_TIME = {"status.json", "progress.json", "digests.json", ".lock", ".published.json"}
_OF_THE_LAST_RUN = {"settled.json"}
"""What tells only whether a run had something to do; an interrupted history ends with other runs than a smooth one."""
_OF_CHANCE = re.compile(r'("(?:etag|generationNum|generation_num|created|sha256)": )(?:"[^"]*"|\d+)')


def listing(root: Path) -> dict[str, str]:
    """Return every path of a volume with what it is: a file's bytes, a link's target, who shares its inode.

    Ids are replaced by what they belong to and times are left out, so two volumes with the same history list alike.
    """
    names = _names(root)
    found: dict[str, str] = {}
    inodes: dict[int, list[str]] = {}

    def plain(text: str) -> str:
        for uuid, name in names.items():
            text = text.replace(uuid, f"<{name}>")
        return text

    for folder, folders, files in os.walk(root):
        for name in {*folders, *files} - _OF_THE_LAST_RUN:
            path = os.path.join(folder, name)
            shown = plain(os.path.relpath(path, root))
            info = os.lstat(path)
            if stat.S_ISLNK(info.st_mode):
                found[shown] = f"-> {plain(os.readlink(path))}"
            elif stat.S_ISDIR(info.st_mode):
                found[shown] = "folder"
            elif name in _OF_TIME:
                found[shown] = "file"
            else:
                inodes.setdefault(info.st_ino, []).append(shown)
                found[shown] = _digest(path, plain)
    for shared in inodes.values():
        for shown in shared:
            found[shown] += f" = {min(shared)}" if len(shared) > 1 else ""
    return found


def _digest(path: str, plain: Any) -> str:
    with open(path, "rb") as file:
        data = file.read()
    if path.endswith(".json"):
        data = _OF_CHANCE.sub(r"\1-", plain(data.decode(errors="replace"))).encode()
    return f"{len(data)} bytes {hashlib.sha256(data).hexdigest()[:12]}"


def _names(root: Path) -> dict[str, str]:
    """Return what every uuid in the records belongs to."""
    names = {}
    for record in root.glob("generations/*/.state.json"):
        content = json.loads(record.read_bytes())
        names[content["id"].removeprefix("urn:uuid:")] = "library"
        for item in content["items"]:
            names[item["id"].removeprefix("urn:uuid:")] = item["key"].replace("/", "|")
    return names
