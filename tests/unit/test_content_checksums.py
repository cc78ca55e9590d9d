"""Manifests of digests: their spellings, and what a difference does."""

from __future__ import annotations

import hashlib

import pytest
from clr_client.content.checksums import Entry, compare, parse, wanted
from clr_client.errors import HeldError
from hypothesis import given
from hypothesis import strategies as st

ONE = hashlib.sha256(b"1").hexdigest()
TWO = hashlib.sha256(b"2").hexdigest()


def refusal(data: bytes) -> str:
    with pytest.raises(HeldError) as caught:
        parse(data)
    assert caught.value.message.isprintable()
    return caught.value.message


@pytest.mark.parametrize(
    "line",
    [
        f"SHA256(a.ovf)= {ONE}",
        f"SHA256(a.ovf)={ONE}",
        f"SHA256 (a.ovf) = {ONE}",
        f"SHA2-256(a.ovf)= {ONE}",
        f"SHA-256(a.ovf)= {ONE}",
        f"sha256(a.ovf)= {ONE.upper()}",
        f"  SHA256( a.ovf )\t=\t{ONE}  ",
        f"\ufeffSHA256(a.ovf)= {ONE}",
    ],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r", "", "\n\n\n"])
def test_every_spelling_of_a_line_and_of_its_end_is_read(line: str, ending: str):
    assert parse((line + ending).encode()) == (Entry("a.ovf", "sha256", ONE),)


@pytest.mark.parametrize("name", ["a b.vmdk", "a(1).vmdk", "a)= b.vmdk", "é.vmdk", "-n"])
def test_names_with_blanks_and_parentheses_are_read(name: str):
    assert parse(f"SHA256({name})= {ONE}\n".encode()) == (Entry(name, "sha256", ONE),)


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha384", "sha512"])
def test_four_algorithms_are_known(algorithm: str):
    digest = hashlib.new(algorithm, b"x").hexdigest()
    assert parse(f"{algorithm.upper()}(a)= {digest}".encode()) == (Entry("a", algorithm, digest),)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "lists no file"),
        (b"\n\r\n", "lists no file"),
        (b"MD5(a)= d41d8cd98f00b204e9800998ecf8427e", "unknown algorithm MD5"),
        (f"SHA3-256(a)= {ONE}".encode(), "unknown algorithm SHA3-256"),
        (f"SHA512/256(a)= {ONE}".encode(), "unknown algorithm SHA512/256"),
        (f"{ONE}  a.ovf".encode(), "line 1 of the manifest is malformed"),
        (f"SHA256(a)= {ONE}\ngarbage\x1b[2J".encode(), r"line 2 of the manifest is malformed: garbage\x1b[2J"),
        (b"SHA256(a)= 12", "wrong length"),
        (b"SHA256(a)=", "malformed"),
        (b"SHA256(a)= xyz", "malformed"),
        (f"SHA256()= {ONE}".encode(), "malformed"),
        (f"SHA256( )= {ONE}".encode(), "names no file"),
        (f"SHA256(../a)= {ONE}".encode(), "names no file"),
        (f"SHA256(a\x07)= {ONE}".encode(), "names no file"),
        (f"SHA256(a)= {ONE}\nSHA256(a)= {TWO}".encode(), "gives a two different digests"),
        (b"SHA256(\xff)= 12", "not UTF-8"),
        ("SHA256(a)= 12".encode("utf-16"), "not UTF-8"),
    ],
)
def test_what_is_no_manifest_is_held_with_a_reason(data: bytes, reason: str):
    assert reason in refusal(data)


def test_the_same_line_twice_says_it_once():
    assert len(parse(f"SHA256(a)= {ONE}\nSHA256(a)= {ONE}\n".encode())) == 1


def test_a_listed_file_that_is_not_there_holds_the_item():
    with pytest.raises(HeldError, match=r"b is listed in the manifest but not there"):
        wanted((Entry("a", "sha256", ONE), Entry("b", "sha256", ONE)), {"a"})


def test_each_file_is_hashed_with_the_algorithms_its_lines_name():
    entries = (Entry("a", "sha256", ONE), Entry("a", "sha1", "0"), Entry("b", "sha512", "0"))
    assert wanted(entries, {"a", "b", "c"}) == {"a": {"sha256", "sha1"}, "b": {"sha512"}}


def test_a_wrong_digest_names_the_file_and_the_manifest():
    with pytest.raises(HeldError, match=r"^a does not match its SHA256 digest in x\.mf$"):
        compare((Entry("a", "sha256", ONE),), {"a": {"sha256": TWO}}, "x.mf")


def test_an_unlisted_file_is_a_warning_except_the_manifest_and_its_certificate():
    digests = {name: {"sha256": ONE} for name in ("a", "extra.nvram", "x.mf", "x.cert")}
    assert compare((Entry("a", "sha256", ONE),), digests, "x.mf") == ("extra.nvram is not listed in x.mf",)


def test_sha1_is_a_warning():
    (warning,) = compare((Entry("a", "sha1", "00"),), {"a": {"sha1": "00", "sha256": ONE}}, "x.mf")
    assert "SHA-1" in warning


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_held(data: bytes):
    try:
        parse(data)
    except HeldError as error:
        assert error.message.isprintable()


PIECES = ["SHA256", "MD5", "(", ")", "=", " ", "a.ovf", ONE, "\n", "\r", "\t", "é", "\x00", "../", "\u2028"]


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_any_jumble_of_tokens_is_a_manifest_or_held(text: str):
    try:
        entries = parse(text.encode())
    except HeldError as error:
        assert error.message.isprintable()
    else:
        assert all(entry.name and "/" not in entry.name for entry in entries)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", ["(" * 400_000, "SHA256(" + ")" * 400_000, "SHA256(a)" + " " * 400_000, "A" * 400_000])
def test_a_hostile_line_takes_no_time(text: str):
    refusal(text.encode())
