"""Input that nobody meant to write: damaged bytes, and JSON with impossible values at any place."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ODD_JSON = (
    "null",
    "true",
    "-1",
    "0",
    "1.5",
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "-Infinity",
    str(2**63),
    "9" * 30,
    "9" * 5000,
    '""',
    '"."',
    '".."',
    '"../../etc/passwd"',
    '"/etc/passwd"',
    '"a\\u0000b"',
    '"\\ud800"',
    '"\\udcff"',
    '"\\u001b[31m\\n\\r"',
    '"\u202e"',
    '"\u0661"',
    '"2026-13-45T99:99Z"',
    '"urn:uuid:00000000-0000-0000-0000-000000000000"',
    '"' + "x" * 20_000 + '"',
    '"' + "9" * 5000 + '"',
    "[]",
    "{}",
    "[[]]",
    '{"a": 1, "a": 2}',
    *("[" * depth + "]" * depth for depth in (100, 800, 900, 950, 970, 980, 990, 1000, 1100, 10_000)),
    *('{"a":' * depth + "1" + "}" * depth for depth in (900, 980, 3000)),
    "[" * 10_000,
)
"""JSON texts, and some that are none, for the place of any value."""


@st.composite
def damaged(draw: st.DrawFn, originals: Sequence[bytes], tokens: Sequence[bytes] = ()) -> bytes:
    """One of ``originals`` with a few pieces lost, doubled, overwritten, or replaced by ``tokens`` or random bytes."""
    data = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from((0, 1, 2, 8, 64, 1 << 20))))
        put = draw(
            st.one_of(
                st.just(b""),
                st.just(data[start:end] * 2),
                st.binary(max_size=16),
                st.sampled_from((b"\0", b"\xff", b"\r\n", b"9" * 5000, *tokens)),
            )
        )
        data = data[:start] + put + data[end:]
    return data


@st.composite
def odd_json(draw: st.DrawFn, document: object) -> bytes:
    """``document`` as JSON, with one or two of its values, or members, replaced by one of ``ODD_JSON``."""
    places = list(_places(document))
    text = document
    chosen = draw(st.lists(st.sampled_from(places), min_size=1, max_size=2, unique=True))
    for number, place in enumerate(chosen):
        text = _replaced(text, place, f"@{number}@")
    raw = json.dumps(text)
    for number in range(len(chosen)):
        raw = raw.replace(f'"@{number}@"', draw(st.sampled_from(ODD_JSON)))
    return raw.encode("utf-8", "surrogatepass")


def _places(value: object, here: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield here
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, member in members:
        yield from _places(member, (*here, name))


def _replaced(value: Any, place: tuple[str | int, ...], new: str) -> Any:
    if not place or not isinstance(value, (dict, list)):
        return new
    changed: Any = value.copy()
    changed[place[0]] = _replaced(changed[place[0]], place[1:], new)
    return changed
