"""Each rule of the protocol: what breaks it is found, what keeps it is not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from clr_client.vcsp.manifests import manifests
from clr_client.vcsp.rules import Findings, RemoteLibrary, check_envelope, read_items, read_library, shown
from support.libraries import content, library, parsed

if TYPE_CHECKING:
    from collections.abc import Callable

OVF = {"debian.ovf": b"<Envelope/>", "disk.vmdk": b"disk"}
Edit = "Callable[[dict[str, Any]], object]"


def sources() -> tuple[dict[str, Any], dict[str, Any]]:
    texts = manifests(library(content("a", OVF, kind="vcsp.ovf"), content("b.iso", {"b.iso": b"1"}, kind="vcsp.iso")))
    return parsed(texts.lib), parsed(texts.items)


def found(lib: dict[str, Any], items: dict[str, Any]) -> list[str]:
    findings = Findings()
    read = read_library(json.dumps(lib).encode(), findings)
    if read is not None:
        read_items(json.dumps(items).encode(), read, findings)
    return [str(problem) for problem in findings.problems]


def test_our_own_manifests_have_no_problems() -> None:
    assert found(*sources()) == []


def remove(*path: str | int) -> Callable[[dict[str, Any]], object]:
    def edit(value: Any) -> None:
        for step in path[:-1]:
            value = value[step]
        del value[path[-1]]

    return edit


def put(value: object, *path: str | int) -> Callable[[dict[str, Any]], object]:
    def edit(target: Any) -> None:
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = value

    return edit


LIBRARY_RULES = [
    (remove("vcspVersion"), "error: lib.json: vcspVersion"),
    (put(2, "vcspVersion"), "error: lib.json: vcspVersion is '2'"),
    (remove("version"), "error: lib.json: has the version"),
    (put("0", "version"), "error: lib.json: has the version '0'"),
    (put("1.5", "version"), "error: lib.json: has the version '1.5'"),
    (put("9" * 19, "version"), "error: lib.json: has the version"),
    (put(3, "version"), "warning: lib.json: has the version 3 as a number"),
    (put(True, "version"), "error: lib.json: has the version 'true'"),
    (remove("contentVersion"), "warning: lib.json: has the contentVersion"),
    (remove("name"), "error: lib.json: has no name"),
    (put("", "name"), "error: lib.json: has no name"),
    (put(5, "name"), "error: lib.json: has no name"),
    (put(0, "version"), "error: lib.json: has the version '0'"),
    (remove("id"), "error: lib.json: has the id"),
    (put("1e0ba3a8-7a1f-4a2c-9d4e-000000000001", "id"), "error: lib.json: has the id"),
    (put("2026-02-30T00:00Z", "created"), "warning: lib.json: has the created"),
    (put("2026-02-20T00:00+09:00", "created"), "warning: lib.json: has the created"),
    (remove("capabilities"), "error: lib.json: has no capabilities.transferIn"),
    (put([], "capabilities", "transferOut"), "error: lib.json: has no capabilities.transferOut"),
    (remove("itemsHref"), "error: lib.json: has no itemsHref"),
    (put("/items.json", "itemsHref"), "error: lib.json: itemsHref '/items.json' is not relative"),
    (put("Down until noon", "maintenanceMessage"), "error: lib.json: says maintenance"),
]


@pytest.mark.parametrize(("edit", "problem"), LIBRARY_RULES, ids=[problem for _, problem in LIBRARY_RULES])
def test_each_rule_of_lib_json_is_checked(edit: Callable[[dict[str, Any]], object], problem: str) -> None:
    lib, items = sources()
    edit(lib)
    assert [each for each in found(lib, items) if each.startswith(problem)]


FIRST = ("items", 0)
FILE = ("items", 0, "files", 0)
ITEM_RULES = [
    (put({}, "items"), "error: items.json: has no list of items"),
    (put("x", *FIRST), "error: items.json, item no. 1: is not a JSON object"),
    (remove(*FIRST, "id"), "error: item 'a': has the id"),
    (remove(*FIRST, "name"), "error: items.json, item no. 1: has no name"),
    (put("", *FIRST, "name"), "error: items.json, item no. 1: has no name"),
    (put(5, *FIRST, "name"), "error: items.json, item no. 1: has no name"),
    (put("n" * 81, *FIRST, "name"), "error: item 'nnn"),
    (put("\U0001f4e6" * 80, *FIRST, "name"), "warning: item '"),
    (put("a\u0007", *FIRST, "name"), "warning: item 'a\\x07': has control characters"),
    (put("B.ISO", *FIRST, "name"), "error: item 'b.iso': has the name of another item"),
    (remove(*FIRST, "description"), "warning: item 'a': has no description"),
    (put("d" * 2001, *FIRST, "description"), "error: item 'a': has a description of more than 2000"),
    (remove(*FIRST, "version"), "error: item 'a': has the version"),
    (put("1 ", *FIRST, "version"), "error: item 'a': has the version '1 '"),
    (remove(*FIRST, "contentVersion"), "warning: item 'a': has the contentVersion"),
    (put("now", *FIRST, "created"), "warning: item 'a': has the created"),
    (put("vcsp.vmtx", *FIRST, "type"), "error: item 'a': has the unknown type 'vcsp.vmtx'"),
    (remove(*FIRST, "properties"), "warning: item 'a': has no properties"),
    (remove(*FIRST, "selfHref"), "error: item 'a': has no selfHref"),
    (put("../item.json", *FIRST, "selfHref"), "error: item 'a': selfHref '../item.json' does not stay"),
    (remove(*FIRST, "files"), "error: item 'a': has no list of files"),
    (put([], *FIRST, "files"), "warning: item 'a': has no files"),
    (put("x", *FILE), "error: item 'a': file no. 1 is not a JSON object"),
    (put("a/b", *FILE, "name"), "error: item 'a': file no. 1 has the impossible name"),
    (put("..", *FILE, "name"), "error: item 'a': file no. 1 has the impossible name"),
    (put("a\\b.ovf", *FILE, "name"), "warning: item 'a', file 'a\\b.ovf': has a backslash"),
    (put("a\x07.ovf", *FILE, "name"), "warning: item 'a', file 'a\\x07.ovf': has a backslash or control"),
    (put("disk.vmdk", *FILE, "name"), "error: item 'a', file 'disk.vmdk': is listed twice"),
    (put("11", *FILE, "size"), "error: item 'a', file 'debian.ovf': has the size"),
    (put(True, *FILE, "size"), "error: item 'a', file 'debian.ovf': has the size"),
    (put(-1, *FILE, "size"), "error: item 'a', file 'debian.ovf': has the size"),
    (put("1", *FILE, "etag"), "warning: item 'a': has files with different etags"),
    (put("5d41402abc4b2a76", *FILE, "etag"), "warning: item 'a', file 'debian.ovf': has the etag '5d41402abc4b2a76'"),
    (put(5, *FILE, "etag"), "warning: item 'a', file 'debian.ovf': has the etag '5'"),
    (remove(*FILE, "generationNum"), "warning: item 'a', file 'debian.ovf': has no generationNum"),
    (put("5", *FILE, "generationNum"), "error: item 'a', file 'debian.ovf': has the generationNum '5'"),
    (put(0, *FILE, "generationNum"), "error: item 'a', file 'debian.ovf': has the generationNum"),
    (put([], *FILE, "hrefs"), "error: item 'a', file 'debian.ovf': has no hrefs with exactly one"),
    (put(["a", "b"], *FILE, "hrefs"), "error: item 'a', file 'debian.ovf': has no hrefs with exactly one"),
    (remove(*FIRST, "metadata"), "warning: item 'a': has no type-metadata"),
    (put("{'id': 'x'}", *FIRST, "metadata", 0, "value"), "warning: item 'a': has type-metadata whose value is not"),
    (put('{"id": "x"}', *FIRST, "metadata", 0, "value"), "warning: item 'a': has type-metadata with the id 'x'"),
    (remove(*FIRST, "files", 0), "error: item 'a': is a template but has 0 .ovf files"),
    (put("disk.vmdk", "items", 1, "files", 0, "name"), "warning: item 'b.iso': is of type vcsp.iso but has no .iso"),
    (put("disk.OVA", "items", 1, "files", 0, "name"), "warning: item 'b.iso': holds an .ova"),
]


@pytest.mark.parametrize(("edit", "problem"), ITEM_RULES, ids=[problem for _, problem in ITEM_RULES])
def test_each_rule_of_items_json_is_checked(edit: Callable[[dict[str, Any]], object], problem: str) -> None:
    lib, items = sources()
    edit(items)
    assert [each for each in found(lib, items) if each.startswith(problem)]


def test_an_etag_that_ends_updates_is_an_error_without_a_generation() -> None:  # original-defects row 2
    lib, items = sources()
    for file in items["items"][0]["files"]:
        file["etag"] = "9e107d9d372bb6826bd81d3542a419d6"
        del file["generationNum"]
    told = [each for each in found(lib, items) if each.startswith("error")]
    assert len(told) == 2
    assert all("every later update" in each for each in told)


def test_two_items_of_one_id_are_found() -> None:
    lib, items = sources()
    items["items"][1]["id"] = items["items"][0]["id"].upper().replace("URN:UUID", "urn:uuid")
    assert [each for each in found(lib, items) if "of another item" in each]


def test_metadata_out_of_step_is_found() -> None:
    lib, items = sources()
    items["items"][0]["version"] = "2"
    assert found(lib, items) == ["warning: item 'a': has type-metadata with the version '1' instead of 2"]


def test_metadata_that_does_not_tell_vm_from_vapp_is_found() -> None:
    lib, items = sources()
    value = items["items"][0]["metadata"][0]
    value["value"] = value["value"].replace('"isVappTemplate": "false"', '"isVappTemplate": false')
    assert [each for each in found(lib, items) if "isVappTemplate is neither" in each]


@pytest.mark.parametrize(
    ("field", "value"), [("name", "n" * 80), ("name", "\U0001f4e6" * 40), ("description", "d" * 2000)]
)
def test_what_just_fits_is_no_problem(field: str, value: str) -> None:
    lib, items = sources()
    items["items"][0][field] = value
    assert found(lib, items) == []


def test_several_files_in_an_iso_item_are_found() -> None:
    lib, items = sources()
    items["items"][1]["files"].append({**items["items"][1]["files"][0], "name": "c.iso"})
    assert [each for each in found(lib, items) if "Cloud Director" in each]


ODD = [None, True, 5, -1, 1.5, "", "x" * 200, "\ud800", "\x1b", [], [None], {}, {"a": 1}]


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path of everything inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [each for key, child in inner for each in [(*path, key), *places(child, (*path, key))]]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_any_value_anywhere_is_found_or_harmless_and_never_breaks_the_reader(odd: object) -> None:
    # If the value is of the right type.
    harmless = {"items", "description", "name", "properties", "hrefs", "selfHref", "itemsHref", "size", "generationNum"}
    for number, document in enumerate(sources()):
        for path in places(document):
            documents = sources()
            put(odd, *path)(documents[number])
            told = found(*documents)
            assert told or harmless & set(path[-2:]), path
            findings = Findings()
            library = RemoteLibrary(documents[0]["id"], "n", 1, "items.json") if number else None
            read = library or read_library(json.dumps(documents[0]).encode(), findings)
            if read is None:
                continue
            assert [type(each) for each in (read.id, read.name, read.version, read.items_href)] == [str, str, int, str]
            for item in read_items(json.dumps(documents[1]).encode(), read, findings):
                told_types = [type(each) for each in (item.id, item.name, item.type, item.version, item.self_href)]
                assert told_types == [str, str, str, int, str]


BAD_HREFS = [
    "",
    "/a",
    "//host/a",
    "http://host/a",
    "a:b",
    "a b",
    "ü",
    "a%",
    "a%zz",
    "a?b",
    "a#b",
    "a\\b",
    "a//b",
    "../a",
    "a/../../b",
    "a/%2e%2E/b",
    "./a",
    "a%2Fb",
    "a%00",
    "a%ff",
    "a\n",
]


@pytest.mark.parametrize("href", BAD_HREFS)
def test_an_href_that_leads_elsewhere_or_is_not_encoded_is_found(href: str) -> None:
    lib, items = sources()
    items["items"][0]["files"][0]["hrefs"] = [href]
    assert [each for each in found(lib, items) if each.startswith("error: item 'a', file 'debian.ovf': its address")]


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf{}", b"\xff", b"[]", b"NaN", b'{"a": NaN}', b"[" * 100_000])
def test_what_is_no_json_object_is_found(data: bytes) -> None:
    findings = Findings()
    assert read_library(data, findings) is None
    assert read_items(data, RemoteLibrary("", "", 1, "items.json"), findings) == ()
    assert [problem.severity for problem in findings.problems[:2]] == ["error", "error"]


def test_messages_show_no_control_characters_and_are_bounded() -> None:
    assert shown("a\x1b[31m\n\u202e") == r"'a\x1b[31m\x0a\u202e'"
    assert len(shown("x" * 10_000)) < 110
    assert shown(None) == "'null'"


# OVF envelopes

NAMESPACE = 'xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"'


def envelope_problems(references: str) -> list[str]:
    texts = manifests(
        library(content("a", {**OVF, "two.vmdk": b"12", "c.000000000": b"", "a%20b": b"1"}, kind="vcsp.ovf"))
    )
    findings = Findings()
    read = read_library(texts.lib, findings)
    assert read is not None
    item = read_items(texts.items, read, findings)[0]
    check_envelope(f"<Envelope {NAMESPACE}><References>{references}</References></Envelope>".encode(), item, findings)
    return [str(problem) for problem in findings.problems]


def test_an_envelope_with_all_its_files_has_no_problems() -> None:
    references = '<File ovf:href="disk.vmdk" ovf:size="4"/><File ovf:href="two.vmdk"/><File href="t%77o.vmdk"/>'
    assert envelope_problems(references) == []
    assert envelope_problems('<File ovf:href="c" ovf:size="9" ovf:chunkSize="5"/>') == []
    assert envelope_problems('<File ovf:href="a%20b"/><!-- no element -->') == []


def test_a_file_that_the_envelope_references_and_the_item_lacks_is_found() -> None:
    assert envelope_problems('<File ovf:href="three.vmdk"/>') == [
        "error: item 'a': lacks 'three.vmdk', which its .ovf references: it cannot be deployed"
    ]
    assert envelope_problems('<File ovf:href="../../etc/passwd"/>') != []
    assert envelope_problems('<File ovf:href="c"/>') != []
    assert envelope_problems('<File ovf:href="d" ovf:chunkSize="5"/>') != []


def test_a_file_of_another_size_than_the_envelope_says_is_found() -> None:
    assert envelope_problems(f'<File ovf:href="disk.vmdk" ovf:size="{"9" * 5000}"/>') == []
    assert "5 bytes where the file has 4" in envelope_problems('<File ovf:href="disk.vmdk" ovf:size="5"/>')[0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<Envelope>",
        b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
        b'<?xml version="1.0" encoding="nonsense"?><a/>',
    ],
)
def test_an_envelope_that_cannot_be_read_or_attacks_is_found(data: bytes) -> None:
    texts = manifests(library(content("a", OVF, kind="vcsp.ovf")))
    findings = Findings()
    read = read_library(texts.lib, findings)
    assert read is not None
    check_envelope(data, read_items(texts.items, read, findings)[0], findings)
    assert "cannot be read" in str(findings.problems[0])
