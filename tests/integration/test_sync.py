"""A sync between the real sshd, rrsync and rsync, from the outside: what is published, what crossed, what is held."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from typing import TYPE_CHECKING

import pytest
from clr_client.errors import GuardError, LockedError, TransportError
from support.proxy import Line
from support.server import Server
from support.site import Site
from support.templates import fake_template, pack_ova, replace

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "primary"
    for name in ("alpha", "beta", "gamma"):
        fake_template(folder / name, disk_bytes=200_000)
    return folder


def last_run(site: Site) -> dict[str, object]:
    return json.loads(site.store.status.read_bytes())["runs"][0]


def test_first_sync_publishes_every_template(site: Site) -> None:
    report = site.sync()
    assert report.result == "success"
    assert site.versions() == {"alpha": "1", "beta": "1", "gamma": "1"}


def test_a_second_sync_of_an_unchanged_source_changes_no_byte_and_reads_no_content(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.sync()
    before = site.manifests()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("content was read")

    monkeypatch.setattr("clr_client.content.digests.opened", refuse)
    report = site.sync()
    assert site.manifests() == before
    assert (report.planned_bytes, report.literal_bytes) == (0, 0)
    assert site.store.generation_numbers() == (1,)


def test_a_changed_disk_crosses_the_line_as_a_delta_and_only_its_item_grows(library: Path, site: Site) -> None:
    fake_template(library / "alpha", disk_bytes=8_000_000)
    site.sync()
    fake_template(library / "alpha", disk_bytes=8_000_000, revision=1)
    report = site.sync()
    assert site.versions() == {"alpha": "2", "beta": "1", "gamma": "1"}
    assert report.literal_bytes < 500_000
    disk = next((library / "alpha").glob("*.vmdk"))
    assert site.content("alpha", disk.name) == disk.read_bytes()


def test_added_and_removed_templates_come_and_go(library: Path, site: Site) -> None:
    site.sync()
    ids = site.ids()
    fake_template(library / "delta", disk_bytes=1000)
    shutil.rmtree(library / "beta")
    report = site.sync()
    assert (report.added, report.removed) == (("delta",), ("beta",))
    assert site.ids().keys() == {"alpha", "gamma", "delta"}
    assert site.ids()["alpha"] == ids["alpha"]
    assert site.ids()["delta"] not in ids.values()
    assert not (site.store.mirror / "beta").exists()


def test_a_renamed_template_costs_almost_nothing(library: Path, site: Site) -> None:
    fake_template(library / "golden-2026.10", disk_bytes=8_000_000)
    site.sync()
    (library / "golden-2026.10").rename(library / "golden-2026.11")
    report = site.sync()
    assert "golden-2026.11" in site.versions()
    assert report.literal_bytes < 50_000


def test_a_basis_of_the_same_size_and_time_but_other_content_is_never_taken_for_the_new_file(
    library: Path, site: Site
) -> None:
    (library / "v1").mkdir()
    (library / "v1" / "disk.bin").write_bytes(b"a" * 200_000)
    os.utime(library / "v1" / "disk.bin", (1_700_000_000, 1_700_000_000))
    site.sync()
    shutil.rmtree(library / "v1")
    (library / "v2").mkdir()
    (library / "v2" / "disk.bin").write_bytes(b"b" * 200_000)
    os.utime(library / "v2" / "disk.bin", (1_700_000_000, 1_700_000_000))
    site.sync()
    assert site.content("v2", "disk.bin") == b"b" * 200_000


def test_an_emptied_source_is_refused_and_nothing_is_deleted(library: Path, site: Site) -> None:
    site.sync()
    before = site.manifests()
    for entry in library.iterdir():
        shutil.rmtree(entry)
    with pytest.raises(GuardError, match="--allow-deletes"):
        site.sync()
    assert site.manifests() == before
    assert last_run(site)["result"] == "failed"
    assert site.sync(allow_deletes=True).result == "success"
    assert site.versions() == {}


def test_a_missing_source_is_refused_and_nothing_is_deleted(library: Path, site: Site) -> None:
    site.sync()
    before = site.manifests()
    library.rename(library.with_name("elsewhere"))
    with pytest.raises((TransportError, GuardError)):
        site.sync()
    assert site.manifests() == before


def test_deletions_above_the_limit_are_refused_before_anything_is_fetched(library: Path, site: Site) -> None:
    site.sync()
    for name in ("alpha", "beta"):
        shutil.rmtree(library / name)
    fake_template(library / "delta", disk_bytes=1000)
    with pytest.raises(GuardError, match="2 of 3"):
        site.sync()
    assert not (site.store.mirror / "delta").exists()
    assert site.sync(SYNC_MAX_DELETE="2").removed == ("alpha", "beta")


def test_a_plan_that_does_not_fit_is_refused_before_anything_is_fetched(
    library: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clr_client.store.Store.free_bytes", lambda _: 100_000)
    with pytest.raises(GuardError, match="free"):
        site.sync()
    assert not any(site.store.mirror.iterdir())


def test_one_broken_template_is_held_at_its_last_good_version_and_the_others_go_on(library: Path, site: Site) -> None:
    site.sync()
    good = site.content("alpha", "alpha-disk1.vmdk")
    fake_template(library / "alpha", disk_bytes=200_000, revision=1)
    with (library / "alpha" / "alpha-disk1.vmdk").open("r+b") as disk:
        disk.write(b"not what the manifest says")
    fake_template(library / "beta", disk_bytes=200_000, revision=1)
    report = site.sync()
    assert report.result == "partial"
    assert [held.key for held in report.held] == ["alpha"]
    assert "alpha-disk1.vmdk" in report.held[0].reason
    assert report.held[0].serves == 1
    assert site.versions() == {"alpha": "1", "beta": "2", "gamma": "1"}
    assert site.content("alpha", "alpha-disk1.vmdk") == good

    fake_template(library / "alpha", disk_bytes=200_000, revision=2)
    assert site.sync().result == "success"
    assert site.versions()["alpha"] == "2"


def test_a_half_copied_template_is_held_until_it_is_whole(library: Path, site: Site) -> None:
    fake_template(library / "new", disk_bytes=50_000)
    disk = next((library / "new").glob("*.vmdk"))
    content = disk.read_bytes()
    disk.write_bytes(content[:20_000])
    assert [held.key for held in site.sync().held] == ["new"]
    assert "new" not in site.versions()
    disk.write_bytes(content)
    assert site.sync().added == ("new",)


def test_an_unreadable_file_holds_its_item_and_the_others_are_published(library: Path, tmp_path: Path) -> None:
    disk = next((library / "beta").glob("*.vmdk"))
    disk.chmod(0)
    wrapper: tuple[str, ...] = ()
    if os.geteuid() == 0:  # without these capabilities root, too, can only read what it may
        os.chown(disk, 12345, 12345)
        wrapper = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    with Server(library, tmp_path / "server", wrapper=wrapper) as server:
        site = Site(tmp_path / "site", server)
        report = site.sync()
        assert report.result == "partial"
        assert [held.key for held in report.held] == ["beta"]
        assert disk.name in report.held[0].reason
        assert site.versions().keys() == {"alpha", "gamma"}


def test_the_switches_leave_their_class_of_change_as_it_is(library: Path, site: Site) -> None:
    site.sync()
    fake_template(library / "alpha", disk_bytes=200_000, revision=1)
    shutil.rmtree(library / "beta")
    fake_template(library / "delta", disk_bytes=1000)
    assert site.sync(SYNC_ADD="false", SYNC_UPDATE="false", SYNC_DELETE="false").result == "success"
    assert site.versions() == {"alpha": "1", "beta": "1", "gamma": "1"}
    site.sync(SYNC_UPDATE="false", SYNC_DELETE="false")
    assert site.versions() == {"alpha": "1", "beta": "1", "gamma": "1", "delta": "1"}
    site.sync(SYNC_DELETE="false")
    assert site.versions() == {"alpha": "2", "beta": "1", "gamma": "1", "delta": "1"}
    site.sync()
    assert site.versions() == {"alpha": "2", "gamma": "1", "delta": "1"}


def test_only_chosen_items_come(site: Site) -> None:
    site.sync(SYNC_INCLUDE="al*,beta")
    assert site.versions().keys() == {"alpha", "beta"}
    assert not (site.store.mirror / "gamma").exists()
    site.sync(SYNC_EXCLUDE="beta")
    assert site.versions().keys() == {"alpha", "gamma"}


def test_a_second_run_says_since_when_the_first_runs(site: Site) -> None:
    with site.store.locked("schedule"), pytest.raises(LockedError, match="already running since 20"):
        site.sync()


def test_servers_are_tried_in_order_until_one_answers(server: Server, site: Site) -> None:
    report = site.sync(SYNC_PEER=f"127.0.0.1:1, 127.0.0.1:{server.port}")
    assert report.peer == f"127.0.0.1:{server.port}"


def test_an_unreachable_server_fails_the_run_and_leaves_what_is_served(server: Server, site: Site) -> None:
    site.sync()
    before = site.manifests()
    with pytest.raises(TransportError):
        site.sync(SYNC_PORT="1")
    assert site.manifests() == before
    assert json.loads(site.store.status.read_bytes())["failures_in_row"] == 1


def test_a_failed_attempt_is_retried(server: Server, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from clr_client import transport

    real, calls = transport.list_source, []

    async def flaky(link: transport.Link) -> transport.Listing:
        calls.append(link)
        if len(calls) < 3:
            raise TransportError("the line dropped")
        return await real(link)

    monkeypatch.setattr(transport, "list_source", flaky)
    report = site.sync(SYNC_RETRIES="2", SYNC_RETRY_DELAY="0")
    assert report.result == "success"


def test_a_pinned_server_is_met_and_any_other_refused(server: Server, site: Site) -> None:
    assert site.sync(SYNC_HOST_KEY=server.host_key_fingerprints[0]).result == "success"
    with pytest.raises(TransportError, match="SHA256:"):
        site.sync(SYNC_HOST_KEY="SHA256:" + "A" * 43)


def test_the_window_ends_a_run_cleanly_and_the_next_goes_on(library: Path, site: Site) -> None:
    fake_template(library / "large", disk_bytes=4_000_000)
    started = time.monotonic()
    report = site.sync(SYNC_MAX_BW="400", SYNC_WINDOW="6")
    assert time.monotonic() - started < 60
    assert report.result == "partial"
    assert "SYNC_WINDOW" in report.error
    assert {"alpha", "beta", "gamma"} <= site.versions().keys()
    assert "large" not in site.versions()
    arrived = sum(partial.stat().st_size for partial in site.store.mirror.rglob(".clr-partial/*"))
    assert arrived > 0
    following = site.sync()
    assert following.added == ("large",)
    assert following.literal_bytes < 4_000_000 - arrived + 100_000


def test_what_a_cut_transfer_brought_joins_the_old_version_and_is_not_sent_again(
    library: Path, server: Server, site: Site
) -> None:
    folder = library / "big"
    folder.mkdir()
    old = os.urandom(6_000_000)
    (folder / "disk.bin").write_bytes(old)
    site.sync()
    # the first half is new, the second is the old version's
    replace(folder / "disk.bin", os.urandom(3_000_000) + old[3_000_000:])
    with Line(server.port) as line:
        line.at(2_000_000, line.drop)
        with pytest.raises(TransportError):
            site.sync(SYNC_PORT=str(line.port))
    partial = next(site.store.mirror.rglob(".clr-partial/disk.bin")).stat().st_size
    assert 1_500_000 < partial < 2_000_000
    resumed = site.sync()
    assert resumed.updated == ("big",)
    assert site.content("big", "disk.bin") == (folder / "disk.bin").read_bytes()
    assert resumed.literal_bytes <= 3_000_000 - partial + 100_000


def test_a_source_that_changes_during_the_transfer_is_fetched_again(
    library: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clr_client import transport

    real = transport.fetch
    changes = []

    async def fetch(*args: object, **kwargs: object) -> transport.Transfer:
        done = await real(*args, **kwargs)  # type: ignore[arg-type]
        if not changes:
            changes.append(fake_template(library / "alpha", disk_bytes=210_000, revision=5))
        return done

    monkeypatch.setattr(transport, "fetch", fetch)
    assert site.sync().result == "success"
    disk = next((library / "alpha").glob("*.vmdk"))
    assert site.content("alpha", disk.name) == disk.read_bytes()


def test_links_devices_and_dotfiles_never_come_over(library: Path, site: Site) -> None:
    (library / "alpha" / "secret.vmdk").symlink_to("/etc/passwd")
    (library / "linked").symlink_to("/etc")
    os.mkfifo(library / "alpha" / "pipe")
    (library / "alpha" / ".hidden").write_text("x")
    (library / ".vSphere-HA").mkdir()
    (library / ".vSphere-HA" / "x").write_text("x")
    site.sync()
    assert site.versions().keys() == {"alpha", "beta", "gamma"}
    found = {path.name for path in site.store.mirror.rglob("*")}
    assert not found & {"secret.vmdk", "linked", "pipe", ".hidden", ".vSphere-HA", "passwd"}


def test_files_named_like_ours_never_replace_ours(library: Path, site: Site) -> None:
    for name in ("lib.json", "items.json", "status.json"):
        (library / name).write_text("{}")
    (library / "alpha" / "item.json").write_text("{}")
    site.sync()
    assert site.document()["name"] == "Test"
    item = next(item for item in site.document("items.json")["items"] if item["name"] == "alpha")
    assert site.document(item["selfHref"]) == item


def test_old_generations_and_their_files_are_pruned_after_the_grace_time(library: Path, site: Site) -> None:
    settings = {"LIBRARY_KEEP": "2", "LIBRARY_GRACE": "0"}
    for revision in range(4):
        fake_template(library / "alpha", disk_bytes=100_000, revision=revision)
        site.sync(**settings)
    assert site.store.generation_numbers() == (3, 4)
    trees = site.store.items / site.ids()["alpha"].removeprefix("urn:uuid:")
    assert sorted(tree.name for tree in trees.iterdir()) == ["3", "4"]
    fake_template(library / "alpha", disk_bytes=100_000, revision=9)
    site.sync(LIBRARY_KEEP="1", LIBRARY_GRACE="1h")
    assert site.store.generation_numbers() == (3, 4, 5)


def test_progress_is_there_for_subscribers_before_anything_was_published(
    server: Server, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TransportError):
        site.sync(SYNC_PORT="1")
    body = json.loads(site.store.progress.read_bytes())
    assert set(body) == {"status", "progress", "message"}
    assert body["message"]
    site.sync()
    assert json.loads(site.store.progress.read_bytes())["message"] == ""


def test_a_folder_too_deep_or_a_name_too_long_holds_only_its_item_and_never_stops_a_sync(
    library: Path, site: Site
) -> None:
    deep = library.joinpath(*["d"] * 33)
    deep.mkdir(parents=True)
    (deep / "disk.bin").write_bytes(b"x")
    for _ in range(2):
        report = site.sync()
        assert ["deep" in held.reason for held in report.held] == [True]
        assert site.versions().keys() == {"alpha", "beta", "gamma"}


def test_old_generations_go_before_space_is_counted_so_the_remedy_for_a_full_disk_works(
    library: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for revision in range(3):
        fake_template(library / "alpha", disk_bytes=100_000, revision=revision)
        site.sync()
    fake_template(library / "alpha", disk_bytes=100_000, revision=7)
    monkeypatch.setattr("clr_client.store.Store.free_bytes", lambda _: 1000)
    with pytest.raises(GuardError, match="LIBRARY_KEEP"):
        site.sync(LIBRARY_KEEP="1", LIBRARY_GRACE="0")
    assert site.store.generation_numbers() == (3,)


def test_a_first_sync_that_brings_nothing_publishes_nothing_and_counts_as_failed(
    library: Path, server: Server, site: Site
) -> None:
    for entry in library.iterdir():
        shutil.rmtree(entry)
    (library / "large").mkdir()
    (library / "large" / "disk.bin").write_bytes(os.urandom(3_000_000))
    with Line(server.port, None, 500_000, 0, 0) as line, pytest.raises(TransportError):
        site.sync(SYNC_PORT=str(line.port))
    assert not site.store.current.exists()
    assert json.loads(site.store.progress.read_bytes())["message"]
    assert json.loads(site.store.status.read_bytes())["failures_in_row"] == 1
    assert site.sync().added == ("large",)


@pytest.mark.parametrize("name", ["lib.json", "items.json"])
def test_a_damaged_manifest_is_mended_by_the_next_sync_of_an_unchanged_source(site: Site, name: str) -> None:
    site.sync()
    before = site.manifests()
    damaged = site.library / "current" / name
    damaged.write_bytes(damaged.read_bytes()[:20])
    site.sync()
    assert site.manifests() == before


def empty(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry)


def test_a_disaster_at_the_source_at_the_end_of_a_cut_transfer_takes_nothing_away(
    library: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clr_client import transport

    site.sync()
    before = site.manifests()
    fake_template(library / "alpha", disk_bytes=200_000, revision=1)
    real = transport.fetch

    async def fetch(*args: object, **kwargs: object) -> transport.Transfer:
        await real(*args, **kwargs)  # type: ignore[arg-type]
        await asyncio.to_thread(empty, library)
        raise TransportError("the line dropped")

    monkeypatch.setattr(transport, "fetch", fetch)
    with pytest.raises(TransportError, match="dropped"):
        site.sync()
    assert site.manifests() == before


def test_an_archive_that_rots_after_it_was_verified_holds_its_item_and_no_other(
    library: Path, site: Site, tmp_path: Path
) -> None:
    pack_ova(fake_template(tmp_path / "made" / "golden", disk_bytes=30_000).parent, library / "golden.ova")
    site.sync()
    shutil.rmtree(site.store.items / site.ids()["golden"].removeprefix("urn:uuid:"))
    archive = site.store.mirror / "golden.ova"
    before = archive.stat()
    with archive.open("r+b") as handle:
        handle.seek(20_000)
        handle.write(b"rotten")
    os.utime(archive, ns=(before.st_atime_ns, before.st_mtime_ns))
    fake_template(library / "alpha", disk_bytes=200_000, revision=1)
    report = site.sync()
    assert [held.key for held in report.held] == ["golden.ova"]
    assert site.versions() == {"alpha": "2", "beta": "1", "gamma": "1"}
