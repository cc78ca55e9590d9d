"""`clr doctor` at the real pair: each mistake that people make has a line that names it and says what to do."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from clr_client import doctor
from clr_client.doctor import Result, case
from clr_client.doctor import server as server_checks
from clr_client.doctor import site as site_checks
from clr_client.rollback import roll_back
from clr_client.web.health import heartbeat
from support import disks
from support.caddy import make_pair
from support.disks import MIB
from support.examining import examined, findings_of, found
from support.server import Server, free_port, make_key, wait_until
from support.site import CLR, Site, cli_environment, running
from support.templates import fake_template

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from clr_client.doctor import Finding

NAME = "library.example.com"

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "primary"
    for name in ("alpha", "beta"):
        fake_template(folder / name, disk_bytes=200_000)
    return folder


@pytest.fixture
def alone(library: Path, tmp_path: Path) -> Site:
    """A site whose server does not run."""
    return Site(tmp_path / "site", Server(library, tmp_path / "server"), HTTP_PORT=str(free_port()))


@pytest.fixture(autouse=True)
def _like_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run in a container, in which every folder of a test is lost with it."""
    monkeypatch.setattr(case, "SIGNS_OF_CONTAINERS", ())


def problems(site: Site, **changes: str) -> dict[str, Finding]:
    """What is a problem, by check."""
    findings = examined(site.environment | changes)
    return {finding.check: finding for finding in findings if finding.result is Result.PROBLEM}


def only_problem(site: Site, check: str, **changes: str) -> Finding:
    """The problem that a check finds; there is no other one."""
    seen = problems(site, **changes)
    assert list(seen) == [check], seen
    return seen[check]


def problem(site: Site, check: str, **changes: str) -> Finding:
    """What a check finds, which is one problem."""
    finding = found(site.environment | changes, check)
    assert finding.result is Result.PROBLEM, finding
    return finding


def synced(site: Site) -> bool:
    """Whether a first sync has ended, and cleared away what told of it."""
    return site.store.status.exists() and not site.store.running.exists()


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """All files of a folder with their times and inodes."""
    paths = [path for path in folder.rglob("*") if not path.is_dir()]
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_ino) for path in paths}


# ---------------------------------------------------------------- nothing is wrong


def test_at_a_healthy_site_everything_is_ok_and_nothing_is_touched(site: Site) -> None:
    with running(site):
        wait_until(lambda: synced(site), 60, "the end of the first sync")
        before = tree(site.home)
        done = subprocess.run([CLR, "doctor", "--json"], env=cli_environment(site), capture_output=True, text=True)
        after = tree(site.home)
    document = json.loads(done.stdout)
    by_check = {finding["check"]: finding for finding in document["findings"]}
    by_check.pop("folders")  # which a container that runs the tests takes for its own
    assert [finding for finding in by_check.values() if finding["result"] != "ok"] == []
    assert by_check.keys() == {check.name for check in doctor.CHECKS} - {"folders"}
    assert (done.returncode, done.stderr, document["schema"], document["ok"]) == (0, "", 1, True)
    assert document["counts"]["problem"] == 0
    assert "the server's log must name this fingerprint" in by_check["key"]["text"]
    assert "SUCCESS: Test, version 1, 2 items" in by_check["subscriber"]["text"]
    other = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    own = {"alive", "run.log", *(path.name for path in (site.home / "run" / "site").glob("*"))}
    assert {path.rpartition("/")[2] for path in other} <= own


def test_before_the_first_start_there_are_no_problems_and_nothing_is_made(site: Site) -> None:
    findings = examined(site.environment)
    by_check = {finding.check: finding for finding in findings}
    assert {finding.result for finding in findings} == {Result.OK, Result.WARNING, Result.SKIPPED}
    assert by_check["host key"].result is Result.WARNING
    assert "fetch 6 files" in by_check["plan"].text
    assert sorted(path.name for path in site.home.iterdir()) == ["ssh"]


def test_it_neither_waits_for_a_sync_nor_holds_one_up(site: Site) -> None:
    site.sync()
    with site.store.locked("a sync that runs"):
        assert problems(site) == {}
    assert site.sync().result == "success"


def test_a_pinned_host_key_is_named(server: Server, site: Site) -> None:
    finding = found(site.environment | {"SYNC_HOST_KEY": server.host_key_fingerprints[0]}, "host key")
    assert finding.result is Result.OK
    assert server.host_key_fingerprints[1] in finding.text


# ---------------------------------------------------------------- the five commonest mistakes


def test_mistake_1_a_key_that_the_server_does_not_know(site: Site, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other")
    shutil.copy(other, site.home / "ssh" / "id_syncer")
    finding = only_problem(site, "login")
    assert "does not accept the key" in finding.text
    fingerprint = subprocess.run(["ssh-keygen", "-lf", other], capture_output=True, text=True).stdout.split()[1]
    assert fingerprint in finding.text
    assert "(the .pub file) into the server's key folder" in finding.remedy


def test_mistake_2_a_port_on_which_nothing_listens(site: Site) -> None:
    finding = only_problem(site, "port", SYNC_PORT=str(free_port()))
    assert "refuses connections" in finding.text
    assert "SYNC_PORT" in finding.remedy


@pytest.mark.parametrize("pinned", [False, True])
def test_mistake_3_a_server_that_was_set_up_anew(
    library: Path, server: Server, site: Site, tmp_path: Path, pinned: bool
) -> None:
    old = server.host_key_fingerprints
    pin = {"SYNC_HOST_KEY": ",".join(old)} if pinned else {}
    site.sync(**pin)
    known_hosts = site.store.known_hosts.read_bytes()
    server.stop()
    with Server(
        library,
        tmp_path / "anew",
        port=server.port,
        keys=[server.identity.with_suffix(".pub")],
        fresh_host_keys=True,
    ) as anew:
        finding = only_problem(site, "host key", **pin)
        new = anew.host_key_fingerprints
        server.start()  # which the fixture stops
    assert any(key in finding.text for key in old)
    assert any(key in finding.text for key in new)
    assert "fingerprints in" in finding.remedy
    assert site.store.known_hosts.read_bytes() == known_hosts


def test_mistake_4_a_source_that_is_not_mounted(library: Path, site: Site) -> None:
    site.sync()
    for entry in library.iterdir():
        shutil.rmtree(entry)
    finding = only_problem(site, "listing")
    assert "the server's library is empty" in finding.text
    assert "Is its storage mounted?" in finding.remedy


def test_mistake_5_a_disk_without_room(server: Server, tmp_path: Path) -> None:
    site = Site(tmp_path / "site", server, HTTP_PORT=str(free_port()))
    with disks.disk("ext4", site.library, megabytes=32) as disk:
        disk.fill(leave=MIB)
        finding = only_problem(site, "space")
        assert "the plan needs" in finding.text
        assert "Make room" in finding.remedy
        disk.make_room()
        site.sync()
        disk.fill()
        assert "bytes free" in problem(site, "space").text
        disk.make_room()
        disk.take_all_inodes()
        assert "no more files" in problem(site, "space").text


# ---------------------------------------------------------------- settings


def test_of_broken_settings_every_one_is_named_and_what_can_be_checked_is_checked(site: Site) -> None:
    findings = examined(
        site.environment
        | {
            "SYNC_SCHEDULE": "often",
            "SYNC_MAX_BW": "fast",
            "TLS_INTERNAL": "true",
            "SYNC_PERR": "x",
            "LIBARY_NAME": "y",
        }
    )
    told = [finding.text for finding in findings if finding.check == "settings"]
    for text in (
        "SYNC_SCHEDULE='often'",
        "SYNC_MAX_BW='fast'",
        "needs TLS_NAME",
        "mean SYNC_PEER?",
        "mean LIBRARY_NAME?",
    ):
        assert [line for line in told if text in line], text
    by_check = {finding.check: finding for finding in findings}
    assert by_check["schedule"].text == "not before this setting is in order: SYNC_SCHEDULE"
    assert by_check["certificate"].result is Result.SKIPPED
    assert by_check["reading"].result is Result.OK


def test_without_a_server_that_alone_is_said(alone: Site) -> None:
    finding = only_problem(alone, "settings", SYNC_PEER="")
    assert finding.text.startswith("SYNC_PEER is not set")


def test_the_command_prints_a_line_for_each_finding_and_its_exit_code_tells(alone: Site) -> None:
    broken = cli_environment(alone) | {"SYNC_PORT": "ssh", "SYNC_PEER": ""}
    done = subprocess.run([CLR, "doctor"], env=broken, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (4, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("problem settings: SYNC_PORT='ssh' cannot be used")
    assert lines[1].startswith("        Correct it")
    assert "begin with the first problem, settings" in lines[-1]


# ---------------------------------------------------------------- folders


def as_somebody(site: Site, *words: str) -> dict[str, Finding]:
    """What `clr doctor` finds as root that has no power beyond its own files and ports from 1024 on."""
    disks.needs_root()
    bounds = "--bounding-set=-dac_override,-dac_read_search,-net_bind_service"
    environ = cli_environment(site) | {"SYNC_PEER": ""}
    done = subprocess.run(["setpriv", bounds, *words, CLR, "doctor", "--json"], env=environ, capture_output=True)
    findings = [doctor.Finding(**finding) for finding in json.loads(done.stdout)["findings"]]
    return {finding.check: finding for finding in findings if finding.result == "problem"}


@needs_root
def test_folders_of_another_account_are_named_with_the_account_that_is_needed(alone: Site) -> None:
    alone.library.mkdir()
    os.chown(alone.library, 12345, 12345)
    finding = as_somebody(alone)["folders"]
    assert "cannot be written to by uid 0; it belongs to uid 12345" in finding.text
    assert "SYNCER_UID=12345" in finding.remedy


@needs_root
def test_a_folder_that_the_container_will_hand_over_is_no_problem(alone: Site) -> None:
    alone.library.mkdir()
    os.chown(alone.library, 12345, 12345)
    assert "folders" not in as_somebody(alone, "env", "CLR_HANDS_OVER=true")


def test_folders_that_cannot_be_folders(alone: Site, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    finding = problem(alone, "folders", CLR_DATA_DIR=str(tmp_path / "file"))
    assert "is not a folder" in finding.text


def test_a_read_only_volume_is_named(alone: Site) -> None:
    with disks.disk("ext4", alone.library) as disk:
        disk.remount("ro")
        assert "mounted read-only" in problem(alone, "folders").text


def test_a_folder_inside_of_the_container_is_lost_with_it(alone: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case, "SIGNS_OF_CONTAINERS", (alone.home,))
    findings = examined(alone.environment)
    assert [finding.result for finding in findings if finding.check == "folders"] == [Result.WARNING] * 2


# ---------------------------------------------------------------- the key


def spoil_missing(key: Path) -> None:
    key.unlink()


def spoil_open(key: Path) -> None:
    key.chmod(0o644)


def spoil_encrypted(key: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(key)], check=True)


def spoil_public(key: Path) -> None:
    key.write_text("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl site\n")


def spoil_cut(key: Path) -> None:
    key.write_bytes(key.read_bytes()[:200])


SPOILT = {
    "is missing": spoil_missing,
    "can be read by others (mode 644)": spoil_open,
    "is locked with a passphrase": spoil_encrypted,
    "is the public half": spoil_public,
    "is not a private key that ssh can use": spoil_cut,
}


@pytest.mark.parametrize("text", SPOILT)
def test_a_key_that_ssh_cannot_use(alone: Site, text: str) -> None:
    SPOILT[text](alone.home / "ssh" / "id_syncer")
    assert text in problem(alone, "key").text


@needs_root
def test_a_key_that_this_account_cannot_read(alone: Site) -> None:
    os.chown(alone.home / "ssh" / "id_syncer", 12345, 12345)
    finding = as_somebody(alone)["key"]
    assert "cannot be read by uid 0; it belongs to uid 12345 and has mode 600" in finding.text


@pytest.mark.parametrize("options", [("-t", "ecdsa"), ("-t", "rsa", "-b", "1024")])
def test_a_key_of_a_kind_that_the_server_does_not_take(alone: Site, options: tuple[str, ...]) -> None:
    key = alone.home / "ssh" / "id_syncer"
    key.unlink()
    make_key(key, *options)
    finding = found(alone.environment, "key")
    assert finding.result is Result.WARNING
    assert "ed25519" in finding.remedy


# ---------------------------------------------------------------- between here and the server


def test_a_name_without_an_address(alone: Site) -> None:
    finding = problem(alone, "name", SYNC_PEER="no-such-server.invalid")
    assert "no-such-server.invalid is not known here" in finding.text


@contextlib.contextmanager
def answering(answer: bytes | None) -> Iterator[int]:
    """A port on which whoever connects is told something; None: nothing, for as long as he waits."""
    kept = []

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                if answer is None:
                    kept.append(connection)
                else:
                    connection.sendall(answer)
                    connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]
    for connection in kept:
        connection.close()


@contextlib.contextmanager
def dropping() -> Iterator[int]:
    """A port whose queue is full, so that the kernel drops who connects, as a firewall does."""
    waiting = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
        for connection in waiting:
            connection.close()


@pytest.mark.parametrize(
    ("port", "text", "remedy"),
    [
        (lambda: answering(b"220 mail.example.com ESMTP\r\n"), "not an SSH server: 220 mail.example.com", "SYNC_PORT"),
        (lambda: answering(None), "says nothing", "SYNC_PORT"),
        (lambda: answering(b""), "closes it at once", "forwards the port"),
        (dropping, "does not answer within", "firewall"),
    ],
)
def test_a_port_that_is_not_the_servers(
    alone: Site,
    monkeypatch: pytest.MonkeyPatch,
    port: Callable[[], contextlib.AbstractContextManager[int]],
    text: str,
    remedy: str,
) -> None:
    monkeypatch.setattr(server_checks, "PORT_SECONDS", 1.0)
    with port() as number:
        finding = problem(alone, "port", SYNC_PORT=str(number))
    assert text in finding.text
    assert remedy in finding.remedy


def test_each_of_several_servers_is_looked_at(site: Site) -> None:
    away = free_port()
    findings = examined(site.environment | {"SYNC_PEER": f"127.0.0.1:{away},127.0.0.1"})
    results = [finding.result for finding in findings if finding.check == "port"]
    assert results == [Result.PROBLEM, Result.OK]
    assert next(finding for finding in findings if finding.check == "plan").result is Result.OK


def rule(server: Server, options: str) -> None:
    """Put other options in front of the site's key at the server."""
    public = server.identity.with_suffix(".pub").read_text()
    (server.run_folder / "authorized_keys").write_text(f"{options} {public}".lstrip())


def test_a_key_that_opens_a_shell_is_warned_about(server: Server, site: Site) -> None:
    rule(server, "")
    finding = found(site.environment, "rrsync")
    assert finding.result is Result.WARNING
    assert "opens a shell" in finding.text


def test_a_key_for_which_the_server_runs_something_else(server: Server, site: Site) -> None:
    rule(server, 'restrict,command="echo hello"')
    findings = {finding.check: finding for finding in examined(site.environment)}
    assert "something else than rrsync for it: hello" in findings["rrsync"].text
    assert findings["rsync"].result is Result.PROBLEM


def test_a_server_whose_rsync_is_old(server: Server, site: Site, tmp_path: Path) -> None:
    old = tmp_path / "old-rsync"
    old.write_text('#!/bin/sh\nexec rsync --protocol=31 "$@"\n')
    old.chmod(0o755)
    rule(server, f'restrict,command="{old} --server --sender -de.LsfxCIvu --list-only . {server.library}"')
    finding = found(site.environment, "rsync")
    assert finding.result is Result.WARNING
    assert "older than 3.4 (protocol 31)" in finding.text


@pytest.fixture
def unprivileged(library: Path, tmp_path: Path) -> Iterator[Site]:
    """A site of a server that, also as root, can only read what it may."""
    disks.needs_root()
    wrapper = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    with Server(library, tmp_path / "server", wrapper=wrapper) as running:
        yield Site(tmp_path / "site", running, HTTP_PORT=str(free_port()))


def test_a_file_that_the_server_cannot_open_is_named_without_fetching_it(library: Path, unprivileged: Site) -> None:
    disk = library / "alpha" / "alpha-disk1.vmdk"
    os.truncate(disk, 300_000_000)
    (library / "beta" / "beta.mf").chmod(0)
    began = time.monotonic()
    finding = problem(unprivileged, "reading")
    assert "lists 1 files that it cannot open" in finding.text
    assert "beta.mf" in finding.text and "Permission denied" in finding.text
    assert "SYNCER_UID" in finding.remedy
    assert time.monotonic() - began < 60


def test_a_folder_that_the_server_cannot_read_is_named(library: Path, unprivileged: Site) -> None:
    (library / "beta").chmod(0)
    finding = problem(unprivileged, "listing")
    assert "cannot read all of its library" in finding.text and "beta" in finding.text


@pytest.mark.parametrize("way", ["may not read", "does not have"])
def test_a_library_that_the_server_may_not_read_or_does_not_have(library: Path, unprivileged: Site, way: str) -> None:
    if way == "may not read":
        library.chmod(0)
    else:
        library.rename(library.with_name("elsewhere"))
    finding = problem(unprivileged, "rsync")
    assert "refuses: " in finding.text
    assert "is its library mounted there" in finding.remedy


# ---------------------------------------------------------------- clock, volume, plan


def test_a_file_from_the_future_tells_that_a_clock_is_wrong(library: Path, site: Site) -> None:
    ahead = time.time() + 40 * 86400
    os.utime(library / "alpha" / "alpha.ovf", (ahead, ahead))
    finding = found(site.environment, "clock")
    assert finding.result is Result.WARNING
    assert "alpha/alpha.ovf" in finding.text


def test_a_clock_that_was_never_set(alone: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clr_client.doctor.volume.time.time", lambda: 1_000_000.0)
    assert "before this program was made" in found(alone.environment, "clock").text


def test_a_volume_without_hard_links_is_warned_about(alone: Site, tmp_path: Path) -> None:
    with disks.without_hard_links(alone.library, tmp_path / "behind"):
        finding = found(alone.environment, "file system")
        assert list(alone.library.iterdir()) == []
    assert finding.result is Result.WARNING
    assert "takes its space twice" in finding.text


def test_a_volume_without_case_is_warned_about(alone: Site) -> None:
    with disks.without_case(alone.library):
        findings = findings_of(alone.environment, "file system")
    assert [finding for finding in findings if "upper from lower case" in finding.text]


def test_a_volume_without_symbolic_links_is_a_problem(alone: Site) -> None:
    with disks.without_links(alone.library):
        finding = problem(alone, "file system")
    assert "no symbolic links" in finding.text
    assert "ext4" in finding.remedy


def test_a_volume_of_two_file_systems_is_a_problem(alone: Site) -> None:
    with disks.disk("ext4", alone.store.items):
        assert "another file system" in problem(alone, "file system").text


def test_half_of_the_library_gone_is_named_before_a_sync_refuses_it(library: Path, site: Site) -> None:
    for name in ("gamma", "delta"):
        fake_template(library / name, disk_bytes=1000)
    site.sync()
    for name in ("alpha", "beta", "gamma"):
        shutil.rmtree(library / name)
    assert "3 of 4 items are gone" in problem(site, "plan").text


def test_items_that_could_not_be_published_and_globs_that_choose_nothing(library: Path, site: Site) -> None:
    (library / "_items").mkdir()
    (library / "_items" / "disk.vmdk").write_bytes(b"x")
    findings = findings_of(site.environment, "plan")
    assert [finding.result for finding in findings] == [Result.WARNING, Result.OK]
    assert "_items cannot be published" in findings[0].text
    shutil.rmtree(library / "_items")
    assert "none of the server's 2 items is chosen" in found(site.environment | {"SYNC_INCLUDE": "alhpa"}, "plan").text


# ---------------------------------------------------------------- the web site


def test_a_port_that_another_program_has(alone: Site) -> None:
    with socket.create_server(("", int(alone.environment["HTTP_PORT"]))):
        finding = problem(alone, "ports")
    assert f"port {alone.environment['HTTP_PORT']} (HTTP) is taken by another program" in finding.text


def test_a_port_that_this_account_may_not_have(alone: Site) -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 1:
        pytest.skip("every account may have every port here")
    alone.environment["HTTP_PORT"] = "1"
    finding = as_somebody(alone)["ports"]
    assert "uid 0 may not listen on port 1 (HTTP)" in finding.text
    assert "NET_BIND_SERVICE" in finding.remedy


def test_a_program_that_hangs_and_a_web_server_that_is_not_there(alone: Site) -> None:
    alive = heartbeat(alone.settings())
    alive.parent.mkdir(parents=True)
    alive.touch()
    assert "does not listen on port" in problem(alone, "ports").text
    assert "no certificate for localhost yet" in problem(alone, "certificate", TLS_NAME="localhost").text
    os.utime(alive, (0, 0))
    assert "no sign of life" in problem(alone, "clr run").text


def test_a_site_that_cannot_be_reached_under_its_name(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_checks, "CONNECT_SECONDS", 1.0)
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda _host, *words, **more: real("192.0.2.1", *words, **more))
    site.environment |= {"TLS_NAME": "site.example.com", "TLS_INTERNAL": "true"}
    with running(site):
        wait_until(lambda: synced(site), 60, "the end of the first sync")
        finding = found(site.environment | {"SYNC_PEER": ""}, "subscriber")
    assert finding.result is Result.WARNING
    assert "https://site.example.com" in finding.text and "cannot be reached from here" in finding.text


def own(site: Site) -> dict[str, str]:
    """Settings for a certificate of the site's own, for a name that leads here."""
    return {"TLS_NAME": "localhost", "TLS_CUSTOM_CERT": "true"}


def certificates(site: Site) -> Path:
    return site.home / "certs"


def test_an_expired_certificate(alone: Site) -> None:
    make_pair(certificates(alone), "localhost", days=0)
    assert "cert.pem expired on 2021-01-01" in problem(alone, "certificate", **own(alone)).text


def test_no_certificate_at_all_and_one_without_its_key(alone: Site, tmp_path: Path) -> None:
    assert "cert.pem is missing" in problem(alone, "certificate", **own(alone)).text
    make_pair(certificates(alone), "localhost")
    make_pair(tmp_path / "other", "localhost")
    shutil.copy(tmp_path / "other" / "key.pem", certificates(alone))
    assert "key.pem does not belong to cert.pem" in problem(alone, "certificate", **own(alone)).text


def test_a_certificate_for_another_name_and_one_that_ends_soon(alone: Site) -> None:
    make_pair(certificates(alone), NAME)
    finding = found(alone.environment | own(alone), "certificate")
    assert finding.result is Result.WARNING
    assert f"is not for TLS_NAME=localhost but for {NAME}" in finding.text
    make_pair(certificates(alone), "localhost", days=3)
    assert "expires on" in found(alone.environment | own(alone), "certificate").text
    make_pair(certificates(alone), "localhost")
    assert found(alone.environment | own(alone), "certificate").result is Result.OK


def issue(folder: Path, name: str, issuer: Path | None) -> Path:
    """Make a certificate authority, or with an issuer a certificate of it; returns its folder."""
    folder.mkdir(parents=True)
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    argv += ["-subj", f"/CN={name}", "-days", "90", "-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem"]
    if name == "localhost":
        argv += ["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"]
    if issuer:
        argv += ["-CA", f"{issuer}/cert.pem", "-CAkey", f"{issuer}/key.pem"]
    if subprocess.run(argv, capture_output=True).returncode:  # OpenSSL before 3.1 cannot sign like this
        pytest.skip("openssl req knows no -CA here")
    return folder


def test_a_missing_and_a_broken_chain(alone: Site, tmp_path: Path) -> None:
    root = issue(tmp_path / "root", "Example Root", None)
    middle = issue(tmp_path / "middle", "Example Issuer", root)
    leaf = issue(certificates(alone), "localhost", middle)
    finding = found(alone.environment | own(alone), "certificate")
    assert finding.result is Result.WARNING
    assert "not the chain" in finding.text and "Example Issuer" in finding.text
    whole = (leaf / "cert.pem").read_text()
    (leaf / "cert.pem").write_text(whole + (root / "cert.pem").read_text())
    assert "do not form a chain" in found(alone.environment | own(alone), "certificate").text
    (leaf / "cert.pem").write_text(whole + (middle / "cert.pem").read_text())
    assert found(alone.environment | own(alone), "certificate").result is Result.OK


def test_names_without_an_address_and_of_other_hosts(alone: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    named = {"TLS_NAME": "no-such-site.invalid"}
    assert "TLS_NAME=no-such-site.invalid has no address" in problem(alone, "DNS", **named).text
    known = {"site.example.com": "192.0.2.1", "here.example.com": "127.0.0.1"}
    real = socket.getaddrinfo

    def lookup(host: str, *words: object, **options: object) -> object:
        return real(known.get(host, host), *words, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    finding = found(alone.environment | {"TLS_NAME": "site.example.com"}, "DNS")
    assert "192.0.2.1, none of which is this host's" in finding.text
    assert "this host itself" in found(alone.environment | {"TLS_NAME": "here.example.com"}, "DNS").text


@pytest.mark.parametrize("way", ["internal", "custom"])
def test_over_https_with_a_password_a_subscriber_is_content(site: Site, way: str) -> None:
    site.environment |= {"TLS_NAME": "localhost", "LIBRARY_PASSWORD": "geheim", f"TLS_{way.upper()}": "true"}
    if way == "custom":
        site.environment["TLS_CUSTOM_CERT"] = site.environment.pop("TLS_CUSTOM")
        make_pair(certificates(site), "localhost")
    with running(site):
        wait_until(lambda: synced(site), 60, "the end of the first sync")
        findings = [found(site.environment, name) for name in ("certificate", "subscriber")]
    assert [finding for finding in findings if finding.result is not Result.OK] == []
    assert "geheim" not in str(findings)


def test_a_library_that_a_subscriber_would_refuse(site: Site) -> None:
    with running(site):
        wait_until(lambda: synced(site), 60, "the end of the first sync")
        disk = next((site.library / "current" / "_items").rglob("alpha-disk1.vmdk"))
        os.truncate(disk, 1000)
        finding = problem(site, "subscriber")
    assert "has 1000 bytes where the manifest says" in finding.text


# ---------------------------------------------------------------- schedule, messages, history


def test_a_delay_that_is_longer_than_the_time_between_syncs(alone: Site) -> None:
    findings = examined(alone.environment | {"SYNC_SCHEDULE": "@hourly", "SYNC_DELAY": "true"})
    assert [finding.result for finding in findings if finding.check == "schedule"] == [Result.WARNING, Result.OK]


def test_a_service_that_apprise_does_not_know(alone: Site) -> None:
    finding = problem(alone, "messages", NOTIFY_URLS="nosuch://token-0815@example.com")
    assert "0815" not in finding.text


def test_how_it_went_until_now(library: Path, site: Site) -> None:
    site.sync()
    disk = library / "alpha" / "alpha-disk1.vmdk"
    good = disk.read_bytes()
    disk.write_bytes(b"broken")
    site.sync()
    assert "alpha is held" in found(site.environment, "history").text
    disk.write_bytes(good)
    with contextlib.suppress(Exception):
        site.sync(SYNC_PORT="1")
    findings = findings_of(site.environment, "history")
    assert "the last 1 syncs failed" in findings[0].text
    fake_template(library / "alpha", disk_bytes=200_000, revision=1)
    site.sync()
    roll_back(site.settings(), site.store, None)
    findings = findings_of(site.environment, "history")
    assert [finding for finding in findings if "clr rollback --release" in finding.remedy]
