"""The small file with which an owner names and describes an item (``clr-item.toml``)."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass

from clr_client.content.names import MAX_NAME, flaw, units
from clr_client.errors import HeldError
from clr_client.text import printable

MAX_METADATA = 16 << 10
"""Largest metadata file read, in bytes."""
MAX_DOTS = 500
"""In one line: what tomllib does for a dotted key grows with the square of its parts."""
MAX_DESCRIPTION = 2000
"""What vSphere accepts as a description, in characters (UTF-16 units)."""

_LINE_BREAKS = re.compile(r"[\t\n]")


@dataclass(frozen=True, slots=True)
class Metadata:
    """What an owner says about an item; ``name`` is None where the default stays."""

    name: str | None = None
    description: str = ""

    def dump(self) -> str:
        """As text for the cache; ``restore`` reads it."""
        return json.dumps([self.name, self.description])


def restore(text: str) -> Metadata:
    """Read what ``Metadata.dump`` wrote."""
    return Metadata(*json.loads(text))


def parse(data: bytes) -> Metadata:
    """Read a metadata file. Raises HeldError that says what in it is wrong."""
    if len(data) > MAX_METADATA:
        raise HeldError(f"the metadata file is larger than {MAX_METADATA >> 10} KiB")
    if any(line.count(b".") > MAX_DOTS for line in data.splitlines()):
        raise HeldError(f"the metadata file has a line with more than {MAX_DOTS} dots")
    try:
        table = tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise HeldError("the metadata file is not UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        reason = printable(str(error))[:200]
        raise HeldError(f"the metadata file is not valid TOML: {reason}") from error
    for key, value in table.items():
        if key not in ("name", "description"):
            raise HeldError(f"the metadata file has the unknown key {printable(key)[:80]}")
        if not isinstance(value, str):
            raise HeldError(f"{key} in the metadata file is not a string")
    return Metadata(_name(table.get("name")), _description(table.get("description", "")))


def _name(text: str | None) -> str | None:
    if text is None:
        return None
    name = text.strip()
    if not name:
        raise HeldError("the name in the metadata file is empty")
    if units(name) > MAX_NAME:
        raise HeldError(f"the name in the metadata file is longer than {MAX_NAME} characters")
    if (reason := flaw(name)) is not None:
        raise HeldError(f"the name in the metadata file {reason}")
    return name


def _description(text: str) -> str:
    if units(text) > MAX_DESCRIPTION:
        raise HeldError(f"the description in the metadata file is longer than {MAX_DESCRIPTION} characters")
    if (reason := flaw(_LINE_BREAKS.sub(" ", text))) is not None:
        raise HeldError(f"the description in the metadata file {reason}")
    return text.strip()
