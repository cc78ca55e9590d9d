"""What a subscriber does with a newer library, and what makes it fail."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from clr_client.errors import SubscriberError
from clr_client.vcsp.following import Known, KnownItem, newer, steps
from clr_client.vcsp.manifests import manifests
from clr_client.vcsp.rules import Findings, RemoteItem, RemoteLibrary, read_items, read_library
from support.libraries import NOW, content, library

if TYPE_CHECKING:
    from clr_client.vcsp.model import PublishedLibrary

TWO = {"x": b"1", "y": b"2"}


def read(published: PublishedLibrary) -> tuple[RemoteLibrary, tuple[RemoteItem, ...]]:
    texts = manifests(published)
    findings = Findings()
    remote = read_library(texts.lib, findings)
    assert remote is not None
    return remote, read_items(texts.items, remote, findings)


def known(published: PublishedLibrary) -> Known:
    remote, items = read(published)
    return Known(
        remote.id,
        remote.version,
        {item.id: KnownItem(item.version, item.raw, {file.name: file for file in item.files}) for item in items},
    )


def test_everything_is_new_at_first() -> None:
    published = library(content("a", TWO), content("b"))
    remote, items = read(published)
    assert newer(None, remote)
    plan = steps(None, items)
    assert [(step.item.name, len(step.load), step.is_new) for step in plan.take] == [("a", 2, True), ("b", 1, True)]


def test_the_same_version_is_nothing_to_follow() -> None:
    published = library(content("a"))
    assert not newer(known(published), read(published)[0])


def test_only_changed_files_of_changed_items_are_loaded() -> None:
    first = library(content("a", TWO), content("b"), content("c"))
    second = library(content("a", {"x": b"1", "y": b"new", "z": b""}), content("b"), previous=first)
    remote, items = read(second)
    assert newer(known(first), remote)
    plan = steps(known(first), items)
    assert [(step.item.name, [file.name for file in step.load]) for step in plan.take] == [("a", ["y", "z"])]
    assert plan.remove == (first.items[2].id,)


def test_a_new_name_loads_nothing() -> None:
    first = library(content("a", TWO))
    second = library(content("a", TWO, name="new"), previous=first, href_style="plain")
    plan = steps(known(first), read(second)[1])
    assert [(step.item.name, step.load) for step in plan.take] == [("new", ())]


def test_versions_that_go_back_are_an_error() -> None:
    first = library(content("a"))
    second = library(content("a", description="d"), previous=first)
    with pytest.raises(SubscriberError, match="library's version went back from 2 to 1"):
        newer(known(second), read(first)[0])
    with pytest.raises(SubscriberError, match="'a' went back from 2 to 1"):
        steps(known(second), read(first)[1])


def test_another_library_behind_the_url_is_an_error() -> None:
    with pytest.raises(SubscriberError, match="no longer"):
        newer(known(library(content("a"))), read(library(content("a")))[0])


def test_a_change_without_a_version_is_an_error() -> None:
    first = library(content("a"))
    silent = dataclasses.replace(first, items=(dataclasses.replace(first.items[0], description="d"),))
    with pytest.raises(SubscriberError, match="still 1"):
        steps(known(first), read(silent)[1])


def test_a_change_without_a_generation_is_an_error() -> None:
    first = library(content("a", {"x": b"1"}))
    second = library(content("a", {"x": b"22"}), previous=first)
    item = second.items[0]
    for generation, message in ((first.items[0].files[0].generation_num, "still"), (1, "went back")):
        stuck = dataclasses.replace(item, files=(dataclasses.replace(item.files[0], generation_num=generation),))
        with pytest.raises(SubscriberError, match=message):
            steps(known(first), read(dataclasses.replace(second, items=(stuck,)))[1])


def test_a_removed_item_may_come_back_with_a_greater_version_only() -> None:
    published = library(content("a"))
    items = read(published)[1]
    assert steps(Known("x", 1, {}, {items[0].id: 0}), items).take
    with pytest.raises(SubscriberError, match="removed at version 1"):
        steps(Known("x", 1, {}, {items[0].id: 1}), items)


def hashed(item: RemoteItem, etag: str, version: int) -> RemoteItem:
    """The item as the original Content Library Rsync describes it."""
    files = tuple(dataclasses.replace(file, etag=etag, generation=None) for file in item.files)
    return dataclasses.replace(item, files=files, version=version, raw={**item.raw, "version": str(version)})


def test_an_update_with_hexadecimal_etags_fails_as_in_vcenter() -> None:  # original-defects row 2
    remote, (item,) = read(library(content("a")))
    first = hashed(item, "9e107d9d372bb6826bd81d3542a419d6", 2)
    assert steps(None, [first]).take[0].load == first.files  # the first sync works, so nobody notices
    before = Known(remote.id, 1, {item.id: KnownItem(2, first.raw, {file.name: file for file in first.files})})
    with pytest.raises(SubscriberError, match="is not a number"):
        steps(before, [hashed(item, "e4d909c290d0fb1ca068ffaddf22cbd0", 3)])


def test_an_update_of_a_changed_template_works() -> None:  # original-defects row 2
    first = library(content("a", TWO))
    second = library(content("a", {"x": b"1", "y": b"new"}), previous=first, now=NOW)
    assert [file.name for file in steps(known(first), read(second)[1]).take[0].load] == ["y"]


def test_decimal_etags_stand_in_for_generations() -> None:
    remote, (item,) = read(library(content("a")))
    first = hashed(item, "100", 2)
    before = Known(remote.id, 1, {item.id: KnownItem(2, first.raw, {file.name: file for file in first.files})})
    assert steps(before, [hashed(item, "101", 3)]).take[0].load != ()
    assert steps(before, [hashed(item, "100", 3)]).take[0].load == ()
