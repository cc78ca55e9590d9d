"""Turns the end of a failed rsync into an error that says what happened and what to do."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING

from clr_client.disk import remedy
from clr_client.errors import HostKeyError, TransportError, Trouble
from clr_client.transport.rsync import EXIT_TEXTS, REMOTE_SHELL_FAILED, RETRYABLE, STREAM_BROKE
from clr_client.transport.runner import LOOK_AT_SERVER, TOO_MUCH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clr_client.transport.runner import Ended
    from clr_client.transport.ssh import Link

HOST_KEY_CHANGED = Trouble(
    "the host key of {peer} has changed: remembered {remembered}; shown {shown}",
    "If the server was set up anew, compare with the fingerprints in its log and pin the new key, or remove the"
    " server's lines from {known_hosts}; otherwise somebody is in between",
)
HOST_KEY_UNKNOWN = Trouble(
    "the host key of {peer} is not known: remembered {remembered}", "Pin the key that the server's log shows"
)
KEY_REFUSED = Trouble(
    "the server {peer} does not accept the key {identity} ({fingerprint}){said}",
    "Put its public key (the .pub file) into the server's key folder, and look in the server's log for the line about"
    " it; or give this side the right private key, without a passphrase. If the log says nothing: is this the right"
    " server and port?",
)
REFUSED_BY_RRSYNC = Trouble(
    "the server {peer} refuses: {said}",
    "Look at the server's log: is its library mounted there, and readable for its account?",
)
NO_CONNECTION = Trouble("no connection to {peer}{said}")
LIBRARY_UNREADABLE = Trouble(
    "the server {peer} cannot read its library (rsync code {code}){said}",
    "Check at the server that the folder is mounted and readable by its account (SYNCER_UID)",
)
FAILED = Trouble("rsync from {peer} ended with code {code} ({meaning}){said}")

SHOWN_LINES = 5
DENIED = re.compile(r"Permission denied \([a-z]")  # ssh's, with the methods tried; rsync's own has a number there
_CHANGED = re.compile(r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key for .* has changed")
_UNKNOWN = re.compile(r"No \S+ host key is known for|Host key verification failed")
_SHOWN_KEY = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_REFUSED_BY_RRSYNC = re.compile(r"rrsync error:")
_NO_LINE = re.compile(r"^(ssh: )?connect to host |^ssh: Could not resolve", re.MULTILINE)
_NO_SSH = re.compile(r"Failed to exec ssh")
_TOO_LARGE = re.compile(rf"write failed on .*\({errno.EFBIG}\)")
# What rsync says when it refuses what a server sends (flist.c, io.c).
_HOSTILE = re.compile(
    r"ABORTING due to (unsafe pathname|invalid path)|ERROR: rejecting \w+ file-list name|invalid file mode"
    r"|file-length is negative|overflow: xflags"
)
# rsync names the side in whose process something failed; here that is the receiver or the generator.
_DISK_ERRORS = "|".join(str(number) for number in (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EDQUOT))
_OUR_DISK = re.compile(rf"rsync: (?!\[sender).*\((?P<number>{_DISK_ERRORS})\)\s*")


def failure(ended: Ended, link: Link, remembered: Sequence[str], own_key: str) -> TransportError:
    """The error for an rsync that ended with a status other than 0, 23 or 24.

    :param remembered: fingerprints that known_hosts holds of the server.
    :param own_key: fingerprint of the key this side shows.
    """
    text = "\n".join(ended.stderr)
    peer = str(link.peer)
    # On a busy machine rsync may see the closed pipe before ssh's exit status
    if ended.code in (REMOTE_SHELL_FAILED, STREAM_BROKE) and (
        error := _ssh_failure(text, peer, link, remembered, own_key)
    ):
        return error
    if ended.code == REMOTE_SHELL_FAILED and all(line.startswith("rsync") for line in ended.stderr):
        return TransportError(
            f"the connection to {peer} broke and ssh does not say why; it does not when bytes are spoilt"
        )
    if (ended.code == REMOTE_SHELL_FAILED and text.strip()) or (ended.code == STREAM_BROKE and _NO_LINE.search(text)):
        return TransportError(*NO_CONNECTION.told(peer=peer, said=_with(text.splitlines())))
    if _REFUSED_BY_RRSYNC.search(text):
        return TransportError(*REFUSED_BY_RRSYNC.told(peer=peer, said=_last(ended.stderr)), retryable=False)
    if _NO_SSH.search(text):
        return TransportError("ssh is not installed", "Install it", retryable=False)
    if error := disk_failure(ended.stderr):
        return error
    if _TOO_LARGE.search(text):
        return TransportError(f"{TOO_MUCH}{_with(ended.stderr)}", LOOK_AT_SERVER)
    if _HOSTILE.search(text):
        return TransportError(
            f"the server {peer} sends what no honest server would{_with(ended.stderr)}", LOOK_AT_SERVER, retryable=False
        )
    if ended.code < 0:
        return TransportError(f"rsync was killed by signal {-ended.code}{_with(ended.stderr)}")
    meaning = EXIT_TEXTS.get(ended.code, "unknown error")
    told = FAILED.told(peer=peer, code=ended.code, meaning=meaning, said=_with(ended.stderr))
    return TransportError(*told, retryable=ended.code in RETRYABLE)


def disk_failure(lines: Sequence[str]) -> TransportError | None:
    """The error for an rsync that could not write to the library volume, or read from it; None if it could.

    Where files cannot even be begun, rsync goes on with the next and ends with status 23, as for an unreadable
    file at the server.
    """
    for line in lines:
        if found := _OUR_DISK.fullmatch(line):
            return TransportError(
                f"the library volume cannot be used: {line.removeprefix('rsync: ')}",
                remedy(int(found["number"])),
                retryable=False,
            )
    return None


def source_failure(ended: Ended, link: Link) -> TransportError:
    """The error for a library that could not be read (status 23 or 24, and not a single file)."""
    told = LIBRARY_UNREADABLE.told(peer=link.peer, code=ended.code, said=_with(ended.stderr))
    return TransportError(*told, retryable=False)


def _ssh_failure(text: str, peer: str, link: Link, remembered: Sequence[str], own_key: str) -> TransportError | None:
    known = ", ".join(remembered) or "none"
    if _CHANGED.search(text):
        shown = found[0] if (found := _SHOWN_KEY.search(text)) else "unknown"
        return HostKeyError(
            *HOST_KEY_CHANGED.told(peer=peer, remembered=known, shown=shown, known_hosts=link.known_hosts)
        )
    if _UNKNOWN.search(text):
        return HostKeyError(*HOST_KEY_UNKNOWN.told(peer=peer, remembered=known))
    if DENIED.search(text):
        said = _with([line for line in text.splitlines() if line.strip()])
        told = KEY_REFUSED.told(peer=peer, identity=link.identity, fingerprint=own_key, said=said)
        return TransportError(*told, retryable=False)
    return None


def _useful(lines: Sequence[str]) -> list[str]:
    """What tells the reason: rsync's closing line repeats its exit status, a row of @ is decoration."""
    useful = [line for line in lines if not re.match(r"rsync error: |@+$|rsync: connection unexpectedly closed", line)]
    return (useful or list(lines))[-SHOWN_LINES:]


def _with(lines: Sequence[str]) -> str:
    return ": " + " | ".join(_useful(lines)) if lines else ""


def _last(lines: Sequence[str]) -> str:
    return " | ".join(_useful(lines))
