"""What is kept for the next run, and what can be learnt from manifests when it was lost."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from clr_client.errors import ManifestError
from clr_client.vcsp.manifests import manifests
from clr_client.vcsp.model import ADOPTED
from clr_client.vcsp.record import adopt, dump, load
from support.libraries import NOW, SECONDS, by_key, content, ids, library, parsed

LIBRARY_ID = "urn:uuid:1e0ba3a8-7a1f-4a2c-9d4e-000000000001"
ITEM_ID = "urn:uuid:1e0ba3a8-7a1f-4a2c-9d4e-000000000002"
OVF = {"debian.ovf": b"<Envelope/>", "disk 1.vmdk": b"disk"}


@pytest.fixture
def record() -> dict[str, Any]:
    return parsed(dump(library(content("a", OVF, kind="vcsp.ovf"), content("x.iso", {"x.iso": b"1"}))))


def test_a_record_in_which_any_bit_rotted_is_refused_or_says_what_it_said() -> None:
    published = library(content("a", OVF, kind="vcsp.ovf"), content("x.iso", {"x.iso": b"1"}))
    good = dump(published)
    refused = 0
    for position in range(len(good)):
        rotten = bytearray(good)
        rotten[position] ^= 1 << position % 8
        try:
            assert load(bytes(rotten)) == published
        except ManifestError:
            refused += 1
    assert refused > len(good) * 0.9


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize("style", ["tree", "plain"])
def test_what_was_dumped_is_loaded_as_it_was(style: str) -> None:
    published = library(
        content("linux/ü b", OVF, kind="vcsp.ovf", vapp=True, description="d\n\u2028"),
        content("x.iso", {"x.iso": b""}),
        href_style=style,
    )
    assert load(dump(published)) == published
    assert dump(load(dump(published))) == dump(published)


def test_a_record_of_the_future_is_refused_by_its_format(record: dict[str, Any]) -> None:
    record["format"] = 2
    with pytest.raises(ManifestError, match="newer release"):
        load(encoded(record))


def test_long_garbage_is_shown_cut(record: dict[str, Any]) -> None:
    record["id"] = "x" * 1000
    with pytest.raises(ManifestError) as caught:
        load(encoded(record))
    assert "'xxx" in caught.value.message
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}'])
def test_garbage_is_no_record(data: bytes) -> None:
    with pytest.raises(ManifestError):
        load(data)


def test_every_truncation_of_a_record_is_refused(record: dict[str, Any]) -> None:
    data = encoded(record)
    for end in range(len(data) - 1):
        with pytest.raises(ManifestError):
            load(data[:end])


BAD_TEXT = [None, 1, [], "\ud800"]
BAD_NUMBER = [None, "1", 1.0, True, -1, 2**63]
BAD_ID = [None, "", "urn:uuid:../../../etc", ITEM_ID + "/..", ITEM_ID[9:], ITEM_ID + "\n"]
BAD_PATH = [None, "\ud800", "", "/a", "../a", "a/../b", "a//b", "a\0"]
BAD_LIBRARY = {
    "format": [*BAD_NUMBER, 0],
    "id": BAD_ID,
    "name": BAD_TEXT,
    "version": [*BAD_NUMBER, 0],
    "created": [None, 1, "yesterday", "2026-11-21T19:54", "2026-11-21T19:54Z "],
    "href_style": [None, 1, "fancy", []],
    "items": [None, {}, [1]],
}
BAD_ITEM = {
    "key": BAD_PATH,
    "key_is_file": [None, 1, "true"],
    "id": BAD_ID,
    "name": BAD_TEXT,
    "description": BAD_TEXT,
    "type": [None, "vcsp.vmtx", 1, []],
    "is_vapp_template": [None, 0, "false"],
    "version": [*BAD_NUMBER, 0],
    "content_version": [*BAD_NUMBER, 0],
    "created": [None, "now"],
    "etag": [*BAD_NUMBER, 0, 5],
    "files": [None, {}, ["x"]],
}
BAD_FILE = {
    "name": [*BAD_PATH, "a/b"],
    "size": BAD_NUMBER,
    "digest": BAD_TEXT,
    "generation_num": [*BAD_NUMBER, 0],
}
CASES = [
    (depth, name, value)
    for depth, table in enumerate((BAD_LIBRARY, BAD_ITEM, BAD_FILE))
    for name, values in table.items()
    for value in values
]


@pytest.mark.parametrize(("depth", "name", "value"), CASES)
def test_every_field_of_a_record_is_checked(record: dict[str, Any], depth: int, name: str, value: object) -> None:
    places = [record, record["items"][1], record["items"][1]["files"][0]]
    places[depth][name] = value
    with pytest.raises(ManifestError, match=name):
        load(encoded(record))


@pytest.mark.parametrize("field", ["key", "id", "name"])
def test_a_record_with_twins_is_refused(record: dict[str, Any], field: str) -> None:
    value = record["items"][0][field]
    record["items"][1][field] = value if field == "key" else value.upper().replace("URN:UUID", "urn:uuid")
    with pytest.raises(ManifestError, match=f"two items of the {field}"):
        load(encoded(record))


def test_a_record_with_twin_files_is_refused(record: dict[str, Any]) -> None:
    record["items"][0]["files"].append(record["items"][0]["files"][0])
    with pytest.raises(ManifestError, match="two files"):
        load(encoded(record))


# Adoption


def original(**changes: object) -> dict[str, Any]:
    """An item as the original Content Library Rsync writes it."""
    return {
        "created": "2023-02-21T15:46Z",
        "description": "",
        "version": "7",
        "files": [
            {
                "name": name,
                "size": 5,
                "etag": "9e107d9d372bb6826bd81d3542a419d6",
                "hrefs": [f"debian%20golden/{name.replace(' ', '%20')}"],
            }
            for name in ("debian.ovf", "disk 1.vmdk")
        ],
        "id": ITEM_ID,
        "name": "debian golden",
        "metadata": [
            {
                "key": "type-metadata",
                "value": f"{{'id':'{ITEM_ID}','version':'7','libraryIdParent':'x','isVappTemplate':'false'}}",
                "type": "String",
                "domain": "SYSTEM",
                "visibility": "READONLY",
            }
        ],
        "properties": {},
        "selfHref": "debian%20golden/item.json",
        "type": "vcsp.ovf",
        **changes,
    }


def original_library(**changes: object) -> bytes:
    return encoded(
        {
            "vcspVersion": "2",
            "version": "12",
            "contentVersion": "1",
            "name": "Old",
            "id": LIBRARY_ID,
            "created": "2023-02-20T10:00Z",
            "capabilities": {"transferIn": ["httpGet"], "transferOut": ["httpGet"]},
            "itemsHref": "items.json",
            **changes,
        }
    )


def original_items(*items: object) -> bytes:
    return json.dumps({"items": list(items)}, indent=2).encode()


def test_the_originals_ids_and_versions_go_on() -> None:
    adopted = adopt(original_library(), original_items(original()))
    item = adopted.items[0]
    assert (adopted.id, adopted.name, adopted.version, adopted.created) == (LIBRARY_ID, "Old", 12, "2023-02-20T10:00Z")
    assert (item.key, item.id, item.version, item.created) == ("debian golden", ITEM_ID, 7, "2023-02-21T15:46Z")
    assert [(file.name, file.size, file.digest) for file in item.files] == [
        ("debian.ovf", 5, ""),
        ("disk 1.vmdk", 5, ""),
    ]
    published = library(content("debian golden", OVF, kind="vcsp.ovf"), previous=adopted, name="Old")
    item = published.items[0]
    assert (published.id, published.version, published.created) == (LIBRARY_ID, 13, "2023-02-20T10:00Z")
    assert (item.id, item.version, item.created, item.etag) == (ITEM_ID, 8, "2023-02-21T15:46Z", SECONDS)


def test_numbers_are_read_in_every_form_that_producers_use() -> None:
    entry = original(
        version=7,
        contentVersion="3",
        files=[
            {"name": "a", "size": "5", "etag": "1700000000", "generationNum": 1800000000, "hrefs": ["d/a"]},
            {"name": "b", "size": 6, "etag": "1700000000", "generationNum": "1700000000", "hrefs": ["d/b"]},
            {"name": "c", "size": None, "etag": "12345678901234567890123456789012", "hrefs": ["d/c"]},
        ],
    )
    adopted = adopt(original_library(version=12), original_items(entry))
    item = adopted.items[0]
    assert (adopted.version, item.version, item.content_version, item.etag) == (12, 7, 3, 1800000000)
    assert [(file.size, file.generation_num) for file in item.files] == [(5, 1800000000), (6, 1700000000), (0, 1)]
    assert library(content("debian golden", {"a": b"1"}), previous=adopted).items[0].etag == 1800000001


@pytest.mark.parametrize("version", [None, "x", "-1", "0", 0, -5, [], "٣", "1e3", 2**63, "9" * 30])
def test_a_version_that_is_none_counts_as_the_first(version: object) -> None:
    adopted = adopt(original_library(version=version), original_items(original(version=version)))
    assert (adopted.version, adopted.items[0].version) == (1, 1)


def test_ids_without_prefix_or_with_two_are_understood() -> None:
    bare = ITEM_ID.removeprefix("urn:uuid:")
    for told in (bare, f"urn:uuid:{bare}", f"urn:uuid:urn:uuid:{bare}"):
        adopted = adopt(original_library(id=told), original_items(original(id=told)))
        assert (adopted.id, adopted.items[0].id) == (ITEM_ID, ITEM_ID)


def test_an_item_without_a_usable_id_is_left_out() -> None:
    entries = [original(id=told) for told in (None, 5, "urn:uuid:../../x", "x")]
    entries += [original(name=None), "text", None]  # type: ignore[list-item]
    assert adopt(original_library(), original_items(*entries)).items == ()


def test_an_iso_that_the_script_keyed_by_its_folder_keeps_its_id() -> None:
    entry = original(
        name="netinst",
        type="vcsp.iso",
        selfHref="isos/item.json",
        files=[{"name": "netinst.iso", "size": 1, "etag": "", "hrefs": ["isos/netinst.iso"]}],
    )
    adopted = adopt(original_library(), original_items(entry))
    published = library(content("isos/netinst.iso", {"netinst.iso": b"1"}, name="iso"), previous=adopted)
    assert published.items[0].id == ITEM_ID
    assert published.items[0].key == "isos/netinst.iso"


def test_an_id_is_given_to_one_item_only() -> None:
    entry = original(
        name="netinst",
        selfHref="isos/item.json",
        files=[{"name": "netinst.iso", "size": 1, "hrefs": ["isos/netinst.iso"]}],
    )
    adopted = adopt(original_library(), original_items(entry))
    iso = content("isos/netinst.iso", {"netinst.iso": b"1"}, name="iso")
    published = library(iso, content("zzz", name="netinst"), previous=adopted)
    assert ids(published)["isos/netinst.iso"] == ITEM_ID
    assert ids(published)["zzz"] != ITEM_ID
    published = library(content("isos", name="iso"), content("zzz", name="netinst"), previous=adopted)
    assert ids(published)["isos"] == ITEM_ID
    assert ids(published)["zzz"] != ITEM_ID


def test_a_key_says_more_than_a_name() -> None:
    other = original(id=f"{ITEM_ID[:-1]}3", name="Debian", selfHref="old/item.json")
    adopted = adopt(original_library(), original_items(original(), other))
    published = library(content("debian golden", name="Debian"), previous=adopted)
    assert ids(published) == {"debian golden": ITEM_ID}


def test_an_iso_that_make_vcsp_gave_a_folder_of_its_own_keeps_its_id() -> None:
    entry = original(
        name="netinst",
        selfHref="isos/netinst/item.json",
        files=[{"name": "netinst.iso", "size": 1, "etag": "", "hrefs": ["isos/netinst.iso"]}],
    )
    item = adopt(original_library(), original_items(entry)).items[0]
    assert (item.key, item.key_is_file) == ("isos/netinst.iso", True)


@pytest.mark.parametrize("style", ["tree", "plain"])
def test_our_own_manifests_are_enough_when_the_record_is_lost(style: str) -> None:
    contents = [
        content("linux/debian", OVF, name="Debian", kind="vcsp.ovf", vapp=True),
        content("iso/x y.iso", {"x y.iso": b"1"}, name="X", kind="vcsp.iso"),
        content("top.txt", {"top.txt": b"1"}, name="Top"),
        content("a.ova", {"a.ovf": b"1", "b": b"2"}, name="Appliance", kind="vcsp.ovf"),
    ]
    first = library(*contents, href_style=style)
    texts = manifests(first)
    adopted = adopt(texts.lib, texts.items)
    if style == "plain":
        assert ids(adopted).items() >= {key: each for key, each in ids(first).items() if key != "a.ova"}.items()
    second = library(*contents, previous=adopted, href_style=style)
    assert ids(second) == ids(first)
    assert second.version == 2
    assert all(item.version == 2 and item.etag == SECONDS + 1 for item in second.items)
    assert by_key(second, "linux/debian").is_vapp_template
    assert library(*contents, previous=second, href_style=style) is second


def test_no_item_grows_twice_for_one_name() -> None:
    first = library(content("a", name="n"), content("b", name="m"))
    texts = manifests(first)
    adopted = adopt(texts.lib, texts.items)
    second = library(content("a", name="m"), content("b", name="n"), previous=adopted)
    assert sorted(ids(second).values()) == sorted(ids(first).values())


def test_a_truncated_items_json_gives_what_is_left_of_it() -> None:  # original-defects row 17
    entries = [original(id=f"{ITEM_ID[:-1]}{n}", name=f"n{n}", selfHref=f"n{n}/item.json") for n in range(3)]
    data = original_items(*entries)
    seen = set()
    for end in range(0, len(data), 7):
        adopted = adopt(original_library(), data[:end])
        assert (adopted.id, adopted.version) == (LIBRARY_ID, 12)
        assert [item.key for item in adopted.items] == [f"n{n}" for n in range(len(adopted.items))]
        seen.add(len(adopted.items))
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("items", [None, b"", b"garbage", b"[]", b'{"items": {}}', b'{"items": [', b"[" * 100_000])
def test_items_that_are_lost_leave_the_librarys_identity(items: bytes | None) -> None:  # original-defects row 17
    adopted = adopt(original_library(), items)
    assert (adopted.id, adopted.version, adopted.items) == (LIBRARY_ID, 12, ())
    assert library(content("a"), previous=adopted, name="Old").version == 13
    assert library(previous=adopted, name="Old").version == 13


def test_items_that_are_lost_are_found_in_their_own_item_json() -> None:
    own = [encoded(original(version="6")), b"garbage", encoded(original()), encoded(original(version="5"))]
    item = adopt(original_library(), original_items(original())[:100], own).items[0]
    assert (item.id, item.version) == (ITEM_ID, 7)
    assert adopt(original_library(), original_items(), own).items == ()


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff", original_library(id="x"), original_library()[:-20]]
)
def test_a_broken_lib_json_is_refused_with_a_reason(data: bytes) -> None:  # original-defects row 17
    with pytest.raises(ManifestError, match=r"lib\.json"):
        adopt(data, original_items(original()))


def test_the_originals_overlong_names_are_cut_and_stay_apart() -> None:  # original-defects row 13
    first = original(name="n" * 170)
    second = original(id=f"{ITEM_ID[:-1]}3", name="n" * 169 + "m", selfHref="other/item.json")
    names = [item.name for item in adopt(original_library(), original_items(first, second)).items]
    assert all(len(name) <= 80 for name in names)
    assert len({name.casefold() for name in names}) == 2


def test_items_of_one_name_and_key_stay_apart() -> None:
    adopted = adopt(original_library(), original_items(original(), original(id=f"{ITEM_ID[:-1]}3")))
    assert len({item.key for item in adopted.items}) == len({item.name for item in adopted.items}) == 2
    assert load(dump(adopted)) == adopted
    assert adopted.href_style == ADOPTED


ADOPTIONS: list[tuple[dict[str, object], dict[str, object]]] = [
    ({"type": "vcsp.iso"}, {"type": "vcsp.iso"}),
    ({"type": "vcsp.vmtx"}, {"type": "vcsp.other"}),
    ({"type": ["vcsp.iso"]}, {"type": "vcsp.other"}),
    ({"description": "text"}, {"description": "text"}),
    ({"description": None}, {"description": ""}),
    ({"description": "\ud800"}, {"description": ""}),
    ({}, {"is_vapp_template": False}),
    ({"metadata": [{"value": "{'isVappTemplate':'true'}"}]}, {"is_vapp_template": True}),
    ({"metadata": [{"value": '{"isVappTemplate": "true"}'}]}, {"is_vapp_template": True}),
    ({"metadata": None}, {"is_vapp_template": False}),
    ({"name": "n" * 80}, {"name": "n" * 80}),
    ({"selfHref": "a/b%2520/item.json"}, {"key": "a/b%20", "key_is_file": False}),
    ({"selfHref": None}, {"key": "debian golden", "key_is_file": False}),
    ({"selfHref": 5, "files": [{"name": "f", "hrefs": ["d/f"]}]}, {"key": "d/f", "key_is_file": True}),
    ({"selfHref": "d/item.json", "files": [{"name": "f", "hrefs": ["d/f"]}]}, {"key": "d", "key_is_file": False}),
    ({"selfHref": "d/item.json", "files": [{"name": "f", "hrefs": ["../f"]}]}, {"key": "d"}),
    ({"selfHref": "item.json", "files": None}, {"key": "debian golden", "files": ()}),
    ({"selfHref": "item.json", "name": "../n", "files": None}, {"key": "_items/2e2e2f6e"}),
    ({"selfHref": "d/item.json", "files": [{"name": n} for n in ("a/b", "..", "", 5, "\ud800", None)]}, {"files": ()}),
]


@pytest.mark.parametrize(("told", "kept"), ADOPTIONS)
def test_what_a_foreign_item_tells_is_adopted(told: dict[str, object], kept: dict[str, object]) -> None:
    item = adopt(original_library(), original_items(original(**told))).items[0]
    assert {name: getattr(item, name) for name in kept} == kept


@pytest.mark.parametrize("name", [None, 5, "", "\ud800", []])
def test_an_item_without_a_usable_name_is_left_out_and_a_library_gets_the_callers(name: object) -> None:
    assert adopt(original_library(), original_items(original(name=name))).items == ()
    assert adopt(original_library(name=name), None).name == ""


def test_hostile_places_never_become_keys() -> None:
    for place in ("../../etc", "/etc", "..", "%2e%2e/x", "a//b", "%00", ""):
        entry = original(
            name="../name",
            selfHref=f"{place}/item.json",
            files=[{"name": "f", "size": 1, "hrefs": [f"{place}/f"]}, {"name": "../g", "hrefs": []}, {"name": 5}, 7],
        )
        adopted = adopt(original_library(), original_items(entry))
        assert load(dump(adopted)) == adopted
        assert [file.name for file in adopted.items[0].files] == ["f"]


def test_adopted_moments_keep_our_form() -> None:
    for told, kept in [
        ("2023-02-20T10:00Z", "2023-02-20T10:00Z"),
        ("2023-02-20T10:00:59Z", "2023-02-20T10:00Z"),
        ("2023-02-20T10:00:59.123Z", "2023-02-20T10:00Z"),
        ("yesterday", "1970-01-01T00:00Z"),
        (None, "1970-01-01T00:00Z"),
    ]:
        assert adopt(original_library(created=told), None).created == kept


def test_a_kept_item_of_an_adopted_library_is_dumped_and_loaded() -> None:
    adopted = adopt(original_library(), original_items(original()))
    assert load(dump(adopted)) == adopted
    assert dataclasses.replace(adopted, href_style="tree") != adopted
    assert library(content("a"), previous=load(dump(adopted)), now=NOW).version == 13
