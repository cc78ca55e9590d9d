"""What the compose files take away from the containers, and the accounts they still work with."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.engine import docker, run
from support.server import make_key, wait_until
from support.templates import fake_template

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.engine import Pair

NET_BIND_SERVICE = 1 << 10
CAPABILITIES = {
    "server": {"SETGID", "SETUID", "SYS_CHROOT"},
    "client": {"CHOWN", "DAC_READ_SEARCH", "NET_BIND_SERVICE", "SETGID", "SETUID"},
}


def processes(pair: Pair, role: str) -> dict[str, tuple[int, int]]:
    """Command lines of a container's processes, each with its uid and effective capabilities."""
    found = {}
    for line in run("docker", "top", pair.name(role), "-eo", "pid,args").stdout.splitlines()[1:]:
        pid, command = line.split(maxsplit=1)
        try:
            rows = Path(f"/proc/{pid}/status").read_text().splitlines()
        except FileNotFoundError:
            continue
        status = dict(row.split(":\t", 1) for row in rows if ":\t" in row)
        found[command] = int(status["Uid"].split()[0]), int(status["CapEff"], 16)
    return found


def test_the_client_keeps_one_capability_and_no_root(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    fake_template(pair.templates / "one")
    pair.up()
    pair.wait_runs(1)

    running = processes(pair, "client")
    for program in ("tini", "clr_client", "caddy"):
        assert any(program in command for command in running)
    for command, (uid, capabilities) in running.items():
        assert (uid, capabilities & ~NET_BIND_SERVICE) == (31337, 0), command


@pytest.mark.parametrize("role", ["server", "client"])
def test_nothing_outside_the_volumes_can_be_written(make_pair: Callable[..., Pair], role: str) -> None:
    pair = make_pair()
    fake_template(pair.templates / "one")
    pair.up(role)

    mounts = {"server": ("/syncer/library/x", "/home/syncer/.ssh/x"), "client": ("/syncer/.ssh/x", "/etc/caddycerts/x")}
    for path in ("/usr/bin/x", "/etc/x", "/x", "/usr/local/bin/clr", *mounts[role]):
        with pytest.raises(subprocess.CalledProcessError):
            pair.exec(role, "touch", path)
    host = pair.inspect(role)["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert set(host["CapAdd"]) == CAPABILITIES[role]
    assert not host["Privileged"]
    assert any(option.startswith("no-new-privileges") for option in host["SecurityOpt"])
    assert host["PidsLimit"] > 0
    assert host["LogConfig"]["Config"]["max-size"]


def test_a_client_of_a_random_uid_in_group_0_syncs_and_serves(make_pair: Callable[..., Pair]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give folders to another account")
    pair = make_pair(service={"user": "1000650000:0", "cap_drop": ["ALL"]})
    fake_template(pair.templates / "one")
    for folder in ("library", "caddy", "ssh"):
        os.chown(pair.client_data / folder, 1000650000, 0)
    os.chown(pair.client_data / "ssh/id_syncer", 1000650000, 0)

    pair.up()

    assert pair.wait_runs(1)[0]["result"] == "success"
    assert {uid for uid, _ in processes(pair, "client").values()} == {1000650000}
    assert b'"vcspVersion"' in pair.fetch("lib.json")
    pair.clr("check", "http://localhost/lib.json", "--full")
    pair.wait_healthy()


def test_a_client_says_what_its_account_cannot_use(make_pair: Callable[..., Pair]) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs folders that belong to root")
    pair = make_pair(service={"user": "1000:1000"})
    fake_template(pair.templates / "one")

    pair.up("client")

    wait_until(lambda: "/syncer/library: uid 1000 cannot write there" in pair.logs("client"), 30, "the line")
    assert "id_syncer: uid 1000 cannot read it" in pair.logs("client")


def test_another_uid_can_be_the_account(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(environment={"SYNCER_UID": "99", "SYNCER_GID": "100"})
    fake_template(pair.templates / "one")

    pair.up()

    assert pair.wait_runs(1)[0]["result"] == "success"
    assert pair.exec("client", "stat", "-c", "%u:%g", "/syncer/library/status.json").strip() == "99:100"


@pytest.mark.parametrize("uid", ["0", "root", "-1", "12345678901"])
def test_a_uid_that_cannot_be_is_refused_in_one_line(make_pair: Callable[..., Pair], uid: str) -> None:
    make_pair()
    done = run("docker", "run", "--rm", "-e", f"SYNCER_UID={uid}", "clr-e2e-client", "version", check=False)

    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert f"SYNCER_UID={uid}" in done.stderr


def test_a_key_with_windows_line_ends_owned_by_someone_else_is_used(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    fake_template(pair.templates / "one")
    key = pair.client_data / "ssh/id_syncer"
    text = key.read_bytes().rstrip().replace(b"\n", b"\r\n")
    key.write_bytes(text)
    key.chmod(0o644)
    if os.geteuid() == 0:
        key.chmod(0o600)
        os.chown(key, 1000, 1000)

    pair.up()

    assert pair.wait_runs(1)[0]["result"] == "success"
    assert key.read_bytes() == text


def test_a_missing_key_is_named_and_a_later_one_is_found_by_a_sync_by_hand(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(environment={"SYNC_RETRIES": "0"})
    fake_template(pair.templates / "one")
    key = pair.client_data / "ssh/id_syncer"
    hidden = key.rename(pair.folder / "id_syncer")

    pair.up()
    assert pair.wait_runs(1)[0]["result"] == "failed"
    assert "/syncer/.ssh: no private key" in pair.logs("client")

    hidden.rename(key)
    pair.clr("sync")
    assert pair.runs()[0]["result"] == "success"


def test_a_key_with_a_passphrase_is_named(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(environment={"SYNC_RETRIES": "0"})
    key = pair.client_data / "ssh/id_syncer"
    key.unlink()
    make_key(key, "-t", "ed25519", "-N", "secret passphrase")

    pair.up("client")

    wait_until(lambda: "locked with a passphrase" in pair.logs("client"), 30, "the line")


def test_a_container_without_the_right_to_change_accounts_says_so() -> None:
    done = run("docker", "run", "--rm", "--cap-drop", "ALL", "clr-e2e-client", "version", check=False)

    assert done.returncode == 3
    assert "SETUID" in done.stderr


def test_the_image_runs_with_plain_docker_run() -> None:
    assert "caddy" in docker("run", "--rm", "clr-e2e-client", "version").lower()


def test_nothing_but_memory_a_random_account_and_no_way_out_is_enough_for_a_client(
    make_pair: Callable[..., Pair],
) -> None:
    pair = make_pair()
    fake_template(pair.templates / "one")
    (pair.client_data / "ssh/id_syncer").chmod(0o644)
    pair.up("server")
    network, name = f"inside-{pair.id}", f"clr-inside-{pair.id}"
    docker("network", "create", "--internal", network)
    try:
        docker("network", "connect", network, pair.name("server"))
        memory = [word for place in ("/run", "/tmp", "/syncer/library", "/data") for word in ("--tmpfs", place)]
        locked = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", "1000650000:0")
        settings = (
            "-e",
            f"SYNC_PEER={pair.name('server')}",
            "-e",
            "SYNC_PORT=22",
            "-v",
            f"{pair.client_data}/ssh:/syncer/.ssh:ro",
        )
        docker("run", "-d", "--name", name, "--network", network, *locked, *memory, *settings, "clr-e2e-client")
        wait_until(lambda: "success: 1 added" in docker("logs", name), 60, "the first sync")
        docker("exec", name, "clr", "check", "http://localhost/lib.json", "--full")
        docker("exec", name, "clr", "healthcheck")
    finally:
        docker("rm", "-f", name, check=False)
        docker("network", "disconnect", "-f", network, pair.name("server"), check=False)
        docker("network", "rm", network, check=False)
