"""When nothing has changed since a sync that had nothing to do, the next one looks at no item; else it looks at all."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest
from clr_client import moments, settled, transport, unconfirmed, update
from clr_client.errors import GuardError, TransportError
from clr_client.integrity.damages import Damage, note
from clr_client.rollback import roll_back
from clr_client.settled import Settled
from clr_client.sync import synchronise
from support.local_source import LocalSource
from support.server import Server, make_key
from support.site import Site
from support.templates import fake_template

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from clr_client.reporting.status import Report
    from clr_client.transport import Link, Listing

NAMES = ("alpha", "beta", "nested/gamma")


class Pair:
    """A site, and servers ``one`` and ``two`` that have the folder ``source``; no line is between them."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_key(home / "identity")
        self.source = home / "primary"
        self.site = Site(home / "site", Server(self.source, home), SYNC_PEER="one, two", SYNC_MAX_DELETE="100%")
        for name in NAMES:
            fake_template(self.source / name, disk_bytes=5000)
        self.answer: dict[str, object] = {}
        self.away: set[str] = set()
        self.asked: list[str] = []
        self.whole = 0
        local, real = LocalSource(self.source), update.update

        async def list_source(link: Link) -> Listing:
            self.asked.append(link.peer.host)
            if link.peer.host in self.away:
                raise TransportError(f"no line to {link.peer}")
            return dataclasses.replace(await local.list_source(link), **self.answer)  # type: ignore[arg-type]

        async def counted(*arguments: object, **named: object) -> object:
            self.whole += 1
            return await real(*arguments, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(transport, "list_source", list_source)
        monkeypatch.setattr(transport, "fetch", local.fetch)
        monkeypatch.setattr(update, "update", counted)

    @property
    def library(self) -> Path:
        """The volume."""
        return self.site.library

    def settle(self) -> Report:
        """Sync until that takes the short way."""
        for _ in range(4):
            before = self.whole
            report = self.site.sync()
            if self.whole == before:
                return report
        raise AssertionError("every sync looks at every item")

    def file(self, suffix: str = ".vmdk") -> Path:
        """A file of the mirror."""
        return next((self.site.store.mirror / "alpha").glob(f"*{suffix}"))

    def is_seen(self, **changes: str) -> bool:
        """Sync, and tell whether that sync looked at every item."""
        before = self.whole
        self.site.sync(**changes)
        return self.whole > before


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    found = Pair(tmp_path, monkeypatch)
    found.settle()
    return found


def test_the_short_way_reports_and_records_what_the_whole_way_does(pair: Pair) -> None:
    pair.site.store.settled.unlink()
    changing = {"run": "", "started": "", "ended": "", "seconds": 0.0}
    before = pair.whole
    whole = dataclasses.replace(pair.site.sync(), **changing)
    after_whole = json.loads(pair.site.store.status.read_bytes())
    assert pair.whole == before + 1
    short = dataclasses.replace(pair.site.sync(), **changing)
    after_short = json.loads(pair.site.store.status.read_bytes())
    assert pair.whole == before + 1
    assert short == whole
    assert (short.result, short.version, short.peer) == ("success", 1, f"one:{pair.site.environment['SYNC_PORT']}")
    assert after_short["library"] == after_whole["library"]
    assert after_short["library"]["items"] == len(NAMES)
    assert after_short["runs"][0] | changing == after_whole["runs"][0] | changing
    assert len(after_short["runs"]) == len(after_whole["runs"]) + 1


def replace_unseen(pair: Pair) -> None:
    """Put another file in a file's place, with its size and time, and those of its folder."""
    path, before, folder = pair.file(), pair.file().stat(), pair.file().parent.stat()
    other = pair.library / "other"
    other.write_bytes(bytes(before.st_size))
    os.utime(other, ns=(before.st_mtime_ns, before.st_mtime_ns))
    other.rename(path)
    os.utime(path.parent, ns=(folder.st_atime_ns, folder.st_mtime_ns))


def touch_within_the_second(pair: Pair) -> None:
    """Give a file another time within the second that the listing tells."""
    stamp = pair.file().stat().st_mtime_ns
    second = stamp - stamp % 1_000_000_000
    os.utime(pair.file(), ns=(stamp, second + (stamp - second + 1) % 1_000_000_000))


def keeping_its_time(path: Path) -> None:
    """Make a file longer and give it back its time."""
    before = path.stat()
    with path.open("ab") as file:
        file.write(b"more")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def into_a_link(pair: Pair) -> None:
    pair.file().rename(pair.library / "elsewhere")
    pair.file(".ovf").with_name("alpha-disk1.vmdk").symlink_to(pair.library / "elsewhere")


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3] + b"  \n")


def current(pair: Pair) -> Path:
    return pair.library / "current"


def tree(pair: Pair) -> Path:
    return pair.site.store.items / pair.site.ids()["alpha"].removeprefix("urn:uuid:") / "1"


def forget_who(pair: Pair) -> None:
    unconfirmed.save(pair.site.store.unconfirmed, {"alpha/alpha.ovf": "two:2222"})


def note_damage(pair: Pair) -> None:
    pair.site.store.damaged.mkdir()  # as it is left when damage was mended
    pair.settle()
    place = tree(pair) / "alpha.ovf"
    note(pair.site.store, Damage(place.relative_to(pair.library).as_posix(), "is not what was published", "alpha"))


HERE: dict[str, Callable[[Pair], object]] = {
    "a file was added to the mirror": lambda pair: pair.file().with_name("stray").touch(),
    "a hidden file was added to the mirror": lambda pair: pair.file().with_name(".stray").touch(),
    "a folder was added to the mirror": lambda pair: (pair.site.store.mirror / "stray").mkdir(),
    "a file of the mirror was removed": lambda pair: pair.file().unlink(),
    "a file of the mirror was touched": lambda pair: os.utime(pair.file(), (1, 1)),
    "a file of the mirror was touched within the second": touch_within_the_second,
    "a file of the mirror became longer at the same time": lambda pair: keeping_its_time(pair.file()),
    "a file of the mirror was replaced by one of its size and time": replace_unseen,
    "a file of the mirror became a link": into_a_link,
    "lib.json was changed": lambda pair: damage(current(pair) / "lib.json"),
    "items.json was changed": lambda pair: damage(current(pair) / "items.json"),
    "the record was changed": lambda pair: damage(current(pair) / ".state.json"),
    "the record is gone": lambda pair: (current(pair) / ".state.json").unlink(),
    "the link to the published generation is gone": lambda pair: current(pair).unlink(),
    "an item's tree is gone": lambda pair: shutil.rmtree(tree(pair)),
    "all of an item's trees are gone": lambda pair: shutil.rmtree(tree(pair).parent),
    "an unfinished tree was left": lambda pair: tree(pair).with_name(".new-2").mkdir(),
    "an unfinished generation was left": lambda pair: (pair.site.store.generations / ".new-2").mkdir(),
    "an unfinished file was left": lambda pair: (pair.library / ".new-digests.json").touch(),
    "a transfer's basis was left": lambda pair: pair.site.store.basis.mkdir(),
    "the known digests are gone": lambda pair: pair.site.store.digests.unlink(),
    "the known digests are others": lambda pair: damage(pair.site.store.digests),
    "there are unconfirmed files": forget_who,
    "damage is noted": note_damage,
    "the library was rolled back": lambda pair: pair.site.store.pin.write_text("1 7\n"),
    "the note is gone": lambda pair: pair.site.store.settled.unlink(),
    "the note was damaged": lambda pair: damage(pair.site.store.settled),
}


@pytest.mark.parametrize("what", HERE)
def test_a_sync_looks_at_every_item_again_when(pair: Pair, what: str) -> None:
    HERE[what](pair)
    assert pair.is_seen()


def test_a_sync_looks_at_every_item_again_when_an_older_generations_record_is_another(pair: Pair) -> None:
    pair.site.sync(LIBRARY_NAME="Other")
    assert pair.site.store.generation_numbers() == (1, 2)
    pair.site.environment["LIBRARY_NAME"] = "Other"
    pair.settle()
    damage(pair.site.store.generations / "1" / ".state.json")
    assert pair.is_seen()


@pytest.mark.parametrize(
    ("name", "value"),
    {
        "LIBRARY_NAME": "Other",
        "LIBRARY_HREFS": "plain",
        "LIBRARY_GENERATION_NUM": "item",
        "SYNC_INCLUDE": "alpha, beta, gamma",
        "SYNC_EXCLUDE": "gamma",
        "SYNC_ADD": "false",
        "SYNC_UPDATE": "false",
        "SYNC_DELETE": "false",
    }.items(),
)
def test_a_sync_looks_at_every_item_again_when_a_setting_is_another(pair: Pair, name: str, value: str) -> None:
    assert pair.is_seen(**{name: value})


def test_a_password_decides_about_no_item_and_leaves_no_trace(pair: Pair) -> None:
    assert not pair.is_seen(LIBRARY_PASSWORD="secret")


def test_a_sync_looks_at_every_item_again_after_the_program_was_replaced(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settled, "__version__", "1000.0.0")
    assert pair.is_seen()


def at_the_server(pair: Pair) -> Path:
    return pair.source / "alpha" / "alpha-disk1.vmdk"


AT_THE_SERVER: dict[str, Callable[[Pair], object]] = {
    "has a file more": lambda pair: (pair.source / "alpha" / "more").touch(),
    "has a file less": lambda pair: at_the_server(pair).unlink(),
    "has a file under another name": lambda pair: (pair.source / "beta").rename(pair.source / "delta"),
    "has a file of another size": lambda pair: keeping_its_time(at_the_server(pair)),
    "has a file of another time": lambda pair: os.utime(at_the_server(pair), (1, 1)),
}


@pytest.mark.parametrize("what", AT_THE_SERVER)
def test_a_sync_looks_at_every_item_again_when_the_server(pair: Pair, what: str) -> None:
    AT_THE_SERVER[what](pair)
    assert pair.is_seen()


def test_an_emptied_source_is_refused_after_any_number_of_syncs_with_nothing_to_do(pair: Pair) -> None:
    shutil.rmtree(pair.source)
    pair.source.mkdir()
    with pytest.raises(GuardError, match="--allow-deletes"):
        pair.site.sync()


@pytest.mark.parametrize("how", [{"complete": False}, {"problems": ("rsync: something",)}])
def test_an_incomplete_listing_is_no_proof_however_often_it_comes(pair: Pair, how: dict[str, object]) -> None:
    pair.answer = how
    assert all(pair.is_seen() for _ in range(3))


def test_the_same_listing_of_another_server_is_no_proof(pair: Pair) -> None:
    pair.away = {"one"}
    assert pair.is_seen()
    pair.site.store.settled.unlink()
    assert pair.is_seen(), "two had to say that there is nothing to do"
    pair.away.clear()
    assert pair.is_seen()
    assert not pair.is_seen()


def test_what_is_held_is_reported_by_every_sync(pair: Pair) -> None:
    (pair.source / "alpha" / "alpha.mf").write_text("SHA256(alpha-disk1.vmdk)= " + "0" * 64 + "\n")
    for _ in range(3):
        report = pair.site.sync()
        assert (report.result, [held.key for held in report.held]) == ("partial", ["alpha"])
    status = json.loads(pair.site.store.status.read_bytes())
    assert [held["key"] for held in status["held"]] == ["alpha"]


def test_a_rolled_back_library_stays_so_and_what_is_released_is_published_again(pair: Pair) -> None:
    pair.site.sync(LIBRARY_NAME="Other")
    pair.site.environment["LIBRARY_NAME"] = "Other"
    pair.settle()
    roll_back(pair.site.settings(), pair.site.store, 1)
    for _ in range(2):
        assert pair.site.sync().result == "paused"
    assert pair.site.document()["name"] == "Test"
    pair.site.store.pin.unlink()
    pair.site.sync()
    assert pair.site.document()["name"] == "Other"


def test_missing_trees_and_damaged_manifests_are_mended_as_ever(pair: Pair) -> None:
    before = pair.site.manifests()
    for what in ("an item's tree is gone", "lib.json was changed", "items.json was changed"):
        HERE[what](pair)
        pair.site.sync()
        assert pair.site.manifests() == before, what
        pair.settle()


def test_old_generations_go_when_their_time_has_come_though_nothing_changes(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.site.environment |= {"LIBRARY_NAME": "Other", "LIBRARY_KEEP": "1", "LIBRARY_GRACE": "1h"}
    pair.settle()
    assert pair.site.store.generation_numbers() == (1, 2)
    now = moments.now()
    later = dataclasses.replace(now, uptime=now.uptime + 3601, wall=now.wall + 3601)
    monkeypatch.setattr(moments, "now", lambda: later)
    assert not pair.is_seen()
    assert pair.site.store.generation_numbers() == (2,)


def test_a_failed_question_counts_as_the_first_attempt_and_the_next_server_is_asked(pair: Pair) -> None:
    pair.asked.clear()
    pair.away = {"one", "two"}
    with pytest.raises(TransportError, match="no line to two"):
        pair.site.sync()
    assert pair.asked == ["one", "two"]
    pair.away = {"one"}
    assert pair.site.sync().peer.startswith("two")


def test_the_window_ends_a_question_that_is_not_answered(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.site.environment["SYNC_WINDOW"] = "1s"
    pair.settle()
    asked, before = hanging(monkeypatch), pair.whole
    with pytest.raises(TransportError, match="SYNC_WINDOW ended"):
        pair.site.sync()
    assert (asked, pair.whole) == (["asked", "ended"], before)


def test_a_stop_leaves_no_question_open(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hanging(monkeypatch)

    async def stopped() -> None:
        task = asyncio.ensure_future(synchronise(pair.site.settings(), trigger="test"))
        while not asked:  # noqa: ASYNC110 - the question is asked in the same thread
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asked == ["asked", "ended"]

    asyncio.run(stopped())


def hanging(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the server give no answer."""
    asked: list[str] = []

    async def list_source(_link: Link) -> Listing:
        asked.append("asked")
        try:
            await asyncio.sleep(600)
        finally:
            asked.append("ended")
        raise AssertionError

    monkeypatch.setattr(transport, "list_source", list_source)
    return asked


def test_a_volume_that_takes_no_note_is_only_warned_about(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    pair.site.store.settled.unlink()
    monkeypatch.setattr(settled, "replace_file", full)
    assert pair.site.sync().result == "success"
    assert "No space left on device" in caplog.text
    assert not pair.site.store.settled.exists()


def test_a_note_is_what_was_written_or_none(tmp_path: Path) -> None:
    place, known = tmp_path / "settled.json", Settled("a", "b", {"version": 3})
    assert settled.load(place) is None
    settled.save(place, known)
    assert settled.load(place) == known
    good = place.read_bytes()
    for at in range(len(good)):
        place.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        assert settled.load(place) is None
        place.write_bytes(good[:at])
        assert settled.load(place) is None
