"""rsync's argument vectors and what its exit status means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clr_client.blocks import WHOLE
from clr_client.transport.progress import OUT_FORMAT
from clr_client.transport.ssh import remote_shell, source

if TYPE_CHECKING:
    from datetime import timedelta
    from pathlib import Path

    from clr_client.transport.ssh import Link

PARTIAL_DIR = ".clr-partial"
SOME_UNREADABLE = 23
SOME_VANISHED = 24
INCOMPLETE = (SOME_UNREADABLE, SOME_VANISHED)
STREAM_BROKE = 12
REMOTE_SHELL_FAILED = 255

# rsync(1), EXIT VALUES. The ones that a minute's wait may mend are in RETRYABLE.
EXIT_TEXTS = {
    1: "syntax or usage error",
    2: "the two rsyncs do not understand each other",
    3: "files or folders could not be selected",
    4: "something asked for is not supported by one of the two rsyncs",
    5: "the server did not start its side",
    10: "error in socket I/O",
    11: "error in file I/O",
    12: "the connection broke or carried something that is not rsync",
    13: "error in program diagnostics",
    14: "error between rsync's own processes",
    19: "ended by a signal",
    20: "ended by a signal",
    21: "error in waiting for a process",
    22: "out of memory",
    23: "some files could not be transferred",
    24: "some files vanished at the server",
    25: "stopped by a limit on deletions",
    30: "nothing was heard for too long",
    35: "the server did not answer in time",
    124: "the remote shell failed",
    125: "the remote shell was killed",
    126: "the remote shell could not be run",
    127: "the remote shell was not found",
    255: "ssh failed",
}
RETRYABLE = frozenset({5, 10, 11, 12, 14, 19, 20, 21, 30, 35, 124, 125, 255})


def list_argv(link: Link) -> list[str]:
    """rsync that lists the library. Dotfiles and lost+found are left out at the server, with all that is
    below them; links and devices are listed and dropped by the parser: rsync has no option that drops devices
    from a listing.
    """
    return [
        "rsync",
        "--list-only",
        "--recursive",
        "--times",
        "--no-links",
        "--no-human-readable",
        "--exclude=.*",
        "--exclude=lost+found/",
        *_common(link),
        source(link.peer),
    ]


def fetch_argv(link: Link, mirror: Path, basis: Path | None, block: int, rate: int = 0) -> list[str]:
    """rsync that brings the files named on its stdin, each ended by NUL, into ``mirror``.

    Every file is looked at (``--ignore-times``): the plan knows what is to come, and a seeded file of the
    same size and time must not pass for the new one. No ``--inplace``, ``--delete``, permissions, owners,
    links or devices: what is published shares inodes with ``mirror``, and the server decides about nothing
    but content.

    :param block: length of the blocks in which files are compared, in bytes, or ``WHOLE``.
    :param rate: bytes per second that the sender may send at most, 0 for no limit.
    """
    argv = [
        "rsync",
        "--files-from=-",
        "--from0",
        "--ignore-times",
        "--times",
        "--omit-dir-times",
        "--no-perms",
        "--no-owner",
        "--no-group",
        "--no-links",
        "--no-devices",
        "--no-specials",
        "--chmod=D755,F644",
        f"--partial-dir={PARTIAL_DIR}",
        "--fsync",
        "--compress",  # zstd where both sides have it: without a choice the two agree on the best they share
        "--compress-level=1",
        "--whole-file" if block == WHOLE else f"--block-size={block}",
        f"--bwlimit={rate}b",
        "--max-alloc=1g",
        "--no-human-readable",
        "--info=progress2,name1,stats2",
        f"--out-format={OUT_FORMAT}",
        "--outbuf=L",
    ]
    if basis is not None:
        argv.append(f"--link-dest={basis.absolute()}")
    return [*argv, *_common(link), source(link.peer), f"{mirror.absolute()}/"]


def about_argv(link: Link) -> list[str]:
    """rsync that lists the library's top level and tells what the two sides agreed on."""
    return ["rsync", "--list-only", "--dirs", "--exclude=*", "--debug=proto", *_common(link), source(link.peer)]


def sound_argv(link: Link, folder: Path) -> list[str]:
    """rsync that brings the ends of the files named on its stdin, each ended by NUL, of which ``folder`` has the rest.

    With ``--append`` the sender opens each file, leaps over what is here and reads no more than what is missing.
    """
    return [
        "rsync",
        "--files-from=-",
        "--from0",
        "--append",
        "--ignore-times",
        "--no-links",
        "--no-devices",
        "--no-specials",
        "--max-alloc=1g",
        *_common(link),
        source(link.peer),
        f"{folder.absolute()}/",
    ]


def _common(link: Link) -> list[str]:
    seconds = _seconds(link.idle_timeout)
    timeout = [f"--timeout={seconds}"] if seconds else []
    return [*timeout, "-e", remote_shell(link)]


def _seconds(duration: timedelta) -> int:
    """Whole seconds, rounded up: rsync takes 0 for no limit."""
    return -int(-duration.total_seconds() // 1)
