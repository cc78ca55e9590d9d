"""Whether an item is complete and sound, and what of it is published."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from clr_client import __version__
from clr_client.content import checksums, metadata, ova, ovf
from clr_client.content.digests import hash_file, opened, read_small
from clr_client.content.names import fold
from clr_client.errors import HeldError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Collection, Mapping

    from clr_client.content.digests import DigestCache
    from clr_client.content.items import SourceItem
    from clr_client.files import FileInfo

# A later release may accept what this one refuses.
_REFUSED = f"refused by {__version__}"

SMALL_SUFFIXES = (".ovf", ".mf")
"""Files that are read as a whole for what they say, and hashed on the way."""

ItemType = Literal["vcsp.ovf", "vcsp.iso", "vcsp.other"]

OnRead: TypeAlias = "Callable[[str, int], object]"
"""Told the name of a file and the bytes of each piece of it that is read to hash it."""


@dataclass(frozen=True, slots=True)
class VerifiedFile:
    """A file to publish: size in bytes, SHA-256 in hex, the folder it lies in; None if it is to be unpacked."""

    name: str
    size: int
    sha256: str
    folder: Path | None

    @property
    def path(self) -> Path | None:
        """Where it lies; None if it is to be unpacked."""
        return None if self.folder is None else self.folder / self.name


@dataclass(frozen=True, slots=True)
class VerifiedItem:
    """An item that may be published; ``archive`` is the OVA that files without a path are unpacked from."""

    key: str
    name: str
    description: str
    type: ItemType
    is_vapp_template: bool
    files: tuple[VerifiedFile, ...]
    archive: Path | None
    warnings: tuple[str, ...]


def verify(
    item: SourceItem,
    root: Path,
    cache: DigestCache,
    *,
    unpack: bool = True,
    stop: threading.Event | None = None,
    on_read: OnRead = lambda _name, _count: None,
) -> VerifiedItem:
    """Check an item whose files lie under ``root`` and hash what the cache does not know, each file once.

    Every file has to be there with the size and time of the listing; an OVF needs every file it references; a
    manifest of the OVF's name has to match. With ``unpack`` an OVA is published as the files in it, else as
    it is. ``stop`` ends hashing early, ``on_read`` is told how far it is. Blocks. Raises HeldError with the reason.
    """
    if item.problem is not None:
        raise HeldError(item.problem)
    _check_folders(item, root)
    parts = item.files if item.metadata is None else (*item.files, item.metadata)
    reader = _Reader(f"{root}/", {file.path: _check_present(file, f"{root}/") for file in parts}, cache, stop, on_read)
    said = _metadata(item, reader)
    envelopes = [file for file in item.files if file.suffix == ".ovf"]
    archives = [file for file in item.files if file.suffix == ".ova"]
    if envelopes:
        found = _ovf_item(item, envelopes, reader)
    elif len(archives) == 1 and unpack:
        found = _ova_item(item, archives[0], reader)
    else:
        found = _plain_item(item, archives, reader)
    return VerifiedItem(
        key=item.key,
        name=said.name or item.default_name,
        description=said.description,
        type=found.type,
        is_vapp_template=found.is_vapp_template,
        files=tuple(sorted(found.files, key=lambda file: file.name)),
        archive=found.archive,
        warnings=item.notes + found.warnings,
    )


def read_ahead(
    item: SourceItem, file: FileInfo, root: Path, cache: DigestCache, *, stop: threading.Event | None = None
) -> None:
    """Find out about one file of an item what ``verify`` is going to ask, so that it need not read it.

    Small files that say something are left to it. Blocks. Raises HeldError for what cannot be read.
    """
    if file.suffix in SMALL_SUFFIXES or file == item.metadata or item.problem is not None:
        return
    reader = _Reader(f"{root}/", {file.path: _check_present(file, f"{root}/")}, cache, stop)
    kinds = [other.suffix for other in item.files]
    if file.suffix == ".ova" and kinds.count(".ova") == 1 and ".ovf" not in kinds:
        _ova_contents(file, reader)
    else:
        reader.hashed([file], {file.name: _listed_algorithms(item, file, root, cache)})


def _listed_algorithms(item: SourceItem, file: FileInfo, root: Path, cache: DigestCache) -> set[str]:
    """The algorithms that a manifest beside a file lists it with: the new one, or the old one where that is here."""
    found: set[str] = set()
    for manifest in (other for other in item.files if other.suffix == ".mf"):
        with contextlib.suppress(HeldError, OSError):
            reader = _Reader(f"{root}/", {manifest.path: os.lstat(root / manifest.path)}, cache, None)
            found |= {entry.algorithm for entry in _listed(manifest, reader) if entry.name == file.name}
    return found


@dataclass(frozen=True, slots=True)
class _Reader:
    """Everything that is needed to look into files."""

    prefix: str
    """The root, with a slash."""
    infos: Mapping[str, os.stat_result]
    """Status of each file of the item, by path."""
    cache: DigestCache
    stop: threading.Event | None
    on_read: OnRead = lambda _name, _count: None

    def place(self, file: FileInfo) -> str:
        """Where a file lies."""
        return self.prefix + file.path

    def fact(self, file: FileInfo, kind: str, limit: int, read: Callable[[bytes], str], wanted: Collection[str]) -> str:
        """What a small file says, from the cache or from one read that serves the digests ``wanted`` too."""
        known = self.cache.get(self.place(file), self.infos[file.path])
        if kind in known and all(algorithm in known for algorithm in wanted):
            return known[kind]
        data, info = read_small(self.place(file), limit)
        facts = {kind: read(data)}
        for algorithm in wanted:
            facts[algorithm] = hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()
        self.cache.put(self.place(file), info, facts)
        return facts[kind]

    def hashed(self, files: Collection[FileInfo], algorithms: Mapping[str, set[str]]) -> _Digests:
        """Digests of files by name: SHA-256, and the further algorithms wanted for a name."""
        return {
            file.name: hash_file(
                self.place(file),
                {"sha256"} | algorithms.get(file.name, set()),
                self.cache,
                info=self.infos[file.path],
                sink=partial(self._tell, file.name),
                stop=self.stop,
            )
            for file in files
        }

    def _tell(self, name: str, piece: memoryview) -> None:
        self.on_read(name, len(piece))

    def files(self, files: Collection[FileInfo], digests: _Digests) -> tuple[VerifiedFile, ...]:
        """What to publish of plain files, which all lie in one folder."""
        folder = Path(self.prefix, *(file.folder for file in list(files)[:1]))
        return tuple(VerifiedFile(file.name, file.size, digests[file.name]["sha256"], folder) for file in files)


_Digests = dict[str, dict[str, str]]


@dataclass(frozen=True, slots=True)
class _Found:
    type: ItemType
    files: tuple[VerifiedFile, ...]
    is_vapp_template: bool = False
    archive: Path | None = None
    warnings: tuple[str, ...] = ()


def _check_folders(item: SourceItem, root: Path) -> None:
    """No folder on the way may be a link: it would lead out of the library."""
    folder = str(root)
    for segment in item.files[0].folder.split("/"):
        folder = f"{folder}/{segment}" if segment else folder
        try:
            mode = os.lstat(folder).st_mode
        except OSError as error:
            raise HeldError(f"the folder {item.files[0].folder} is not here: {error.strerror}") from error
        if segment and not stat.S_ISDIR(mode):
            raise HeldError(f"{folder.removeprefix(f'{root}/')} is not a folder")


def _check_present(file: FileInfo, prefix: str) -> os.stat_result:
    try:
        info = os.lstat(prefix + file.path)
    except OSError as error:
        raise HeldError(f"{file.name} is not here: {error.strerror}") from error
    if not stat.S_ISREG(info.st_mode):
        raise HeldError(f"{file.name} is not a regular file")
    if info.st_size != file.size:
        raise HeldError(f"{file.name} has {info.st_size} bytes here, {file.size} at the source")
    if info.st_mtime_ns // 1_000_000_000 != file.mtime:
        raise HeldError(f"{file.name} is not the version that the source lists")
    return info


def _metadata(item: SourceItem, reader: _Reader) -> metadata.Metadata:
    if item.metadata is None:
        return metadata.Metadata()

    def read(data: bytes) -> str:
        return metadata.parse(data).dump()

    return metadata.restore(reader.fact(item.metadata, "metadata", metadata.MAX_METADATA, read, ()))


def _listed(manifest: FileInfo, reader: _Reader) -> tuple[checksums.Entry, ...]:
    text = reader.fact(
        manifest,
        "manifest",
        checksums.MAX_MANIFEST,
        lambda data: json.dumps([[e.name, e.algorithm, e.digest] for e in checksums.parse(data)]),
        ("sha256",),
    )
    return tuple(checksums.Entry(*entry) for entry in json.loads(text))


def _ovf_item(item: SourceItem, envelopes: list[FileInfo], reader: _Reader) -> _Found:
    if len(envelopes) > 1:
        names = f"{envelopes[0].name} and {envelopes[1].name}"
        raise HeldError(f"more than one .ovf in one folder: {names}; give each template its own")
    sizes = {file.name: file.size for file in item.files}
    descriptor = envelopes[0]
    stem = fold(descriptor.name[: -len(".ovf")])
    manifests = [file for file in item.files if file.suffix == ".mf"]
    manifest = next((file for file in manifests if fold(file.name[: -len(".mf")]) == stem), None)
    listed = () if manifest is None else _listed(manifest, reader)
    algorithms = checksums.wanted(listed, sizes)
    text = reader.fact(
        descriptor,
        "envelope",
        ovf.MAX_ENVELOPE,
        lambda data: ovf.parse(data).dump(),
        {"sha256"} | algorithms.get(descriptor.name, set()),
    )
    envelope = ovf.restore(text)
    try:
        ovf.resolve(envelope, sizes)
    except HeldError as error:
        if item.key == descriptor.path:
            raise HeldError(f"{error.message} (a template needs a folder of its own)") from error
        raise
    digests = reader.hashed(item.files, algorithms)
    warnings = () if manifest is None else checksums.compare(listed, digests, manifest.name)
    stray = tuple(
        f"{file.name} was not checked: its name is not that of {descriptor.name}"
        for file in manifests
        if file is not manifest
    )
    files = reader.files(item.files, digests)
    return _Found("vcsp.ovf", files, envelope.is_vapp_template, warnings=warnings + stray)


def _ova_item(item: SourceItem, archive: FileInfo, reader: _Reader) -> _Found:
    contents = _ova_contents(archive, reader)
    beside = [file for file in item.files if file is not archive]
    inside = {fold(member.name): member.name for member in contents.members}
    for file in beside:
        if fold(file.name) in inside:
            raise HeldError(f"{file.name} lies beside {archive.name} and in it")
    files = tuple(VerifiedFile(member.name, member.size, member.sha256, None) for member in contents.members)
    files += reader.files(beside, reader.hashed(beside, {}))
    return _Found("vcsp.ovf", files, contents.is_vapp_template, Path(reader.place(archive)), contents.warnings)


def _ova_contents(archive: FileInfo, reader: _Reader) -> ova.Contents:
    path = reader.place(archive)
    known = reader.cache.get(path, reader.infos[archive.path])
    if "ova" in known:
        return ova.restore(known["ova"])
    refused = known.get(_REFUSED)
    if refused is None:
        with opened(path) as (descriptor, info):
            try:
                contents = ova.inspect(descriptor, info.st_size, stop=reader.stop)
            except HeldError as error:
                if reader.stop is not None and reader.stop.is_set():
                    raise
                refused = error.message
        fact = {"ova": contents.dump()} if refused is None else {_REFUSED: refused}
        reader.cache.put(path, info, fact)
    if refused is not None:
        raise HeldError(refused)
    return contents


def _plain_item(item: SourceItem, archives: list[FileInfo], reader: _Reader) -> _Found:
    images = [file for file in item.files if file.suffix == ".iso"]
    warnings: list[str] = []
    if archives:
        warnings.append(
            "an .ova that is not unpacked cannot be deployed from a subscribed library"
            + ("; give each a folder of its own" if len(archives) > 1 else "")
        )
    if len(images) > 1:
        warnings.append("several .iso beside other files are one item; Cloud Director wants one each")
    files = reader.files(item.files, reader.hashed(item.files, {}))
    return _Found("vcsp.iso" if images else "vcsp.other", files, warnings=tuple(warnings))
