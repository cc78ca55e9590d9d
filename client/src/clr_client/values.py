"""Types of settings: each reads a text into a value, or refuses it by saying what is allowed."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, NoReturn
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import click

from clr_client import blocks, rates, schedule


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that the library can be pulled from. ``host`` is a name or an address, IPv6 without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class DeleteLimit:
    """The most items one run may remove: ``amount`` items, or per cent of those published."""

    amount: int
    percent: bool

    def allows(self, removed: int, published: int) -> bool:
        """Whether ``removed`` of ``published`` items may go. One item may always go: a library of one gets renamed."""
        if removed <= 1:
            return True
        return removed * 100 <= self.amount * published if self.percent else removed <= self.amount

    def __str__(self) -> str:
        return f"{self.amount}%" if self.percent else str(self.amount)


class Text(click.ParamType):  # type: ignore[type-arg]  # generic in some releases only
    """A type whose errors say what is allowed."""

    allowed = "any text"
    hidden = False
    """Whether values must not be shown, not even bad ones."""

    def refuse(self) -> NoReturn:
        """Refuse a value, saying what is allowed."""
        raise click.BadParameter(self.allowed)


class Truth(Text):
    """true or false, as people write them."""

    name = "true|false"
    allowed = "true or false"
    words: ClassVar = {
        "true": True,
        "1": True,
        "yes": True,
        "on": True,
        "false": False,
        "0": False,
        "no": False,
        "off": False,
    }

    def convert(self, value: Any, param: Any, ctx: Any) -> bool:  # noqa: ANN401, ARG002 - click's signature
        """Read a word."""
        if value.strip().lower() not in self.words:
            self.refuse()
        return self.words[value.strip().lower()]


class Whole(Text):
    """A whole number within bounds."""

    name = "number"

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high
        self.allowed = f"a whole number from {low} to {high}"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:  # noqa: ANN401, ARG002
        """Read a number."""
        if not re.fullmatch(r"\d{1,12}", str(value).strip()) or not self.low <= int(value) <= self.high:
            self.refuse()
        return int(value)


class Duration(Text):
    """A length of time: seconds, or a number with s, m, h or d."""

    name = "duration"
    allowed = "seconds, or a number with s, m, h or d, such as 90, 15m, 6h or 2d; at most 3650d"
    units: ClassVar = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
    longest = timedelta(days=3650)

    def convert(self, value: Any, param: Any, ctx: Any) -> timedelta:  # noqa: ANN401, ARG002
        """Read a duration."""
        match = re.fullmatch(r"(\d{1,9})([smhd]?)", str(value).strip().lower())
        if match is None or int(match[1]) * self.units[match[2]] > self.longest.total_seconds():
            self.refuse()
        return timedelta(seconds=int(match[1]) * self.units[match[2]])


class Patience(Duration):
    """A length of time that the schedule gives unless another is said."""

    allowed = f"auto, or {Duration.allowed}"

    def convert(self, value: Any, param: Any, ctx: Any) -> timedelta | None:  # type: ignore[override] # noqa: ANN401
        """Read a duration; None for auto."""
        return None if str(value).strip().lower() == "auto" else super().convert(value, param, ctx)


class Bandwidth(Text):
    """A rate as rsync's --bwlimit takes it, or several by the time of day."""

    name = "rate"
    allowed = (
        "0 for no limit, or a rate as rsync takes it: 500 (KiB/s), 800k, 1.5m; at least 0.5k;"
        " before it others for times of day: 1m@08:00-18:00,0"
    )

    def convert(self, value: Any, param: Any, ctx: Any) -> rates.Rates:  # noqa: ANN401, ARG002
        """Read rates."""
        try:
            return rates.parse(str(value))
        except ValueError:
            self.refuse()


class BlockSize(Text):
    """Length of the blocks in which rsync compares files."""

    name = "auto|whole|bytes"
    allowed = f"auto, whole, or a number of bytes from {blocks.LEAST_BLOCK} to {blocks.MOST_BLOCK}"
    words: ClassVar = {"auto": blocks.AUTO, "whole": blocks.WHOLE}

    def convert(self, value: Any, param: Any, ctx: Any) -> int:  # noqa: ANN401
        """Read a length; ``auto`` and ``whole`` are the constants of these names in ``blocks``."""
        word = str(value).strip().lower()
        if word in self.words:
            return self.words[word]
        try:
            return Whole(blocks.LEAST_BLOCK, blocks.MOST_BLOCK).convert(word, param, ctx)
        except click.BadParameter:
            self.refuse()


class Limit(Text):
    """A number of items or a percentage."""

    name = "number|percent"
    allowed = "a number of items (20) or a percentage (50%) up to 100%"

    def convert(self, value: Any, param: Any, ctx: Any) -> DeleteLimit:  # noqa: ANN401, ARG002
        """Read a limit."""
        match = re.fullmatch(r"(\d{1,9})(%?)", str(value).strip())
        if match is None or (match[2] and int(match[1]) > 100):
            self.refuse()
        return DeleteLimit(int(match[1]), percent=bool(match[2]))


class Words(Text):
    """Several values, separated by commas or line ends."""

    name = "list"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:  # noqa: ANN401, ARG002
        """Split a list."""
        return tuple(word.strip() for word in re.split(r"[,\n]", value) if word.strip())


class AnyOf(Words):
    """Some of a few words, or all."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.allowed = f"all, or some of {', '.join(words)}"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:  # noqa: ANN401
        """Read words, in the order in which they are known."""
        chosen = {word.lower() for word in super().convert(value, param, ctx)}
        if chosen == {"all"}:
            return self.words
        if not chosen or not chosen <= set(self.words):
            self.refuse()
        return tuple(word for word in self.words if word in chosen)


class Services(Text):
    """URLs of apprise, which hold passwords and tokens."""

    name = "URL, ..."
    hidden = True
    allowed = (
        "URLs of apprise, separated by commas or white space:"
        " mailtos://user:password@mail.example.com?to=admin@example.com"
    )
    scheme = "[A-Za-z0-9]{1,32}://"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:  # noqa: ANN401, ARG002
        """Split a list where a URL begins, as apprise does: there may be commas inside of one."""
        urls = [url for url in re.split(rf"[\s,;]+(?={self.scheme})", str(value).strip(" \t\r\n,;")) if url]
        for number, url in enumerate(urls, start=1):
            if not re.fullmatch(rf"{self.scheme}\S+", url) or not url.isprintable():
                raise click.BadParameter(f"{self.allowed}; entry {number} is none")
        return tuple(urls)


class WebAddress(Text):
    """An http or https URL that may hold a token."""

    name = "URL"
    hidden = True
    allowed = "a URL that begins with https:// or http://"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:  # noqa: ANN401, ARG002
        """Read a URL; empty is none."""
        url = str(value).strip()
        try:
            parts = urlsplit(url)
            is_fit = parts.scheme in {"http", "https"} and parts.hostname and (parts.port or 1) > 0
        except ValueError:
            is_fit = False
        if url and (not is_fit or not url.isprintable() or " " in url):
            self.refuse()
        return url


class Peers(Text):
    """Servers in the order in which they are tried."""

    name = "host, ..."
    allowed = (
        "one or more host names or addresses, separated by commas, each with an own port if wished:"
        " clr.example.com, 192.0.2.7:2222, [2001:db8::1]:2222"
    )

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[tuple[str, int | None], ...]:  # noqa: ANN401, ARG002
        """Read the hosts; a port of None stands for SYNC_PORT."""
        return tuple(self._peer(word) for word in re.split(r"[,\s]+", value.strip()) if word)

    def _peer(self, word: str) -> tuple[str, int | None]:
        address = r"[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?"
        if re.fullmatch(address, word) and _is_ipv6(word):
            return word, None
        bracketed = re.fullmatch(rf"\[({address})\](?::(\d{{1,5}}))?", word)
        plain = re.fullmatch(r"([A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?)(?::(\d{1,5}))?", word)
        match = bracketed or plain
        if match is None or (bracketed and not _is_ipv6(match[1])):
            self.refuse()
        port = int(match[2]) if match[2] else None
        if port is not None and not 1 <= port <= 65535:
            self.refuse()
        return match[1], port


class HostKeys(Words):
    """Host keys or fingerprints that a server must show one of."""

    name = "key|fingerprint, ..."
    allowed = (
        "fingerprints (SHA256:...) or public keys (ssh-ed25519 AAAA...), separated by commas, as the server prints them"
    )
    pattern = re.compile(r"SHA256:[A-Za-z0-9+/]{43}=?|(ssh|ecdsa|sk)-[A-Za-z0-9@.-]+ [A-Za-z0-9+/]+={0,3}( .*)?")

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:  # noqa: ANN401
        """Read pins."""
        pins = super().convert(value, param, ctx)
        if not all(self.pattern.fullmatch(pin) for pin in pins):
            self.refuse()
        return pins


class Zone(Text):
    """A time zone by its name in the TZ database."""

    name = "zone"
    allowed = "a name from the TZ database, such as UTC, Europe/Berlin or America/Chicago"

    def convert(self, value: Any, param: Any, ctx: Any) -> ZoneInfo:  # noqa: ANN401, ARG002
        """Read a zone."""
        try:
            return ZoneInfo(value.strip().removeprefix(":"))
        except (ValueError, OSError, KeyError):
            self.refuse()


class Cron(Text):
    """When to sync."""

    name = "cron"
    allowed = "five cron fields (0 21 * * 5 is Fridays at 21:00) or @hourly, @daily, @weekly, @monthly"

    def convert(self, value: Any, param: Any, ctx: Any) -> schedule.Schedule:  # noqa: ANN401, ARG002
        """Read a cron expression."""
        try:
            return schedule.Schedule(value)
        except ValueError as error:
            raise click.BadParameter(f"{self.allowed}; {error}") from None


class CronOrNever(Cron):
    """When to do what need not be done at all."""

    allowed = f"empty, or {Cron.allowed}"

    def convert(self, value: Any, param: Any, ctx: Any) -> schedule.Schedule | None:  # type: ignore[override] # noqa: ANN401
        """Read a cron expression, or nothing."""
        return super().convert(value, param, ctx) if value else None


class Label(Text):
    """A text of bounded length without control characters."""

    name = "text"

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high
        self.allowed = f"{low} to {high} characters, no control characters"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:  # noqa: ANN401, ARG002
        """Read a text."""
        if not self.low <= len(value) <= self.high or not value.isprintable():
            self.refuse()
        return str(value)


class Password(Text):
    """A password that bcrypt can take whole."""

    name = "text"
    hidden = True
    allowed = "up to 72 bytes, no control characters"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:  # noqa: ANN401, ARG002
        """Read a password; empty is none."""
        try:
            is_fit = len(value.encode()) <= 72
        except UnicodeEncodeError:
            is_fit = False
        if not is_fit or (value and not value.isprintable()):
            self.refuse()
        return str(value)


class HostName(Text):
    """A DNS name."""

    name = "host name"
    allowed = "a host name such as library.example.com, without scheme, port or path"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:  # noqa: ANN401, ARG002
        """Read a host name or an address."""
        word = value.strip().lower().removesuffix(".")
        if word and not re.fullmatch(r"(?!-)[a-z0-9-]{1,63}(\.(?!-)[a-z0-9-]{1,63})*", word) and not _is_ipv6(word):
            self.refuse()
        return str(word)


class OneOf(Text):
    """One of a few words."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.name = "|".join(words)
        self.allowed = " or ".join(words)

    def convert(self, value: Any, param: Any, ctx: Any) -> str:  # noqa: ANN401, ARG002
        """Read a word."""
        word = value.strip().lower()
        if word not in self.words:
            self.refuse()
        return str(word)


class Folder(Text):
    """A folder."""

    name = "folder"
    allowed = "an absolute path"

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:  # noqa: ANN401, ARG002
        """Read a path."""
        if not value.startswith("/"):
            self.refuse()
        return Path(value)


def _is_ipv6(word: str) -> bool:
    try:
        return ipaddress.ip_address(word).version == 6
    except ValueError:
        return False
