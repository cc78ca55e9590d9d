"""What the next library holds, when names clash."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

from clr_client.publishing import select
from clr_client.vcsp.build import next_library
from clr_client.vcsp.model import FileContent, ItemContent, PublishedLibrary

NOW = datetime(2026, 11, 21, tzinfo=UTC)


def content(key: str, name: str) -> ItemContent:
    return ItemContent(key, name, "", "vcsp.other", False, (FileContent("f", 1, "sha256:0"),))


def library(*contents: ItemContent) -> PublishedLibrary:
    return next_library(None, "Library", contents, now=NOW)


def following(published: PublishedLibrary, *contents: ItemContent, stays: tuple[str, ...] = ()) -> dict[str, str]:
    selection = select(published, {item.key: item for item in contents}, stays)
    return {item.key: item.name for item in next_library(published, "Library", selection.contents, now=NOW).items}


def test_an_item_that_wants_a_used_name_stays_published_under_its_old_one():
    before = library(content("a", "a"), content("b", "b"))
    assert following(before, content("a", "a"), content("b", "A")) == {"a": "a", "b": "b"}


def test_of_two_items_adopted_under_one_name_the_second_is_held_and_the_library_goes_on():
    before = library(content("Web", "Web"), content("web", "other"))
    twins = dataclasses.replace(before, items=tuple(dataclasses.replace(item, name=item.key) for item in before.items))
    assert following(twins, content("Web", "Web"), content("web", "web")) == {"Web": "Web"}
    assert following(twins, stays=("Web", "web")) == {"Web": "Web"}
