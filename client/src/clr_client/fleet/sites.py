"""The file that names the sites: what `clr fleet` reads."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from clr_client.errors import ProbeError, SitesError
from clr_client.text import printable
from clr_client.vcsp.reader import split_url
from clr_client.vcsp.rules import shown

MOST_SITES: Final = 10_000
MOST_BYTES: Final = 16 << 20
STATUS: Final = "_clr/status.json"
_ENDINGS: Final = ("lib.json", STATUS, "_clr/")
_THUMBPRINT_DIGITS: Final = (40, 64)


@dataclass(frozen=True, slots=True)
class Site:
    """A site to be read: ``url`` is the folder of its library, with a slash at its end."""

    name: str
    url: str
    password: str | None = field(default=None, repr=False)
    pin: str | None = None
    ca_file: Path | None = None

    @property
    def status_url(self) -> str:
        """Where its status is."""
        return self.url + STATUS


def read_sites(file: Path, ca_file: Path | None = None) -> tuple[Site, ...]:
    """Return the sites that ``file`` names, in its order; ``-`` is standard input.

    A line is a name, a URL, and ``password-file=PATH``, ``pin=THUMBPRINT`` or ``ca-file=PATH`` where a site needs it;
    words are quoted as in a shell, paths are relative to the file, ``#`` begins a comment.

    :param ca_file: for sites whose line names no other one.
    :raises SitesError: it cannot be read or understood; says where.
    """
    try:
        if str(file) == "-":
            data = sys.stdin.buffer.read(MOST_BYTES + 1)
        else:
            with file.open("rb") as stream:
                data = stream.read(MOST_BYTES + 1)
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SitesError(f"the file of sites {shown(str(file))} cannot be read: {error}") from error
    if len(data) > MOST_BYTES:
        raise SitesError(f"the file of sites {shown(str(file))} has more than {MOST_BYTES >> 20} MiB")
    folder = Path() if str(file) == "-" else file.parent
    sites: dict[str, Site] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        try:
            site = _site(line, folder, ca_file)
            if site is None:
                continue
            if site.name in sites:
                raise SitesError(f"a site named {shown(site.name)} is there already", "Each site needs its own name")
        except SitesError as error:
            raise SitesError(f"{printable(str(file))}, line {number}: {error.message}", error.remedy) from error
        sites[site.name] = site
    if not sites:
        raise SitesError(f"the file of sites {shown(str(file))} names no site", "A line is: NAME URL")
    if len(sites) > MOST_SITES:
        raise SitesError(f"the file of sites {shown(str(file))} names more than {MOST_SITES} sites")
    return tuple(sites.values())


def _site(line: str, folder: Path, ca_file: Path | None) -> Site | None:
    """The site that a line names; None for a line without one. Raises SitesError."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise SitesError(f"it cannot be read: {error}") from error
    if not words:
        return None
    if len(words) == 1:
        raise SitesError(f"the site {shown(words[0])} has no URL", "A line is: NAME URL")
    name, url, *options = words
    found: dict[str, str] = {}
    for option in options:
        key, is_there, value = option.partition("=")
        if key not in ("password-file", "pin", "ca-file") or not is_there or not value:
            raise SitesError(f"{shown(option)} is not understood", "password-file=, pin= and ca-file= are")
        if key in found:
            raise SitesError(f"{key}= is there twice")
        found[key] = value
    place = _library(url)
    pin = found.get("pin")
    if pin is not None:
        _check_pin(pin, place)
    password = None
    if "password-file" in found:
        password = _text_of(folder / found["password-file"])
    if "ca-file" in found:
        ca_file = folder / found["ca-file"]
        _text_of(ca_file)
    return Site(printable(name), place, password, pin, ca_file if place.startswith("https:") else None)


def _library(url: str) -> str:
    """The folder of the library that a URL means. Raises SitesError."""
    try:
        parts = split_url(url)
    except ProbeError as error:
        raise SitesError(error.message, error.remedy or "It looks like http://host/lib.json") from error
    if parts.query:
        raise SitesError(f"{shown(url)} has more than a path", "It looks like http://host/lib.json")
    path = parts.path
    for ending in _ENDINGS:
        if path.endswith(f"/{ending}"):
            path = path[: -len(ending)]
            break
    return f"{parts.scheme}://{parts.netloc}{path if path.endswith('/') else f'{path}/'}"


def _check_pin(pin: str, url: str) -> None:
    digits = pin.replace(":", "").replace(" ", "")
    if len(digits) not in _THUMBPRINT_DIGITS or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
        raise SitesError(f"{shown(pin)} is no thumbprint", "clr check URL --thumbprint prints it")
    if not url.startswith("https:"):
        raise SitesError("pin= is for https", "Without TLS there is no certificate")


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SitesError(f"{shown(str(file))} cannot be read: {getattr(error, 'strerror', None) or error}") from error
