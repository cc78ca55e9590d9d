"""Display names: short, stable, unique."""

from __future__ import annotations

import hashlib
import unicodedata

import pytest
from clr_client.content.names import assign_names, display_name, flaw, fold, printable, units
from hypothesis import given
from hypothesis import strategies as st


def test_a_name_of_80_characters_stays_and_one_of_81_is_cut_to_71_and_its_own_hash():
    assert display_name("n" * 80) == "n" * 80
    long = "n" * 81
    digest = hashlib.sha256(long.encode()).hexdigest()[:8]
    assert display_name(long) == "n" * 71 + "-" + digest


def test_a_name_of_90_characters_without_a_dot_stays_within_80():
    assert len(display_name("x" * 90)) == 80


def test_long_names_that_differ_only_at_the_end_stay_different():
    assert display_name("x" * 99 + "1") != display_name("x" * 99 + "2")


def test_characters_outside_the_basic_plane_count_twice_as_in_java():
    assert units("a😀") == 3
    name = display_name("😀" * 60)
    assert units(name) <= 80
    assert name.startswith("😀" * 35 + "-")


def test_composed_and_decomposed_names_are_the_same_name():
    assert display_name("cafe\u0301") == display_name("caf\u00e9") == "caf\u00e9"


@given(st.text(max_size=200))
def test_any_display_name_is_short_safe_and_stable(text: str):
    name = display_name(text)
    assert units(name) <= 80
    assert flaw(name) is None
    assert display_name(name) == name
    name.encode()


@given(st.text(max_size=50))
def test_printable_text_never_holds_a_raw_control_character(text: str):
    shown = printable(text)
    assert flaw(shown) is None
    assert not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in shown)
    assert printable(shown) == shown


@given(st.text(max_size=30))
def test_names_compare_the_same_in_any_case_and_unicode_form(text: str):
    assert fold(text) == fold(unicodedata.normalize("NFC", text)) == fold(unicodedata.normalize("NFD", text))
    if text.isascii():
        assert fold(text.upper()) == fold(text.lower())


def test_of_two_new_items_of_one_name_the_shallower_gets_it_and_the_other_hears_from_whom():
    names, problems = assign_names({"z": "web", "a/b/web": "Web", "a/web": "WEB"}, {})
    assert names == {"z": "web"}
    assert problems == {
        "a/b/web": 'the name "Web" is already that of z',
        "a/web": 'the name "WEB" is already that of z',
    }


def test_at_equal_depth_the_lexically_first_key_gets_the_name():
    names, _ = assign_names({"b/x": "x", "a/x": "x"}, {})
    assert names == {"a/x": "x"}


def test_who_holds_a_name_keeps_it_against_a_shallower_newcomer():
    names, problems = assign_names({"deep/down/x": "x", "x": "X"}, {"deep/down/x": "x"})
    assert names == {"deep/down/x": "x"}
    assert list(problems) == ["x"]


def test_a_change_of_case_only_is_granted_to_the_holder():
    assert assign_names({"a": "Web"}, {"a": "web"}) == ({"a": "Web"}, {})


def test_an_item_that_stays_published_without_being_asked_keeps_its_name_reserved():
    names, problems = assign_names({"new": "web"}, {"held": "web"})
    assert names == {}
    assert "held" in problems["new"]


def test_a_rename_frees_the_old_name_at_once():
    names, problems = assign_names({"a": "new", "b": "old"}, {"a": "old"})
    assert names == {"a": "new", "b": "old"}
    assert problems == {}


def test_two_items_can_swap_their_names():
    assert assign_names({"a": "y", "b": "x"}, {"a": "x", "b": "y"}) == ({"a": "y", "b": "x"}, {})


def test_an_item_that_does_not_get_its_new_name_keeps_the_old_one_from_others():
    # a wants c's name and fails, so b cannot have a's, so new cannot have b's
    names, problems = assign_names({"a": "3", "b": "1", "c": "3", "new": "2"}, {"a": "1", "b": "2", "c": "3"})
    assert names == {"c": "3"}
    assert set(problems) == {"a", "b", "new"}


KEYS = st.sampled_from(["a", "b", "c", "d/e", "d/f", "g/h/i"])
NAMES = st.sampled_from(["x", "X", "y", "z", "é", "e\u0301", "w"])


@given(st.dictionaries(KEYS, NAMES), st.dictionaries(KEYS, NAMES))
def test_however_names_are_wanted_no_two_published_items_ever_share_one(wanted: dict[str, str], taken: dict[str, str]):
    names, problems = assign_names(wanted, taken)
    assert names.keys() | problems.keys() == wanted.keys()
    assert not names.keys() & problems.keys()
    assert all(names[key] == wanted[key] for key in names)
    shown = {**taken, **names}
    before = [fold(name) for name in taken.values()]
    if len(before) == len(set(before)):
        after = [fold(name) for name in shown.values()]
        assert len(after) == len(set(after))
        for key in taken:
            if key in wanted and fold(wanted[key]) == fold(taken[key]):
                assert key in names
    won = [fold(name) for name in names.values()]
    assert len(won) == len(set(won))
    reordered = assign_names(dict(reversed(wanted.items())), dict(reversed(taken.items())))
    assert reordered == (names, problems)


@pytest.mark.parametrize("text", ["plain", "with space", "ümlaut", "日本語", "#%?&'\"", "-n", "😀", "a\u200d"])
def test_ordinary_names_have_no_flaw(text: str):
    assert flaw(text) is None
    assert printable(text) == text
