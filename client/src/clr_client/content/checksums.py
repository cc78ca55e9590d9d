"""OVF manifests (.mf): the digests a template's maker wrote down, and whether the files match them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clr_client.content.names import flaw
from clr_client.errors import HeldError
from clr_client.text import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

MAX_MANIFEST = 4 << 20
"""Largest manifest read, in bytes."""

# ovftool writes "SHA256(a.ovf)= 12ab", openssl "SHA2-256(a.ovf)= 12ab", others put spaces around the name.
_LINE = re.compile(r"\s*([A-Za-z0-9/-]+)\s*\((.+)\)\s*=\s*([0-9A-Fa-f]+)\s*", re.DOTALL)
_ALGORITHMS = {
    "SHA1": "sha1",
    "SHA-1": "sha1",
    **{f"SHA{dash}{bits}": f"sha{bits}" for dash in ("", "-", "2-") for bits in (256, 384, 512)},
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a manifest: the digest, in lower-case hex, of the file ``name``."""

    name: str
    algorithm: str
    digest: str


def parse(data: bytes) -> tuple[Entry, ...]:
    """Read a manifest. Raises HeldError for an unknown algorithm and for anything that is no manifest."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise HeldError("the manifest is not UTF-8 text") from error
    entries: dict[tuple[str, str], Entry] = {}
    for number, line in enumerate(re.split("\r\n|\r|\n", text), 1):
        if not line.strip():
            continue
        entry = _entry(line, number)
        if entries.setdefault((entry.name, entry.algorithm), entry) != entry:
            raise HeldError(f"the manifest gives {entry.name} two different digests")
    if not entries:
        raise HeldError("the manifest lists no file")
    return tuple(entries.values())


def _entry(line: str, number: int) -> Entry:
    match = _LINE.fullmatch(line)
    if match is None:
        raise HeldError(f"line {number} of the manifest is malformed: {printable(line.strip()[:80])}")
    label, name, digest = match[1], match[2].strip(), match[3].lower()
    algorithm = _ALGORITHMS.get(label.upper())
    if algorithm is None:
        raise HeldError(f"the manifest uses the unknown algorithm {label[:20]}")
    if len(digest) != hashlib.new(algorithm, usedforsecurity=False).digest_size * 2:
        raise HeldError(f"line {number} of the manifest has a digest of the wrong length")
    if not name or "/" in name or flaw(name):
        raise HeldError(f"line {number} of the manifest names no file of this folder: {printable(name[:80])}")
    return Entry(name, algorithm, digest)


def wanted(entries: Sequence[Entry], present: Collection[str]) -> dict[str, set[str]]:
    """Algorithms wanted of each file. Raises HeldError for a listed file that is not ``present``."""
    algorithms: dict[str, set[str]] = {}
    for entry in entries:
        if entry.name not in present:
            raise HeldError(f"{entry.name} is listed in the manifest but not there")
        algorithms.setdefault(entry.name, set()).add(entry.algorithm)
    return algorithms


def compare(entries: Sequence[Entry], digests: Mapping[str, Mapping[str, str]], manifest: str) -> tuple[str, ...]:
    """Compare files with the manifest of that name; ``digests`` are every file's, by name and algorithm.

    Returns warnings: files that it does not list, and the use of SHA-1. Raises HeldError for the first file
    that does not match.
    """
    for entry in entries:
        if digests[entry.name][entry.algorithm] != entry.digest:
            raise HeldError(f"{entry.name} does not match its {entry.algorithm.upper()} digest in {manifest}")
    listed = {entry.name for entry in entries}
    warnings = [
        f"{name} is not listed in {manifest}"
        for name in digests
        if name not in listed and name != manifest and not name.lower().endswith(".cert")
    ]
    if any(entry.algorithm == "sha1" for entry in entries):
        warnings.append(f"{manifest} uses SHA-1, which proves no more than an undamaged copy")
    return tuple(warnings)
