"""The plan of a sync, and the guard that refuses one that looks like a disaster."""

from __future__ import annotations

import dataclasses

import pytest
from clr_client.content.items import group
from clr_client.errors import GuardError
from clr_client.files import FileInfo
from clr_client.plan import Action, Choice, Plan, guard, make_plan, parts
from clr_client.settings import load
from clr_client.values import DeleteLimit
from clr_client.vcsp.model import PublishedFile, PublishedItem, PublishedLibrary
from hypothesis import given
from hypothesis import strategies as st

ALL = Choice()


def template(key: str, *, mtime: int = 1_700_000_000, size: int = 1000) -> list[FileInfo]:
    name = key.rpartition("/")[2]
    return [FileInfo(f"{key}/{name}.ovf", 10, mtime), FileInfo(f"{key}/{name}.vmdk", size, mtime)]


def listing(*keys: str, mtime: int = 1_700_000_000) -> list[FileInfo]:
    return [file for key in keys for file in template(key, mtime=mtime)]


def by_path(files: list[FileInfo]) -> dict[str, FileInfo]:
    return {file.path: file for file in files}


def library(*keys: str) -> PublishedLibrary:
    items = tuple(
        PublishedItem(
            key=key,
            id=f"urn:uuid:00000000-0000-0000-0000-{number:012}",
            name=key.rpartition("/")[2],
            description="",
            type="vcsp.ovf",
            is_vapp_template=False,
            version=1,
            content_version=1,
            created="2026-11-21T19:54Z",
            etag=1,
            files=(PublishedFile("x", 1, "sha256:0", 1),),
        )
        for number, key in enumerate(keys)
    )
    return PublishedLibrary(
        "urn:uuid:" + "0" * 8 + "-0000-0000-0000-" + "0" * 12, "L", 1, "2026-11-21T19:54Z", "tree", items
    )


def actions(plan: Plan) -> dict[str, str]:
    return {item.key: str(item.action) for item in plan.items}


def test_everything_is_new_to_an_empty_site_and_all_of_it_has_to_cross_the_line() -> None:
    plan = make_plan(listing("a", "b/c"), None, {}, ALL)
    assert actions(plan) == {"a": "add", "b/c": "add"}
    assert plan.bytes == 2020
    assert len(plan.fetch) == 4


def test_an_unchanged_source_needs_nothing() -> None:
    files = listing("a", "b")
    plan = make_plan(files, library("a", "b"), by_path(files), ALL)
    assert actions(plan) == {"a": "keep", "b": "keep"}
    assert plan.fetch == ()


def test_files_that_are_older_at_the_source_than_here_are_named() -> None:
    here = listing("a", "b", "c")
    source = [*template("a"), *template("b", mtime=1_600_000_000), *template("c", mtime=1_800_000_000)]
    plan = make_plan([*source, *template("d", mtime=1_600_000_000)], library("a", "b", "c"), by_path(here), ALL)
    assert {item.key: [file.name for file in item.older] for item in plan.items} == {
        "a": [],
        "b": ["b.ovf", "b.vmdk"],
        "c": [],
        "d": [],
    }


@pytest.mark.parametrize("change", [{"size": 1001}, {"mtime": 1_700_000_001}, {"mtime": 1_600_000_000}])
def test_only_the_file_that_changed_in_size_or_time_is_fetched(change: dict[str, int]) -> None:
    old = listing("a", "b")
    new = [dataclasses.replace(file, **change) if file.path == "a/a.vmdk" else file for file in old]
    plan = make_plan(new, library("a", "b"), by_path(old), ALL)
    assert actions(plan) == {"a": "update", "b": "keep"}
    assert [file.path for file in plan.fetch] == ["a/a.vmdk"]


def test_a_file_removed_from_an_item_changes_the_item_though_nothing_is_fetched() -> None:
    old = [*listing("a"), FileInfo("a/extra.nvram", 5, 1_700_000_000)]
    plan = make_plan(listing("a"), library("a"), by_path(old), ALL)
    assert actions(plan) == {"a": "update"}
    assert plan.fetch == ()


def test_a_change_of_the_metadata_file_alone_changes_the_item() -> None:
    files = [*listing("a"), FileInfo("a/clr-item.toml", 20, 2)]
    mirror = by_path([*listing("a"), FileInfo("a/clr-item.toml", 20, 1)])
    plan = make_plan(files, library("a"), mirror, ALL)
    assert [file.path for file in plan.fetch] == ["a/clr-item.toml"]
    assert [file.path for file in parts(group(files)[0])][-1] == "a/clr-item.toml"


def test_what_is_gone_at_the_source_is_removed() -> None:
    files = listing("a", "b")
    plan = make_plan(listing("a"), library("a", "b"), by_path(files), ALL)
    assert actions(plan) == {"a": "keep", "b": "remove"}


def test_a_renamed_folder_is_a_new_item_and_a_removed_one() -> None:
    plan = make_plan(listing("new"), library("old"), by_path(listing("old")), ALL)
    assert actions(plan) == {"new": "add", "old": "remove"}


def test_a_listing_that_is_incomplete_removes_nothing() -> None:
    files = listing("a", "b")
    plan = make_plan(listing("a"), library("a", "b"), by_path(files), ALL, complete=False)
    assert actions(plan) == {"a": "keep", "b": "leave"}
    assert "could not read all" in plan.items[1].note


def test_a_listing_that_is_incomplete_takes_no_file_from_an_item_but_still_brings_changes() -> None:
    old = listing("a", "b")
    short = [file for file in listing("a", "b", "c", mtime=1_700_000_009) if file.path != "a/a.vmdk"]
    plan = make_plan(short, library("a", "b"), by_path(old), ALL, complete=False)
    assert actions(plan) == {"a": "leave", "b": "update", "c": "add"}
    assert {file.path.partition("/")[0] for file in plan.fetch} == {"b", "c"}


def test_a_lost_mirror_is_fetched_again_as_a_change_of_the_same_items() -> None:
    plan = make_plan(listing("a"), library("a"), {}, ALL)
    assert actions(plan) == {"a": "update"}
    assert len(plan.fetch) == 2


def test_an_item_that_never_got_published_stays_new_though_its_files_are_here() -> None:
    files = listing("a")
    plan = make_plan(files, library("b"), by_path(files), ALL)
    assert actions(plan) == {"a": "add", "b": "remove"}
    assert plan.fetch == ()


def test_files_of_small_items_come_first_so_that_these_are_here_when_the_line_breaks() -> None:
    files = template("large", size=10**9) + template("small", size=10) + template("medium", size=10**6)
    plan = make_plan(files, None, {}, ALL)
    assert [file.path.partition("/")[0] for file in plan.fetch] == ["small"] * 2 + ["medium"] * 2 + ["large"] * 2


@pytest.mark.parametrize(
    ("include", "exclude", "chosen"),
    [
        ((), (), {"lab/web", "photon-5", "photon-4", "tools.iso"}),
        (("photon-*",), (), {"photon-5", "photon-4"}),
        (("photon-*", "web"), (), {"photon-5", "photon-4", "lab/web"}),
        (("lab/*",), (), {"lab/web"}),
        ((), ("lab/*",), {"photon-5", "photon-4", "tools.iso"}),
        (("photon-*",), ("*-4",), {"photon-5"}),
        (("photon-[5-9]",), (), {"photon-5"}),
        (("photon-?",), (), {"photon-5", "photon-4"}),
        (("PHOTON-*",), (), set()),
        (("*.iso",), (), {"tools.iso"}),
        (("photon",), (), set()),
    ],
)
def test_globs_choose_items_by_folder_or_name(
    include: tuple[str, ...], exclude: tuple[str, ...], chosen: set[str]
) -> None:
    files = [*listing("photon-5", "photon-4", "lab/web"), FileInfo("tools.iso", 5, 5)]
    plan = make_plan(files, None, {}, Choice(include=include, exclude=exclude))
    assert {item.key for item in plan.having(Action.ADD)} == chosen
    assert {item.action for item in plan.items} <= {Action.ADD, Action.SKIP}
    assert {file.path.rpartition("/")[0] or file.path for file in plan.fetch} == chosen


def test_an_item_that_is_not_chosen_any_more_goes_unless_deleting_is_switched_off() -> None:
    files = listing("a", "b")
    for delete, action in ((True, "remove"), (False, "leave")):
        plan = make_plan(files, library("a", "b"), by_path(files), Choice(exclude=("b",), delete=delete))
        assert actions(plan) == {"a": "keep", "b": action}
        assert plan.items[1].note == "not chosen by SYNC_INCLUDE and SYNC_EXCLUDE"


def test_each_switch_leaves_its_class_of_change_alone_and_says_so() -> None:
    old = listing("changed", "gone", "same")
    new = [*listing("same"), *listing("changed", mtime=1_700_000_009), *listing("new")]
    published = library("changed", "gone", "same")
    every = {"changed": "update", "gone": "remove", "new": "add", "same": "keep"}
    assert actions(make_plan(new, published, by_path(old), ALL)) == every
    for switch, key, action in (("add", "new", "skip"), ("update", "changed", "leave"), ("delete", "gone", "leave")):
        plan = make_plan(new, published, by_path(old), dataclasses.replace(ALL, **{switch: False}))
        assert actions(plan) == {**every, key: action}
        left = next(item for item in plan.items if item.key == key)
        assert left.fetch == ()
        assert f"SYNC_{switch.upper()}=false" in left.note


def test_the_choice_comes_from_the_settings() -> None:
    settings, _ = load({"SYNC_INCLUDE": "a,b", "SYNC_EXCLUDE": "c", "SYNC_UPDATE": "no", "SYNC_DELETE": "off"})
    assert Choice.of(settings) == Choice(("a", "b"), ("c",), add=True, update=False, delete=False)


def test_an_item_with_an_impossible_name_is_left_as_it_is_or_out_and_says_why() -> None:
    files = [FileInfo("bad\x1bname/x.ovf", 5, 5), FileInfo("\udcff/x.ovf", 5, 5)]
    plan = make_plan(files, library("bad\x1bname"), {}, ALL)
    assert set(actions(plan).values()) == {"leave", "skip"}
    assert plan.fetch == ()
    assert all(item.note for item in plan.items)


def test_where_case_does_not_count_only_one_of_two_like_paths_is_taken_and_it_is_the_one_that_is_here() -> None:
    files = listing("Web", "web", "web/Sub", "WEB/other", "mail")
    here = by_path(listing("web", "web/Sub"))
    assert set(actions(make_plan(files, library("web", "web/Sub"), here, ALL)).values()) == {"add", "keep"}
    plan = make_plan(files, library("web", "web/Sub"), here, ALL, caseless=True)
    assert actions(plan) == {"Web": "skip", "web": "keep", "web/Sub": "keep", "WEB/other": "skip", "mail": "add"}
    assert {item.note for item in plan.having(Action.SKIP)} == {'the library volume cannot tell it from "web"'}


def test_no_file_that_the_server_names_leads_out_of_the_mirror() -> None:
    hostile = [FileInfo(path, 5, 5) for path in ("/etc/x.ovf", "a//b.ovf", ".ssh/id", "a/.hidden", "lib.json")]
    assert make_plan(hostile, None, {}, ALL).fetch == ()


KEYS = st.sampled_from(["a", "b", "c/d", "e.iso", "f"])


@given(st.sets(KEYS), st.sets(KEYS), st.sets(KEYS), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_any_plan_has_each_item_once_and_respects_the_switches(
    there: set[str], here: set[str], changed: set[str], add: bool, update: bool, delete: bool, complete: bool
) -> None:
    old = by_path([file for key in here for file in template(key)])
    new = [file for key in there for file in template(key, mtime=5 if key in changed else 1_700_000_000)]
    plan = make_plan(new, library(*sorted(here)), old, Choice(add=add, update=update, delete=delete), complete=complete)
    found = actions(plan)
    assert sorted(found) == [item.key for item in plan.items] == sorted(there | here)
    for key in there | here:
        if key not in here:
            assert found[key] == ("add" if add else "skip")
        elif key not in there:
            assert found[key] == ("remove" if delete and complete else "leave")
        elif key not in changed:
            assert found[key] == "keep"
        else:
            assert found[key] == ("update" if update else "leave")
    fetched = {file.path.rpartition("/")[0] for file in plan.fetch}
    assert fetched == {key for key, action in found.items() if action in ("add", "update")}


def check(
    plan: Plan,
    *,
    published: int = 10,
    limit: str = "50%",
    needed: int = 0,
    free: int = 0,
    allow_deletes: bool = False,
) -> None:
    guard(
        plan,
        published=published,
        limit=load({"SYNC_MAX_DELETE": limit})[0].sync_max_delete,
        needed_bytes=needed,
        free_bytes=free,
        allow_deletes=allow_deletes,
    )


def losing(count: int, *, of: int = 10) -> Plan:
    keys = [f"item-{number}" for number in range(of)]
    return make_plan(listing("other", *keys[count:]), library(*keys), by_path(listing(*keys)), ALL)


@pytest.mark.parametrize("complete", [True, False])
def test_an_empty_source_is_refused_and_the_override_is_named(complete: bool) -> None:
    for published, mirror in ((library("a"), by_path(listing("a"))), (None, {})):
        plan = make_plan([], published, mirror, ALL, complete=complete)
        with pytest.raises(GuardError, match=r"library is empty.*clr sync --allow-deletes"):
            check(plan, published=1)
    check(make_plan([], library("a"), {}, ALL), published=1, allow_deletes=True)


def test_a_source_with_nothing_but_dotfiles_counts_as_empty() -> None:
    plan = make_plan([FileInfo(".vSphere-HA/x", 1, 1), FileInfo("lost+found/y", 1, 1)], library("a"), {}, ALL)
    with pytest.raises(GuardError, match="library is empty"):
        check(plan, published=1)


def test_removals_exactly_at_the_limit_pass_and_one_more_is_refused_with_names_and_override() -> None:
    check(losing(5))
    with pytest.raises(GuardError) as caught:
        check(losing(6))
    assert str(caught.value) == (
        "6 of 10 items are gone at the server (item-0, item-1, item-2, item-3, item-4, ...), more than"
        " SYNC_MAX_DELETE=50% allows to remove, so nothing was changed here. If that is meant: clr sync --allow-deletes"
    )
    assert caught.value.exit_code == 1
    check(losing(6), allow_deletes=True)


def test_a_limit_in_items_counts_items() -> None:
    check(losing(3), limit="3")
    with pytest.raises(GuardError, match=r"SYNC_MAX_DELETE=3 "):
        check(losing(4), limit="3")


def test_one_item_may_always_go_so_that_a_library_of_one_can_be_renamed() -> None:
    check(make_plan(listing("new"), library("old"), {}, ALL), published=1, limit="0")


def test_a_misspelt_choice_does_not_empty_a_library_unseen() -> None:
    files = listing("a", "b", "c")
    plan = make_plan(files, library("a", "b", "c"), by_path(files), Choice(include=("misspelt-*",)))
    with pytest.raises(GuardError, match="3 of 3 items are not chosen by SYNC_INCLUDE"):
        check(plan, published=3)
    mixed = make_plan(listing("a", "b"), library("a", "b", "c"), {}, Choice(exclude=("b",)))
    with pytest.raises(GuardError, match="2 of 3 items are gone at the server or not chosen"):
        check(mixed, published=3)


def test_a_plan_that_does_not_fit_on_the_volume_is_refused_before_anything_is_fetched() -> None:
    plan = make_plan(listing("a"), None, {}, ALL)
    check(plan, published=0, needed=1000, free=1000)
    with pytest.raises(GuardError, match=r"needs 1,001 bytes and the library volume has 1,000 free.*Make room"):
        check(plan, published=0, needed=1001, free=1000)
    with pytest.raises(GuardError, match="Make room"):
        check(plan, published=0, needed=1001, free=1000, allow_deletes=True)


def test_the_default_limit_holds_back_the_loss_of_sixty_per_cent() -> None:
    assert load({})[0].sync_max_delete == DeleteLimit(50, percent=True)
    with pytest.raises(GuardError):
        check(losing(60, of=100), published=100, limit="")
