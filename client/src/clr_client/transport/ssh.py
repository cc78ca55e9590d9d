"""One ssh destination: the argument vector for ``rsync -e`` and what is known of the server's host keys."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clr_client.disk import replace_file
from clr_client.errors import HostKeyError, TransportError, Trouble
from clr_client.transport.runner import capture

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import timedelta
    from pathlib import Path

    from clr_client.values import Peer

DEFAULT_PORT = 22
SCANNED_TYPES = "ed25519,ecdsa,rsa"

NOT_PINNED = Trouble(
    "the host key of {peer} is not the pinned one: pinned {pinned}; shown {shown}",
    "Compare with the fingerprints in the server's log; if it was set up anew, pin its new key (SYNC_HOST_KEY)",
)
NO_HOST_KEY = Trouble("the host key of {peer} cannot be read: {reason}", "Is this the server's SSH port?")


@dataclass(frozen=True, slots=True)
class Link:
    """One ssh destination and everything ssh needs to reach it.

    ``identity`` is the private key, ``known_hosts`` the file of remembered host keys (ssh writes to it only
    if ``trust_first``, and then only for a server it holds no key of). ``connect_timeout`` covers everything
    up to the key exchange, ``idle_timeout`` the silence after which a line is given up; zero switches either
    off. ``proxy`` is a ProxyCommand to connect through; empty: none.
    """

    peer: Peer
    user: str
    identity: Path
    known_hosts: Path
    trust_first: bool
    connect_timeout: timedelta
    idle_timeout: timedelta
    proxy: str = ""


def ssh_argv(link: Link) -> list[str]:
    """Program and options for ssh, without the host and the command, which rsync adds.

    Options rather than a configuration file: nothing from ``~/.ssh`` or ``/etc/ssh`` takes part.

    :raises TransportError: a path that ssh cannot be given.
    """
    options = {
        "BatchMode": "yes",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "IdentityFile": _path(link.identity),
        "UserKnownHostsFile": _path(link.known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "accept-new" if link.trust_first else "yes",
        "HashKnownHosts": "no",
        "UpdateHostKeys": "no",
        "PreferredAuthentications": "publickey",
        "ServerAliveInterval": "10",
        "ServerAliveCountMax": "3",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "ClearAllForwardings": "yes",
        "PermitLocalCommand": "no",
        "ControlMaster": "no",
        "ControlPath": "none",
        "RequestTTY": "no",
        "Compression": "no",
        "LogLevel": "ERROR",
    }
    if seconds := int(link.connect_timeout.total_seconds()):
        options["ConnectTimeout"] = str(seconds)
    if link.proxy:
        options["ProxyCommand"] = link.proxy
    argv = ["ssh", "-F", "none", "-p", str(link.peer.port), "-l", link.user]
    for name, value in options.items():
        argv += ["-o", f"{name}={value}"]
    return argv


def remote_shell(link: Link) -> str:
    """The value of ``rsync -e``: rsync splits it at spaces, knows both quotes and doubled quotes, no
    backslashes.
    """
    return " ".join(_quoted(word) for word in ssh_argv(link))


def source(peer: Peer) -> str:
    """rsync's source argument: the folder that the server's rrsync is bound to; every release takes this."""
    return f"[{peer.host}]:" if ":" in peer.host else f"{peer.host}:"


def fingerprint(blob: str) -> str:
    """``SHA256:...`` of a public key in base64, as ssh-keygen -l prints it.

    :raises ValueError: not base64.
    """
    digest = hashlib.sha256(base64.b64decode(blob, validate=True)).digest()
    return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


def remembered_fingerprints(known_hosts: Path, peer: Peer) -> tuple[str, ...]:
    """The keys remembered of a server, as ``SHA256:... (ssh-ed25519)``; empty if none or no such file."""
    return described(_remembered(known_hosts, peer))


async def identity_fingerprint(identity: Path) -> str:
    """Fingerprint of the key that this side shows, or a text that says why it cannot be told."""
    code, output, _ = await capture(["ssh-keygen", "-l", "-f", str(identity)])
    match = re.search(r"SHA256:\S+", output) if code == 0 else None
    return match[0] if match else f"unknown: {identity} is missing or not a private key"


async def pin(link: Link, pins: Sequence[str]) -> None:
    """Make ``link.known_hosts`` hold the pinned keys of the server and no others, so that strict checking
    accepts nothing else.

    ``pins`` are fingerprints (``SHA256:...``) or public keys (``ssh-ed25519 AAAA... [comment]``). Public keys
    are written as they are; for a fingerprint whose key is not remembered yet the server is asked.

    :raises HostKeyError: the server has none of the pinned keys; names its own.
    :raises TransportError: the server does not answer (retryable), or the file cannot be written.
    """
    given = [key for key in map(_public_key, pins) if key[1]]
    wanted = {word.rstrip("=") for word in pins if not _public_key(word)[1]}
    keys = given + [key for key in _remembered(link.known_hosts, link.peer) if fingerprint(key[1]) in wanted]
    if wanted - {fingerprint(blob) for _, blob in keys}:
        seen = await shown_keys(link)
        keys += [key for key in seen if fingerprint(key[1]) in wanted]
        if not keys:
            raise not_pinned(link.peer, pins, seen)
    await asyncio.to_thread(_remember, link.known_hosts, link.peer, tuple(dict.fromkeys(keys)))


def is_pinned(pins: Sequence[str], keys: Iterable[tuple[str, str]]) -> bool:
    """Whether one of a server's host keys (kind, base64) is one of the pinned."""
    return not _pinned(pins).isdisjoint(fingerprint(blob) for _, blob in keys)


def not_pinned(peer: Peer, pins: Sequence[str], shown: Iterable[tuple[str, str]]) -> HostKeyError:
    """The error for a server that has none of the pinned keys."""
    told = NOT_PINNED.told(peer=peer, pinned=", ".join(sorted(_pinned(pins))), shown=", ".join(described(shown)))
    return HostKeyError(*told)


def described(keys: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Keys (kind, base64) as ``SHA256:... (ssh-ed25519)``."""
    return tuple(f"{fingerprint(blob)} ({kind})" for kind, blob in keys)


async def shown_keys(link: Link) -> list[tuple[str, str]]:
    """The host keys that a server shows, as (kind, base64). Nothing is remembered of them, and nobody logs in.

    :raises TransportError: the server does not answer, or not as an SSH server does; retryable.
    """
    seconds = max(1, int(link.connect_timeout.total_seconds()) or 30)
    argv = [
        "ssh-keyscan",
        "-p",
        str(link.peer.port),
        "-T",
        str(seconds),
        "-t",
        SCANNED_TYPES,
        "--",
        link.peer.host,
    ]
    _, output, errors = await capture(argv)
    keys = []
    for line in output.splitlines():
        fields = line.split()
        if len(fields) >= 3 and not line.startswith("#") and _is_key(fields[2]):
            keys.append((fields[1], fields[2]))
    if not keys:
        reason = next((line for line in reversed(errors.splitlines()) if not line.startswith("#")), "no answer")
        raise TransportError(*NO_HOST_KEY.told(peer=link.peer, reason=reason))
    return keys


def _pinned(pins: Sequence[str]) -> set[str]:
    """The fingerprints of pins, whether they are fingerprints or public keys."""
    keys = ((pin, _public_key(pin)[1]) for pin in pins)
    return {fingerprint(blob) if blob else pin.rstrip("=") for pin, blob in keys}


def _public_key(word: str) -> tuple[str, str]:
    fields = word.split()
    return (fields[0], fields[1]) if len(fields) > 1 and _is_key(fields[1]) else ("", "")


def _is_key(blob: str) -> bool:
    try:
        return bool(base64.b64decode(blob, validate=True))
    except (binascii.Error, ValueError):
        return False


def _host_pattern(peer: Peer) -> str:
    host = peer.host.lower()
    return host if peer.port == DEFAULT_PORT else f"[{host}]:{peer.port}"


def _lines(known_hosts: Path) -> list[str]:
    try:
        return known_hosts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise TransportError(f"{known_hosts} cannot be read: {error.strerror}", retryable=False) from None


def _names(line: str, peer: Peer) -> bool:
    fields = line.split()
    return bool(fields) and _host_pattern(peer) in fields[0].lower().split(",")


def _remembered(known_hosts: Path, peer: Peer) -> Iterator[tuple[str, str]]:
    for line in _lines(known_hosts):
        fields = line.split()
        if _names(line, peer) and len(fields) >= 3 and _is_key(fields[2]):
            yield fields[1], fields[2]


def _remember(known_hosts: Path, peer: Peer, keys: Sequence[tuple[str, str]]) -> None:
    """Replace what is remembered of one server; the file is replaced whole, so a reader never sees half of
    it.
    """
    before = _lines(known_hosts)
    after = [line for line in before if not _names(line, peer)]
    after += [f"{_host_pattern(peer)} {kind} {blob}" for kind, blob in keys]
    if after == before:
        return
    try:
        replace_file(known_hosts, "".join(f"{line}\n" for line in after).encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise TransportError(f"{known_hosts} cannot be written: {error.strerror}", retryable=False) from None


def _path(path: Path) -> str:
    """A path as the value of an ssh option: ssh splits at spaces and expands percent signs and ``${}``."""
    text = str(path.absolute())
    if "${" in text or any(character in text for character in "\0\n\r"):
        raise TransportError(f"ssh cannot be given the path {text!r}", "Use another folder", retryable=False)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _quoted(word: str) -> str:
    plain = re.fullmatch(r"[A-Za-z0-9_./:=,@+-]+", word)
    return word if plain else "'" + word.replace("'", "''") + "'"
