"""Reading rsync's listing: exact names, sizes and times, whatever the server wrote."""

from __future__ import annotations

import itertools
import os
import time
from datetime import UTC, datetime

import pytest
from clr_client.errors import TransportError
from clr_client.files import FileInfo
from clr_client.transport.listing import ListingParser, unescape
from hypothesis import given
from hypothesis import strategies as st

TOP = b"drwxr-xr-x        4096 2026/11/21 22:19:21 .\n"
MOMENT = 1795299561


def parse(*pieces: bytes) -> tuple[FileInfo, ...]:
    parser = ListingParser()
    for piece in pieces:
        parser.feed(piece)
    return parser.finish()


def entry(name: bytes, *, kind: bytes = b"-", size: bytes = b"5", moment: bytes = b"2026/11/21 22:19:21") -> bytes:
    return kind + b"rw-r--r-- " + size.rjust(11) + b" " + moment + b" " + name + b"\n"


def escape(name: bytes) -> bytes:
    """As rsync does in the C locale (log.c): bytes it does not print, and a backslash that looks like an escape."""
    out, at = b"", 0
    while at < len(name):
        byte, after = name[at], name[at + 1 : at + 5]
        looks = byte == 0x5C and len(after) == 4 and after[:1] == b"#" and after[1:].isdigit()
        out += b"\\#%03o" % byte if looks or not (0x20 <= byte < 0x7F or byte == 9) else bytes([byte])
        at += 1
    return out


def test_size_and_time_are_exact() -> None:
    assert datetime(2026, 11, 21, 22, 19, 21, tzinfo=UTC).timestamp() == MOMENT
    (file,) = parse(TOP, entry(b"a/disk.vmdk", size=b"123456789012345"))
    assert file == FileInfo("a/disk.vmdk", 123456789012345, MOMENT)


@given(st.integers(min_value=-10_000_000_000, max_value=250_000_000_000))
def test_every_second_of_the_calendar_is_read_as_it_was_printed(second: int) -> None:
    moment = time.gmtime(second)
    printed = f"{moment.tm_year:4d}/{moment.tm_mon:02d}/{moment.tm_mday:02d} "
    printed += f"{moment.tm_hour:02d}:{moment.tm_min:02d}:{moment.tm_sec:02d}"
    (file,) = parse(entry(b"x", moment=printed.encode()))
    assert file.mtime == second


names = st.binary(min_size=1, max_size=40).filter(lambda b: not {0, 0x2F} & set(b) and b not in (b".", b".."))


@given(names)
def test_every_name_that_a_file_system_can_hold_comes_back_as_it_is(name: bytes) -> None:
    (file,) = parse(entry(escape(name)))
    assert os.fsencode(file.path) == name


@pytest.mark.parametrize(
    ("printed", "meant"),
    [
        (rb"b/new\#012line", b"b/new\nline"),
        (rb"back\#134#012slash", rb"back\#012slash"),
        (rb"b\\s", rb"b\\s"),
        (rb"\#377\#376", b"\xff\xfe"),
        (b" lead", b" lead"),
        (b"tail ", b"tail "),
        (b"a -> b", b"a -> b"),
        (rb"\#12", rb"\#12"),
    ],
)
def test_escapes_as_rsync_prints_them(printed: bytes, meant: bytes) -> None:
    (file,) = parse(entry(printed))
    assert os.fsencode(file.path) == meant
    assert os.fsencode(unescape(printed)) == meant


@given(st.lists(st.integers(min_value=0, max_value=400)))
def test_it_does_not_matter_where_the_output_is_cut_into_pieces(cuts: list[int]) -> None:
    whole = TOP + entry(rb"b/new\#012line") + entry(b"b/ lead") + entry(b"c", kind=b"l") + entry(b"d")
    edges = sorted({0, len(whole), *(cut % len(whole) for cut in cuts)})
    pieces = [whole[start:end] for start, end in itertools.pairwise(edges)]
    assert parse(*pieces) == parse(whole)
    assert [file.path for file in parse(whole)] == ["b/ lead", "b/new\nline", "d"]


@pytest.mark.parametrize("kind", [b"d", b"l", b"c", b"b", b"p", b"s"])
def test_only_regular_files_are_kept(kind: bytes) -> None:
    assert parse(entry(b"a", kind=kind)) == ()


@pytest.mark.parametrize(
    "name", [b"../x", b"a/../../x", b"/etc/passwd", b"a//b", b"./a", b"..", b"", rb"a\#000b", rb"\#056\#056/x"]
)
def test_a_path_that_could_leave_the_library_is_refused_for_good(name: bytes) -> None:
    with pytest.raises(TransportError) as caught:
        parse(entry(name))
    assert not caught.value.retryable


@pytest.mark.parametrize(
    "lines",
    [
        entry(b"a") + entry(b"a"),
        entry(b"a", size=b"-1"),
        b"-rw-r--r-- what is this\n",
        entry(b"a", moment=b"2026-11-21 22:19:21"),
    ],
)
def test_a_listing_that_contradicts_itself_is_refused_for_good(lines: bytes) -> None:
    with pytest.raises(TransportError) as caught:
        parse(lines)
    assert not caught.value.retryable


def test_a_listing_without_end_is_refused_before_it_fills_the_memory() -> None:
    for limits in ({"max_files": 10}, {"max_bytes": 1000}):
        parser = ListingParser(**limits)
        with pytest.raises(TransportError) as caught:
            for number in range(1000):
                parser.feed(entry(b"file%d" % number))
        assert not caught.value.retryable


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_without_end_is_refused(end: bytes) -> None:
    parser = ListingParser(max_line=1000)
    with pytest.raises(TransportError):
        parser.feed(b"x" * 2000 + end)


def test_what_is_not_an_entry_is_kept_as_a_printable_note() -> None:
    parser = ListingParser()
    parser.feed(b"a word from \x1b[31mthe server\n" + entry(b"a"))
    assert [file.path for file in parser.finish()] == ["a"]
    assert parser.notes == ["a word from \\x1b[31mthe server"]


def test_a_line_that_was_cut_off_is_not_taken_for_a_file() -> None:
    assert parse(entry(b"a"), entry(b"disk.vmdk")[:-5]) == parse(entry(b"a"))
