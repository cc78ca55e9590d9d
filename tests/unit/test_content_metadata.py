"""The metadata file of an item."""

from __future__ import annotations

import pytest
from clr_client.content.metadata import Metadata, parse, restore
from clr_client.errors import HeldError
from hypothesis import given
from hypothesis import strategies as st


def test_name_and_description_are_read():
    assert parse('name = " Débian 12 "\ndescription = """One\nTwo"""\n'.encode()) == Metadata("Débian 12", "One\nTwo")


def test_an_empty_file_changes_nothing():
    assert parse(b"") == Metadata(None, "")


def test_a_byte_order_mark_of_windows_editors_is_ignored():
    assert parse(b"\xef\xbb\xbfname = 'x'\r\n") == Metadata("x")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("colour = 'red'", "unknown key colour"),
        ("Name = 'x'", "unknown key Name"),
        ("[name]\nx = 1", "name in the metadata file is not a string"),
        ("name = 5", "name in the metadata file is not a string"),
        ("description = ['x']", "description in the metadata file is not a string"),
        ("name = ''", "name in the metadata file is empty"),
        ("name = '   '", "is empty"),
        (f"name = '{'n' * 81}'", "longer than 80 characters"),
        (f"name = '{'😀' * 41}'", "longer than 80 characters"),
        (f"description = '{'d' * 2001}'", "longer than 2000 characters"),
        ('name = "a\\u0007"', r"holds the control character \x07"),
        ('name = "a\\nb"', "holds the control character"),
        ('description = "a\\u001b[31m"', r"holds the control character \x1b"),
        ("name = ", "not valid TOML"),
        ("name = 'x'\nname = 'y'", "not valid TOML"),
        ("x = " + "[" * 5000, "not valid TOML"),
        ("x = " + "1" * 5000, "not valid TOML"),
        ("x = 2024-99-99", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_said(text: str, reason: str):
    with pytest.raises(HeldError) as caught:
        parse(text.encode())
    assert reason in caught.value.message
    assert caught.value.message.isprintable()


def test_the_longest_name_and_description_are_allowed():
    data = f"name = '{'n' * 80}'\ndescription = '{'d' * 2000}'".encode()
    assert parse(data) == Metadata("n" * 80, "d" * 2000)


def test_text_that_is_not_utf8_is_refused():
    with pytest.raises(HeldError, match="not UTF-8"):
        parse(b"name = '\xe9'")


def test_metadata_survives_the_cache():
    said = Metadata(None, "é\n")
    assert restore(said.dump()) == said


PIECES = [
    "name",
    "description",
    "=",
    "'",
    '"',
    '"""',
    "x",
    "[",
    "]",
    "{",
    "}",
    "\n",
    "1",
    ".",
    "\\u0000",
    "é",
    "#",
    ",",
]


@given(st.one_of(st.lists(st.sampled_from(PIECES), max_size=20).map("".join), st.text(max_size=60)))
def test_any_text_is_metadata_or_held(text: str):
    try:
        parse(text.encode("utf-8", "surrogatepass"))
    except HeldError as error:
        assert error.message.isprintable()
