"""The texts that speak of a disk's bytes: sizes in an OVF envelope, digests in a manifest; nothing else changes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.parsers import expat

from clr_client.content import checksums, ovf
from clr_client.errors import RepackError

if TYPE_CHECKING:
    from collections.abc import Mapping

# A start tag is looked at in so many characters; the attributes of a reference are few and short.
_MAX_TAG = 64 * 1024
_ATTRIBUTE = re.compile(r"""\s+(?:[^\s=:"'<>/]+:)?([^\s=:"'<>/]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")
_DIGEST = re.compile(r"[0-9A-Fa-f]+(?=\s*\Z)")


def edit_envelope(data: bytes, sizes: Mapping[int, int]) -> bytes:
    """Return an envelope in which the references with these numbers, counted from 0, have these sizes in bytes.

    Nothing else changes, not a byte. A reference that declares no size gets none.

    :param data: an envelope that ``content.ovf.parse`` reads.
    :raises RepackError: it cannot be told where a size is.
    """
    starts = _file_elements(data)
    codec = _codec(data)
    edited = data
    for number in sorted(sizes, reverse=True):
        place = _size_attribute(data[starts[number] :], codec)
        if place is not None:
            begin, end = (starts[number] + offset for offset in place)
            edited = edited[:begin] + str(sizes[number]).encode(codec) + edited[end:]
    before, after = ovf.parse(data), ovf.parse(edited)
    for number, (old, new) in enumerate(zip(before.references, after.references, strict=True)):
        wanted = sizes.get(number, old.size) if old.size is not None else None
        if (new.href, new.size) != (old.href, wanted):
            raise RepackError("its OVF is written in a way in which the sizes cannot be replaced")
    return edited


def _file_elements(data: bytes) -> list[int]:
    """Where in an envelope the tag of each ``File`` of ``References`` begins."""
    parser = expat.ParserCreate(namespace_separator=" ")
    path: list[str] = []
    starts: list[int] = []

    def begin(name: str, _attributes: dict[str, str]) -> None:
        path.append(name.rpartition(" ")[2])
        if len(path) == 3 and path[1:] == ["References", "File"]:
            starts.append(parser.CurrentByteIndex)

    parser.StartElementHandler = begin
    parser.EndElementHandler = lambda _name: path.pop()
    parser.Parse(data, True)
    return starts


def _codec(data: bytes) -> str:
    """Return the codec in which tags can be found: expat reads UTF-16 and encodings that contain ASCII."""
    if data.startswith((b"\xff\xfe", b"<\0")):
        return "utf-16-le"
    return "utf-16-be" if data.startswith((b"\xfe\xff", b"\0<")) else "latin-1"


def _size_attribute(data: bytes, codec: str) -> tuple[int, int] | None:
    """Return where, in bytes from the beginning of a tag, the value of its ``size`` begins and ends; None if none."""
    width = 2 if codec.startswith("utf-16") else 1
    text = data[: _MAX_TAG * width].decode(codec, "replace")
    name = re.match(r"""<[^\s/>]+""", text)
    at = name.end() if name else 0
    found = []
    while match := _ATTRIBUTE.match(text, at):
        at = match.end()
        if match[1] == "size":
            found.append(match.span(2) if match[2] is not None else match.span(3))
    if len(found) > 1:
        raise RepackError("its OVF gives a file two sizes", "Leave only the ovf:size")
    if not found:
        return None
    return found[0][0] * width, found[0][1] * width


def edit_manifest(data: bytes, digests: Mapping[str, Mapping[str, str]]) -> bytes:
    """Return a manifest in which these files have these digests, by name and algorithm; all else stays as it is.

    :param data: a manifest that ``content.checksums.parse`` reads.
    """
    pieces = re.split("(\r\n|\r|\n)", data.decode("utf-8"))
    for number, line in enumerate(pieces):
        if not line.strip("\ufeff \t\r\n\v\f"):
            continue
        (entry,) = checksums.parse(line.encode("utf-8"))
        digest = digests.get(entry.name, {}).get(entry.algorithm)
        old = _DIGEST.search(line)
        if digest is not None and old is not None:
            is_upper = old[0] != entry.digest
            pieces[number] = line[: old.start()] + (digest.upper() if is_upper else digest) + line[old.end() :]
    return "".join(pieces).encode("utf-8")
