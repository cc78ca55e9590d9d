"""What can be wrong between here and one server, from its name to the last of its files."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections import Counter
from typing import TYPE_CHECKING

from clr_client import transport
from clr_client.content.items import group
from clr_client.doctor.finding import Finding, Findings, ok, problem, warning
from clr_client.errors import Trouble
from clr_client.plan import EMPTY_SOURCE
from clr_client.text import size
from clr_client.transport.failure import HOST_KEY_CHANGED

if TYPE_CHECKING:
    from clr_client.doctor.case import Case
    from clr_client.values import Peer

PORT_SECONDS = 8.0
MOST_TRIED = 5000
SHOWN = 3
RSYNC_34_PROTOCOL = 32

UNKNOWN_NAME = Trouble(
    "the name {host} is not known here: {reason}",
    "Correct SYNC_PEER, or this host's name server; an address does as well",
)
REFUSED = Trouble(
    "{peer} refuses connections: the host is there, and nothing listens on that port",
    "Is the server running (docker ps), and SYNC_PORT the port that its compose file publishes?",
)
NO_ANSWER = Trouble(
    "{peer} does not answer within {seconds:.0f} s",
    "A firewall, a wrong address, or a host that is off: open TCP port {port} from here to the server",
)
UNREACHABLE = Trouble(
    "{peer} cannot be reached: {reason}", "Look at this host's network and routes, and at the address in SYNC_PEER"
)
NO_SSH = Trouble(
    "{peer} is answered by something that is not an SSH server: {said}",
    "Correct SYNC_PORT: it is the port that the server's compose file publishes for SSH",
)
HUNG_UP = Trouble(
    "{peer} takes the connection and closes it at once",
    "Something in between forwards the port to nowhere, or the server has too many connections; see its log",
)
SILENT = Trouble(
    "{peer} takes the connection and says nothing, as an SSH server would",
    "Correct SYNC_PORT: it is the port that the server's compose file publishes for SSH",
)
NOT_PINNED_YET = Trouble(
    "{peer} shows {shown}, which is not pinned; the first key seen is remembered and any other refused",
    "Compare with the fingerprints in the server's log (docker logs clr-server), and set SYNC_HOST_KEY={pin}",
)
SHELL = Trouble(
    "{peer} opens a shell for this site's key: whoever has the key can do there what the account can",
    'Let the server\'s image look after its keys, or put restrict,command="rrsync -ro /folder" in front of the key',
)
NO_RRSYNC = Trouble(
    "{peer} lets the key in and runs something else than rrsync for it: {said}",
    'Let the server\'s image look after its keys, or put restrict,command="rrsync -ro /folder" in front of the key',
)
OLD_RSYNC = Trouble(
    "the rsync of {peer} is older than 3.4 (protocol {protocol}); it has holes, unless its distribution closed them",
    "Rebuild the server's image; docker logs clr-server names its rsync",
)
FOLDERS_UNREADABLE = Trouble(
    "{peer} cannot read all of its library: {lines}",
    "Make folders and files there readable for its account (SYNCER_UID): chown or chmod at the server",
)
FILES_UNREADABLE = Trouble(
    "{peer} lists {count} files that it cannot open: {lines}",
    "Make them readable for its account (SYNCER_UID): chown or chmod at the server; until then their items are held",
)


def name(case: Case) -> Findings:
    """Whether the server's name has an address."""
    host, port = case.server.host, case.server.port
    with contextlib.suppress(ValueError):
        return [ok(f"{ipaddress.ip_address(host)} is an address")]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return [problem(UNKNOWN_NAME, host=host, reason=getattr(error, "strerror", None) or error)]
    addresses = dict.fromkeys(str(address[0]) for *_, address in found)
    return [ok(f"{host} is {', '.join(addresses)}")]


def port(case: Case) -> Findings:
    """Whether an SSH server answers."""
    peer = case.server
    addresses = [found[4] for found in socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM)]
    findings = []
    for host, number, *_ in dict.fromkeys(addresses):
        finding = _answers(peer, str(host), int(number), PORT_SECONDS / len(addresses))
        if not finding.remedy:
            return [finding]
        findings.append(finding)
    return findings[-1:]


def _answers(peer: Peer, host: str, number: int, seconds: float) -> Finding:
    try:
        with socket.create_connection((host, number), seconds) as connection:
            connection.settimeout(PORT_SECONDS)
            return _judged(peer, connection)
    except ConnectionRefusedError:
        return problem(REFUSED, peer=peer)
    except TimeoutError:
        return problem(NO_ANSWER, peer=peer, seconds=seconds, port=peer.port)
    except OSError as error:
        return problem(UNREACHABLE, peer=peer, reason=error.strerror or error)


def _judged(peer: Peer, connection: socket.socket) -> Finding:
    try:
        said = connection.recv(200)
    except TimeoutError:
        return problem(SILENT, peer=peer)
    except ConnectionError:
        said = b""
    if not said:
        return problem(HUNG_UP, peer=peer)
    line = said.split(b"\n")[0].decode("utf-8", "replace").strip()
    if not line.startswith("SSH-"):
        return problem(NO_SSH, peer=peer, said=line)
    with contextlib.suppress(OSError):
        connection.sendall(b"SSH-2.0-clr_doctor\r\n")  # the end of what the server takes for an attempt to break in
    return ok(f"{peer} answers as {line}")


async def host_key(case: Case) -> Findings:
    """Whether the server shows the host key that is pinned or remembered."""
    peer, link, pins = case.server, case.link(), case.settings.sync_host_key
    keys = await transport.shown_keys(link)
    shown = transport.described(keys)
    remembered = transport.remembered_fingerprints(link.known_hosts, peer)
    if pins and not transport.is_pinned(pins, keys):
        raise transport.not_pinned(peer, pins, keys)
    if pins:
        return [ok(f"{peer} shows a pinned key; it has {', '.join(shown)}")]
    if not remembered:
        return [warning(NOT_PINNED_YET, peer=peer, shown=", ".join(shown), pin=shown[0].split()[0])]
    if set(shown).isdisjoint(remembered):
        known_hosts = case.store.known_hosts
        known = {"remembered": ", ".join(remembered), "shown": ", ".join(shown), "known_hosts": known_hosts}
        return [problem(HOST_KEY_CHANGED, peer=peer, **known)]
    return [ok(f"{peer} shows the remembered key; it has {', '.join(shown)}")]


async def login(case: Case) -> Findings:
    """Whether the server lets the key in."""
    link = case.link()
    if case.settings.sync_host_key:
        await transport.pin(link, case.settings.sync_host_key)
    case.logins[case.server] = await transport.log_in(link)
    return [ok(f"{case.server} accepts the key for the account {link.user}")]


def rrsync(case: Case) -> Findings:
    """Whether the key can do nothing there but rsync."""
    peer, found = case.server, case.logins[case.server]
    if found.has_shell:
        return [warning(SHELL, peer=peer)]
    if "rsync" not in found.said:
        return [warning(NO_RRSYNC, peer=peer, said=found.said or "nothing")]
    return [ok(f"{peer} lets the key run rsync and nothing else")]


async def rsync(case: Case) -> Findings:
    """Whether an rsync answers, and a recent one."""
    protocol = await transport.rsync_protocol(case.link())
    if 0 < protocol < RSYNC_34_PROTOCOL:
        return [warning(OLD_RSYNC, peer=case.server, protocol=protocol)]
    return [ok(f"{case.server} answers with rsync, protocol {protocol or 'unknown'}")]


async def listing(case: Case) -> Findings:
    """Whether the server can list its library, and what there is."""
    peer = case.server
    found = await transport.list_source(case.link())
    if not found.complete:
        return [problem(FOLDERS_UNREADABLE, peer=peer, lines="; ".join(found.problems[:SHOWN]))]
    items = group(found.files)
    if not items:
        return [problem(EMPTY_SOURCE)]
    case.listings[peer] = found
    kinds = Counter(file.suffix for item in items for file in item.files)
    most = ", ".join(f"{count} {kind or 'without suffix'}" for kind, count in kinds.most_common(SHOWN))
    total = sum(file.size for file in found.files)
    return [ok(f"{peer} has {len(items)} items, {len(found.files)} files ({most}), {size(total)}")]


async def reading(case: Case) -> Findings:
    """Whether the server can open the files that it lists: the last byte of each is fetched."""
    peer, files = case.server, case.listings[case.server].files
    tried = files[:MOST_TRIED]
    lines = await transport.unreadable(case.link(), tried)
    if lines:
        return [problem(FILES_UNREADABLE, peer=peer, count=len(lines), lines="; ".join(lines[:SHOWN]))]
    scope = "all files" if len(tried) == len(files) else f"the first {len(tried)} files of {len(files)}"
    return [ok(f"{peer} can open {scope}")]
