"""A strict check of a library: everything that vSphere or another reader would stumble over.

govc and vcsim never fetch a foreign lib.json, so they prove nothing about a subscription; this does.
"""

from __future__ import annotations

import hashlib
import http
import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from clr_client.errors import ProbeError
from clr_client.text import printable
from clr_client.vcsp.fetching import fetch_items, fetch_library, plain_json
from clr_client.vcsp.reader import USER, Reader, folder_of, refusal
from clr_client.vcsp.rules import Findings, check_envelope, file_place, item_place, read_json, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from clr_client.vcsp.reader import Answer, Thumbprints
    from clr_client.vcsp.rules import Problem, RemoteFile, RemoteItem, RemoteLibrary

OnProgress: TypeAlias = "Callable[[int, int, str], None]"
"""Called with what is done, the total, and what is read now: in bytes for a full check, else in files."""

_ENVELOPE_LIMIT: Final = 16 << 20
_MANIFEST_LIMIT: Final = 1 << 20
_ALGORITHMS: Final = ("SHA1", "SHA256", "SHA512")
_USER_IN_URL: Final = re.compile(r"//[^/]*@")
_MANIFEST_LINE: Final = re.compile(r"(SHA1|SHA256|SHA512) ?\((.+)\) ?= ?([0-9A-Fa-f]+)")


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found. ``probe`` is vSphere's name for the outcome of reaching the library, SUCCESS when
    it was.

    ``url`` is what to subscribe to, after redirects; ``library``, ``id`` and ``version`` are empty or 0 when
    unknown; ``files`` and ``bytes`` are what the items describe; ``govc`` is a command for a shell that
    subscribes.
    """

    url: str
    probe: str
    library: str
    id: str
    version: int
    items: int
    files: int
    bytes: int
    problems: tuple[Problem, ...]
    thumbprints: Thumbprints | None
    govc: str

    @property
    def ok(self) -> bool:
        """Whether vSphere could subscribe and stay subscribed; warnings do not count."""
        return self.probe == "SUCCESS" and all(problem.severity != "error" for problem in self.problems)


def check(
    url: str,
    *,
    password: str | None = None,
    full: bool = False,
    ca_file: Path | None = None,
    thumbprint: str | None = None,
    wait: float = 0.0,
    timeout: float = 30.0,
    on_progress: OnProgress | None = None,
) -> CheckReport:
    """Read the library at ``url`` as a subscriber would and report everything that departs from the rules.

    Without ``full`` the files' headers and last bytes are read, and the OVF envelopes; with it everything,
    and digests are compared with the ``.mf``. ``thumbprint`` (SHA-256 or SHA-1) pins the certificate as
    vSphere does; without it and ``ca_file``, a certificate that no known CA signed is a warning, but gets no
    password. ``wait`` and ``timeout`` are seconds: how long to wait for a server that is still preparing, and
    for each answer.

    Raises nothing for what a library or server can do wrong: that is what the report is for.
    """
    shown_url = printable(_USER_IN_URL.sub("//", url))
    findings = Findings()
    checker = _Checker(findings, full=full, on_progress=on_progress or _no_progress)
    probe = "SUCCESS"
    thumbprints = None
    try:
        with Reader(url, password=password, ca_file=ca_file, thumbprint=thumbprint, timeout=timeout) as reader:
            try:
                checker.run(reader, url, wait)
            finally:
                thumbprints = reader.thumbprints
                if reader.unverified:
                    text = f"{reader.unverified}. vSphere asks whether to trust its thumbprint"
                    findings.warning(url, text)
    except ProbeError as error:
        probe = error.probe
        findings.error(checker.reading or shown_url, f"{probe}: {error}")
    library = checker.library
    return CheckReport(
        url=checker.url or shown_url,
        probe=probe,
        library=library.name if library else "",
        id=library.id if library else "",
        version=library.version if library else 0,
        items=len(checker.items),
        files=sum(len(item.files) for item in checker.items),
        bytes=sum(file.size for item in checker.items for file in item.files),
        problems=tuple(findings.problems),
        thumbprints=thumbprints,
        govc=_govc(checker.url or shown_url, library, thumbprints, with_password=password is not None),
    )


def _no_progress(_done: int, _total: int, _what: str) -> None:
    pass


def _govc(url: str, library: RemoteLibrary | None, thumbprints: Thumbprints | None, *, with_password: bool) -> str:
    """The flags are those of govc's USAGE; what it calls thumbprint is vSphere's ssl_thumbprint, a SHA-1."""
    words = ["govc", "library.create", "-sub", url]
    if thumbprints:
        words += ["-thumbprint", thumbprints.sha1]
    if with_password:
        words += ["-sub-username", USER]
    line = shlex.join(words)
    if with_password:
        line += ' -sub-password "$LIBRARY_PASSWORD"'
    name = library.name if library and library.name.isprintable() and library.name else "Content Library"
    return f"{line} {shlex.join(['--', name] if name.startswith('-') else [name])}"


class _Checker:
    """One check; what it learnt so far stays readable when it ends early."""

    def __init__(self, findings: Findings, *, full: bool, on_progress: OnProgress) -> None:
        self.url: str | None = None
        self.library: RemoteLibrary | None = None
        self.items: tuple[RemoteItem, ...] = ()
        self.reading = ""
        self._findings = findings
        self._full = full
        self._on_progress = on_progress
        self._done = 0
        self._total = 0

    def run(self, reader: Reader, url: str, wait: float) -> None:
        self.url, self.library = fetch_library(reader, url, self._findings, wait=wait)
        if self.library is None:
            return
        self.reading = "items.json"
        self.items = fetch_items(reader, self.url, self.library, self._findings)
        files = [file for item in self.items for file in item.files]
        self._total = sum(file.size for file in files) if self._full else len(files)
        for item in self.items:
            self.reading = item_place(item.name)
            self._check_own_document(reader, item)
            loaded = _Loaded()
            for file in item.files:
                self.reading = file_place(item_place(item.name), file.name)
                if self._full:
                    self._load(reader, item, file, loaded)
                else:
                    self._sound(reader, item, file)
            self._compare_digests(item, loaded)

    def _advance(self, amount: int, what: str) -> None:
        self._done += amount
        self._on_progress(self._done, self._total, what)

    def _at(self, href: str) -> str:
        return folder_of(self.url or "") + href

    def _check_own_document(self, reader: Reader, item: RemoteItem) -> None:
        if not item.self_href:
            return
        where = f"{item_place(item.name)}, item.json"
        answer, body = reader.fetch(self._at(item.self_href))
        error = refusal(answer)
        if error is not None:
            self._findings.error(where, str(error))
            return
        body = plain_json(reader, answer, body, where, self._findings)
        value = read_json(body, where, self._findings)
        if value is not None and value != item.raw:
            self._findings.warning(where, "differs from the item's entry in items.json")

    def _sound(self, reader: Reader, item: RemoteItem, file: RemoteFile) -> None:
        """Headers and last byte of a file; all of an OVF envelope."""
        if self._has_right_head(reader, file) and file.size:
            self._check_range(reader, file)
        if file.name.lower().endswith(".ovf") and file.size <= _ENVELOPE_LIMIT:
            answer, body = reader.fetch(self._at(file.href), headers={"Accept-Encoding": "identity"})
            if answer.status == http.HTTPStatus.OK:
                check_envelope(body, item, self._findings)
        self._advance(1, file.name)

    def _has_right_head(self, reader: Reader, file: RemoteFile) -> bool:
        answer, _ = reader.fetch(self._at(file.href), method="HEAD")
        if answer.status in (http.HTTPStatus.METHOD_NOT_ALLOWED, http.HTTPStatus.NOT_IMPLEMENTED):
            self._findings.warning(self.reading, "cannot be asked for its headers (HEAD)")
            with reader.open(self._at(file.href)) as (answer, _chunks):
                return self._is_right(answer, file)
        return self._is_right(answer, file)

    def _is_right(self, answer: Answer, file: RemoteFile) -> bool:
        """Whether an answer announces exactly the file."""
        error = refusal(answer)
        if error is not None:
            self._findings.error(self.reading, f"{error.probe}: {error}")
            return False
        if answer.url != self._at(file.href):
            self._findings.warning(self.reading, f"redirects to {shown(answer.url)}")
        if answer.encoding:
            text = f"is sent compressed ({shown(answer.encoding)}): vSphere sees another size"
            self._findings.error(self.reading, text)
            return False
        if answer.length is None:
            self._findings.error(self.reading, "is sent without Content-Length: vSphere cannot compare its size")
            return False
        if answer.length != file.size:
            text = f"has {answer.length} bytes where the manifest says {file.size}: vSphere fails the item"
            self._findings.error(self.reading, text)
            return False
        return True

    def _check_range(self, reader: Reader, file: RemoteFile) -> None:
        last = file.size - 1
        with reader.open(self._at(file.href), headers={"Range": f"bytes={last}-{last}"}) as (answer, chunks):
            if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
                self._findings.warning(self.reading, "cannot be read in parts: a broken download starts over")
                return
            right = answer.headers.get("content-range") == f"bytes {last}-{last}/{file.size}"
            if not right or len(next(chunks, b"") + next(chunks, b"")) != 1:
                self._findings.error(self.reading, "is not whole: its last byte cannot be read")

    def _load(self, reader: Reader, item: RemoteItem, file: RemoteFile, loaded: _Loaded) -> None:
        """All of a file."""
        if self._has_right_head(reader, file) and file.size:
            self._check_range(reader, file)
        with reader.open(self._at(file.href)) as (answer, chunks):
            if self._is_right(answer, file):
                self._hash(chunks, item, file, loaded)

    def _hash(self, chunks: Iterator[bytes], item: RemoteItem, file: RemoteFile, loaded: _Loaded) -> None:
        hashes = {name: hashlib.new(name, usedforsecurity=False) for name in _ALGORITHMS}
        suffix = file.name.lower().rpartition(".")[2]
        keep = {"ovf": _ENVELOPE_LIMIT, "mf": _MANIFEST_LIMIT}.get(suffix, 0)
        kept = bytearray()
        size = 0
        for chunk in chunks:
            size += len(chunk)
            for each in hashes.values():
                each.update(chunk)
            if size <= keep:
                kept += chunk
            self._advance(len(chunk), file.name)
        if size != file.size:
            self._findings.error(self.reading, f"ended after {size} of {file.size} bytes")
            return
        loaded.digests[file.name] = {name: each.hexdigest() for name, each in hashes.items()}
        if suffix == "ovf" and size <= keep:
            check_envelope(bytes(kept), item, self._findings)
        elif suffix == "mf" and size <= keep:
            loaded.manifests.append(bytes(kept))

    def _compare_digests(self, item: RemoteItem, loaded: _Loaded) -> None:
        """What the item's ``.mf`` lists; vSphere verifies it when the template is deployed."""
        for manifest in loaded.manifests:
            for algorithm, name, digest in _MANIFEST_LINE.findall(manifest.decode("utf-8", "replace")):
                digests = loaded.digests.get(name)
                if digests is None and name not in {file.name for file in item.files}:
                    text = f"lacks {shown(name)}, which its .mf lists"
                    self._findings.error(item_place(item.name), text)
                elif digests is not None and digests[algorithm] != digest.lower():
                    text = f"does not have the {algorithm} that the item's .mf lists"
                    self._findings.error(file_place(item_place(item.name), name), text)


@dataclass(slots=True)
class _Loaded:
    """What a full check keeps of an item: digests by file and algorithm, and the contents of its ``.mf``."""

    digests: dict[str, dict[str, str]] = field(default_factory=dict)
    manifests: list[bytes] = field(default_factory=list)
