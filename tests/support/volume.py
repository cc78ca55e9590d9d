"""A library volume without a server: what a test puts into the mirror counts as what a pull brought."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from clr_client import settings as clr_settings
from clr_client.content.items import scan
from clr_client.plan import Choice, make_plan
from clr_client.publishing import publish
from clr_client.pull import Pulled
from clr_client.store import Store, TreeSource
from clr_client.vcsp.build import next_library
from clr_client.vcsp.model import FileContent, ItemContent

from support.templates import replace

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from clr_client.reporting.status import Held
    from clr_client.vcsp.model import PublishedLibrary


class Volume:
    """A volume below ``root``. Keyword arguments are settings."""

    def __init__(self, root: Path, **environment: str) -> None:
        self.root = root
        self.environment = {"CLR_LIBRARY_DIR": str(root), "LIBRARY_NAME": "Test", **environment}
        self.store = Store(root)
        self.mirror = self.store.mirror
        self.held: tuple[Held, ...] = ()

    def settings(self, **changes: str) -> clr_settings.Settings:
        """Return the settings, with changes."""
        return clr_settings.load({**self.environment, **changes})[0]

    def put(self, path: str, content: bytes = b"content") -> Path:
        """Put a file into the mirror by rename, as rsync does."""
        target = self.mirror / path
        target.parent.mkdir(parents=True, exist_ok=True)
        replace(target, content)
        return target

    def sync(self, **changes: str) -> PublishedLibrary:
        """Publish what lies in the mirror, as a run would after its transfer."""
        settings, store = self.settings(**changes), Store(self.root)
        with store.locked("test"):
            store.prepare()
            published = store.published()
            mirror = {file.path: file for file in scan(store.mirror)}
            pulled = Pulled(plan=make_plan(mirror.values(), published, mirror, Choice.of(settings)), mirror=mirror)
            library, self.held = asyncio.run(publish(settings, store, published, pulled))
            store.prune(settings.library_keep, settings.library_grace)
        assert library is not None
        return library

    def published(self) -> PublishedLibrary:
        """Return what is published."""
        library = Store(self.root).published()
        assert library is not None
        return library

    def versions(self) -> dict[str, int]:
        """Return the version of each published item by key."""
        return {item.key: item.version for item in self.published().items}

    def ids(self) -> dict[str, str]:
        """Return the id of each published item by key."""
        return {item.key: item.id for item in self.published().items}


def content(key: str, files: Mapping[str, bytes], *, is_file: bool = False, type_: str = "vcsp.other") -> ItemContent:
    """Return an item of plain files."""
    described = tuple(
        FileContent(name, len(data), f"sha256:{hashlib.sha256(data).hexdigest()}") for name, data in files.items()
    )
    return ItemContent(key, key.replace("/", " ")[-80:], "", type_, False, described, key_is_file=is_file)


def publish_contents(
    store: Store, contents: Mapping[str, Mapping[str, bytes]], *, single: bool = False
) -> PublishedLibrary:
    """Publish items by key, each with its files' contents, without mirror or verification.

    ``single`` makes each item one of a file: its key is the file's path.
    """
    store.prepare()
    items = [content(key, files, is_file=single) for key, files in contents.items()]
    library = next_library(store.published(), "Test", items, now=datetime.now(UTC))
    sources = {}
    for item in library.items:
        folder = store.mirror / item.uuid
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in contents[item.key].items():
            replace(folder / name, data)
        sources[item.id] = TreeSource({name: folder / name for name in contents[item.key]})
    store.publish(library, sources)
    return library
