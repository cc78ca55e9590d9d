"""Questions to a server that cost next to nothing: who answers, what the key may do, what can be read there."""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from clr_client.transport.listing import check_path
from clr_client.transport.rsync import INCOMPLETE, REMOTE_SHELL_FAILED, about_argv, sound_argv
from clr_client.transport.runner import Ended, capture, run
from clr_client.transport.ssh import ssh_argv
from clr_client.transport.transfer import explained

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clr_client.files import FileInfo
    from clr_client.transport.ssh import Link

MARK = "clr-asks-for-a-shell"
MOST_WRITTEN = 256 << 20
_PROTOCOL = re.compile(r"remote=(\d+)")
_SENDER = re.compile(r"rsync: \[sender\] (send_files failed to open .*)")


@dataclass(frozen=True, slots=True)
class Login:
    """What a server let a key do: ``has_shell`` when it ran a command for it; ``said`` is its answer, printable."""

    has_shell: bool
    said: str


async def log_in(link: Link) -> Login:
    """Log in, and ask for a command that only a shell would run.

    :raises TransportError: nobody was let in.
    """
    code, output, errors = await capture([*ssh_argv(link), "--", link.peer.host, f"echo {MARK}"])
    if code == REMOTE_SHELL_FAILED:
        raise await explained(Ended(code, tuple(errors.splitlines())), link)
    return Login(MARK in output, " | ".join([*errors.splitlines(), *output.splitlines()][-3:]))


async def rsync_protocol(link: Link) -> int:
    """The newest protocol that the server's rsync speaks, 0 if it does not say: 31 up to 3.3, 32 from 3.4 on.

    :raises TransportError: no rsync answers.
    """
    code, output, errors = await capture(about_argv(link))
    if code not in (0, *INCOMPLETE):
        raise await explained(Ended(code, tuple(errors.splitlines())), link)
    found = _PROTOCOL.search(output)
    return int(found[1]) if found else 0


async def unreadable(link: Link, files: Iterable[FileInfo]) -> tuple[str, ...]:
    """What the server says of those of ``files`` that it lists but cannot open; printable lines.

    A listing does not tell, so each file is asked for from its last byte on: the server opens it and sends that byte.

    :raises TransportError: the transfer broke.
    """
    with TemporaryDirectory(prefix="clr-") as scratch:
        asked = list(files)
        await asyncio.to_thread(_lay_out, Path(scratch), asked)
        ended = await run(
            sound_argv(link, Path(scratch)),
            stdin=b"".join(os.fsencode(file.path) + b"\0" for file in asked),
            on_output=lambda data: None,  # noqa: ARG005
            idle=link.idle_timeout,
            most_written=MOST_WRITTEN,
            limits_files=False,
        )
    if ended.code not in (0, *INCOMPLETE):
        raise await explained(ended, link)
    return tuple(found[1] for line in ended.stderr if (found := _SENDER.match(line)))


def _lay_out(folder: Path, files: Iterable[FileInfo]) -> None:
    """Make files that lack their last byte, and take no space."""
    for file in files:
        check_path(file.path)
        place = folder / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.size:
            with place.open("wb") as handle:
                handle.truncate(file.size - 1)
