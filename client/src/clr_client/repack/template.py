"""A template's folder: which disks it has, and their rewriting, verified, with the OVF and the manifest following."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

from clr_client.content import checksums, ovf
from clr_client.content.digests import hash_range, opened, read_small
from clr_client.content.names import fold
from clr_client.disk import write_file
from clr_client.errors import LockedError, RepackError
from clr_client.repack import switch, vmdk
from clr_client.repack.texts import edit_envelope, edit_manifest
from clr_client.text import printable, size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    OnProgress = Callable[[int, int, str], object]

_LOCK = ".clr-repack.lock"
_SAMPLES = 64
_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class DiskChange:
    """What became of a disk, or would become: its size in bytes before and after, the same if it is left alone."""

    name: str
    before: int
    after: int
    is_changed: bool


@dataclass(frozen=True, slots=True)
class Repacked:
    """What was done to a template; ``was_interrupted``: an earlier run was ended by force, and is completed now."""

    disks: tuple[DiskChange, ...]
    warnings: tuple[str, ...] = ()
    was_interrupted: bool = False


def repack(
    template: Path,
    *,
    compress: bool = False,
    drop_cert: bool = False,
    dry_run: bool = False,
    on_progress: OnProgress = lambda _done, _total, _name: None,
) -> Repacked:
    """Rewrite the disks of a template (a folder, or the .ovf in it) with stored grains, or with compressed ones.

    Each disk keeps its content, name and descriptor; the sizes in the OVF and the digests in the manifest follow.
    Disks that have the wanted form are left alone. ``on_progress`` is told how many bytes are done,
    how many there are, and the name of the file.

    :param drop_cert: remove a certificate, whose signature cannot fit the new manifest; without it a signed template
        is refused.
    :param dry_run: change nothing; sizes after it are estimates.
    :raises RepackError: the template cannot be rewritten; it is as it was.
    :raises HeldError: it is incomplete or does not match its manifest, so that clients would hold it.
    :raises LockedError: another process rewrites it.
    """
    folder, envelope = _locate(template)
    try:
        with _locked(folder):
            if dry_run and switch.is_incomplete(folder):
                raise RepackError("an earlier run was ended by force", "Run it without --dry-run: that completes it")
            was_interrupted = not dry_run and switch.recover(folder)
            found = _survey(folder, envelope, stored=not compress)
            todo = [part for part in found.disks if part.is_changed]
            if todo:
                _check_certificates(found, drop_cert)
            if dry_run or not todo:
                return Repacked(tuple(_estimate(part, compress=compress) for part in found.disks), (), was_interrupted)
            warnings = _rewrite(found, todo, compress=compress, on_progress=on_progress)
            return Repacked(tuple(_change(folder, part) for part in found.disks), warnings, was_interrupted)
    except OSError as error:
        raise RepackError(f"it cannot be rewritten: {error.strerror or error}", "Mend that and run it again") from error


# ---------------------------------------------------------------- what is there


@dataclass(frozen=True, slots=True)
class _Disk:
    """A VMDK of the template; ``grains`` and ``tables`` are how many of each it has."""

    path: Path
    info: os.stat_result
    is_changed: bool
    disk: vmdk.Disk
    grains: int
    tables: int


@dataclass(frozen=True, slots=True)
class _Template:
    """All that matters of a template's folder, with the status of its files at the time."""

    folder: Path
    envelope: Path
    envelope_data: bytes
    references: tuple[str, ...]
    """Name of the file that each reference of the envelope means."""
    disks: tuple[_Disk, ...]
    manifest: Path | None
    manifest_data: bytes
    listed: tuple[checksums.Entry, ...]
    certificates: tuple[Path, ...]
    infos: Mapping[str, os.stat_result]


def _locate(template: Path) -> tuple[Path, Path]:
    """Return the folder and the envelope that are meant."""
    unpack = (
        "Unpack it into a folder of its own (mkdir NAME && tar -xf NAME.ova -C NAME), remove the .ova and repack that "
        "folder; what clients publish is the same"
    )
    if template.suffix.lower() == ".ova":
        raise RepackError("an .ova is one archive and is not rewritten", unpack)
    folder = template
    if template.suffix.lower() == ".ovf" and not template.is_dir():
        folder = template.parent
    if not folder.is_dir():
        raise RepackError("there is no such folder or .ovf", "Name the folder of a template, or the .ovf in it")
    for near in (folder.resolve(), *folder.resolve().parents):
        if (near / "generations").is_dir() and (near / "mirror").is_dir():
            raise RepackError(
                f"it belongs to a client's library volume {near}", "Repack at the primary site; syncs bring the result"
            )
    envelopes = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".ovf" and path.name[0] != ".")
    if not envelopes and any(path.suffix.lower() == ".ova" for path in folder.iterdir()):
        raise RepackError("it holds an .ova, which is one archive and is not rewritten", unpack)
    if len(envelopes) != 1:
        raise RepackError(f"it holds {len(envelopes) or 'no'} .ovf", "A template is a folder with one .ovf in it")
    if folder != template and envelopes[0].name != template.name:
        raise RepackError("there is no such .ovf", f"The one in this folder is {printable(envelopes[0].name)}")
    return folder, envelopes[0]


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # NFS locks only what is open for writing
            os.close(handle)
            handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise LockedError("another process rewrites it just now") from None
    finally:
        os.close(handle)


def _survey(folder: Path, envelope: Path, *, stored: bool) -> _Template:
    infos = {
        entry.name: entry.stat(follow_symlinks=False)
        for entry in os.scandir(folder)
        if entry.is_file(follow_symlinks=False) and entry.name[0] != "."
    }
    sizes = {name: info.st_size for name, info in infos.items()}
    data, _ = read_small(envelope, ovf.MAX_ENVELOPE)
    parsed = ovf.parse(data)
    references: list[str] = []
    for reference in parsed.references:
        if reference.compressed or reference.chunk is not None:
            form = "compressed as a whole (gzip)" if reference.compressed else "cut into pieces"
            raise RepackError(
                f"{printable(reference.href)[:120]} is {form}, which the OVF format allows and delta transfer does not",
                "Export the template without that",
            )
        references += ovf.resolve(ovf.Envelope((reference,), False), sizes)
    manifest = _companion(envelope, ".mf", infos)
    manifest_data = b"" if manifest is None else read_small(manifest, checksums.MAX_MANIFEST)[0]
    listed = () if manifest is None else checksums.parse(manifest_data)
    checksums.wanted(listed, infos)
    disks = tuple(
        _open_disk(folder / name, stored=stored) for name in dict.fromkeys(references) if _is_vmdk(folder / name)
    )
    if not disks:
        raise RepackError("its OVF references no VMDK", "There is nothing to repack in it")
    certificates = tuple(folder / name for name in sorted(infos) if name.lower().endswith(".cert"))
    return _Template(
        folder, envelope, data, tuple(references), disks, manifest, manifest_data, listed, certificates, infos
    )


def _companion(envelope: Path, suffix: str, names: Mapping[str, object]) -> Path | None:
    """Return the file of the envelope's name with another suffix, in any case."""
    wanted = fold(envelope.stem + suffix)
    return next((envelope.with_name(name) for name in names if fold(name) == wanted), None)


def _is_vmdk(path: Path) -> bool:
    if path.suffix.lower() == ".vmdk":
        return True
    with opened(path) as (descriptor, _):
        return os.pread(descriptor, 4, 0) == b"KDMV"


def _open_disk(path: Path, *, stored: bool) -> _Disk:
    with _reading(path) as (stream, info):
        disk = vmdk.open_disk(stream)
        grains = tables = 0
        last = -1
        for number, _ in vmdk.allocated(stream, disk):
            grains += 1
            tables += number // vmdk.TABLE_GRAINS != last
            last = number // vmdk.TABLE_GRAINS
        is_changed = grains > 0 and vmdk.is_stored(stream, disk) != stored
    return _Disk(path, info, is_changed, disk, grains, tables)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[tuple[BinaryIO, os.stat_result]]:
    """Open a disk; what is wrong with it is told with its name."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb", _BUFFER) as stream:
            yield stream, os.fstat(descriptor)
    except RepackError as error:
        raise RepackError(f"{printable(path.name)}: {error.message}", error.remedy) from error


def _largest(part: _Disk, *, compress: bool) -> int:
    """Return the bytes that a disk may need, rewritten."""
    exact = vmdk.size_written(part.disk.header, part.tables, part.grains * vmdk.STORED_SECTORS)
    return min(exact, part.info.st_size) if compress else exact


def _estimate(part: _Disk, *, compress: bool) -> DiskChange:
    """Say how large a disk would become, from a sample of its grains if they are to be compressed."""
    before = part.info.st_size
    if not part.is_changed or not compress:
        return DiskChange(
            part.path.name, before, _largest(part, compress=False) if part.is_changed else before, part.is_changed
        )
    with _reading(part.path) as (stream, _):
        step = max(1, part.grains // _SAMPLES)
        sectors = [
            -(-(12 + len(vmdk.deflated(vmdk.read_grain(stream, part.disk, *place)))) // vmdk.SECTOR)
            for count, place in enumerate(vmdk.allocated(stream, part.disk))
            if count % step == 0
        ]
    average = sum(sectors) * part.grains // len(sectors)
    return DiskChange(part.path.name, before, vmdk.size_written(part.disk.header, part.tables, average), True)


def _change(folder: Path, part: _Disk) -> DiskChange:
    after = (folder / part.path.name).stat().st_size
    return DiskChange(part.path.name, part.info.st_size, after, part.is_changed)


def _check_certificates(found: _Template, drop_cert: bool) -> None:
    if found.certificates and not drop_cert:
        raise RepackError(
            f"it is signed ({printable(found.certificates[0].name)}), and the signature is of the manifest as it is: "
            "with other bytes in the disks it would be wrong",
            "Repack before signing, or give up the signature with --drop-cert",
        )


# ---------------------------------------------------------------- what is to be there


def _rewrite(found: _Template, todo: Sequence[_Disk], *, compress: bool, on_progress: OnProgress) -> tuple[str, ...]:
    """Make all new files, verify them and put them in place. Returns warnings."""
    needed = sum(_largest(part, compress=compress) for part in todo)
    room = shutil.disk_usage(found.folder).free
    if needed > room:
        raise RepackError(
            f"{size(needed)} are needed beside the old files, and the volume has {size(room)} free", "Make room on it"
        )
    listed = {entry.name for entry in found.listed}
    total = sum(found.infos[name].st_size for name in listed) + sum(2 * part.grains * vmdk.GRAIN for part in todo)
    progress = _Progress(total, on_progress)
    warnings = _check_manifest(found, progress)
    stage = switch.begin(found.folder)
    try:
        _make(found, todo, stage, compress, progress)
        last = [path.name for path in (found.envelope, found.manifest) if path is not None]
        switch.commit(found.folder, found.infos, [path.name for path in found.certificates], last)
    finally:
        switch.abandon(found.folder)
    return warnings


def _make(found: _Template, todo: Sequence[_Disk], stage: Path, compress: bool, progress: _Progress) -> None:
    """Make the new disks in ``stage``, and the texts that speak of them."""
    algorithms = checksums.wanted(found.listed, found.infos)
    digests: dict[str, dict[str, str]] = {}
    sizes: dict[str, int] = {}
    for part in todo:
        name = part.path.name
        digests[name] = _write_disk(part, stage / name, algorithms.get(name, set()), compress, progress)
        sizes[name] = (stage / name).stat().st_size
    envelope = edit_envelope(
        found.envelope_data, {number: sizes[name] for number, name in enumerate(found.references) if name in sizes}
    )
    if envelope != found.envelope_data:
        write_file(stage / found.envelope.name, envelope)
        digests[found.envelope.name] = {
            algorithm: hashlib.new(algorithm, envelope, usedforsecurity=False).hexdigest()
            for algorithm in algorithms.get(found.envelope.name, set())
        }
    if found.manifest is not None:
        manifest = edit_manifest(found.manifest_data, digests)
        if manifest != found.manifest_data:
            write_file(stage / found.manifest.name, manifest)


def _check_manifest(found: _Template, progress: _Progress) -> tuple[str, ...]:
    """Hash what the manifest lists: a template that is damaged must not become one that looks sound."""
    digests: dict[str, dict[str, str]] = {}
    for name, algorithms in checksums.wanted(found.listed, found.infos).items():
        with opened(found.folder / name) as (descriptor, info):
            digests[name] = hash_range(descriptor, 0, info.st_size, algorithms, sink=partial(progress.add_piece, name))
    return () if found.manifest is None else checksums.compare(found.listed, digests, found.manifest.name)


def _write_disk(part: _Disk, target: Path, algorithms: set[str], compress: bool, progress: _Progress) -> dict[str, str]:
    """Write a disk anew, read that back, and compare its content with the old one's. Returns the file's digests."""
    encode = vmdk.deflated if compress else vmdk.stored
    with _reading(part.path) as (source, _):
        content = _Fingerprint(progress, part.path.name)
        with target.open("xb", buffering=_BUFFER) as out:
            vmdk.write(out, part.disk, content.of(vmdk.grains(source, part.disk)), encode)
            out.flush()
            os.fsync(out.fileno())
            os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with target.open("rb", buffering=_BUFFER) as stream:
        hashed = _Hashed(stream, algorithms)
        again = _Fingerprint(progress, part.path.name)
        for _ in again.of(vmdk.read_back(hashed, part.disk)):
            pass
        stream.seek(0)
        is_same = vmdk.open_disk(stream).descriptor == part.disk.descriptor
    if again.value != content.value or not is_same:
        raise RepackError(f"{printable(part.path.name)} was written wrong: it reads back with another content")
    progress.add(part.path.name, 2 * part.grains * vmdk.GRAIN - content.bytes - again.bytes)
    return hashed.digests


class _Progress:
    """Adds up what is done."""

    def __init__(self, total: int, on_progress: OnProgress) -> None:
        self.done, self.total, self.on_progress = 0, total, on_progress

    def add(self, name: str, count: int) -> None:
        self.done += count
        self.on_progress(self.done, self.total, name)

    def add_piece(self, name: str, piece: memoryview) -> None:
        self.add(name, len(piece))


class _Fingerprint:
    """The digest of a disk's content: of all grains with their numbers."""

    def __init__(self, progress: _Progress, name: str) -> None:
        self.hash = hashlib.sha256()
        self.progress, self.name = progress, name
        self.bytes = 0

    def of(self, grains: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
        for number, data in grains:
            self.hash.update(number.to_bytes(8, "big"))
            self.hash.update(data)
            self.bytes += len(data)
            self.progress.add(self.name, len(data))
            yield number, data

    @property
    def value(self) -> bytes:
        return self.hash.digest()


class _Hashed:
    """A file that is hashed while it is read."""

    def __init__(self, stream: BinaryIO, algorithms: set[str]) -> None:
        self.stream = stream
        self.hashes = {algorithm: hashlib.new(algorithm, usedforsecurity=False) for algorithm in algorithms}

    def read(self, count: int, /) -> bytes:
        data = self.stream.read(count)
        for digest in self.hashes.values():
            digest.update(data)
        return data

    @property
    def digests(self) -> dict[str, str]:
        return {algorithm: digest.hexdigest() for algorithm, digest in self.hashes.items()}
