"""Reading what rsync prints while it brings files."""

from __future__ import annotations

import pytest
from clr_client.transport import Progress
from clr_client.transport.progress import ProgressParser, Started

OUTPUT = (
    b"cd+++++++++ a/\n>f+++++++++ a/disk.vmdk\n\r              0   0%    0.00kB/s    0:00:00  "
    b"\r        3000000  99%   26.50MB/s    0:00:00 (xfr#1, to-chk=9/11)\n>f..t...... b/new\\#012line\n"
    b"\r        3000002  99%  204.25kB/s    0:00:00 (xfr#2, to-chk=7/11)\n\n"
    b"Number of files: 11 (reg: 7, dir: 2, link: 1, special: 1)\nTotal file size: 3000017 bytes\n"
    b"Literal data: 3000006 bytes\nMatched data: 12 bytes\nFile list size: 233\n"
    b"Total bytes sent: 266\nTotal bytes received: 3001250\n\nsent 266 bytes  received 3001250 bytes  2 bytes/sec\n"
)
EVENTS = [
    Started("a/disk.vmdk"),
    Progress(0, 0.0, "a/disk.vmdk"),
    Progress(3000000, 26.5 * 1024**2, "a/disk.vmdk"),
    Started("b/new\nline"),
    Progress(3000002, 204.25 * 1024, "b/new\nline"),
]


def test_progress_names_and_sums_are_read() -> None:
    parser = ProgressParser()
    assert parser.feed(OUTPUT) == EVENTS
    assert parser.numbers == {
        "Literal data": 3000006,
        "Matched data": 12,
        "Total bytes sent": 266,
        "Total bytes received": 3001250,
    }


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_it_does_not_matter_how_the_output_comes(size: int) -> None:
    parser = ProgressParser()
    events = []
    for at in range(0, len(OUTPUT), size):
        events += parser.feed(OUTPUT[at : at + size])
    assert events == EVENTS


def test_a_name_cannot_pass_for_a_sum() -> None:
    parser = ProgressParser()
    parser.feed(b">f+++++++++ Literal data: 7 bytes\n")
    assert parser.numbers == {}


def test_junk_without_a_line_end_is_not_piled_up() -> None:
    parser = ProgressParser()
    for _ in range(100):
        assert parser.feed(b"x" * 65536) == []
    assert len(parser._rest) <= 65536
