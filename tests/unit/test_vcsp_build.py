"""Ids and versions from one library to the next."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from clr_client.errors import ManifestError
from clr_client.vcsp.model import FileContent, as_content, is_id
from clr_client.vcsp.record import adopt, dump, load
from support.libraries import NOW, SECONDS, by_key, content, ids, library, shuffled

LATER = NOW + timedelta(hours=5)
LATER_SECONDS = SECONDS + 5 * 3600


def test_a_first_library_starts_at_version_one_with_fresh_ids() -> None:
    first, second = library(content("a"), content("b")), library(content("a"), content("b"))
    assert first.version == 1
    assert [(item.version, item.content_version) for item in first.items] == [(1, 1), (1, 1)]
    assert all(is_id(each) for each in [first.id, *ids(first).values()])
    assert len({first.id, second.id, *ids(first).values(), *ids(second).values()}) == 6


def test_an_unchanged_library_is_returned_as_it_was() -> None:
    contents = [content("a", {"x": b"1", "y": b"2"}), content("b")]
    first = library(*contents)
    for _ in range(100):
        assert library(*contents, previous=first, now=LATER) is first


def test_the_order_of_items_and_files_does_not_matter() -> None:  # original-defects row 16
    contents = [content("b", {"y": b"1", "x": b"2"}), content("a"), content("C")]
    first = library(*contents)
    assert [item.name for item in first.items] == ["a", "b", "C"]
    assert [file.name for file in first.items[1].files] == ["x", "y"]
    assert library(*shuffled(contents), previous=first, now=LATER) is first
    assert load(dump(first)) == first
    numbers = iter(range(100))
    fixed = {
        "new_id": lambda: f"urn:uuid:00000000-0000-4000-8000-{next(numbers):012}",
    }
    one = library(*contents, **fixed)
    numbers = iter(range(100))
    assert library(*shuffled(contents), **fixed) == one


def test_a_changed_file_moves_its_generation_and_the_items_etag_only() -> None:
    first = library(content("a", {"x": b"1", "y": b"2"}), content("b"))
    second = library(content("a", {"x": b"1", "y": b"changed"}), content("b"), previous=first, now=LATER)
    item = by_key(second, "a")
    assert (second.version, item.version, item.content_version) == (2, 2, 2)
    assert item.etag == LATER_SECONDS
    assert {file.name: file.generation_num for file in item.files} == {"x": SECONDS, "y": LATER_SECONDS}
    assert by_key(second, "b") == by_key(first, "b")
    assert (second.id, second.created, ids(second)) == (first.id, first.created, ids(first))


def test_a_change_of_the_same_size_is_a_change() -> None:
    first = library(content("a", {"x": b"1"}))
    assert by_key(library(content("a", {"x": b"2"}), previous=first), "a").version == 2


def test_all_generations_move_when_that_is_wanted() -> None:
    first = library(content("a", {"x": b"1", "y": b"2"}))
    changed = content("a", {"x": b"1", "y": b"changed"})
    second = library(changed, previous=first, now=LATER, per_item_generations=True)
    assert {file.generation_num for file in second.items[0].files} == {LATER_SECONDS}
    assert library(changed, previous=second, per_item_generations=False) is second


@pytest.mark.parametrize("now", [NOW, NOW - timedelta(days=365), datetime(1969, 1, 1, tzinfo=NOW.tzinfo)])
def test_etags_and_generations_grow_although_the_clock_stands_still_or_steps_back(now: datetime) -> None:
    published = library(content("a", {"x": b"0"}))
    for turn in range(1, 4):
        published = library(content("a", {"x": b"%d" % turn}), previous=published, now=now)
        item = published.items[0]
        assert item.etag == item.files[0].generation_num == SECONDS + turn


def test_a_first_library_before_1970_still_has_positive_generations() -> None:
    assert library(content("a"), now=datetime(1969, 1, 1, tzinfo=NOW.tzinfo)).items[0].etag == 1


def test_an_added_or_removed_file_is_a_change_of_the_content() -> None:
    first = library(content("a", {"x": b"1"}))
    second = library(content("a", {"x": b"1", "y": b"2"}), previous=first, now=LATER)
    third = library(content("a", {"x": b"1"}), previous=second, now=LATER)
    assert [each.items[0].content_version for each in (first, second, third)] == [1, 2, 3]
    assert third.items[0].files == first.items[0].files
    assert third.items[0].etag == LATER_SECONDS + 1


def test_a_file_that_comes_back_has_a_greater_generation_than_it_ever_had() -> None:
    both = {"x": b"1", "y": b"2"}
    first = library(content("a", both))
    second = library(content("a", {"x": b"1"}), previous=first)
    third = library(content("a", both), previous=second)
    before = {file.name: file.generation_num for file in first.items[0].files}
    after = {file.name: file.generation_num for file in third.items[0].files}
    assert after["y"] > before["y"]
    assert after["x"] == before["x"]


@pytest.mark.parametrize("options", [{"kind": "vcsp.iso"}, {"kind": "vcsp.ovf"}, {"vapp": True}])
def test_another_type_or_kind_of_template_is_a_change_of_the_content(options: dict[str, object]) -> None:
    first = library(content("a"))
    item = library(content("a", **options), previous=first, now=LATER).items[0]  # type: ignore[arg-type]
    assert (item.version, item.content_version, item.etag) == (2, 2, LATER_SECONDS)


@pytest.mark.parametrize("options", [{"name": "Other"}, {"description": "Other"}])
def test_another_name_or_description_moves_the_version_alone(options: dict[str, str]) -> None:
    first = library(content("a"))
    second = library(content("a", **options), previous=first, now=LATER)  # type: ignore[arg-type]
    old, new = first.items[0], second.items[0]
    assert (second.version, new.version, new.id) == (2, 2, old.id)
    assert (new.content_version, new.etag, new.files) == (old.content_version, old.etag, old.files)


def test_another_library_name_moves_the_librarys_version_alone() -> None:  # original-defects row 18
    first = library(content("a"))
    second = library(content("a"), previous=first, name="Golden")
    assert (second.name, second.version, second.items, second.id) == ("Golden", 2, first.items, first.id)


def test_another_style_of_hrefs_moves_every_version() -> None:
    first = library(content("a"), content("b"))
    second = library(content("a"), content("b"), previous=first, href_style="plain")
    assert (second.version, second.href_style, [item.version for item in second.items]) == (2, "plain", [2, 2])
    assert [item.content_version for item in second.items] == [1, 1]


def test_another_style_of_hrefs_changes_nothing_where_there_are_none() -> None:
    first = library()
    second = library(previous=first, href_style="plain")
    assert (second.version, second.href_style) == (1, "plain")
    assert library(previous=second, href_style="plain") is second


def test_removed_items_are_gone_and_never_lend_their_id_to_others() -> None:
    first = library(content("a"), content("b"))
    second = library(content("a"), previous=first)
    third = library(content("a"), content("b"), previous=second)
    assert (second.version, third.version) == (2, 3)
    assert by_key(third, "b").id not in ids(first).values()
    assert by_key(third, "b").version == 1


def test_a_renamed_folder_is_another_item() -> None:
    first = library(content("old", name="Debian"))
    second = library(content("new", name="Debian"), previous=first)
    assert ids(second)["new"] != ids(first)["old"]
    assert len(second.items) == 1


def test_an_item_keeps_its_id_when_another_takes_its_name() -> None:
    first = library(content("a", name="Debian"))
    second = library(content("a", name="Debian old"), content("b", name="Debian"), previous=first)
    assert ids(second)["a"] == ids(first)["a"]


def test_a_file_of_unknown_digest_counts_as_changed() -> None:
    first = library(content("a", {"x": b"1"}))
    lost = dataclasses.replace(
        first,
        items=tuple(
            dataclasses.replace(item, files=tuple(dataclasses.replace(file, digest="") for file in item.files))
            for item in first.items
        ),
    )
    item = library(content("a", {"x": b"1"}), previous=lost).items[0]
    assert (item.version, item.content_version, item.files[0].generation_num) == (2, 2, SECONDS + 1)


def test_another_size_is_a_change_although_the_digest_is_unknown() -> None:
    from dataclasses import replace

    kept = replace(content("a"), files=(FileContent("x", 1, ""),))
    first = library(kept)
    assert library(kept, previous=first) is first
    assert library(replace(kept, files=(FileContent("x", 2, ""),)), previous=first).items[0].content_version == 2


def test_an_item_kept_as_published_does_not_grow_although_its_digests_are_unknown() -> None:
    from clr_client.vcsp.manifests import manifests

    first = library(content("a"))
    texts = manifests(first)
    adopted = adopt(texts.lib, texts.items)
    kept = [as_content(item) for item in adopted.items]
    second = library(*kept, previous=adopted)
    assert second.items[0].version == 2  # once, for it may have been written in another way
    assert library(*kept, previous=second) is second


def test_time_is_published_as_utc_whatever_the_zone() -> None:  # original-defects row 22
    tokyo = NOW.astimezone(ZoneInfo("Asia/Tokyo"))
    west = NOW.astimezone(timezone(timedelta(hours=-8)))
    for now in (tokyo, west):
        published = library(content("a"), now=now)
        assert published.created == published.items[0].created == "2026-11-21T19:54Z"
        assert published.items[0].etag == SECONDS


def test_a_time_without_zone_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="zone"):
        library(content("a"), now=datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(ValueError, match="style"):
        library(content("a"), href_style="fancy")


def test_a_name_of_eighty_characters_is_allowed_and_one_more_is_not() -> None:  # original-defects row 13
    assert library(content("a", name="n" * 80)).items[0].name == "n" * 80
    with pytest.raises(ManifestError, match="81 characters"):
        library(content("a", name="n" * 81))
    with pytest.raises(ManifestError, match="0 characters"):
        library(content("a", name=""))


@pytest.mark.parametrize("other", ["debian", "DEBIAN", "Debian"])
def test_two_items_of_one_name_are_refused_whatever_the_case(other: str) -> None:
    with pytest.raises(ManifestError, match="same name"):
        library(content("a", name="Debian"), content("b", name=other))


def test_names_that_differ_in_composition_only_are_one_name() -> None:
    with pytest.raises(ManifestError, match="same name"):
        library(content("a", name="M\u00fcnchen"), content("b", name="mu\u0308nchen"))


def test_two_items_at_one_place_are_refused() -> None:
    with pytest.raises(ManifestError, match="Two items lie at"):
        library(content("a", name="one"), content("a", name="two"))


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", ".", "a\0"])
def test_items_outside_the_library_are_refused(key: str) -> None:
    with pytest.raises(ManifestError, match="cannot lie at"):
        library(content(key, name="n"))


@pytest.mark.parametrize("name", ["", "a/b", "..", "a\0"])
def test_files_outside_their_item_are_refused(name: str) -> None:
    with pytest.raises(ManifestError, match="impossible name"):
        library(content("a", {name: b""}))


def test_what_vsphere_cannot_know_is_refused() -> None:
    with pytest.raises(ManifestError, match="unknown type"):
        library(content("a", kind="vcsp.vmtx"))
    with pytest.raises(ManifestError, match="no name"):
        library(content("a"), name="")
    with pytest.raises(ManifestError, match="not UTF-8"):
        library(content("a", {"\udcff": b""}))
    with pytest.raises(ManifestError, match="two files"):
        library(dataclasses.replace(content("a"), files=(FileContent("x", 1, "1"), FileContent("x", 2, "2"))))
    with pytest.raises(ManifestError, match="negative"):
        library(dataclasses.replace(content("a"), files=(FileContent("x", -1, "1"),)))


def test_a_long_description_is_cut_and_stays_the_same_afterwards() -> None:
    long = content("a", description="d" * 3000)
    first = library(long)
    assert first.items[0].description == "d" * 2000
    assert library(long, previous=first) is first


def test_a_key_that_reads_as_the_only_file_is_taken_for_it_unless_told() -> None:
    published = library(
        content("iso/x.iso", {"x.iso": b"1"}),
        content("tool.zip", {"tool.zip": b"1"}, key_is_file=False),
        content("folder", {"x.iso": b"1"}),
        content("appliance.ova", {"appliance.ovf": b"1", "disk.vmdk": b"2"}),
        content("two.iso", {"two.iso": b"1", "one.iso": b"2"}),
        content("dir.ova", {"readme": b"1", "disk.vmdk": b"2"}),
    )
    told = {item.key: item.key_is_file for item in published.items}
    assert [key for key, is_file in sorted(told.items()) if is_file] == ["appliance.ova", "iso/x.iso"]
