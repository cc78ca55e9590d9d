"""What an examination works with, and what its checks learnt for those that follow."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from clr_client.servers import link_to
from clr_client.store import Store
from clr_client.web.health import heartbeat

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clr_client.plan import Plan
    from clr_client.settings import Settings, Survey
    from clr_client.transport import Link, Listing, Login
    from clr_client.values import Peer

MOST_CONNECT = timedelta(seconds=10)
MOST_SILENCE = timedelta(seconds=60)
SIGNS_OF_CONTAINERS = (Path("/.dockerenv"), Path("/run/.containerenv"))


@dataclass(slots=True)
class Case:
    """One examination. ``settings`` lacks what is broken, so a check that reads that is skipped.

    ``scratch`` is a folder for what must not be written elsewhere; ``peer`` is the server that is looked at now.
    """

    environ: Mapping[str, str]
    survey: Survey
    scratch: Path
    peer: Peer | None = None
    logins: dict[Peer, Login] = field(default_factory=dict)
    listings: dict[Peer, Listing] = field(default_factory=dict)
    plan: Plan | None = None
    shares_files: bool = True
    is_caseless: bool = False
    served: tuple[int, ...] = ()
    """Ports on which this site's own Caddy listens."""

    @property
    def settings(self) -> Settings:
        """The settings, without those that are broken."""
        return self.survey.settings

    @property
    def store(self) -> Store:
        """The library volume, which need not be there."""
        return Store(self.settings.clr_library_dir)

    @property
    def is_running(self) -> bool:
        """Whether `clr run` is at work with these folders."""
        return heartbeat(self.settings).exists()

    @property
    def in_container(self) -> bool:
        """Whether this is the inside of a container."""
        return any(file.exists() for file in SIGNS_OF_CONTAINERS)

    @property
    def server(self) -> Peer:
        """The server that is looked at now."""
        if self.peer is None:
            raise AssertionError("this check is not one of a server")
        return self.peer

    def link(self) -> Link:
        """What ssh needs to reach the server that is looked at now; the site's known_hosts is only read."""
        settings, known_hosts = self.settings, self.scratch / "known_hosts"
        link = link_to(self.server, settings, self.store)
        if not known_hosts.exists() and link.known_hosts.is_file():
            shutil.copyfile(link.known_hosts, known_hosts)
        return dataclasses.replace(
            link,
            known_hosts=known_hosts,
            connect_timeout=min(settings.sync_connect_timeout or MOST_CONNECT, MOST_CONNECT),
            idle_timeout=min(settings.sync_timeout or MOST_SILENCE, MOST_SILENCE),
        )
