"""What rsync and ssh print was written by a server, in part: a typed error or a usable answer, in printable words."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from pathlib import Path

import pytest
from clr_client.errors import TransportError
from clr_client.text import UNSAFE
from clr_client.transport.failure import failure, source_failure
from clr_client.transport.listing import MAX_SIZE, ListingParser
from clr_client.transport.progress import Progress, ProgressParser
from clr_client.transport.runner import Ended, printable
from clr_client.transport.ssh import Link
from clr_client.values import Peer
from hypothesis import given
from hypothesis import strategies as st
from support.fuzz import damaged

LISTING = (
    b"drwxr-xr-x          4,096 2026/11/21 22:19:21 .\n"
    b"-rw-r--r--          1,234 2026/11/21 22:19:21 vm/a b.vmdk\n"
    b"-rw-r--r--              5 2026/11/21 22:19:21 vm/\\#012x\n"
    b"lrwxrwxrwx              5 2026/11/21 22:19:21 link -> x\n"
)
PROGRESS = (
    b">f+++++++++ vm/disk\n      1,234,567  45%    1.23MB/s    0:00:01\r"
    b"Literal data: 1,234 bytes\nTotal bytes received: 5\n"
)
SPAN = timedelta(seconds=5)
LINK = Link(Peer("fake.invalid", 22), "syncer", Path("/k"), Path("/known_hosts"), True, SPAN, SPAN)
ODD = (
    b"9" * 5000,
    b"9" * 25,
    b"-",
    b",",
    b"\n",
    b"\r",
    b"../",
    b"\\#000",
    b"\\#056\\#056/",
    b"0000000/99/99",
    b"\x1b[2J",
)


@given(st.lists(damaged([LISTING], ODD) | st.binary(max_size=100), max_size=3))
def test_any_listing_is_read_or_refused(pieces: list[bytes]) -> None:
    parser = ListingParser()
    try:
        for piece in pieces:
            parser.feed(piece)
        files = parser.finish()
    except TransportError as error:
        assert not error.retryable
        assert not UNSAFE.search(str(error))
        return
    assert not any(UNSAFE.search(note) for note in parser.notes)
    for file in files:
        assert 0 <= file.size <= MAX_SIZE
        assert not {"", ".", ".."} & set(file.path.split("/"))
        assert "\0" not in file.path
    paths = {file.path for file in files}
    assert not any(folder in paths for file in files for folder in _above(file.path))


def _above(path: str) -> list[str]:
    segments = path.split("/")
    return ["/".join(segments[:depth]) for depth in range(1, len(segments))]


@pytest.mark.parametrize(
    "names", [(b"vm", b"vm/disk"), (b"vm/disk/x", b"vm"), (b"a/b", b"a/b-c", b"a/b/c"), (b"a", b"a!", b"a/b")]
)
def test_a_path_cannot_be_a_file_and_a_folder(names: tuple[bytes, ...]) -> None:
    parser = ListingParser()
    for name in names:
        parser.feed(b"-rw-r--r--              5 2026/11/21 22:19:21 " + name + b"\n")
    with pytest.raises(TransportError, match="as a file and as a folder"):
        parser.finish()


@pytest.mark.parametrize("size", [b"9" * 5000, b"9" * 25, b"9223372036854775808"])
def test_a_size_beyond_all_bounds_is_refused(size: bytes) -> None:
    parser = ListingParser()
    with pytest.raises(TransportError):
        parser.feed(b"-rw-r--r-- " + size + b" 2026/11/21 22:19:21 x\n")


@given(st.lists(damaged([PROGRESS], ODD) | st.binary(max_size=100), max_size=3))
def test_any_progress_is_read_or_left_out(pieces: list[bytes]) -> None:
    parser = ProgressParser()
    for piece in pieces:
        for event in parser.feed(piece):
            if isinstance(event, Progress):
                assert 0 <= event.done_bytes < 10**30
                assert 0 <= event.rate < 10**40
    assert all(0 <= number < 10**30 for number in parser.numbers.values())


WORDS = (
    b"@@@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @@@",
    b"SHA256:" + b"A" * 43,
    b"Host key verification failed.",
    b"root@x: Permission denied (publickey).",
    b"rrsync error: no",
    b"No space left on device (28)",
    b'rsync: [receiver] write failed on "x": File too large (27)',
    b"ERROR: rejecting unrequested file-list name: x",
)


@given(
    st.integers(-64, 255),
    st.lists(damaged(WORDS, (b"\x1b[31m", "\u202e".encode(), b"\x9b")) | st.binary(max_size=2000), max_size=10),
)
def test_any_last_words_become_a_printable_error(code: int, lines: list[bytes]) -> None:
    ended = Ended(code, tuple(printable(line) for line in lines))
    for error in (failure(ended, LINK, ["SHA256:x (ssh-ed25519)"], "SHA256:y"), source_failure(ended, LINK)):
        assert not UNSAFE.search(str(error))
        assert len(str(error)) < 20_000
    with contextlib.suppress(TransportError):
        raise failure(ended, LINK, [], "")
