"""Random histories of a library: what subscribers rely on holds at every step, and they end up with the truth."""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from clr_client.vcsp.build import next_library
from clr_client.vcsp.following import Known, KnownItem, newer, steps
from clr_client.vcsp.manifests import manifests
from clr_client.vcsp.model import same_name
from clr_client.vcsp.record import adopt, dump, load
from clr_client.vcsp.rules import Findings, read_items, read_library
from hypothesis import event, given, settings
from hypothesis import strategies as st
from support.libraries import NOW, content

if TYPE_CHECKING:
    from collections.abc import Callable

    from clr_client.vcsp.model import Manifests, PublishedLibrary

KEYS = ["debian", "linux/debian", "iso/a b.iso", "ü", "Ünï", "a#b%20", "x.ova", "_items", "tool.zip"]
NAMES = ["Debian", "debian", "linux/debian", "ü", "Golden", "x.ova", "n" * 80]
FILES = ["a.ovf", "a b.iso", "disk.vmdk", "x.ovf", "tool.zip"]
keys, names, files = st.sampled_from(KEYS), st.sampled_from(NAMES), st.sampled_from(FILES)
# Few values, of one size: a file often returns to an earlier content, which size alone would not show.
contents = st.sampled_from([b"1", b"2", b"3"])

OPERATIONS = st.one_of(
    st.tuples(st.just("add"), keys, names, st.dictionaries(files, contents, min_size=1, max_size=3)),
    st.tuples(st.just("write"), keys, files, contents),
    st.tuples(st.just("delete file"), keys, files),
    st.tuples(st.just("rename"), keys, names),
    st.tuples(st.just("describe"), keys, st.sampled_from(["", "text"])),
    st.tuples(st.just("retype"), keys, st.sampled_from(["vcsp.ovf", "vcsp.iso", "vcsp.other"]), st.booleans()),
    st.tuples(st.just("move"), keys, keys),
    st.tuples(st.just("remove"), keys),
    st.tuples(st.just("restart")),
    st.tuples(st.just("lose the record")),
    st.tuples(st.just("truncate items.json"), st.floats(0, 1)),
    st.tuples(st.just("restyle"), st.sampled_from(["tree", "plain"])),
    st.tuples(st.just("per item"), st.booleans()),
    st.tuples(st.just("clock"), st.integers(-10_000, 10_000)),
    st.tuples(st.just("rename library"), st.sampled_from(["One", "Two"])),
)


@dataclass
class Item:
    name: str
    files: dict[str, bytes]
    description: str = ""
    kind: str = "vcsp.other"
    vapp: bool = False


@dataclass
class Site:
    """The source, what was published from it, and a subscriber."""

    items: dict[str, Item] = field(default_factory=dict)
    name: str = "One"
    style: str = "tree"
    per_item: bool = False
    now: int = 0
    published: PublishedLibrary | None = None
    texts: Manifests | None = None
    record_lost: bool = False
    known: Known | None = None
    has: dict[str, dict[str, bytes]] = field(default_factory=dict)
    ever: dict[str, int] = field(default_factory=dict)

    def change(self, operation: tuple[Any, ...]) -> None:
        match operation:
            case "add", key, name, found if key not in self.items and self._is_free(name):
                self.items[key] = Item(name, dict(found))
            case "write", key, name, data if key in self.items:
                self.items[key].files[name] = data
            case "delete file", key, name if key in self.items and set(self.items[key].files) - {name}:
                self.items[key].files.pop(name, None)
            case "rename", key, name if key in self.items and self._is_free(name):
                self.items[key].name = name
            case "describe", key, text if key in self.items:
                self.items[key].description = text
            case "retype", key, kind, vapp if key in self.items:
                self.items[key].kind, self.items[key].vapp = kind, vapp
            case "move", key, other if key in self.items and other not in self.items:
                self.items[other] = self.items.pop(key)
            case "remove", key:
                self.items.pop(key, None)
            case ("restart",) if self.published:
                self.published = load(dump(self.published))
            case ("lose the record",) if self.texts:
                self.published = adopt(self.texts.lib, self.texts.items)
                self.record_lost = True
            case "truncate items.json", part if self.texts:
                length = int(len(self.texts.items) * part)
                self.published = adopt(self.texts.lib, self.texts.items[:length])
                self.record_lost = True
            case "restyle", style:
                self.style = style
            case "per item", wanted:
                self.per_item = wanted
            case "clock", seconds:
                self.now += seconds
            case "rename library", name:
                self.name = name
            case _:
                event("operation without effect")

    def _is_free(self, name: str) -> bool:
        return same_name(name) not in {same_name(item.name) for item in self.items.values()}

    def publish(self) -> None:
        self.published = next_library(
            self.published,
            self.name,
            [
                content(key, item.files, name=item.name, description=item.description, kind=item.kind, vapp=item.vapp)
                for key, item in self.items.items()
            ],
            now=NOW + timedelta(seconds=self.now),
            href_style=self.style,
            per_item_generations=self.per_item,
        )
        self.texts = manifests(self.published)

    def follow(self) -> set[tuple[str, str]]:
        """What the subscriber loads, as (item id, file name)."""
        assert self.texts is not None
        findings = Findings()
        remote = read_library(self.texts.lib, findings)
        assert remote is not None
        items = read_items(self.texts.items, remote, findings)
        if not newer(self.known, remote):
            return set()
        plan = steps(self.known, items)
        loaded = set()
        truth = {item.name: item.files for item in self.items.values()}
        gone = dict(self.known.gone) if self.known else {}
        for item_id in plan.remove:
            assert self.known is not None
            gone[item_id] = self.known.items[item_id].version
            del self.has[item_id]
        for step in plan.take:
            kept = self.has.setdefault(step.item.id, {})
            for file in step.load:
                kept[file.name] = truth[step.item.name][file.name]
                loaded.add((step.item.id, file.name))
            for name in kept.keys() - {file.name for file in step.item.files}:
                del kept[name]
        self.known = Known(
            remote.id,
            remote.version,
            {item.id: KnownItem(item.version, item.raw, {file.name: file for file in item.files}) for item in items},
            gone,
        )
        return loaded


def subscribed(site: Site) -> dict[str, dict[str, bytes]]:
    assert site.known is not None
    return {str(item.entry["name"]): site.has[item_id] for item_id, item in site.known.items.items()}


def without_versions(lib: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in lib.items() if key != "version"}


def check_step(site: Site, before: Manifests | None, was: dict[str, dict[str, bytes]], *, lost: bool) -> None:
    """What holds between two published libraries, read from their JSON alone."""
    assert site.texts is not None
    lib, items = json.loads(site.texts.lib), json.loads(site.texts.items)["items"]
    for item in items:
        etags = {file["etag"] for file in item["files"]}
        assert len(etags) == 1
        etag = etags.pop()
        assert etag.isdecimal()
        assert int(etag) >= max(file["generationNum"] for file in item["files"])
        assert all(type(file["generationNum"]) is int and file["generationNum"] >= 1 for file in item["files"])
        assert int(item["version"]) >= int(item["contentVersion"]) >= 1
        assert json.loads(site.texts.item[item["id"]]) == item
    assert len({item["id"] for item in items}) == len(items)
    if before is not None:
        check_growth(json.loads(before.lib), lib, json.loads(before.items)["items"], items, lost=lost)
    now = {item["id"]: int(item["version"]) for item in items}
    for item_id, version in now.items():
        if item_id not in was and item_id in site.ever:
            raise AssertionError("an id was used again")
        site.ever[item_id] = version


def check_growth(
    old_lib: dict[str, Any],
    lib: dict[str, Any],
    old_items: list[dict[str, Any]],
    items: list[dict[str, Any]],
    *,
    lost: bool,
) -> None:
    assert lib["id"] == old_lib["id"]
    assert lib["created"] == old_lib["created"]
    unchanged = without_versions(lib) == without_versions(old_lib) and items == old_items
    grown = int(lib["version"]) - int(old_lib["version"])
    assert grown == 0 if unchanged and not lost else grown == 1
    before = {item["id"]: item for item in old_items}
    for item in items:
        if item["id"] not in before:
            assert item["version"] == item["contentVersion"] == "1"
            continue
        old = before[item["id"]]
        assert int(item["version"]) - int(old["version"]) == (item != old)
        assert item["created"] == old["created"]
        assert int(item["contentVersion"]) - int(old["contentVersion"]) in (0, 1)
        if item["files"] != old["files"] and item["contentVersion"] == old["contentVersion"]:
            assert [without_hrefs(file) for file in item["files"]] == [without_hrefs(file) for file in old["files"]]
        if item["contentVersion"] != old["contentVersion"]:
            assert int(item["files"][0]["etag"]) > int(old["files"][0]["etag"])


def without_hrefs(file: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in file.items() if key != "hrefs"}


@given(batches=st.lists(st.lists(OPERATIONS, max_size=4), min_size=1, max_size=12))
@settings(max_examples=300, deadline=None)
def test_versions_ids_and_subscribers_are_right_over_any_history(batches: list[list[tuple[Any, ...]]]) -> None:
    site = Site()
    for batch in batches:
        before = site.texts
        source = {key: dict(item.files) for key, item in site.items.items()}
        per_item, id_at = site.per_item, {item.key: item.id for item in site.published.items} if site.published else {}
        for operation in batch:
            site.change(operation)
        lost = site.record_lost
        site.record_lost = False
        site.publish()
        had = dict(site.has)
        check_step(site, before, had, lost=lost)
        loaded = site.follow()
        assert subscribed(site) == {item.name: item.files for item in site.items.values()}
        assert site.published is not None
        if not lost and not site.per_item and not per_item:
            changed = {
                (item.id, name)
                for item in site.published.items
                for name, data in site.items[item.key].files.items()
                if id_at.get(item.key) != item.id or source[item.key].get(name) != data
            }
            assert loaded == changed
        texts = site.texts
        site.now += 1
        site.publish()
        assert site.texts == texts
        assert site.follow() == set()


@given(batches=st.lists(st.lists(OPERATIONS, max_size=3), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_the_result_does_not_depend_on_the_order_of_the_input(batches: list[list[tuple[Any, ...]]]) -> None:
    site = Site()
    for batch in batches:
        for operation in batch:
            site.change(operation)
        previous = site.published
        site.publish()
        there = [content(key, item.files, name=item.name) for key, item in site.items.items()]
        one, two = (
            next_library(
                previous,
                site.name,
                [dataclasses.replace(each, files=each.files[::way]) for each in there[::way]],
                now=NOW,
                new_id=counted_ids(),
            )
            for way in (1, -1)
        )
        assert one == two


def counted_ids() -> Callable[[], str]:
    numbers = itertools.count()
    return lambda: f"urn:uuid:00000000-0000-4000-8000-{next(numbers):012}"
