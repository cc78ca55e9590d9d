"""Which files a server's listing confirms, and that the list survives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from clr_client import unconfirmed
from clr_client.files import FileInfo

if TYPE_CHECKING:
    from pathlib import Path

FILE = FileInfo("web/disk.vmdk", 5, 1_700_000_000)


@pytest.mark.parametrize(
    ("peer", "listed", "here", "stays"),
    [
        ("a:22", FILE, FILE, False),
        ("b:22", FILE, FILE, True),
        ("a:22", FileInfo(FILE.path, 5, 1_700_000_001), FILE, True),
        ("a:22", FileInfo(FILE.path, 6, 1_700_000_000), FILE, True),
        ("a:22", FILE, FileInfo(FILE.path, 5, 1), True),
        ("a:22", None, FILE, True),
        ("b:22", FILE, None, False),
    ],
)
def test_only_the_server_that_a_file_came_from_confirms_it_and_only_if_it_is_the_same_there_and_here(
    peer: str, listed: FileInfo | None, here: FileInfo | None, stays: bool
) -> None:
    after = unconfirmed.remaining(
        {FILE.path: "a:22"}, peer, [listed] if listed else [], {here.path: here} if here else {}
    )
    assert after == ({FILE.path: "a:22"} if stays else {})


def test_the_list_survives_with_names_of_any_bytes(tmp_path: Path) -> None:
    place = tmp_path / "unconfirmed.json"
    assert unconfirmed.load(place) == {}
    entries = {"web/\udcff\nü.vmdk": "[2001:db8::1]:2222"}
    unconfirmed.save(place, entries)
    assert unconfirmed.load(place) == entries


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b'{"a": ', b"[" * 100_000])
def test_a_damaged_list_is_warned_about_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    place = tmp_path / "unconfirmed.json"
    place.write_bytes(content)
    assert unconfirmed.load(place) == {}
    assert "unconfirmed.json cannot be read" in caplog.text
