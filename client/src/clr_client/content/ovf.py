"""OVF envelopes: which files a template consists of (DMTF DSP0243, section 7)."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote
from xml.sax import SAXException
from xml.sax.handler import ContentHandler, feature_namespaces

from defusedxml.expatreader import DefusedExpatParser

from clr_client.content.names import flaw, fold
from clr_client.errors import HeldError
from clr_client.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from xml.sax.xmlreader import AttributesNSImpl

MAX_ENVELOPE = 32 << 20
"""Largest envelope read, in bytes."""

_MAX_REFERENCES = 10_000
_MAX_DEPTH = 1_000
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_VAPP = "VirtualSystemCollection"


@dataclass(frozen=True, slots=True)
class Reference:
    """A ``File`` of an envelope's ``References``.

    ``size`` in bytes is None when not declared, ``chunk`` is the size in bytes of each piece of a file that
    is cut into ``<href>.000000000`` and so on.
    """

    href: str
    size: int | None = None
    compressed: bool = False
    chunk: int | None = None


@dataclass(frozen=True, slots=True)
class Envelope:
    """What this program needs to know of an OVF envelope."""

    references: tuple[Reference, ...]
    is_vapp_template: bool

    def dump(self) -> str:
        """As text for the cache; ``restore`` reads it."""
        references = [
            [reference.href, reference.size, reference.compressed, reference.chunk] for reference in self.references
        ]
        return json.dumps([self.is_vapp_template, references])


def restore(text: str) -> Envelope:
    """Read what ``Envelope.dump`` wrote."""
    vapp, references = json.loads(text)
    return Envelope(tuple(Reference(*reference) for reference in references), vapp)


def parse(data: bytes) -> Envelope:
    """Read an envelope, in memory bounded by its size. Raises HeldError if it is none, or has a DTD."""
    if len(data) > MAX_ENVELOPE:
        raise HeldError(f"the OVF envelope is larger than {MAX_ENVELOPE >> 20} MiB")
    handler = _Handler()
    parser = DefusedExpatParser(forbid_dtd=True)
    parser.setFeature(feature_namespaces, True)
    parser.setContentHandler(handler)
    try:
        parser.parse(io.BytesIO(data))
    except (SAXException, ValueError, LookupError) as error:  # defusedxml's are ValueErrors
        reason = error.getMessage() if isinstance(error, SAXException) else str(error)
        raise HeldError(f"the OVF envelope cannot be read: {printable(reason)[:200]}") from error
    return Envelope(tuple(handler.references), handler.vapp)


class _Handler(ContentHandler):
    """Collects references; its methods have the names and arguments that SAX calls."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0
        self.path: list[str] = []
        self.references: list[Reference] = []
        self.vapp = False

    def startElementNS(  # noqa: N802
        self,
        name: tuple[str | None, str],
        qname: str | None,  # noqa: ARG002
        attrs: AttributesNSImpl,
    ) -> None:
        local = name[1]
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise HeldError("the OVF envelope is nested too deeply")
        if self.depth == 1 and local != "Envelope":
            raise HeldError(f"the OVF file is no envelope: its root is {printable(local)[:80]}")
        if self.depth <= 3:
            self.path[self.depth - 1 :] = [local]
        if local == _VAPP:
            self.vapp = True
        if self.depth == 3 and self.path[1:] == ["References", "File"]:
            if len(self.references) == _MAX_REFERENCES:
                raise HeldError(f"the OVF envelope references more than {_MAX_REFERENCES} files")
            self.references.append(_reference({key[1]: value for key, value in attrs.items()}))

    def endElementNS(self, name: tuple[str | None, str], qname: str | None) -> None:  # noqa: N802, ARG002
        self.depth -= 1


def _reference(attributes: Mapping[str, str]) -> Reference:
    href = attributes.get("href", "")
    if not href:
        raise HeldError("the OVF envelope has a file reference without href")
    compression = attributes.get("compression", "").strip().lower()
    if compression not in ("", "identity", "gzip"):
        raise HeldError(f"{_shown(href)} has the unknown compression {printable(compression)[:40]}")
    return Reference(
        href,
        _number(attributes, "size", href),
        compression == "gzip",
        _number(attributes, "chunkSize", href),
    )


def _number(attributes: Mapping[str, str], name: str, href: str) -> int | None:
    text = attributes.get(name, "").strip()
    if text and not re.fullmatch("[0-9]{1,18}", text):
        raise HeldError(f"{_shown(href)} has a {name} that is no number: {printable(text)[:40]}")
    return int(text or 0) or None


def resolve(envelope: Envelope, sizes: Mapping[str, int]) -> frozenset[str]:
    """Names of the files the envelope references, out of those that lie beside it (name and size in bytes).

    Raises HeldError for a reference that leads elsewhere, is not there, or has another size than declared.
    """
    names: set[str] = set()
    for reference in envelope.references:
        name = _local_name(reference.href, sizes)
        if reference.chunk is not None:
            names.update(_chunks(name, reference, reference.chunk, sizes))
            continue
        _check(name, None if reference.compressed else reference.size, sizes)
        names.add(name)
    return frozenset(names)


def _local_name(href: str, sizes: Mapping[str, int]) -> str:
    """The base name that a href means: as written if there is such a file, else percent-decoded."""
    if href in sizes:
        return href
    name = unquote(href, errors="surrogateescape")
    if _REMOTE.match(href) or href.startswith("//"):
        raise HeldError(f"the OVF envelope references a remote file: {_shown(href)}")
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise HeldError(f"the OVF envelope references a file outside its folder: {_shown(href)}")
    if (reason := flaw(name)) is not None:
        raise HeldError(f"the OVF envelope references a file whose name {reason}: {_shown(name)}")
    return name


def _chunks(name: str, reference: Reference, chunk: int, sizes: Mapping[str, int]) -> list[str]:
    """The pieces of a chunked file: all of ``chunk`` bytes but the last."""
    pieces: list[str] = []
    while (piece := f"{name}.{len(pieces):09d}") in sizes:
        pieces.append(piece)
    total = None if reference.compressed else reference.size
    count = len(pieces) if total is None else -(-total // chunk)
    if not pieces or len(pieces) < count:
        raise HeldError(f"{_shown(name)}.{len(pieces):09d} is referenced but not there")
    del pieces[count:]
    for piece in pieces[:-1]:
        _check(piece, chunk, sizes)
    if total is not None:
        _check(pieces[-1], total - (count - 1) * chunk, sizes)
    return pieces


def _check(name: str, size: int | None, sizes: Mapping[str, int]) -> None:
    if name not in sizes:
        folded = fold(name)
        near = next((other for other in sizes if fold(other) == folded), None)
        hint = f"; {printable(near)} differs by case or Unicode form" if near is not None else ""
        raise HeldError(f"{_shown(name)} is referenced but not there{hint}")
    if size is not None and sizes[name] != size:
        raise HeldError(f"{_shown(name)} has {sizes[name]} bytes, but the OVF envelope says {size}")


def _shown(name: str) -> str:
    return printable(name[:120])
