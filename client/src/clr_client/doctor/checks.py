"""All checks, in their order, each with what it can find: the catalogue that docs/how-to/troubleshooting.md shows."""

from __future__ import annotations

from typing import Final

from clr_client import filesystem, plan, settings
from clr_client.doctor import here, history, server, site, volume
from clr_client.doctor.finding import Check
from clr_client.reporting import delivery
from clr_client.transport import failure, loss, ssh
from clr_client.transport.versions import OLD_RSYNC, UNKNOWN_RSYNC
from clr_client.web import certificate, health

REBUILD = "Rebuild the image: docker-compose -f docker-compose.client.yaml build --pull"
SERVER_LOG = "Look at the server's log: docker logs clr-server"

CHECKS: Final = (
    Check(
        "settings",
        "Can every variable be used, and is none misspelt?",
        here.settings,
        (*settings.TROUBLES, here.NO_PEER),
        remedy="Correct it in the compose file, then docker-compose -f docker-compose.client.yaml up -d. All variables,"
        " and what is allowed: docs/reference/settings.md",
    ),
    Check(
        "programs",
        "Are rsync, ssh and Caddy there, and is rsync recent?",
        here.programs,
        (here.NO_PROGRAM, OLD_RSYNC, UNKNOWN_RSYNC),
        remedy=REBUILD,
        seconds=60.0,
    ),
    Check(
        "folders",
        "Is each folder there, and can the account of the client use it?",
        here.folders,
        (
            here.MISSING,
            here.NO_FOLDER,
            here.NOT_WRITABLE,
            here.NOT_READABLE,
            here.READ_ONLY,
            here.NOT_KEPT,
        ),
    ),
    Check(
        "key",
        "Is the private key there, and can ssh use it?",
        here.key,
        (
            here.NO_KEY,
            here.KEY_UNREADABLE,
            here.KEY_OPEN,
            here.KEY_ENCRYPTED,
            here.KEY_PUBLIC,
            here.NO_SSH_KEY,
            here.KEY_NOT_TAKEN,
        ),
        needs=("programs",),
    ),
    Check(
        "name",
        "Has the server's name an address?",
        server.name,
        (server.UNKNOWN_NAME,),
        of_server=True,
    ),
    Check(
        "port",
        "Does an SSH server answer on its port?",
        server.port,
        (
            server.REFUSED,
            server.NO_ANSWER,
            server.UNREACHABLE,
            server.NO_SSH,
            server.HUNG_UP,
            server.SILENT,
        ),
        needs=("name",),
        seconds=30.0,
        of_server=True,
    ),
    Check(
        "host key",
        "Is the server the one that was met before, or that was pinned?",
        server.host_key,
        (failure.HOST_KEY_CHANGED, ssh.NOT_PINNED, server.NOT_PINNED_YET, ssh.NO_HOST_KEY),
        needs=("programs", "port"),
        seconds=60.0,
        of_server=True,
    ),
    Check(
        "login",
        "Does the server let the key in?",
        server.login,
        (failure.KEY_REFUSED, failure.HOST_KEY_UNKNOWN, failure.NO_CONNECTION),
        needs=("key", "host key"),
        remedy=SERVER_LOG,
        seconds=60.0,
        of_server=True,
    ),
    Check(
        "rrsync",
        "Can the key do nothing at the server but read the library?",
        server.rrsync,
        (server.SHELL, server.NO_RRSYNC),
        needs=("login",),
        of_server=True,
    ),
    Check(
        "rsync",
        "Does an rsync answer at the server, and a recent one?",
        server.rsync,
        (failure.REFUSED_BY_RRSYNC, failure.FAILED, server.OLD_RSYNC),
        needs=("login",),
        remedy=SERVER_LOG,
        seconds=60.0,
        of_server=True,
    ),
    Check(
        "listing",
        "Can the server list its library, and is there something in it?",
        server.listing,
        (plan.EMPTY_SOURCE, server.FOLDERS_UNREADABLE, failure.LIBRARY_UNREADABLE, failure.FAILED),
        needs=("rsync",),
        remedy=SERVER_LOG,
        seconds=300.0,
        of_server=True,
    ),
    Check(
        "reading",
        "Can the server open the files that it lists?",
        server.reading,
        (server.FILES_UNREADABLE, failure.FAILED),
        needs=("listing",),
        remedy=SERVER_LOG,
        seconds=120.0,
        of_server=True,
    ),
    Check(
        "clock",
        "Can the clock here be right? (What NTP would say is not known.)",
        volume.clock,
        (volume.CLOCK_BEHIND, volume.IN_FUTURE),
    ),
    Check(
        "file system",
        "Has the library volume links, and does it tell upper from lower case?",
        volume.file_system,
        (filesystem.NO_SYMLINKS, volume.NO_HARD_LINKS, volume.CASELESS, volume.SPLIT),
        needs=("folders",),
    ),
    Check(
        "plan",
        "What would a sync do, as far as the listing tells?",
        volume.plan,
        (plan.TOO_MANY_GONE, volume.NOTHING_CHOSEN, volume.ITEM_HELD),
        seconds=60.0,
    ),
    Check(
        "space",
        "Is there room on the library volume for that?",
        volume.space,
        (plan.NO_ROOM, volume.NO_INODES, volume.LITTLE_ROOM),
    ),
    Check(
        "clr run",
        "Is the program that syncs and serves at work?",
        site.running,
        (health.HANGS,),
    ),
    Check(
        "ports",
        "Are the ports of the web site its own, or free for it?",
        site.ports,
        (site.TAKEN, site.NOT_ALLOWED, site.NOT_SERVED),
    ),
    Check(
        "DNS",
        "Does TLS_NAME lead to this host?",
        site.dns,
        (site.UNKNOWN_NAME, site.ELSEWHERE, site.LOOPBACK),
    ),
    Check(
        "certificate",
        "Do certificate, key, name and chain fit together, and for how long?",
        site.pair,
        (
            certificate.MISSING,
            certificate.UNREADABLE,
            certificate.NO_PEM,
            certificate.ENCRYPTED,
            certificate.NO_PAIR,
            certificate.UNUSABLE,
            certificate.EXPIRED,
            certificate.TOO_EARLY,
            certificate.OTHER_NAME,
            certificate.SOON_EXPIRED,
            certificate.NO_CHAIN,
            certificate.BROKEN_CHAIN,
            site.NO_CERTIFICATE,
        ),
    ),
    Check(
        "subscriber",
        "What would a subscriber say to the library?",
        site.subscriber,
        (site.REFUSES, site.REMARKS, site.NOT_FROM_HERE),
        needs=("DNS", "certificate"),
        seconds=120.0,
    ),
    Check(
        "line",
        "Does the line to the server lose packets, so that it carries less than it could?",
        history.line,
        (loss.LOSSY,),
    ),
    Check(
        "schedule",
        "When does what happen by itself?",
        history.schedule,
        (history.DELAYED,),
    ),
    Check(
        "messages",
        "Is somebody told when something fails?",
        history.messages,
        (delivery.NO_SUCH_SERVICE, delivery.NOT_LOOKED_AT),
        seconds=30.0,
    ),
    Check(
        "history",
        "How did it go until now?",
        history.history,
        (history.FAILED, history.PAUSED, history.HELD, history.DAMAGED),
    ),
)
