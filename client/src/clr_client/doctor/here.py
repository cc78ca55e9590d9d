"""What can be wrong on this side before anything is asked of others: settings, programs, folders, the key."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import stat
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from clr_client import transport
from clr_client.doctor.finding import Finding, Findings, Result, failed, ok, problem, warning
from clr_client.errors import Trouble
from clr_client.transport.runner import capture
from clr_client.web import caddy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clr_client.doctor.case import Case

NO_PEER = Trouble(
    "SYNC_PEER is not set, so there is no server to sync from", "Set it to the server's name or address: SYNC_PEER=…"
)

NO_PROGRAM = Trouble("{program} is not installed", "Install it, or use the image, which has it")
HANDS_OVER = "CLR_HANDS_OVER"
"""Set by the image's entrypoint when it began as root, and so will give the folders to the account in `clr run`."""

MISSING = Trouble(
    "{folder} ({what}) is missing and cannot be made by uid {uid}",
    "Mount a folder of the host there, and give it to uid {uid}: chown {uid} …",
)
NO_FOLDER = Trouble("{folder} ({what}) is not a folder", "Mount a folder there")
NOT_WRITABLE = Trouble(
    "{folder} ({what}) cannot be written to by uid {uid}; it belongs to uid {owner} and has mode {mode}",
    "On the host: chown -R {uid} …; or let the client run as its owner: SYNCER_UID={owner}",
)
NOT_READABLE = Trouble(
    "{folder} ({what}) cannot be read by uid {uid}; it belongs to uid {owner} and has mode {mode}",
    "On the host: chown -R {uid} …, or chmod u+rwx; or let the client run as its owner: SYNCER_UID={owner}",
)
READ_ONLY = Trouble("{folder} ({what}) is mounted read-only", "Mount it without :ro, or repair its disk")
NOT_KEPT = Trouble(
    "{folder} ({what}) lies inside of the container and is lost with it",
    "Mount a folder of the host there, as docker-compose.client.yaml does",
)

NO_KEY = Trouble(
    "{file} is missing, so no server lets this site in",
    "Make a pair with ssh-keygen -t ed25519 -N '' -f id_syncer; put id_syncer into this site's key folder"
    " (client/data/ssh on the host) and id_syncer.pub into the server's",
)
KEY_UNREADABLE = Trouble(
    "{file} cannot be read by uid {uid}; it belongs to uid {owner} and has mode {mode}",
    "On the host: chown {uid} … and chmod 600 …",
)
KEY_OPEN = Trouble("{file} can be read by others (mode {mode}), and ssh does not use such a key", "chmod 600 {file}")
KEY_ENCRYPTED = Trouble(
    "{file} is locked with a passphrase, and nobody is there to type it",
    "Remove it with ssh-keygen -p -N '' -f id_syncer, or make a key without one",
)
KEY_PUBLIC = Trouble(
    "{file} is the public half of a key", "Put the private one there; the public one (.pub) belongs to the server"
)
NO_SSH_KEY = Trouble(
    "{file} is not a private key that ssh can use: {reason}",
    "Copy it again as it is, or make a new pair with ssh-keygen -t ed25519 -N '' -f id_syncer",
)
KEY_NOT_TAKEN = Trouble(
    "{file} is {kind} with {bits} bits, and the server takes ed25519, or RSA from 2048 bits on, alone",
    "Make a new pair with ssh-keygen -t ed25519 -N '' -f id_syncer, and give the server its .pub",
)
LEAST_RSA_BITS = 2048


def settings(case: Case) -> Iterator[Finding]:
    """Every variable: all that is wrong, not only the first."""
    yield from (failed(error) for error in case.survey.errors)
    yield from (Finding(Result.WARNING, text) for text in case.survey.warnings)
    if "sync_peer" not in case.survey.broken and not case.settings.sync_peer:
        yield problem(NO_PEER)
    elif not case.survey.errors and not case.survey.warnings:
        yield ok(f"all can be used; the server is {', '.join(map(str, case.settings.peers))}")


def programs(_case: Case) -> Iterator[Finding]:
    """rsync, ssh and Caddy."""
    versions = {**transport.versions(), **caddy.versions()}
    missing = [name for name, version in versions.items() if version == "missing"]
    missing += [name for name in ("ssh-keygen", "ssh-keyscan") if shutil.which(name) is None]
    yield from (problem(NO_PROGRAM, program=name) for name in missing)
    if "rsync" not in missing and (text := transport.rsync_warning(versions["rsync"])):
        yield Finding(Result.WARNING, text)
    elif not missing:
        yield ok(", ".join(f"{name} {version}" for name, version in versions.items()))


def folders(case: Case) -> Iterator[Finding]:
    """Whether each folder is there, and can be used by the account that the client runs as."""
    settings = case.settings
    written = {
        "library": settings.clr_library_dir,
        "Caddy's data": settings.clr_data_dir,
        "the running process": settings.clr_run_dir,
    }
    found = [finding for what, folder in written.items() for finding in _written(case, folder, what)]
    found += _read_only(settings.clr_keys_dir, "keys")
    if settings.tls_custom_cert:
        found += _read_only(settings.clr_certs_dir, "certificate")
    yield from found
    if not found:
        yield ok(f"library, keys and data can be used by uid {os.geteuid()}")


def _written(case: Case, folder: Path, what: str) -> Iterator[Finding]:
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    known = {"folder": folder, "what": what, "uid": os.geteuid()}
    if not there.is_dir():
        yield problem(NO_FOLDER, **known)
        return
    hindrance = _hindrance(there)
    if not hindrance and there == folder and what == "library":
        hindrance = next(filter(None, (_hindrance(part) for part in _parts(case) if part.is_dir())), 0)
    if hindrance == errno.EROFS:
        yield problem(READ_ONLY, **known)
    elif hindrance and there != folder:
        yield problem(MISSING, **known)
    elif hindrance and case.environ.get(HANDS_OVER) and not case.is_running and what != "the running process":
        owner = folder.stat().st_uid
        yield ok(
            f"{folder} ({what}) belongs to uid {owner}; `clr run` hands it over to uid {os.geteuid()} when it starts"
        )
    elif hindrance:
        yield problem(NOT_WRITABLE, **known, **_owner(folder))
    elif case.in_container and what != "the running process" and not _is_mounted(folder):
        yield warning(NOT_KEPT, **known)


def _parts(case: Case) -> tuple[Path, ...]:
    return case.store.mirror, case.store.items, case.store.generations


def _hindrance(folder: Path) -> int:
    """Why nothing can be written into a folder, as an errno; 0 when it can. The file it is tried with has no name."""
    try:
        with TemporaryFile(dir=folder, prefix=".new-"):
            return 0
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return error.errno
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return 0  # whether there is room is asked later
        raise


def _read_only(folder: Path, what: str) -> Iterator[Finding]:
    if not folder.exists():
        return  # what is missing in it is said where it is looked for
    if not folder.is_dir():
        yield problem(NO_FOLDER, folder=folder, what=what)
    elif not os.access(folder, os.R_OK | os.X_OK, effective_ids=True):
        yield problem(NOT_READABLE, folder=folder, what=what, uid=os.geteuid(), **_owner(folder))


def _owner(path: Path) -> dict[str, object]:
    status = path.stat()
    return {"owner": status.st_uid, "mode": f"{stat.S_IMODE(status.st_mode):o}"}


def _is_mounted(folder: Path) -> bool:
    return any(os.path.ismount(place) for place in (folder, *folder.parents) if place != Path("/"))


async def key(case: Case) -> Findings:
    """Whether ssh can use the key, and which it is."""
    file = case.settings.clr_keys_dir / "id_syncer"
    if trouble := await asyncio.to_thread(_unusable, file):
        return [trouble]
    code, public, errors = await capture(["ssh-keygen", "-y", "-P", "", "-f", str(file)])
    if code and "incorrect passphrase" in errors:
        return [problem(KEY_ENCRYPTED, file=file)]
    if code:
        reason = errors.splitlines()[-1] if errors else "ssh-keygen does not say why"
        return [problem(NO_SSH_KEY, file=file, reason=reason)]
    return [await _judged(file, public, case.scratch / "id.pub")]


def _unusable(file: Path) -> Finding | None:
    """Why ssh would not even try a key; None when it would."""
    if not os.path.lexists(file):
        return problem(NO_KEY, file=file)
    try:
        beginning = file.read_bytes()[:64]
    except PermissionError:
        return problem(KEY_UNREADABLE, file=file, uid=os.geteuid(), **_owner(file))
    status = file.stat()
    if status.st_uid == os.getuid() and status.st_mode & 0o077:  # ssh looks at its user's own files only
        return problem(KEY_OPEN, file=file, mode=f"{stat.S_IMODE(status.st_mode):o}")
    if beginning.startswith((b"ssh-", b"ecdsa-", b"sk-")):
        return problem(KEY_PUBLIC, file=file)
    return None


async def _judged(file: Path, public: str, copy: Path) -> Finding:
    """Say which key it is, and whether our server takes its kind."""
    await asyncio.to_thread(copy.write_text, public)
    _, output, _ = await capture(["ssh-keygen", "-l", "-f", str(copy)])
    match = re.fullmatch(r"(\d+) (SHA256:\S+) .*\((\S+)\)", output.strip())
    if match is None:
        return problem(NO_SSH_KEY, file=file, reason=output.strip())
    bits, fingerprint, kind = int(match[1]), match[2], match[3]
    if kind != "ED25519" and (kind != "RSA" or bits < LEAST_RSA_BITS):
        return warning(KEY_NOT_TAKEN, file=file, kind=kind, bits=bits)
    return ok(f"{file} is {kind}, {fingerprint}; the server's log must name this fingerprint as accepted")
