"""Text for people: names that came from elsewhere made harmless, and numbers made readable."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    r"""Return ``text`` with everything that is not plainly printable escaped (``\x1b``, ``\u202e``, ``\udcff``).

    Names come from other machines; raw control characters in a log line are CWE-117.
    """
    return "".join(char if _is_plain(char) else char.encode("unicode_escape").decode("ascii") for char in text)


def _is_plain(char: str) -> bool:
    return char == " " or not unicodedata.category(char).startswith(("C", "Z"))


def size(count: float) -> str:
    """Return a number of bytes as people write it: 1.5 GB (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def span(seconds: float) -> str:
    """Return a length of time as people write it: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
