"""Display names: at most 80 characters, stable, unique in a library."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import TYPE_CHECKING

from clr_client.text import UNSAFE, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_NAME = 80
"""What vSphere accepts as an item's name; counted in UTF-16 units, as Java does, which are never fewer."""

_HASH_DIGITS = 8

_SURROGATE = re.compile("[\ud800-\udfff]")


def flaw(text: str) -> str | None:
    """Why a file or display name cannot be published, None if it can."""
    match = UNSAFE.search(text)
    if match is None:
        return None
    if _SURROGATE.search(text):
        return "is not UTF-8"
    return f"holds the control character {printable(match[0])}"


def fold(text: str) -> str:
    """The form in which names are compared: without case and with Unicode composition made equal."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def units(text: str) -> int:
    """Length in UTF-16 code units."""
    return len(text) if text.isascii() else len(text) + sum(character > "\uffff" for character in text)


def display_name(text: str) -> str:
    """The name an item is shown under: trimmed, composed (NFC), safe to show, at most 80 characters.

    A longer one is cut to 71 and gets ``-`` and eight hex digits of the SHA-256 of the whole, so it depends
    on nothing but itself. Empty if nothing is left.
    """
    name = unicodedata.normalize("NFC", printable(text)).strip()
    if units(name) <= MAX_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:_HASH_DIGITS]
    room = MAX_NAME - 1 - _HASH_DIGITS
    cut = name[:room]
    while units(cut) > room:
        cut = cut[:-1]
    return f"{cut}-{digest}"


def assign_names(wanted: Mapping[str, str], taken: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Decide who gets which name: keys with the name they get, and keys with the reason why they get none.

    ``wanted`` maps item keys to the names they ask for, ``taken`` the items that are published now, and stay,
    to the names they hold. Whoever holds a name keeps it; then those that are published and want another one,
    then new items choose, in each group the shallower, then lexically first key first. An item that does not
    get its new name keeps the old one reserved. Swapped names are fine: a library is published at once.
    vSphere refuses a whole library for one duplicate (KB 90707).
    """
    owner: dict[str, str] = {}
    holders: set[str] = set()
    for key in _by_depth(taken):
        if key not in wanted or fold(wanted[key]) == fold(taken[key]):
            owner.setdefault(fold(taken[key]), key)
            holders.add(key)
    movers = [key for key in _by_depth(wanted) if key in taken and key not in holders]
    fresh = [key for key in _by_depth(wanted) if key not in taken]
    for key in (*movers, *fresh):
        owner.setdefault(fold(wanted[key]), key)

    # Who lost goes back to the name it held, and whoever hoped for that one loses in turn.
    losers = [key for key in movers if owner[fold(wanted[key])] != key]
    while losers:
        key = losers.pop()
        holders.add(key)
        rival = owner.get(fold(taken[key]))
        if rival not in holders:
            owner[fold(taken[key])] = key
            if rival is not None and rival in taken:
                losers.append(rival)

    names: dict[str, str] = {}
    problems: dict[str, str] = {}
    for key, name in wanted.items():
        winner = owner[fold(name)]
        if winner == key:
            names[key] = name
        else:
            problems[key] = f'the name "{printable(name)}" is already that of {printable(winner)}'
    return names, problems


def _by_depth(keys: Mapping[str, str]) -> list[str]:
    return sorted(keys, key=lambda key: (key.count("/"), key))
