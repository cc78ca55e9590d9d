"""Sizes in an OVF and digests in a manifest are replaced, and not one byte beside them."""

from __future__ import annotations

import hashlib
import re

import pytest
from clr_client.content import checksums, ovf
from clr_client.errors import RepackError
from clr_client.repack.texts import edit_envelope, edit_manifest
from hypothesis import given
from hypothesis import strategies as st
from support.templates import envelope

OVF = "http://schemas.dmtf.org/ovf/envelope/1"


def document(references: str, prologue: str = "", namespace: str = f'xmlns="{OVF}" xmlns:ovf="{OVF}"') -> str:
    return (
        f"{prologue}<Envelope {namespace}>\n<!-- <File ovf:href='a.vmdk' ovf:size='1'/> -->\n"
        f"<References><Info><![CDATA[<File ovf:href='a.vmdk' ovf:size='1'/>]]></Info>{references}</References>\n"
        "<DiskSection><File ovf:href='a.vmdk' ovf:size='1'/></DiskSection></Envelope>\n"
    )


def test_the_size_of_one_disk_changes_and_nothing_else() -> None:
    data = envelope("vm", {"a.vmdk": 1234, "b.vmdk": 1234, "c.nvram": 1234})
    new = edit_envelope(data, {1: 98765})
    assert new == data.replace(
        b"<File ovf:href=\"b.vmdk\" ovf:id='file2' ovf:size='1234'",
        b"<File ovf:href=\"b.vmdk\" ovf:id='file2' ovf:size='98765'",
    )
    assert new != data
    assert [reference.size for reference in ovf.parse(new).references] == [1234, 98765, 1234]
    assert edit_envelope(new, {1: 1234}) == data
    assert edit_envelope(data, {0: 5, 1: 6, 2: 7}).count(b"1234") == 0


@pytest.mark.parametrize(
    "tag",
    [
        """<File ovf:href="a.vmdk" ovf:size="1234"/>""",
        """<File ovf:size='1234' ovf:href='a.vmdk'></File>""",
        """<File\n\tovf:size\r\n =\t'1234'\n ovf:href = "a.vmdk"\n/>""",
        """<File size="1234" href="a.vmdk"/>""",
        """<ovf:File ovf:href="a.vmdk" ovf:size="1234"></ovf:File>""",
        """<File ovf:id=">" ovf:href="a.vmdk" ovf:size="1234" />""",
        """<File ovf:id=" size='9' " ovf:href="a.vmdk" ovf:size="1234"/>""",
        """<File ovf:id=' ovf:size="9"' ovf:href="a.vmdk" ovf:size=" 1234 "/>""",
        """<File ovf:chunksize='' ovf:sizes='3' ovf:href="a.vmdk" ovf:size="&#49;2&#x33;4"/>""",
        """<File ovf:id='größe…' ovf:href="a.vmdk" ovf:größe='2' ovf:size="0001234"/>""",
        """<x:File xmlns:x="urn:other" x:href="a.vmdk" x:size="1234"/>""",
    ],
)
@pytest.mark.parametrize(
    ("prologue", "codec"),
    [
        ("", "utf-8"),
        ("\ufeff<?xml version='1.0' encoding='utf-8'?>\r\n", "utf-8"),
        ("<?xml version='1.0' encoding='ISO-8859-1'?>\n", "iso-8859-1"),
        ("<?xml version='1.0' encoding='windows-1252'?>\n", "windows-1252"),
        ("\ufeff<?xml version='1.0' encoding='UTF-16'?>\n", "utf-16-le"),
        ("\ufeff<?xml version='1.0' encoding='UTF-16'?>\n", "utf-16-be"),
        ("<?xml version='1.0'?><!-- ünï --><?php <File ovf:size='1'/> ?>\n", "utf-8"),
    ],
)
def test_a_size_is_found_however_the_tag_and_the_file_are_written(tag: str, prologue: str, codec: str) -> None:
    data = document(tag, prologue).encode(codec, "replace")
    new = edit_envelope(data, {0: 98765})
    assert [(reference.href, reference.size) for reference in ovf.parse(new).references] == [("a.vmdk", 98765)]
    value = re.search(r"""(?<![\w]|')(?:\w+:)?size\s*=\s*(["'])([^"']*(?:1234|&#49;2&#x33;4)[^"']*)\1""", tag)
    assert value
    before, old, after = tag[: value.start(2)], value[2], tag[value.end(2) :]
    assert new == data.replace(
        (before + old + after).encode(codec, "replace"), f"{before}98765{after}".encode(codec, "replace")
    )


def test_a_reference_without_a_size_gets_none() -> None:
    data = document("<File ovf:href='a.vmdk'/><File ovf:href='b.vmdk' ovf:size='2'/>").encode()
    assert edit_envelope(data, {0: 5}) == data
    assert edit_envelope(data, {0: 5, 1: 2}) == data


def test_a_reference_with_two_sizes_is_refused() -> None:
    data = document("<File ovf:href='a.vmdk' size='1' ovf:size='1'/>").encode()
    with pytest.raises(RepackError, match="two sizes"):
        edit_envelope(data, {0: 5})


@given(
    st.lists(st.tuples(st.integers(1, 10**15), st.sampled_from("'\""), st.text(" \t\n\r", min_size=1)), min_size=1),
    st.data(),
)
def test_any_sizes_of_any_references_change_alone(files: list[tuple[int, str, str]], data: st.DataObject) -> None:
    tags = "".join(
        f"<File{space}ovf:size={quote}{size}{quote}{space}ovf:href='{number}'/>"
        for number, (size, quote, space) in enumerate(files)
    )
    text = document(tags).encode()
    sizes = data.draw(st.dictionaries(st.integers(0, len(files) - 1), st.integers(1, 10**17)))
    new = edit_envelope(text, sizes)
    wanted = [sizes.get(number, size) for number, (size, _, _) in enumerate(files)]
    assert [reference.size for reference in ovf.parse(new).references] == wanted
    digits = re.compile(rb"""(ovf:size=["'])[0-9]+(["'])""")
    assert digits.sub(rb"\1\2", new) == digits.sub(rb"\1\2", text)


# ---------------------------------------------------------------- manifests

A, B = hashlib.sha256(b"a").hexdigest(), hashlib.sha256(b"b").hexdigest()
ONE = hashlib.sha1(b"one").hexdigest()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (f"SHA256(a.vmdk)= {A}\n", f"SHA256(a.vmdk)= {B}\n"),
        (f"SHA256(a.vmdk)= {A.upper()}", f"SHA256(a.vmdk)= {B.upper()}"),
        (f"\ufeffSHA2-256( a.vmdk ) ={A}\r\n\r\n", f"\ufeffSHA2-256( a.vmdk ) ={B}\r\n\r\n"),
        (f"SHA256 (a.vmdk)  =  {A}\t \r", f"SHA256 (a.vmdk)  =  {B}\t \r"),
    ],
)
def test_a_digest_is_replaced_in_the_form_in_which_it_was_written(old: str, new: str) -> None:
    assert edit_manifest(old.encode(), {"a.vmdk": {"sha256": B}}) == new.encode()


def test_lines_of_other_files_and_algorithms_stay_as_they_are_and_where_they_are() -> None:
    other = f"SHA256(b.vmdk)= {A}\nSHA1(a.vmdk)= {ONE}\n\n"
    old = f"{other}SHA256(a.vmdk)= {A}\nSHA256(a.vmdk (1))= {A}\nSHA256(a.vmdk)= {A}\n"
    new = edit_manifest(old.encode(), {"a.vmdk": {"sha256": B}}).decode()
    assert new == old.replace(f"SHA256(a.vmdk)= {A}", f"SHA256(a.vmdk)= {B}")
    assert edit_manifest(old.encode(), {}) == old.encode()
    assert checksums.parse(new.encode())
