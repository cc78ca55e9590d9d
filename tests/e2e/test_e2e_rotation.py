"""New keys for old ones, as docs/how-to/keys.md types it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.engine import docker, run
from support.server import wait_until
from support.templates import fake_template

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.engine import Pair


def test_a_sites_key_and_a_servers_host_keys_are_replaced(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(environment={"SYNC_RETRIES": "0"})
    fake_template(pair.templates / "one")
    pair.up()
    assert pair.wait_runs(1)[0]["result"] == "success"

    # The site's key: the new one is let in before the old one is taken away
    site = pair.client_data / "ssh"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "berlin", "-f", site / "new")
    (site / "new.pub").rename(pair.server_data / "ssh/berlin.pub")
    wait_until(lambda: "key berlin.pub: accepted for site berlin" in pair.logs("server"), 30, "the new key")
    (site / "id_syncer").rename(pair.folder / "old")
    (site / "new").rename(site / "id_syncer")
    pair.clr("sync")
    (pair.server_data / "ssh/site.pub").unlink()
    wait_until(lambda: "serve-library: site=berlin" in pair.logs("server"), 30, "the new key's session")
    options = ("-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes", "-o", "UserKnownHostsFile=/dev/null")
    old = (
        "ssh",
        "-F",
        "none",
        "-i",
        pair.folder / "old",
        "-p",
        str(pair.ssh_port),
        *options,
        f"syncer@{pair.address}",
        "true",
    )
    wait_until(lambda: "Permission denied" in run(*old, check=False).stderr, 30, "the old key to be shut out")

    # The host keys: a client that remembers the old ones refuses, until it is told
    before = pair.host_keys()
    for file in (pair.server_data / "hostkeys").iterdir():
        file.unlink()
    docker("restart", pair.name("server"))
    wait_until(lambda: len(pair.host_keys()) == 4, 60, "the new host keys")
    # The engine takes connections for the container before sshd listens in it
    ask = ("ssh-keyscan", "-p", str(pair.ssh_port), pair.address)
    wait_until(lambda: "ssh-ed25519" in run(*ask, check=False).stdout, 60, "sshd")
    refused = pair.clr("sync", check=False)
    assert any(fingerprint in refused for fingerprint in before), refused
    assert any(fingerprint in refused for fingerprint in pair.host_keys() - before), refused
    docker("exec", "--user", "31337", pair.name("client"), "rm", "/syncer/library/known_hosts")
    pair.clr("sync")
