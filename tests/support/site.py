"""A remote site on loopback: the client's settings and folders, its syncs, and what it serves."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clr_client import settings as clr_settings
from clr_client.store import Store
from clr_client.sync import synchronise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clr_client.reporting.status import Report

    from support.server import Server

CLR = str(Path(sys.executable).with_name("clr"))


class Site:
    """One client's folders below ``home``, syncing from ``server``. Keyword arguments are further settings."""

    def __init__(self, home: Path, server: Server, **environment: str) -> None:
        self.home = home
        self.library = home / "library"
        keys = home / "ssh"
        keys.mkdir(parents=True, exist_ok=True)
        identity = keys / "id_syncer"
        if not identity.exists():
            identity.write_bytes(server.identity.read_bytes())
            identity.chmod(0o600)
        self.environment = {
            "SYNC_PEER": "127.0.0.1",
            "SYNC_PORT": str(server.port),
            "SYNC_USER": server.user,
            "SYNC_RETRIES": "0",
            "LIBRARY_NAME": "Test",
            "CLR_LIBRARY_DIR": str(self.library),
            "CLR_KEYS_DIR": str(keys),
            "CLR_CERTS_DIR": str(home / "certs"),
            "CLR_DATA_DIR": str(home / "data"),
            "CLR_RUN_DIR": str(home / "run"),
            **environment,
        }

    def settings(self, **changes: str) -> clr_settings.Settings:
        """Return the site's settings, with changes."""
        return clr_settings.load({**self.environment, **changes})[0]

    def sync(self, *, allow_deletes: bool = False, **changes: str) -> Report:
        """Sync once, in this process."""
        return asyncio.run(synchronise(self.settings(**changes), trigger="test", allow_deletes=allow_deletes))

    @property
    def store(self) -> Store:
        """Return the site's volume."""
        return Store(self.library)

    def document(self, name: str = "lib.json") -> dict[str, Any]:
        """Return a published manifest."""
        content: dict[str, Any] = json.loads((self.library / "current" / name).read_bytes())
        return content

    def versions(self) -> dict[str, str]:
        """Return the version of each published item by name."""
        return {item["name"]: item["version"] for item in self.document("items.json")["items"]}

    def ids(self) -> dict[str, str]:
        """Return the id of each published item by name."""
        return {item["name"]: item["id"] for item in self.document("items.json")["items"]}

    def manifests(self) -> dict[str, bytes]:
        """Return all published manifests as they are, by path."""
        current = self.library / "current"
        found = {name: (current / name).read_bytes() for name in ("lib.json", "items.json")}
        for item in json.loads(found["items.json"])["items"]:
            found[item["selfHref"]] = (current / item["selfHref"]).read_bytes()
        return found

    def content(self, item: str, file: str) -> bytes:
        """Return a published file's bytes, by its href."""
        for entry in self.document("items.json")["items"]:
            for described in entry["files"]:
                if (entry["name"], described["name"]) == (item, file):
                    href: str = described["hrefs"][0]
                    return (self.library / "current" / href).read_bytes()
        raise AssertionError(f"{item}/{file} is not published")


@contextmanager
def running(site: Site, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `clr run` for a site that has an HTTP_PORT; end it with the block. Its output is in ``run.log``."""
    with (site.home / "run.log").open("ab") as log:
        process = subprocess.Popen([CLR, "run"], env=cli_environment(site) | environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


def get(site: Site, path: str) -> tuple[int, bytes]:
    """GET a path from a running site: status (0 when nobody answers) and body."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{site.environment['HTTP_PORT']}/{path}", timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


def cli_environment(site: Site) -> dict[str, str]:
    """Return the environment for running `clr` as a process for a site."""
    return {"PATH": os.environ["PATH"], "HOME": str(site.home), "LANG": "C.UTF-8", **site.environment}
