"""What the original Content Library Rsync did wrong, each as a test of its own, in the order of its list of defects."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from clr_client import settings as clr_settings
from clr_client.errors import ClrError, GuardError, TransportError
from clr_client.transport import ssh
from clr_client.values import Peer
from clr_client.vcsp.subscriber import check
from support.proxy import Line
from support.server import Server, free_port, wait_until
from support.site import CLR, Site, cli_environment, get, running
from support.templates import fake_template


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "primary"
    for name in ("alpha", "beta"):
        fake_template(folder / name, disk_bytes=50_000)
    return folder


def item(site: Site, name: str) -> dict[str, Any]:
    return next(entry for entry in site.document("items.json")["items"] if entry["name"] == name)


def test_defect_01_two_syncs_of_an_unchanged_source_keep_ids_versions_and_every_byte(site: Site) -> None:
    site.sync()
    before = site.manifests()
    site.sync()
    assert site.manifests() == before


def test_defect_02_an_updated_template_has_decimal_etags_and_growing_generation_numbers(
    library: Path, site: Site
) -> None:
    site.sync()
    before = {file["name"]: file for file in item(site, "alpha")["files"]}
    fake_template(library / "alpha", disk_bytes=50_000, revision=1)
    site.sync()
    files = item(site, "alpha")["files"]
    assert len({int(file["etag"]) for file in files}) == 1
    assert int(files[0]["etag"]) > int(before[files[0]["name"]]["etag"])
    disk = next(file for file in files if file["name"].endswith(".vmdk"))
    assert disk["generationNum"] > before[disk["name"]]["generationNum"]


def test_defect_03_an_empty_source_deletes_nothing_and_the_refusal_names_the_override(
    library: Path, site: Site
) -> None:
    site.sync()
    before = site.manifests()
    for entry in library.iterdir():
        shutil.rmtree(entry)
    with pytest.raises(GuardError, match="allow-deletes"):
        site.sync()
    assert site.manifests() == before


def test_defect_04_a_failed_transfer_publishes_nothing_broken(library: Path, server: Server, site: Site) -> None:
    site.sync()
    before = site.manifests()
    fake_template(library / "alpha", disk_bytes=3_000_000, revision=1)
    with Line(server.port, None, 1_000_000, 0, 0) as line, pytest.raises(TransportError):
        site.sync(SYNC_PORT=str(line.port), SYNC_RETRIES="0")
    assert site.manifests() == before


def test_defect_05_links_at_the_source_are_not_served_nor_are_dotfiles(library: Path, site: Site) -> None:
    (library / "alpha" / "leak").symlink_to(site.home / "ssh" / "id_syncer")
    (library / "alpha" / ".hidden").write_text("hidden")
    with running(site):
        wait_until(lambda: get(site, "lib.json")[0] == 200, 30, "the first sync")
        assert get(site, "alpha/alpha.ovf")[0] == 200
        for path in ("alpha/leak", "alpha/.hidden", ".state.json", "alpha/%2ehidden", "../ssh/id_syncer"):
            assert get(site, path)[0] in {400, 404}, path


def test_defect_06_sub_folders_empty_folders_broken_links_and_odd_names_stop_no_other_item(
    library: Path, site: Site
) -> None:
    fake_template(library / "beta" / "inner", disk_bytes=1000)
    (library / "alpha" / "empty").mkdir()
    (library / "nothing").mkdir()
    (library / "beta" / "broken").symlink_to("nowhere")
    os.mkdir(os.fsencode(library) + b"/not-\xff-utf8")
    Path(os.fsdecode(os.fsencode(library) + b"/not-\xff-utf8/file.bin")).write_bytes(b"x")
    report = site.sync()
    assert site.versions().keys() == {"alpha", "beta", "inner"}
    assert ["UTF-8" in held.reason for held in report.held] == [True]


def test_defect_07_browsing_survives_restarts(site: Site) -> None:
    for _ in range(3):
        with running(site, LIBRARY_BROWSE="true"):
            wait_until(lambda: get(site, "lib.json")[0] == 200, 30, "the library")
            status, page = get(site, "")
            assert status == 200
            assert b"alpha" in page


def test_defect_08_a_restart_leaves_one_schedule_and_a_lock_that_the_dead_do_not_hold(site: Site) -> None:
    for _ in range(2):
        with running(site) as process:
            wait_until(lambda: get(site, "lib.json")[0] == 200, 30, "the library")
            process.kill()
            process.wait(10)
    assert site.sync().result == "success"
    shown = subprocess.run(
        [CLR, "schedule", "--count", "1"], env=cli_environment(site), capture_output=True, check=True
    )
    assert len(shown.stdout.splitlines()) == 2


def test_defect_09_a_recreated_server_keeps_its_host_keys_and_another_key_is_refused(
    library: Path, server: Server, site: Site, tmp_path: Path
) -> None:
    site.sync()
    fingerprints = list(server.host_key_fingerprints)
    server.stop()
    server.start()
    assert list(server.host_key_fingerprints) == fingerprints
    assert site.sync().result == "success"
    known = site.store.known_hosts
    lines = known.read_text().splitlines()
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    blob = other.with_suffix(".pub").read_text().split()[1]
    known.write_text("".join(f"{line.split()[0]} ssh-ed25519 {blob}\n" for line in lines[:1]))
    with pytest.raises(ClrError, match="SHA256:"):
        site.sync()


def test_defect_10_a_dropped_line_is_retried_and_what_arrived_is_not_sent_again(
    library: Path, server: Server, site: Site
) -> None:
    size = 24_000_000
    (library / "large").mkdir()
    (library / "large" / "disk.bin").write_bytes(os.urandom(size))
    with Line(server.port, None, int(size * 0.9)) as line:
        report = site.sync(SYNC_PORT=str(line.port), SYNC_RETRIES="3", SYNC_RETRY_DELAY="0")
        assert report.result == "success"
        assert line.crossed < size * 1.1
    assert site.content("large", "disk.bin") == (library / "large" / "disk.bin").read_bytes()


def test_defect_11_the_site_answers_at_once_also_when_the_first_sync_fails(site: Site) -> None:
    with running(site, SYNC_PORT=str(free_port())) as process:
        status, body = wait_until(lambda: (answer := get(site, "lib.json"))[0] and answer, 20, "an answer")
        assert status == 503
        assert {"status", "progress", "message"} <= json.loads(body).keys()
        assert process.poll() is None


def test_defect_12_sigterm_ends_the_client_cleanly_within_the_grace_period(library: Path, site: Site) -> None:
    (library / "large").mkdir()
    (library / "large" / "disk.bin").write_bytes(os.urandom(3_000_000))
    with running(site, SYNC_MAX_BW="200") as process:
        wait_until(lambda: any(site.store.mirror.rglob(".disk.bin.*")), 30, "a running transfer")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert not any(site.store.mirror.rglob(".disk.bin.*"))
    assert any(site.store.mirror.rglob(".clr-partial/disk.bin"))


def test_defect_13_a_name_of_ninety_characters_becomes_one_of_at_most_eighty(library: Path, site: Site) -> None:
    for ending in "ab":
        fake_template(library / ("x" * 89 + ending), name="t", disk_bytes=1000)
    site.sync()
    names = [name for name in site.versions() if name.startswith("xxx")]
    assert len(set(names)) == 2
    assert all(len(name) <= 80 for name in names)
    site.sync()
    assert [name for name in site.versions() if name.startswith("xxx")] == names


def test_defect_14_types_follow_from_suffixes_in_any_case_not_from_folder_names(library: Path, site: Site) -> None:
    plain = library / "golden.ovf-library"
    plain.mkdir()
    (plain / "notes.txt").write_text("x")
    upper = fake_template(library / "upper", disk_bytes=1000)
    upper.rename(upper.with_suffix(".OVF"))
    (library / "upper" / "upper.mf").unlink()
    site.sync()
    assert item(site, "golden.ovf-library")["type"] == "vcsp.other"
    assert item(site, "upper")["type"] == "vcsp.ovf"


def test_defect_15_a_change_of_a_file_whose_name_ends_like_ours_is_seen(library: Path, site: Site) -> None:
    (library / "alpha" / "vm-item.json").write_text("1")
    site.sync()
    (library / "alpha" / "vm-item.json").write_text("22")
    site.sync()
    assert site.versions()["alpha"] == "2"
    assert site.content("alpha", "vm-item.json") == b"22"


def test_defect_16_the_order_of_files_on_disk_does_not_matter(library: Path, site: Site) -> None:
    site.sync()
    before = site.manifests()
    aside = library.with_name("aside")
    (library / "alpha").rename(aside)
    (library / "alpha").mkdir()
    for file in sorted(aside.iterdir(), reverse=True):
        shutil.copy2(file, library / "alpha" / file.name)
    site.sync()
    assert site.manifests() == before


@pytest.mark.parametrize("name", ["lib.json", "items.json", ".state.json"])
def test_defect_17_truncated_manifests_cost_no_id_and_no_version(library: Path, site: Site, name: str) -> None:
    site.sync()
    fake_template(library / "alpha", disk_bytes=50_000, revision=1)
    site.sync()
    library_id, ids, version = site.document()["id"], site.ids(), int(site.document()["version"])
    damaged = site.library / "current" / name
    damaged.write_bytes(damaged.read_bytes()[:30])
    fake_template(library / "beta", disk_bytes=50_000, revision=1)
    site.sync()
    assert site.document()["id"] == library_id
    assert site.ids() == ids
    assert int(site.document()["version"]) > version


def test_defect_18_a_new_name_of_the_library_is_published_and_the_version_grows(site: Site) -> None:
    site.sync()
    site.sync(LIBRARY_NAME="Golden images")
    assert (site.document()["name"], site.document()["version"]) == ("Golden images", "2")
    assert site.versions() == {"alpha": "1", "beta": "1"}


def test_defect_19_unchanged_content_is_not_read_and_changed_content_once(
    library: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clr_client.content import digests

    site.sync()
    opened: list[str] = []
    real = digests.opened

    def counting(path: str | Path) -> Any:
        opened.append(Path(path).name)
        return real(path)

    monkeypatch.setattr(digests, "opened", counting)
    site.sync()
    assert opened == []
    fake_template(library / "alpha", disk_bytes=50_000, revision=1)
    site.sync()
    assert sorted(opened) == ["alpha-disk1.vmdk", "alpha.mf", "alpha.ovf"]


def test_defect_20_the_old_name_of_the_bandwidth_setting_works_and_is_warned_about() -> None:
    settings, warnings = clr_settings.load({"SYNC_MAX_KBPS": "1500"})
    assert str(settings.sync_max_bw) == "1500"
    assert any("SYNC_MAX_KBPS" in warning and "SYNC_MAX_BW" in warning for warning in warnings)


def test_defect_21_the_source_is_named_in_the_form_that_every_rrsync_accepts() -> None:
    assert ssh.source(Peer("clr.example.com", 2222)).endswith("clr.example.com:")


def test_defect_22_times_in_manifests_are_utc_whatever_the_time_zone(site: Site) -> None:
    from datetime import UTC, datetime

    site.sync(TZ="Asia/Tokyo")
    created = datetime.strptime(site.document()["created"], "%Y-%m-%dT%H:%MZ").replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - created).total_seconds()) < 300


def test_the_result_of_a_first_sync_passes_a_strict_check(site: Site) -> None:
    with running(site):
        wait_until(lambda: get(site, "lib.json")[0] == 200, 30, "the first sync")
        report = check(f"http://127.0.0.1:{site.environment['HTTP_PORT']}/lib.json", full=True)
    assert report.ok, report.problems
